package wlm

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// slow is a manager that takes its time to look.
type slow struct {
	desk
	cost time.Duration
}

func (s slow) ask(context.Context, ID) (Outcome, error) {
	time.Sleep(s.cost)
	return Outcome{State: Running}, nil
}

func TestLooksThatTakeLongAreFew(t *testing.T) {
	long := time.Now().Add(-time.Hour) // when the job was begun
	for look, least := range map[time.Duration]time.Duration{0: 10 * time.Millisecond, 30 * time.Millisecond: 300 * time.Millisecond} {
		w := waiter{desk: slow{cost: look}, timing: timing{poll: 10 * time.Millisecond}}
		_, err := w.ask(t.Context(), "1")
		require.NoError(t, err)
		start := time.Now()
		w.pause(t.Context(), long)
		assert.GreaterOrEqual(t, time.Since(start), least)
		assert.Less(t, time.Since(start), least+5*time.Second)
		start = time.Now()
		w.pause(t.Context(), time.Now())
		assert.Less(t, time.Since(start), 250*time.Millisecond, "a short job is over soon")
	}
}
