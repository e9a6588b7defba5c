// Package kubelet tests what only a real kubelet and container runtime show: pods
// that send from their first instruction on, in clusters of both shapes (package
// cluster). It has no code but its tests and the program that their pods run.
package kubelet
