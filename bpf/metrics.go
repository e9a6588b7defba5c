package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/weirnet/weir/flow"
	"github.com/weirnet/weir/policy"
)

// Counter counts packets with one reason in one direction: every dropped
// packet, and the first of every flow that passed.
type Counter struct {
	Reason         flow.Reason
	Direction      policy.Direction
	Packets, Bytes uint64
}

// Counters reads the metrics, summed over the CPUs.
func (d *Datapath) Counters() ([]Counter, error) {
	var (
		out    []Counter
		key    datapathMetricKey
		perCPU []datapathMetric
		it     = d.objects.Metrics.Iterate()
	)
	for it.Next(&key, &perCPU) {
		c := Counter{Reason: flow.Reason(key.Reason), Direction: policy.Direction(key.Direction)}
		for _, m := range perCPU {
			c.Packets += m.Packets
			c.Bytes += m.Bytes
		}
		out = append(out, c)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read table metrics: %w", err)
	}
	return out, nil
}

// Lost counts events that were not sent.
type Lost struct {
	Limited uint64 // more drops at once than are told one by one
	Full    uint64 // the ring buffer was full
}

// LostEvents reads how many events were not sent, summed over the CPUs.
func (d *Datapath) LostEvents() (Lost, error) {
	var (
		perCPU []datapathBudget
		sum    Lost
	)
	if err := d.objects.Budget.Lookup(uint32(0), &perCPU); err != nil {
		return Lost{}, fmt.Errorf("read table budget: %w", err)
	}
	for _, b := range perCPU {
		sum.Limited += b.Limited
		sum.Full += b.Lost
	}
	return sum, nil
}

// Usage tells how full a table is.
type Usage struct {
	Table        string
	Entries, Max uint32
}

// Usages counts the entries of the tables that can fill up. It walks them, so
// it is for a person or a slow scrape.
func (d *Datapath) Usages() ([]Usage, error) {
	var out []Usage
	for _, t := range []struct {
		name string
		m    *ebpf.Map
	}{
		{"endpoints", d.objects.Endpoints}, {"ipcache", d.objects.Ipcache}, {"fqdn", d.objects.Fqdn},
		{"policies", d.objects.Policies}, {"policy", d.objects.datapathMaps.Policy},
		{"conns", d.objects.Conns}, {"numbers", d.objects.Numbers},
	} {
		n, err := countKeys(t.m)
		if err != nil {
			return nil, fmt.Errorf("count table %s: %w", t.name, err)
		}
		out = append(out, Usage{t.name, n, t.m.MaxEntries()})
	}
	return out, nil
}

func countKeys(m *ebpf.Map) (n uint32, err error) {
	var (
		key  = make([]byte, m.KeySize())
		prev any
	)
	// A key that vanishes sends the kernel back to the start: the count ends at
	// the size of the table at the latest.
	for n < m.MaxEntries() {
		err := m.NextKey(prev, &key)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		n++
		prev = append([]byte(nil), key...)
	}
	return n, nil
}
