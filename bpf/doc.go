// Package bpf holds the kernel programs that judge packets, and the typed Go
// handle on them and their tables.
package bpf
