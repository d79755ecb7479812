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
	f := figure{measured: []measurement{{9, 1, 4, peaks{"bed": 5}}, {2, 1.5, 1, peaks{"bed": 7, "pulumi": 1}}, {4, 1, 2, nil}, {6, 3, 3, nil}}}
	f.conclude()
	assert.Equal(t, figure{Seconds: 5, Ours: 1.25, Engine: 3, Slowest: 9, Processor: 2.5, PeakMiB: peaks{"bed": 7, "pulumi": 1}, measured: f.measured}, f)
}
