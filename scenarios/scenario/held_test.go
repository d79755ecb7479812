package scenario_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/scenarios/fakebed"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

// userFlux is a Flux of the user's on a fake bed; TestFlux in package e2e has the real one.
func userFlux(t *testing.T) (*fakebed.Bed, *scenario.Nodes, wlm.Starter) {
	t.Helper()
	b := fakebed.Start(t, 2)
	b.Inventory.WorkloadManager, b.Inventory.FluxMode = "flux", "user"
	nodes, err := scenario.NewNodes(b.Inventory, b.Key)
	require.NoError(t, err)
	t.Cleanup(func() { _ = nodes.Close() })
	m, err := wlm.Open(b.Inventory, nodes)
	require.NoError(t, err)
	return b, nodes, m.(wlm.Starter)
}

// brokers are the processes of the nodes' brokers that live.
func brokers(t *testing.T, b *fakebed.Bed) (alive []int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(b.Dir, "jobs", "broker.*"))
	require.NoError(t, err)
	for _, f := range files {
		data, err := os.ReadFile(f)
		require.NoError(t, err)
		pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
		require.NoError(t, err)
		if syscall.Kill(pid, 0) == nil {
			alive = append(alive, pid)
		}
	}
	return alive
}

// gone asserts that nothing is left of the brokers on any node.
func gone(t *testing.T, b *fakebed.Bed) {
	t.Helper()
	require.Eventually(t, func() bool {
		left, _ := filepath.Glob(filepath.Join(b.Dir, "nodes/*/tmp/bedfellow-flux-*"))
		return len(brokers(t, b)) == 0 && len(left) == 0
	}, 10*time.Second, 20*time.Millisecond)
}

func TestUsersFluxEndsWithItsHolder(t *testing.T) {
	for name, end := range map[string]func(*scenario.Nodes, wlm.Starter) error{
		"closed":                   func(_ *scenario.Nodes, m wlm.Starter) error { return m.Close() },
		"its connections are gone": func(n *scenario.Nodes, _ wlm.Starter) error { return n.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			b, nodes, m := userFlux(t)
			require.NoError(t, m.Start(t.Context()))
			require.Eventually(t, func() bool { return len(brokers(t, b)) == 2 }, 5*time.Second, 20*time.Millisecond)
			assert.Equal(t, "a certificate\n", b.Read("jobs/curve.cert"))
			assert.Contains(t, b.Read("jobs/flux.toml"), `{ host = "fake-02", connect = "tcp://127.0.0.1:%p" }`)
			require.NoError(t, end(nodes, m))
			gone(t, b)
		})
	}
}

func TestUsersFluxThatDoesNotStartSaysWhy(t *testing.T) {
	b, _, m := userFlux(t)
	b.Write(t, "broker", "flux-broker: config file error\n")
	b.Write(t, "sinfo", "fake-02|down|0/0/1/1|\nfake-03|down|0/0/1/1|\n")
	err := m.Start(t.Context())
	require.ErrorContains(t, err, "flux-broker: config file error")
	assert.ErrorContains(t, err, "fake-02")
	gone(t, b)
}
