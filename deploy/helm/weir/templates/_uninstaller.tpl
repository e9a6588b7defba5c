{{- define "weir.uninstaller" -}}
image: {{ include "weir.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args:
  {{- range .args }}
  - {{ . }}
  {{- end }}
  - --state={{ .root.Values.state }}
  - --pins=/sys/fs/bpf/weir
resources:
  requests: {cpu: 10m, memory: 32Mi}
securityContext:
  privileged: false
  allowPrivilegeEscalation: true # with added capabilities Kubernetes allows nothing else
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add:
      {{- include "weir.uninstallCapabilities" .root | nindent 6 }}
volumeMounts:
  - {name: run, mountPath: /run} # to remove the directory in it
  - {name: bpf, mountPath: /sys/fs/bpf}
{{- end -}}
