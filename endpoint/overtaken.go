package endpoint

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// OvertakenPrograms tells where programs of others were found to run before
// Weir's, on pods' interfaces or the node's own: what they let pass was not judged.
type OvertakenPrograms struct {
	Count     int       `json:"count"`
	At        time.Time `json:"at"`        // noticed last
	Interface string    `json:"interface"` // where
	By        string    `json:"by"`        // what ran first there
	// Now says where it still is so, and what runs first: that could not be
	// overtaken.
	Now []string `json:"now,omitempty"`
}

// readOvertaken asks the kernel on which interfaces something runs before our
// programs, and what.
func (r *realiser) readOvertaken() (map[int]string, error) {
	list, err := r.k.overtaken()
	if err != nil {
		return nil, fmt.Errorf("what runs before the programs: %w", err)
	}
	by := map[int]string{}
	for _, o := range list {
		_, pod := r.devices.want[uint32(o.Ifindex)]
		_, own := r.host.devices[o.Ifindex]
		if pod && r.attached[o.Ifindex] || own && r.host.want.Policy != 0 && r.host.attached[o.Ifindex] {
			by[o.Ifindex] = o.By
		}
	}
	return by, nil
}

// dropOvertaken returns the interfaces where something runs before our programs,
// and leaves them to attachAll and the host's enforce, which put ours first.
func (r *realiser) dropOvertaken() (map[int]string, error) {
	by, err := r.readOvertaken()
	for index := range by {
		delete(r.attached, index)
		if _, own := r.host.devices[index]; own {
			r.host.attached[index] = false
		}
	}
	return by, err
}

// noteOvertaken tells of what dropOvertaken found, and what has become of it since.
func (m *Manager) noteOvertaken(before map[int]string) error {
	var err error
	after := map[int]string{}
	if len(before) > 0 {
		after, err = m.r.readOvertaken()
	}
	for _, index := range slices.Sorted(maps.Keys(before)) {
		if m.behind[index] {
			continue // as it was
		}
		name := m.r.nameOf(index)
		m.overtaken.Count++
		m.overtaken.At, m.overtaken.Interface, m.overtaken.By = time.Now(), name, before[index]
		m.metrics.overtaken.Inc()
		m.log.Error("another program runs before Weir's on an interface: what that lets pass is not judged",
			"interface", name, "ifindex", index, "program", before[index], "helped", after[index] == "")
	}
	m.overtaken.Now = nil
	m.behind = map[int]bool{}
	for _, index := range slices.Sorted(maps.Keys(after)) {
		m.behind[index] = true
		m.overtaken.Now = append(m.overtaken.Now, m.r.nameOf(index)+": "+after[index])
	}
	m.metrics.behind.Set(float64(len(after)))
	return err
}

// nameOf is the name of a pod's veth, or of an interface of the node.
func (r *realiser) nameOf(index int) string {
	if name := r.host.devices[index]; name != "" {
		return name
	}
	return r.veths[index].Name
}
