package wlm

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/scenarios/fakebed"
)

// On the fakes; TestBed and TestFlux in package e2e run the scenario throughput on the real ones.
func TestBurst(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (*fakebed.Bed, Manager){
		"slurm": func(t *testing.T) (*fakebed.Bed, Manager) { b, s := open(t); return b, s },
		"flux":  func(t *testing.T) (*fakebed.Bed, Manager) { b, f := openFlux(t); return b, f },
	} {
		t.Run(name, func(t *testing.T) {
			b, m := open(t) // what ends early has a name of its own: the nodes of both fakes are this host, and what it left is ended by name
			took, err := m.Burst(t.Context(), "many", 50)
			require.NoError(t, err)
			assert.Positive(t, took)
			assert.Less(t, took, time.Minute)
			assert.Contains(t, b.Read("jobs/many/args"), "=1-50\n")
			assert.NoFileExists(t, filepath.Join(b.Dir, "jobs/many/cancelled"))
			_, err = m.Burst(t.Context(), "single", 1)
			require.NoError(t, err)

			b.Write(t, "linger", "")
			ctx, cancel := context.WithCancelCause(t.Context())
			stop := errors.New("Ctrl-C")
			ended := make(chan error, 1)
			go func() {
				_, err := m.Burst(ctx, name+"-endless", 50)
				ended <- err
			}()
			require.Eventually(t, func() bool { return b.Read("jobs/"+name+"-endless/args") != "" }, 10*time.Second, 10*time.Millisecond)
			cancel(stop)
			err = <-ended
			require.ErrorIs(t, err, stop)
			assert.FileExists(t, filepath.Join(b.Dir, "jobs", name+"-endless", "cancelled"), "no job is left")

			b.Write(t, "refuse", "Invalid job array specification\n")
			_, err = m.Burst(t.Context(), name+"-refused", 50)
			require.ErrorContains(t, err, "Invalid job array specification")
			assert.NotContains(t, err.Error(), "Ctrl-C")
		})
	}
}
