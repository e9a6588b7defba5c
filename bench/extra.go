package main

import (
	"context"
)

// extra is a measurement that is not a load on targets in turn.
type extra struct {
	name    string
	measure func(context.Context, *stage) ([]figure, error)
}

func extras() []extra {
	return []extra{
		{"policy-change", changeFigures},
		{"idle", idleFigures},
		{"dns-names", namesFigures},
		{"dns-pairs", pairFigures},
		{"program-cost", programFigures},
		{"allocations", allocationFigures},
		{"replace", replaceFigures}, // last: the proxy is another one then
	}
}
