{{/* Generated from package kube by `make generate`. Do not edit. */}}
{{- define "weir.clusterRules" -}}
- apiGroups:
  - ""
  resources:
  - namespaces
  - nodes
  - pods
  - services
  verbs:
  - list
  - watch
- apiGroups:
  - discovery.k8s.io
  resources:
  - endpointslices
  verbs:
  - list
  - watch
- apiGroups:
  - networking.k8s.io
  resources:
  - networkpolicies
  verbs:
  - list
  - watch
- apiGroups:
  - cilium.io
  resources:
  - ciliumnetworkpolicies
  - ciliumclusterwidenetworkpolicies
  - ciliumcidrgroups
  verbs:
  - list
  - watch
- apiGroups:
  - apiextensions.k8s.io
  resourceNames:
  - ciliumnetworkpolicies.cilium.io
  - ciliumclusterwidenetworkpolicies.cilium.io
  - ciliumcidrgroups.cilium.io
  resources:
  - customresourcedefinitions
  verbs:
  - get
  - watch
- apiGroups:
  - cilium.io
  resources:
  - ciliumnetworkpolicies/status
  - ciliumclusterwidenetworkpolicies/status
  verbs:
  - patch
- apiGroups:
  - events.k8s.io
  resources:
  - events
  verbs:
  - create
{{- end -}}
{{- define "weir.namespaceRules" -}}
- apiGroups:
  - coordination.k8s.io
  resources:
  - leases
  verbs:
  - create
- apiGroups:
  - coordination.k8s.io
  resourceNames:
  - weir-conditions
  resources:
  - leases
  verbs:
  - get
  - update
  - watch
{{- end -}}
{{- define "weir.taintRules" -}}
- apiGroups:
  - ""
  resources:
  - nodes
  verbs:
  - get
  - patch
{{- end -}}
