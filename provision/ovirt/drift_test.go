package ovirt_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/ovirt"
	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

// Drift of every kind is seen by a refresh, and mended by an up with the disk that there is. Each is a process of its own, as here a driver.
func TestByHand(t *testing.T) {
	const made = "1 CPUs (sockets × cores × threads: 1 × 1 × 1) and 512 MiB, 512 of them guaranteed"
	for name, c := range map[string]struct {
		do      enginetest.ByHand
		says    string
		starts  int // that mending takes
		sibling string
	}{
		"off":           {do: enginetest.PowerOff, says: "the engine says that it is down", starts: 1},
		"renamed":       {do: enginetest.Rename("mine"), says: "is called mine in the engine"},
		"described":     {do: enginetest.Describe("mine"), says: `is described as "mine" in the engine`},
		"resized":       {do: enginetest.Resize(4, 1<<30), says: "has 4 CPUs (sockets × cores × threads: 1 × 4 × 1) and 1024 MiB, 512 of them guaranteed, and was made with " + made, starts: 1},
		"memory":        {do: enginetest.Resize(1, 1<<30), says: "and 1024 MiB", starts: 1},
		"guarantee":     {do: enginetest.Guarantee(256 << 20), says: "512 MiB, 256 of them guaranteed, and was made with " + made, starts: 1},
		"larger disk":   {do: enginetest.Enlarge(2 << 30), says: "has a disk of 2048 MiB, and was made with one of 1024 MiB"},
		"smaller disk":  {do: enginetest.Enlarge(64 << 20), says: "has a disk of 64 MiB, and was made with one of 1024 MiB"},
		"untagged":      {do: enginetest.Untag, says: "has lost the tag bedfellow-conf"},
		"no tag":        {do: enginetest.RemoveTags, says: "has lost the tag bedfellow-conf", sibling: "has lost the tag bedfellow-conf"},
		"out of group":  {do: enginetest.Ungroup, says: "is not in the affinity group bedfellow-conf"},
		"no group":      {do: enginetest.RemoveGroups, says: "is not in the affinity group bedfellow-conf", sibling: "is not in the affinity group bedfellow-conf"},
		"several":       {do: enginetest.Several(enginetest.Rename("mine"), enginetest.Describe(""), enginetest.Untag), says: `is called mine in the engine; is described as "" in the engine; has lost the tag bedfellow-conf`},
		"several, down": {do: enginetest.Several(enginetest.PowerOff, enginetest.Ungroup), says: "the engine says that it is down; is not in the affinity group bedfellow-conf", starts: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := start(t, quick())
			machines := []provision.Machine{e.machine(t, 0), e.machine(t, 1)}
			d := e.driver(t)
			var were []provision.Status
			for i := range machines {
				machines[i].Disk = bed.GiB
				st, err := d.Create(t.Context(), machines[i])
				require.NoError(t, err)
				assert.Equal(t, st, read(t, e, machines[i]), "nobody has been at it")
				were = append(were, st)
			}
			require.True(t, e.Do(machines[0].Name, c.do))
			drifted := read(t, e, machines[0])
			assert.Contains(t, drifted.Detail, c.says)
			assert.True(t, drifted.Digest == "" || drifted.State != provision.Running, "which the engine of Pulumi takes for a difference: %v", drifted)
			assert.Equal(t, c.sibling, read(t, e, machines[1]).Detail)
			starts := e.Calls()["POST /vms/*/start"]
			up := e.driver(t)
			for i, m := range machines {
				st, err := up.Create(t.Context(), m)
				require.NoError(t, err)
				assert.Equal(t, were[i], st)
				assert.Equal(t, were[i], read(t, e, m))
			}
			assert.Equal(t, starts+c.starts, e.Calls()["POST /vms/*/start"])
			both := []string{machines[0].Name, machines[1].Name}
			assert.Equal(t, both, e.Tagged("bedfellow-conf"))
			assert.Equal(t, both, e.Members("bedfellow-conf"))
			require.NoError(t, e.driver(t).Sweep(t.Context(), machines[0].Owner))
			e.clean(t)
		})
	}
}

// read is what a refresh finds.
func read(t *testing.T, e *engine, m provision.Machine) provision.Status {
	t.Helper()
	st, err := e.driver(t).Read(t.Context(), m.Name)
	require.NoError(t, err)
	return st
}

// CPUs that are on other sockets are as many as they were, and other ones to what runs there.
func TestTopologyByHand(t *testing.T) {
	e := start(t, quick())
	m := e.machine(t, 0)
	m.CPUs = 4
	first, err := e.driver(t, "sockets", "2").Create(t.Context(), m)
	require.NoError(t, err)
	require.True(t, e.Do(m.Name, enginetest.Rearrange(4)))
	assert.Contains(t, read(t, e, m).Detail, "4 × 1 × 1) and 512 MiB, 512 of them guaranteed, and was made with 4 CPUs (sockets × cores × threads: 2 × 2 × 1)")
	st, err := e.driver(t, "sockets", "2").Create(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, first, st)
	assert.Equal(t, first, read(t, e, m))
}

// A bed that is not spread over hosts has no place in a group that somebody makes by its name.
func TestGroupThatIsNotWanted(t *testing.T) {
	e := start(t, quick())
	m := e.machine(t, 0)
	first, err := e.driver(t).Create(t.Context(), m)
	require.NoError(t, err)
	apart := func() *ovirt.Driver { return e.driver(t, "spread", "false") }
	st, err := apart().Read(t.Context(), m.Name)
	require.NoError(t, err)
	assert.Equal(t, "is in the affinity group bedfellow-conf, and nodes are not to be spread", st.Detail)
	st, err = apart().Create(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, first, st)
	assert.NotContains(t, e.Census(), "affinity group bedfellow-conf")
}

// Nobody asks for each node what a bed's nodes share.
func TestRequestsOfARefresh(t *testing.T) {
	e := start(t, quick())
	d := e.driver(t)
	var machines []provision.Machine
	for i := range 12 {
		machines = append(machines, e.machine(t, i))
		_, err := d.Create(t.Context(), machines[i])
		require.NoError(t, err)
	}
	d.Shares(time.Minute) // however slow this host is
	before := d.Requests()
	for _, m := range machines {
		_, err := d.Read(t.Context(), m.Name)
		require.NoError(t, err)
	}
	assert.Equal(t, int64(12+3), d.Requests()-before)
}

func TestErasedByHand(t *testing.T) {
	e := start(t, quick())
	d := e.driver(t)
	m := e.machine(t, 0)
	first, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	require.True(t, e.Do(m.Name, enginetest.Erase))
	_, err = d.Read(t.Context(), m.Name)
	require.ErrorIs(t, err, provision.ErrNotFound)
	second, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	assert.NotEqual(t, first.Incarnation, second.Incarnation)
}
