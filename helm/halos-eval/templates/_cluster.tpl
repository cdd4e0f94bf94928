{{/* The cluster file: the values, with the names of the objects that the chart creates. */}}
{{- define "halos-eval.cluster" -}}
{{- $kubernetes := deepCopy .Values.kubernetes -}}
{{- $_ := set $kubernetes "namespace" .Release.Namespace -}}
{{- $accounts := dict -}}
{{- range $class := list "fetch" "gpu" "judge" -}}
{{- $_ := set $accounts $class (include "halos-eval.serviceAccountName" (list $ $class)) -}}
{{- end -}}
{{- $_ := set $kubernetes "serviceAccounts" $accounts -}}
{{- $_ := set $kubernetes "codeServiceAccountName" (include "halos-eval.codeServiceAccountName" .) -}}
{{- $_ := set $kubernetes "volumes" (include "halos-eval.volumes" . | fromYaml) -}}
{{- if .Values.priorityClasses.create -}}
{{- range $priority := keys .Values.priorityClasses.values -}}
{{- $_ := set $kubernetes.priorityClasses $priority (include "halos-eval.name" (list $ $priority)) -}}
{{- end -}}
{{- end -}}
{{- dict "pools" .Values.pools "profiles" .Values.profiles "kubernetes" $kubernetes | toYaml -}}
{{- end -}}

{{/* Volumes: the claims, the suites and kubernetes.volumes. */}}
{{- define "halos-eval.volumes" -}}
{{- $volumes := dict "suites" (dict "mountPath" "/suites" "readOnly" true "configMap" (include "halos-eval.name" (list . "suites"))) -}}
{{- range $name, $claim := .Values.claims -}}
{{- if $claim.enabled -}}
{{- $source := dict "persistentVolumeClaim" (include "halos-eval.claimName" (list $ $name)) -}}
{{- $_ := set $volumes $name (merge $source (pick $claim "mountPath" "readOnly")) -}}
{{- end -}}
{{- end -}}
{{- range $name, $volume := .Values.kubernetes.volumes -}}
{{- if hasKey $volumes $name -}}
{{- fail (printf "volume %s is defined twice (kubernetes.volumes and claims). Set claims.%s.enabled=false, or rename the volume" $name $name) -}}
{{- end -}}
{{- $_ := set $volumes $name $volume -}}
{{- end -}}
{{- toYaml $volumes -}}
{{- end -}}
