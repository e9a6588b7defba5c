package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weirnet/weir/policy/httprules"
)

// requestOf makes of a request in question what rules judge: the same checks
// and the same normal form as in the proxy.
func requestOf(r *HTTPRequest) (*httprules.Request, error) {
	switch {
	case !isToken(r.Method):
		return nil, fmt.Errorf("method %q is no token", r.Method)
	case r.Method == "CONNECT":
		return nil, errors.New("CONNECT is not let through where HTTP rules apply")
	case strings.ContainsFunc(r.Host, func(c rune) bool { return c <= ' ' || c >= 0x7f }):
		return nil, fmt.Errorf("host %q is no authority", r.Host)
	}
	path := r.Path
	if path == "" {
		return nil, errors.New("it has no path")
	}
	if scheme, rest, ok := strings.Cut(path, "://"); ok && !strings.HasPrefix(path, "/") {
		// Absolute form: it goes on in origin form if its authority is the host.
		i := strings.IndexAny(rest, "/?")
		if i < 0 {
			i = len(rest)
		}
		if !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") || !strings.EqualFold(rest[:i], r.Host) {
			return nil, errors.New("the target's authority is not the host")
		}
		if path = rest[i:]; !strings.HasPrefix(path, "/") {
			path = "/" + path
		}
	}
	normal, err := httprules.NormalizePath(nil, []byte(path))
	if err != nil {
		return nil, err
	}
	out := &httprules.Request{Method: []byte(r.Method), Path: normal, Host: []byte(r.Host)}
	for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
		if !isToken(name) {
			return nil, fmt.Errorf("header name %q is no token", name)
		}
		for _, v := range r.Headers[name] {
			if strings.ContainsAny(v, "\x00\r\n") {
				return nil, fmt.Errorf("header %s: a line break or NUL in the value", name)
			}
			out.Headers = append(out.Headers, httprules.Header{Name: []byte(name), Value: []byte(strings.Trim(v, " \t"))})
		}
	}
	return out, nil
}

func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool {
		return c <= ' ' || c >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, c)
	})
}
