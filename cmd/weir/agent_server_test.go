package main

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"
)

// TestServeAnswersWhatCameBefore: who was let in before the end is answered, also
// where the question comes only then; who idles keeps nobody waiting.
func TestServeAnswersWhatCameBefore(t *testing.T) {
	for _, keep := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
		go func() { ended <- serve(ctx, l, answer, keep, slog.New(slog.DiscardHandler)) }()
		ask := func(c net.Conn) {
			t.Helper()
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			r, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || r.StatusCode != http.StatusOK {
				t.Fatalf("kept alive %v: %v, %v", keep, r, err)
			}
			_ = r.Body.Close()
		}
		var open [2]net.Conn
		for i := range open {
			if open[i], err = net.Dial("tcp", l.Addr().String()); err != nil {
				t.Fatal(err)
			}
			defer open[i].Close()
		}
		ask(open[1]) // and it idles from then on, or is closed
		stop()
		time.Sleep(50 * time.Millisecond)
		began := time.Now()
		ask(open[0])
		if err := <-ended; err != nil || time.Since(began) > 900*time.Millisecond {
			t.Errorf("kept alive %v: ended after %v: %v", keep, time.Since(began), err)
		}
	}
}
