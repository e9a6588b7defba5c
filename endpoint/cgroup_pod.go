package endpoint

import "strings"

// podOfCgroup tells of which pod a process with these cgroups is, as
// /proc/PID/cgroup lists them, by its UID; "" if of none, or that is not clear.
//
//	0::/kubepods/burstable/podUID/CONTAINER
//	0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/...
func podOfCgroup(text string) (uid string) {
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(line, ":")
		_, path, _ := strings.Cut(rest, ":")
		is := podOfPath(strings.TrimSuffix(path, "\n"))
		if is != "" && uid != "" && is != uid {
			return ""
		}
		if is != "" {
			uid = is
		}
	}
	return uid
}

// podOfPath takes the outermost pod: what is further inside a pod may have made
// itself. A pod inside a container is one of another cluster.
func podOfPath(path string) string {
	for name := range strings.SplitSeq(path, "/") {
		name = strings.TrimSuffix(strings.TrimSuffix(name, ".slice"), ".scope")
		id := name
		if i := strings.LastIndexByte(name, '-'); i >= 0 {
			id = name[i+1:]
		}
		if len(id) == 64 && isHex(id) {
			return ""
		}
		rest, ok := strings.CutPrefix(name, "pod")
		if !ok {
			if _, rest, ok = strings.Cut(name, "-pod"); !ok {
				continue
			}
		}
		if uid := podUID(rest); uid != "" {
			return uid
		}
	}
	return ""
}

// podUID reads a UID as cgroups have it: systemd's with underscores. Static pods
// have a hash in its place.
func podUID(s string) string {
	s = strings.ReplaceAll(s, "_", "-")
	if len(s) == 32 && isHex(s) {
		return s
	}
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' || !isHex(strings.ReplaceAll(s, "-", "")) {
		return ""
	}
	return s
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}
