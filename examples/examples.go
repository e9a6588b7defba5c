// Package examples holds objects people have: a small shop that `weir demo`
// runs (shop/), and policies for common wishes, each a file to copy
// (policies/).
package examples

import "embed"

// Shop is the shop of the demo: its pods and its policies.
//
//go:embed shop/*.yaml
var Shop embed.FS
