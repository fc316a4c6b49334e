{{/* Labels of every object. Takes {root, name, component}; component may be absent. */}}
{{- define "orderflow-backing.labels" -}}
{{ include "orderflow-backing.selector" . }}
app.kubernetes.io/part-of: orderflow
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/*
Labels that select pods, and the only labels of the pods. They cannot be changed later, and a label that changed with each
version of the chart would restart the pods.
*/}}
{{- define "orderflow-backing.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* REGISTRY/REPOSITORY:TAG of an image of the values. */}}
{{- define "orderflow-backing.image" -}}
{{- with .registry }}{{ . }}/{{ end }}{{ .repository }}:{{ .tag }}
{{- end -}}
