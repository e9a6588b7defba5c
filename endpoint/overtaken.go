package endpoint

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// OvertakenPrograms tells where programs of others were found to run before
// Weir's on pods' interfaces: what they let pass was not judged.
type OvertakenPrograms struct {
	Count     int       `json:"count"`
	At        time.Time `json:"at"`        // noticed last
	Interface string    `json:"interface"` // where
	By        string    `json:"by"`        // what ran first there
	// Now says where it still is so, and what runs first: that could not be
	// overtaken.
	Now []string `json:"now,omitempty"`
}

// readOvertaken asks the kernel on which interfaces of pods something runs before
// our programs, and what.
func (r *realiser) readOvertaken() (map[int]string, error) {
	list, err := r.k.overtaken()
	if err != nil {
		return nil, fmt.Errorf("what runs before the programs: %w", err)
	}
	by := map[int]string{}
	for _, o := range list {
		if _, wanted := r.devices.want[uint32(o.Ifindex)]; wanted && r.attached[o.Ifindex] {
			by[o.Ifindex] = o.By
		}
	}
	return by, nil
}

// dropOvertaken returns the interfaces where something runs before our programs,
// and leaves them to attachAll, which puts ours first.
func (r *realiser) dropOvertaken() (map[int]string, error) {
	by, err := r.readOvertaken()
	for index := range by {
		delete(r.attached, index)
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
		name := m.r.veths[index].Name
		m.overtaken.Count++
		m.overtaken.At, m.overtaken.Interface, m.overtaken.By = time.Now(), name, before[index]
		m.metrics.overtaken.Inc()
		m.log.Error("another program runs before Weir's on a pod's interface: what that lets pass is not judged",
			"interface", name, "ifindex", index, "program", before[index], "helped", after[index] == "")
	}
	m.overtaken.Now = nil
	m.behind = map[int]bool{}
	for _, index := range slices.Sorted(maps.Keys(after)) {
		m.behind[index] = true
		m.overtaken.Now = append(m.overtaken.Now, m.r.veths[index].Name+": "+after[index])
	}
	m.metrics.behind.Set(float64(len(after)))
	return err
}
