package remote

import (
	"testing"
	"time"
)

// SetSilence changes how often a node is asked whether it is there, and how long it may take to answer.
func SetSilence(t *testing.T, every, most time.Duration) {
	e, m := askEvery, silence
	t.Cleanup(func() { askEvery, silence = e, m })
	askEvery, silence = every, most
}
