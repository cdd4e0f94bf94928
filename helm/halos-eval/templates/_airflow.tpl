{{/* Values for Airflow's official chart: whatever must agree with this release. */}}
{{- define "halos-eval.airflowValues" -}}
{{- $volumes := include "halos-eval.volumes" . | fromYaml -}}
{{- $checkpoints := get $volumes "checkpoints" -}}
{{- $files := "/etc/halos-eval" -}}
{{- $settings := dict "HALOS_EVAL_STORE" .Values.airflow.store "HALOS_EVAL_SUITES" $volumes.suites.mountPath -}}
{{- $_ := set $settings "HALOS_EVAL_CLUSTER" (printf "%s/cluster.yaml" $files) -}}
{{- $_ := set $settings "HALOS_EVAL_POLICY" (printf "%s/policy.yaml" $files) -}}
{{- if $checkpoints -}}
{{- $_ := set $settings "HALOS_EVAL_CHECKPOINTS" $checkpoints.mountPath -}}
{{- end -}}
{{- $secrets := dict -}}
{{- range $name, $secret := .Values.kubernetes.secrets -}}
{{- if hasPrefix "AWS_" $name }}{{ $_ := set $secrets $name $secret }}{{ end -}}
{{- end -}}
{{- /* The ConfigMap of the certificate authority that AWS_CA_BUNDLE names: Airflow gets that variable, too. */ -}}
{{- $authorities := dict -}}
{{- range $name, $volume := .Values.kubernetes.volumes -}}
{{- if and $volume.configMap (hasPrefix (printf "%s/" $volume.mountPath) (get $.Values.kubernetes.environment "AWS_CA_BUNDLE")) -}}
{{- $_ := set $authorities $name $volume -}}
{{- end -}}
{{- end -}}
images:
  airflow:
    repository: {{ required "airflow.image.repository is missing; expected the image of Airflow, with airflow.store" .Values.airflow.image.repository }}
    tag: {{ required "airflow.image.tag is missing; expected the tag of Airflow's image" .Values.airflow.image.tag | quote }}
    pullPolicy: {{ .Values.kubernetes.imagePullPolicy }}
env:
  {{- range $name, $value := merge (deepCopy .Values.airflow.environment) $settings }}
  - {name: {{ $name }}, value: {{ $value | replace "$" "$$" | quote }}}
  {{- end }}
  # The tasks `plan` and `verdict` read the store, as the stages do.
  {{- range $name, $value := .Values.kubernetes.environment }}
  {{- if and (hasPrefix "AWS_" $name) (not (hasKey $.Values.kubernetes.secrets $name)) (not (hasKey $.Values.airflow.environment $name)) }}
  - {name: {{ $name }}, value: {{ $value | replace "$" "$$" | quote }}}
  {{- end }}
  {{- end }}
secret:
  {{- range $name, $secret := $secrets }}
  - {envName: {{ $name }}, secretName: {{ $secret.name }}, secretKey: {{ $secret.key }}}
  {{- else }} []
  {{- end }}
# All components of Airflow need the cluster file, because a DAG with pods differs from a DAG with processes.
volumes:
  - name: halos-eval-cluster
    configMap: {name: {{ include "halos-eval.name" (list . "cluster") }}}
  {{- range $name, $volume := $authorities }}
  - name: {{ $name }}
    configMap: {name: {{ $volume.configMap }}}
  {{- end }}
volumeMounts:
  - {name: halos-eval-cluster, mountPath: {{ $files }}, readOnly: true}
  {{- range $name, $volume := $authorities }}
  - {name: {{ $name }}, mountPath: {{ $volume.mountPath }}, readOnly: true}
  {{- end }}
scheduler:
  # LocalExecutor runs the tasks here, and they read suites and checkpoints.
  extraVolumes:
    - name: halos-eval-suites
      configMap: {name: {{ include "halos-eval.name" (list . "suites") }}}
    {{- with $checkpoints }}
    - name: halos-eval-checkpoints
      {{- if .persistentVolumeClaim }}
      persistentVolumeClaim: {claimName: {{ .persistentVolumeClaim }}, readOnly: true}
      {{- else if .hostPath }}
      hostPath: {path: {{ .hostPath }}}
      {{- else }}
      {{- fail "volume checkpoints is neither a claim nor a hostPath; Airflow cannot mount it. Use a claim" }}
      {{- end }}
    {{- end }}
  extraVolumeMounts:
    - {name: halos-eval-suites, mountPath: {{ $volumes.suites.mountPath }}, readOnly: true}
    {{- with $checkpoints }}
    - {name: halos-eval-checkpoints, mountPath: {{ .mountPath }}, readOnly: true}
    {{- end }}
{{- end -}}
