{{/*
Without any one of them something fails: a test of make e2e takes each away. Those
of "fallback" are needed only where nodes have no user namespaces.
*/}}
{{- define "weir.agentCapabilities" -}}
- NET_ADMIN # attach programs to interfaces, make the proxy's
- NET_BROADCAST # hear of addresses in pods' network namespaces
- SYS_ADMIN # look into the network namespaces of pods and of the proxy; it includes BPF and PERFMON
{{- if ne .Values.proxy.userNamespace "always" }}
- KILL # fallback: end a proxy that hangs, which is another user
{{- end }}
{{- end -}}

{{- define "weir.proxyCapabilities" -}}
- SETGID # be nobody in there
- SETUID
- SYS_ADMIN # make the proxy's namespaces
- SYS_CHROOT # its empty root: only with this does RuntimeDefault let chroot(2) pass
{{- if ne .Values.proxy.userNamespace "always" }}
- KILL # fallback: end it
- NET_ADMIN # fallback: what it keeps, and would have in its user namespace
- NET_BIND_SERVICE # fallback: likewise
- SETPCAP # fallback: give up all else
{{- end }}
{{- end -}}

{{- define "weir.uninstallCapabilities" -}}
- BPF # find programs by their links
- NET_ADMIN # take them off interfaces, remove the proxy's
{{- end -}}
