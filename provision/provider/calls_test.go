package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCallsAreTimedWhenAskedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calls")
	t.Setenv(CallsEnv, path)
	wrapped := timed(p.Provider{Cancel: func(context.Context) error { return nil }})
	for range 2 {
		ctx, answered := context.WithCancel(t.Context())
		require.NoError(t, wrapped.Cancel(ctx))
		answered()
	}
	require.EventuallyWithT(t, func(t *assert.CollectT) {
		data, _ := os.ReadFile(path) // not there yet
		lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
		assert.Len(t, lines, 2)
		for _, line := range lines {
			var c Call
			assert.NoError(t, json.Unmarshal(line, &c))
			assert.False(t, c.Start.IsZero() || c.End.Before(c.Start))
		}
	}, 10*time.Second, 10*time.Millisecond)
}
