{{/* Names and parts that several manifests share. */}}

{{- define "orderflow-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* Name of all objects and of the Lease, unique among the releases in a namespace. Short enough for a suffix. */}}
{{- define "orderflow-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "orderflow-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "orderflow-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Pods of the release, including those of its hooks. A Deployment's selector is immutable: add nothing. */}}
{{- define "orderflow-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "orderflow-operator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "orderflow-operator.labels" -}}
{{ include "orderflow-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: orderflow
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* The watched namespaces, in words. */}}
{{- define "orderflow-operator.watches" -}}
{{- if .Values.allNamespaces }}all namespaces{{ else }}namespace {{ include "orderflow-operator.watchedNamespace" . }}{{ end }}
{{- end }}

{{- define "orderflow-operator.watchedNamespace" -}}
{{- default .Release.Namespace .Values.watchNamespace }}
{{- end }}

{{/* The other owner of an object that belongs to one release only: (dict "live" (lookup …) "context" $). Helm would refuse it
as well, but with a message about annotations. */}}
{{- define "orderflow-operator.otherRelease" -}}
{{- if .live }}
{{- $release := dig "metadata" "annotations" "meta.helm.sh/release-name" "" .live }}
{{- $namespace := dig "metadata" "annotations" "meta.helm.sh/release-namespace" "" .live }}
{{- if ne "Helm" (dig "metadata" "labels" "app.kubernetes.io/managed-by" "" .live) }}an installation without Helm
{{- else if not (and (eq $release .context.Release.Name) (eq $namespace .context.Release.Namespace)) }}release {{ $release }} of namespace {{ $namespace }}
{{- end }}
{{- end }}
{{- end }}

{{/* Reference of an image: (dict "image" .Values.image "context" $). */}}
{{- define "orderflow-operator.image" -}}
{{- $registry := default .context.Values.imageRegistry .image.registry }}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ default .context.Chart.AppVersion .image.tag }}{{ end }}
{{- end }}

{{/* Variables of all commands of the operator: the watched namespaces and its own objects. */}}
{{- define "orderflow-operator.clusterEnv" -}}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: LEASE_NAME
  value: {{ include "orderflow-operator.fullname" . | quote }}
{{- if .Values.allNamespaces }}
- name: ALL_NAMESPACES
  value: "true"
{{- else }}
- name: WATCH_NAMESPACE
  value: {{ include "orderflow-operator.watchedNamespace" . | quote }}
{{- end }}
{{- end }}

{{/* The common part of the pods of the operator and of the hooks. */}}
{{- define "orderflow-operator.podSpec" -}}
serviceAccountName: {{ include "orderflow-operator.serviceAccountName" . }}
automountServiceAccountToken: true
# Service links would add variables for each Service of the namespace, and one might override a setting.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  # A cloud's tokens are files that belong to this group.
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "orderflow-operator.container" -}}
image: {{ include "orderflow-operator.image" (dict "image" .Values.image "context" .) }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
