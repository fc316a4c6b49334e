{{/* Names and parts that several manifests share. */}}

{{- define "orderflow-monitoring.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* Start of the names of all objects, unique among the releases in a namespace. Short enough for a suffix. */}}
{{- define "orderflow-monitoring.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "orderflow-monitoring.labels" -}}
app.kubernetes.io/name: {{ include "orderflow-monitoring.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: orderflow
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The namespaces of a PodMonitor: .Values.podMonitors.pipelines or .operator. */}}
{{- define "orderflow-monitoring.namespaceSelector" -}}
{{- if .namespaces -}}
matchNames:
{{ toYaml .namespaces }}
{{- else -}}
any: true
{{- end }}
{{- end }}

{{/* A file with the links to this release's runbook: (dict "file" "files/rules.yaml" "context" $). */}}
{{- define "orderflow-monitoring.file" -}}
{{- .context.Files.Get .file | replace "https://orderflow.dev/runbook.html" .context.Values.runbookUrl }}
{{- end }}
