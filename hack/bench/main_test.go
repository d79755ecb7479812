package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Time in which two calls are under way counts once, whatever the order they ended in.
func TestBusyCountsOverlapOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calls")
	require.NoError(t, os.WriteFile(path, []byte(`{"start":"2026-01-01T00:00:02Z","end":"2026-01-01T00:00:03Z"}
{"start":"2026-01-01T00:00:00Z","end":"2026-01-01T00:00:05Z"}
{"start":"2026-01-01T00:00:04Z","end":"2026-01-01T00:00:06Z"}
{"start":"2026-01-01T00:00:09Z","end":"2026-01-01T00:00:09.5Z"}
`), 0o600))
	seconds, err := busy(path)
	require.NoError(t, err)
	assert.Equal(t, 6.5, seconds)
	require.NoError(t, os.WriteFile(path, []byte("{\n"), 0o600))
	_, err = busy(path)
	assert.ErrorContains(t, err, path)
}

func TestProcessorSeesWork(t *testing.T) {
	if _, err := os.Stat("/proc/stat"); err != nil {
		t.Skipf("the time of processors is read from Linux' /proc: %v", err)
	}
	before := processor()
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); {
	}
	assert.GreaterOrEqual(t, processor()-before, 0.1)
}

func TestFigureTellsMedians(t *testing.T) {
	f := figure{measured: []measurement{{9, 1, 4, peaks{"bed": 5}, nil}, {2, 1.5, 1, peaks{"bed": 7, "pulumi": 1}, nil}, {4, 1, 2, nil, nil}, {6, 3, 3, nil, nil}}}
	f.conclude()
	assert.Equal(t, figure{Seconds: 5, Ours: 1.25, Engine: 3, Slowest: 9, Processor: 2.5, PeakMiB: peaks{"bed": 7, "pulumi": 1}, measured: f.measured}, f)
}

// A task lasts until its step says something else; what other steps say meanwhile does not end it.
func TestTasksOfARole(t *testing.T) {
	said := `{"time":"2026-01-01T00:00:00Z","step":"configure","kind":"started"}
{"time":"2026-01-01T00:00:01Z","step":"configure","kind":"updated","detail":"slurm : Run"}
{"time":"2026-01-01T00:00:02Z","step":"configure","kind":"updated","detail":"usernetes : Join"}
{"time":"2026-01-01T00:00:03Z","step":"boot","kind":"updated","detail":"usernetes : not a task"}
no event
{"time":"2026-01-01T00:00:07Z","step":"configure","kind":"updated","detail":"usernetes : Wait"}
{"time":"2026-01-01T00:00:07.5Z","step":"configure","kind":"done"}
{"time":"2026-01-01T00:00:09Z","step":"configure","kind":"done"}
`
	assert.Equal(t, map[string]float64{"Join": 5, "Wait": 0.5}, tasks([]byte(said), "usernetes : "))
}

func TestClustersTellMedians(t *testing.T) {
	c := clusters{measured: []float64{9, 2, 4}, tasks: map[string][]float64{"Join": {1, 5, 2}}}
	c.conclude()
	assert.Equal(t, []any{4.0, 9.0, map[string]float64{"Join": 2}}, []any{c.Ready, c.Slowest, c.Tasks})
}
