package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// Announcement is what the agent is told of a pod, as the body of a POST to
// PathAnnounce (it answers when the pod's policy is in force, or after the time
// that the parameter "wait" says, with what stands in the way) or, without
// addresses, PathWithdraw, on its socket. An answer that is not 200 is the text of
// an error.
type Announcement struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	UID       string       `json:"uid,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// Where the agent is told.
const (
	PathAnnounce = "/pods/announce"
	PathWithdraw = "/pods/withdraw"
	pathReady    = "/readyz"
)

// errNoAgent says that nobody answers.
var errNoAgent = errors.New("no agent answers")

// agent is the one of this node.
type agent struct{ socket string }

func (a agent) announce(ctx context.Context, said *Announcement) error {
	path := PathAnnounce
	if end, ok := ctx.Deadline(); ok {
		// A little earlier than the caller gives up: the answer says why.
		path += "?wait=" + (time.Until(end) * 9 / 10).String()
	}
	return a.ask(ctx, http.MethodPost, path, said)
}

func (a agent) withdraw(ctx context.Context, said *Announcement) error {
	return a.ask(ctx, http.MethodPost, PathWithdraw, said)
}

func (a agent) ready(ctx context.Context) error {
	err := a.ask(ctx, http.MethodGet, pathReady, nil)
	if err != nil && !errors.Is(err, errNoAgent) {
		return nil // there is one, and pods wait for what it does
	}
	return err
}

func (a agent) ask(ctx context.Context, method, path string, said *Announcement) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", a.socket)
		},
	}}
	var body bytes.Buffer
	if said != nil {
		if err := json.NewEncoder(&body).Encode(said); err != nil {
			return fmt.Errorf("tell the agent: %w", err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, &body)
	if err != nil {
		return fmt.Errorf("tell the agent: %w", err)
	}
	resp, err := client.Do(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w at %s", errNoAgent, a.socket)
	case errors.Is(err, context.DeadlineExceeded):
		return errors.New("the agent does not say that it is")
	case err != nil:
		return fmt.Errorf("tell the agent: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096)) // best effort: it is an error's text
	return errors.New(strings.TrimSpace(string(text)))
}
