{{/* Chart name, for labels. */}}
{{- define "poolfleet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of the chart's objects: the release's name, with the chart's behind it unless that says it already. */}}
{{- define "poolfleet.fullname" -}}
{{- $name := include "poolfleet.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What selects the operator's pods. Immutable in a Deployment: never add to it. */}}
{{- define "poolfleet.selectorLabels" -}}
app.kubernetes.io/name: {{ include "poolfleet.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Labels of every object. The user's are merged below the chart's own, so that no selector can be broken. */}}
{{- define "poolfleet.labels" -}}
{{- $own := fromYaml (include "poolfleet.selectorLabels" .) }}
{{- $own = set $own "app.kubernetes.io/version" .Chart.AppVersion }}
{{- $own = set $own "app.kubernetes.io/managed-by" .Release.Service }}
{{- $own = set $own "app.kubernetes.io/part-of" "poolfleet" }}
{{- $own = set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63) }}
{{- toYaml (merge $own .Values.commonLabels) }}
{{- end }}

{{/* metadata.labels and metadata.annotations of an object: (list $ extraAnnotations extraLabels). */}}
{{- define "poolfleet.metadata" -}}
{{- $root := index . 0 }}
{{- $annotations := merge (dict) (index . 1) $root.Values.commonAnnotations -}}
labels:
  {{- toYaml (merge (fromYaml (include "poolfleet.labels" $root)) (index . 2)) | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "poolfleet.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "poolfleet.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Image reference: (list image default-tag). A digest wins over the tag. */}}
{{- define "poolfleet.imageReference" -}}
{{- $image := index . 0 }}
{{- $path := ternary $image.repository (printf "%s/%s" (trimSuffix "/" $image.registry) $image.repository) (empty $image.registry) }}
{{- if $image.digest }}
{{- printf "%s@%s" $path $image.digest }}
{{- else }}
{{- printf "%s:%s" $path (default (index . 1) $image.tag) }}
{{- end }}
{{- end }}

{{- define "poolfleet.image" -}}
{{- include "poolfleet.imageReference" (list .Values.image .Chart.AppVersion) }}
{{- end }}

{{- define "poolfleet.pgbouncerImage" -}}
{{- include "poolfleet.imageReference" (list .Values.fleet.image .Values.fleet.image.tag) }}
{{- end }}

{{/* Namespaces that the operator serves as a JSON list; empty with scope Cluster: all of them. */}}
{{- define "poolfleet.namespaces" -}}
{{- if eq .Values.rbac.scope "Namespaced" }}
{{- default (list .Release.Namespace) .Values.watchNamespaces | uniq | sortAlpha | toJson }}
{{- else if .Values.watchNamespaces }}
{{- fail "watchNamespaces needs rbac.scope=Namespaced: with scope Cluster the operator serves every namespace" }}
{{- else }}
{{- list | toJson }}
{{- end }}
{{- end }}

{{/* Leader election: one Lease in the release's namespace. */}}
{{- define "poolfleet.lease" -}}
{{- printf "%s-leader" (include "poolfleet.fullname" .) }}
{{- end }}

{{/* The file of --token-providers. */}}
{{- define "poolfleet.tokenProvidersFile" -}}
{{- dict "commands" .Values.tokenCommands "awsIam" .Values.awsIam | toPrettyJson }}
{{- end }}

{{/* Its ConfigMap: another content is another name, so that the operator's pods are rolled. */}}
{{- define "poolfleet.tokenProviders" -}}
{{- printf "%s-%s" (include "poolfleet.fullname" .) (include "poolfleet.tokenProvidersFile" . | sha256sum | trunc 10) }}
{{- end }}

{{/* As poolfleet.metadata, but the given labels win: for pods that the operator's selectors must not match. */}}
{{- define "poolfleet.hookMetadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- toYaml (merge (dict) (index . 2) (fromYaml (include "poolfleet.labels" $root))) | nindent 2 }}
annotations:
  {{- toYaml (merge (dict) (index . 1) $root.Values.commonAnnotations) | nindent 2 }}
{{- end }}
