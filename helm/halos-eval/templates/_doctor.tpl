{{/* (list . "judge" PROFILE ARGS) -> a pod that `helm test` starts, with what a stage's pod has. */}}
{{- define "halos-eval.doctor" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $class := eq $image "worker" | ternary "gpu" "judge" -}}
{{- $profile := index . 2 -}}
{{- $kubernetes := $root.Values.kubernetes -}}
{{- $volumes := include "halos-eval.volumes" $root | fromYaml -}}
{{- if ne $class "gpu" }}{{ $_ := unset $volumes "compile" }}{{ end -}}
{{- $own := dict "mountPath" "/tmp" "emptyDir" "1Gi" -}}
{{- range $volumes -}}
{{- if eq .mountPath "/tmp" }}{{ $own = dict }}{{ end -}}
{{- end -}}
{{- if $own }}{{ $_ := set $volumes "tmp" $own }}{{ end -}}
{{- $overrides := $profile.podOverrides | default dict -}}
{{- $spec := $overrides.spec | default dict -}}
{{- $base := dict -}}
{{- range $spec.containers }}{{ if eq .name "base" }}{{ $base = . }}{{ end }}{{ end -}}
{{- $security := dict "runAsNonRoot" true "runAsUser" 1000 "runAsGroup" 1000 "fsGroup" 1000 "fsGroupChangePolicy" "OnRootMismatch" "seccompProfile" (dict "type" "RuntimeDefault") -}}
{{- range $key, $value := $spec.securityContext -}}
{{- if kindIs "invalid" $value }}{{ $_ := unset $security $key }}{{ else }}{{ $_ := set $security $key $value }}{{ end -}}
{{- end -}}
{{- $gpus := dict -}}
{{- if $profile.gpus -}}
{{- $_ := set $gpus ($profile.gpuResource | default "nvidia.com/gpu") ($profile.gpus | toString) -}}
{{- end -}}
apiVersion: v1
kind: Pod
metadata:
  name: {{ include "halos-eval.name" (list $root (printf "doctor-%s" $image)) }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "halos-eval.labels" $root | nindent 4 }}
    {{- include "halos-eval.podLabels" $root | nindent 4 }}
    app.kubernetes.io/component: doctor
    halos-eval/network: egress
    halos-eval/trust: {{ $class }}
  annotations:
    helm.sh/hook: test
    helm.sh/hook-delete-policy: before-hook-creation
spec:
  restartPolicy: Never
  serviceAccountName: {{ include "halos-eval.serviceAccountName" (list $root $class) }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  securityContext: {{- toYaml $security | nindent 4 }}
  {{- with $spec.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $profile.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $profile.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $profile.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $kubernetes.imagePullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  containers:
    - name: doctor
      image: {{ get $kubernetes.images $image }}
      imagePullPolicy: {{ $kubernetes.imagePullPolicy }}
      args: {{- prepend (index . 3) "doctor" | toYaml | nindent 8 }}
      env:
        {{- range $name, $value := $kubernetes.environment }}
        {{- if not (hasKey $kubernetes.secrets $name) }}
        - {name: {{ $name }}, value: {{ $value | replace "$" "$$" | quote }}}
        {{- end }}
        {{- end }}
        {{- range $name, $secret := $kubernetes.secrets }}
        - name: {{ $name }}
          valueFrom: {secretKeyRef: {name: {{ $secret.name }}, key: {{ $secret.key }}}}
        {{- end }}
        {{- with $volumes.cache }}
        - {name: HF_HOME, value: {{ .mountPath }}}
        {{- end }}
        {{- with $volumes.compile }}
        - {name: HALOS_EVAL_COMPILE_CACHE, value: {{ .mountPath }}}
        {{- end }}
        {{- with $base.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      resources:
        limits: {{- merge (dict "memory" "1Gi") $gpus | toYaml | nindent 10 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
        {{- range $name, $volume := $volumes }}
        - {name: {{ $name }}, mountPath: {{ $volume.mountPath }}, readOnly: {{ and $volume.readOnly (ne $name "cache") | default false }}}
        {{- end }}
        {{- with $base.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- with $spec.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- range $name, $volume := $volumes }}
    - name: {{ $name }}
      {{- if $volume.persistentVolumeClaim }}
      persistentVolumeClaim: {claimName: {{ $volume.persistentVolumeClaim }}}
      {{- else if $volume.hostPath }}
      hostPath: {path: {{ $volume.hostPath }}}
      {{- else if $volume.configMap }}
      configMap: {name: {{ $volume.configMap }}}
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- end }}
{{- end -}}
