package redirect

import (
	"context"
	"time"
)

// lookEvery is how often a launcher without a proxy looks whether one is needed.
const lookEvery = 100 * time.Millisecond

// UntilNeeded returns when no proxy runs in the run directory: true, or false
// where ctx ended before.
func UntilNeeded(ctx context.Context, runDir string) (bool, error) {
	for {
		live, err := livePlaces(runDir)
		if err != nil {
			return false, err
		}
		if len(live) == 0 {
			return ctx.Err() == nil, nil
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-time.After(lookEvery):
		}
	}
}
