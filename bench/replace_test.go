package main

import "testing"

func TestCountDnsperf(t *testing.T) {
	const text = "  Queries sent:         50\n  Queries completed:    49 (98.00%)\n  Queries lost:         1 (2.00%)\n\n" +
		"  Response codes:       NOERROR 48 (97.96%), REFUSED 1 (2.04%)\n  Queries per second:   1234.5\n"
	if done, failed, err := countDnsperf([]byte(text)); done != 48 || failed != 2 || err != nil {
		t.Errorf("%d done, %d failed, %v", done, failed, err)
	}
	if done, failed, err := countDnsperf([]byte(text + "Connection Statistics:\n\n  Reconnections:        3 (75.00% of 4 connections)\n")); done != 48 || failed != 5 || err != nil {
		t.Errorf("with connections: %d done, %d failed, %v", done, failed, err)
	}
	if _, _, err := countDnsperf([]byte("  Queries sent: 50\n")); err == nil {
		t.Error("half of it was taken")
	}
}

func TestCountWrk(t *testing.T) {
	if done, failed, err := countWrk([]byte("Running\n{\"requests\":100,\"durationUs\":1,\"status\":7,\"failed\":2}\n")); done != 93 || failed != 9 || err != nil {
		t.Errorf("%d done, %d failed, %v", done, failed, err)
	}
	if _, _, err := countWrk([]byte("unable to connect")); err == nil {
		t.Error("nothing was taken")
	}
}
