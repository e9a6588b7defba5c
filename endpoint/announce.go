package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weirnet/weir/bpf"
	"github.com/weirnet/weir/policy"
)

// announcedFor is how long an announcement counts without the pod's object
// telling its address.
const announcedFor = 10 * time.Minute

// Announcement is what a CNI plugin knows of a pod whose interface was made just
// now, before its object tells.
type Announcement struct {
	Pod       policy.PodName // UID may be empty
	Addresses []netip.Addr
}

// announcements are by address: those of a pod that is made anew take the place
// of what was said of them before.
type announcements map[netip.Addr]*announcement

type announcement struct {
	Announcement
	at time.Time
}

// behind finds the pod that was announced for a veth, with its addresses.
func (n announcements) behind(v Veth) (*policy.PodName, []netip.Addr) {
	for _, a := range v.Addresses {
		if said := n[a.Unmap()]; said != nil {
			return &said.Pod, said.Addresses
		}
	}
	return nil, nil
}

func (n announcements) forget(pod policy.PodName) {
	for a, said := range n {
		if said.Pod.Namespace == pod.Namespace && said.Pod.Name == pod.Name && (pod.UID == "" || said.Pod.UID == pod.UID) {
			delete(n, a)
		}
	}
}

// expire drops what objects tell by now, or nobody will.
func (n announcements) expire(now time.Time, known map[netip.Addr]*policy.Endpoint) {
	for a, said := range n {
		if e := known[a]; e != nil && e.Namespace == said.Pod.Namespace && e.Name == said.Pod.Name && !e.Deleting || now.Sub(said.at) > announcedFor {
			delete(n, a)
		}
	}
}

// announceCall is one that waits in Announce.
type announceCall struct {
	Announcement
	gone   bool // the pod goes
	answer chan error
}

// Announce tells whose interface has these addresses, and returns when the pod's
// own policy is in force there. If ctx ends before, the error says what stands in
// the way; what was announced stays so.
func (m *Manager) Announce(ctx context.Context, a Announcement) error {
	return m.announce(ctx, a, false)
}

// Withdraw takes back what was announced of a pod.
func (m *Manager) Withdraw(ctx context.Context, pod policy.PodName) error {
	return m.announce(ctx, Announcement{Pod: pod}, true)
}

func (m *Manager) announce(ctx context.Context, a Announcement, gone bool) error {
	if !gone && len(a.Addresses) == 0 {
		return errors.New("a pod is announced by its addresses, and there are none")
	}
	for i := range a.Addresses {
		a.Addresses[i] = a.Addresses[i].Unmap()
	}
	c := announceCall{a, gone, make(chan error, 1)}
	select {
	case m.announces <- c:
	case <-ctx.Done():
		return errors.New("the agent is busy")
	}
	select {
	case err := <-c.answer:
		return err
	case <-ctx.Done():
		m.mu.Lock()
		defer m.mu.Unlock()
		if why := m.unannounced[a.Pod]; why != "" {
			return errors.New(why)
		}
		return ctx.Err()
	}
}

// hear takes what somebody announces. What becomes of it is answered later.
func (m *Manager) hear(c announceCall) {
	if c.gone {
		m.announced.forget(c.Pod)
		c.answer <- nil
		return
	}
	m.announced.forget(c.Pod)
	now := time.Now()
	for _, a := range c.Addresses {
		m.announced[a] = &announcement{c.Announcement, now}
	}
	m.announceCalls = append(m.announceCalls, c)
	m.veths.Invalidate()
}

// answerAnnounced lets go of those whose pods are under their policy now.
func (m *Manager) answerAnnounced() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.unannounced)
	m.announceCalls = slices.DeleteFunc(m.announceCalls, func(c announceCall) bool {
		why := m.announcedWaits(c.Announcement)
		switch {
		case why == "":
			c.answer <- nil
		case m.announced[c.Addresses[0]] == nil:
			c.answer <- errors.New(why) // it is over
		default:
			m.unannounced[c.Pod] = why
			return false
		}
		return true
	})
}

// announcedWaits tells why a pod is not under its policy at its addresses; "" if
// it is.
func (m *Manager) announcedWaits(c Announcement) string {
	for _, a := range c.Addresses {
		row, there := m.r.endpoints.want[bpf.AddrOf(a)]
		if !there {
			return fmt.Sprintf("no veth of this node with the address %s behind it", a)
		}
		if e := m.r.pods[a]; e != nil && m.r.placed[a] == int(row.Ifindex) {
			if e.Namespace != c.Pod.Namespace || e.Name != c.Pod.Name {
				return fmt.Sprintf("%s is the address of pod %s/%s, as its object says", a, e.Namespace, e.Name)
			}
		} else if s := m.r.strangers[int(row.Ifindex)]; s == nil || s.guess == nil || !s.guess.Exact || s.told == nil || s.told.Pod == nil {
			return fmt.Sprintf("the object of pod %s is not known yet", c.Pod)
		}
		if why := m.r.unready(a, int(row.Ifindex), &policy.Endpoint{Policy: row.Policy}); why != "" {
			return why
		}
	}
	return ""
}
