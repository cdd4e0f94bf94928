{{/* All names of objects. */}}

{{/* (list . "cluster") -> RELEASE-cluster, short enough for a label. */}}
{{- define "halos-eval.name" -}}
{{- $root := index . 0 -}}
{{- $release := $root.Release.Name -}}
{{- $base := contains $root.Chart.Name $release | ternary $release (printf "%s-%s" $release $root.Chart.Name) -}}
{{- printf "%s-%s" ($base | trunc 48 | trimSuffix "-") (index . 1) -}}
{{- end -}}

{{/* (list . "gpu") -> the service account of a class of pods: an existing one, or the chart's. */}}
{{- define "halos-eval.serviceAccountName" -}}
{{- $kubernetes := (index . 0).Values.kubernetes -}}
{{- get ($kubernetes.serviceAccounts | default dict) (index . 1) | default $kubernetes.serviceAccountName | default (include "halos-eval.name" .) -}}
{{- end -}}

{{/* The account of pods that execute a model's code: an existing one, or the chart's. */}}
{{- define "halos-eval.codeServiceAccountName" -}}
{{- .Values.kubernetes.codeServiceAccountName | default (include "halos-eval.name" (list . "code")) -}}
{{- end -}}

{{/* (list . "checkpoints") -> the name of that volume's claim. */}}
{{- define "halos-eval.claimName" -}}
{{- $claim := index (index . 0).Values.claims (index . 1) -}}
{{- $claim.existingClaim | default (include "halos-eval.name" .) -}}
{{- end -}}

{{- define "halos-eval.airflowNamespace" -}}
{{- .Values.airflow.namespace | default .Release.Namespace -}}
{{- end -}}

{{- define "halos-eval.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: halos-eval
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{/* Labels that all pods of stages have (halos_eval/orchestration/pod_spec.py), and no object of this chart. */}}
{{- define "halos-eval.podLabels" -}}
app.kubernetes.io/name: halos-eval
{{- end -}}
