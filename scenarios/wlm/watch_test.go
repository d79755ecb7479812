package wlm

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// slow is a manager that takes its time to look.
type slow struct {
	desk
	cost time.Duration
}

func (s slow) ask(ctx context.Context, _ ID) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cost)
	defer cancel()
	<-ctx.Done()
	return Outcome{State: Running}, nil
}

func TestLooksThatTakeLongAreFew(t *testing.T) {
	for look, want := range map[time.Duration]time.Duration{
		time.Millisecond: time.Second, 300 * time.Millisecond: 3 * time.Second, 5 * time.Second: longestPause,
	} {
		synctest.Test(t, func(t *testing.T) { // its clock stands still but for waits
			w := waiter{desk: slow{cost: look}, timing: timing{poll: time.Second}}
			_, err := w.ask(t.Context(), "1")
			require.NoError(t, err)
			start := time.Now()
			w.pause(t.Context(), start.Add(-time.Hour))
			assert.Equal(t, want, time.Since(start))
			start = time.Now()
			w.pause(t.Context(), start)
			assert.Equal(t, 50*time.Millisecond, time.Since(start), "a short job is over soon")
		})
	}
}
