// Package fqdn is the DNS names that were seen, the addresses they stand for,
// and for how long.
package fqdn
