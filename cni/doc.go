// Package cni is Weir as the last plugin of a CNI chain: it makes the start of a
// pod wait until the pod's policy is in force.
//
//	runtime --ADD--> bridge --> portmap --> weir --announce--> agent
//	        <------------------------------------- in force --
//
// It is not needed for a pod to be under policy from its first packet on: the
// agent guesses whose a new interface is (package policy, Stranger). With it
// there is nothing to guess, and none starts while no agent runs.
//
// It makes no interface and no address, and passes on what the plugins before it
// said as they said it. It follows the specification up to 1.1: ADD, CHECK, DEL,
// GC, STATUS and VERSION.
package cni
