// Package helm holds the chart of Weir, and what is rendered from it for those
// without Helm: deploy/weir.yaml, and deploy/uninstall.yaml, which takes Weir off
// the nodes.
//
//	deploy/helm/weir            the chart: values.yaml has the settings
//	  templates/_rules.tpl      rights of the agent, generated from package kube
//	deploy/helm/generate        go generate
//
// The custom resources are not part of it (see deploy/crds): removing a release
// must not remove users' policies with them.
package helm

//go:generate go run ./generate
