package sim_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/drivertest"
	"github.com/bedfellow/bedfellow/provision/sim"
)

func TestConformance(t *testing.T) {
	journal := filepath.Join(t.TempDir(), "sim.journal")
	open := func(t *testing.T) *sim.Driver {
		d, err := sim.Open(journal)
		require.NoError(t, err)
		return d
	}
	var last *sim.Driver
	drivertest.Suite{
		Open: func(t *testing.T) provision.Driver { last = open(t); return last },
		Kill: func(t *testing.T, name string) { require.NoError(t, last.Kill(name)) },
		Bed:  "conformance", Timeout: 10 * time.Second,
	}.Run(t)
}

func TestFaults(t *testing.T) {
	d, err := sim.Open("")
	require.NoError(t, err)
	m := provision.Machine{Name: "x-01", Owner: provision.Owner{Bed: "x"}}
	require.NoError(t, d.Inject(m.Name, sim.Fault{Op: "create", Times: 1, Fail: true}, sim.Fault{Op: "create", Times: 1, Half: true}))

	_, err = d.Create(t.Context(), m)
	require.ErrorContains(t, err, "failed on request")
	_, err = d.Read(t.Context(), m.Name)
	require.ErrorIs(t, err, provision.ErrNotFound)

	_, err = d.Create(t.Context(), m)
	require.ErrorContains(t, err, "half made")
	st, err := d.Read(t.Context(), m.Name)
	require.NoError(t, err)
	require.Equal(t, provision.Broken, st.State)

	st, err = d.Create(t.Context(), m)
	require.NoError(t, err)
	require.Equal(t, provision.Running, st.State)
}

func TestEveryMachineHasAnAddressOfItsOwn(t *testing.T) {
	d, err := sim.Open("")
	require.NoError(t, err)
	seen := map[string]bool{}
	for i := range bed.MaxNodes {
		st, err := d.Create(t.Context(), provision.Machine{Name: bed.NodeName("x", i), Index: i, Owner: provision.Owner{Bed: "x"}})
		require.NoError(t, err)
		require.False(t, seen[st.Address], st.Address)
		seen[st.Address] = true
	}
}
