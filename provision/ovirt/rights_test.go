package ovirt_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

// A user without a role of an administrator has beds of a template that is there. The engine answers such a one filtered only, then searches for
// nothing, and shows neither tags nor affinity groups.
func TestUserWithoutAdministratorsRole(t *testing.T) {
	e := start(t, quick())
	m, other := e.machine(t, 0), e.machine(t, 1)
	_, err := e.driver(t).Create(t.Context(), m) // an administrator's, which leaves the template
	require.NoError(t, err)
	require.NoError(t, e.driver(t).Delete(t.Context(), m.Name))
	e.AddVM("somebody's")
	had := e.Census()
	e.Demote()

	d := e.driver(t)
	require.Empty(t, d.Check(t.Context()))
	advice := d.Advise(t.Context())
	require.Len(t, advice, 1)
	assert.Contains(t, advice[0], "no role of an administrator")
	first, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	before := d.Requests()
	_, err = d.Create(t.Context(), other)
	require.NoError(t, err)
	assert.LessOrEqual(t, d.Requests()-before, int64(15))
	seen, err := e.driver(t).Read(t.Context(), m.Name)
	require.NoError(t, err)
	assert.Equal(t, first, seen, "what a user is not shown is no drift")
	assert.ElementsMatch(t, append(had, "vm "+m.Name, "vm "+other.Name), withoutDisks(e.Census()))
	all, err := d.List(t.Context(), m.Owner.Bed)
	require.NoError(t, err)
	assert.Len(t, all, 2)
	owners, err := d.Owners(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []provision.Owner{m.Owner}, owners)
	require.True(t, e.Do(m.Name, enginetest.PowerOff))
	again, err := e.driver(t).Create(t.Context(), m) // whom nobody has told yet
	require.NoError(t, err)
	assert.Equal(t, first, again)
	m.CPUs = 2
	_, err = d.Update(t.Context(), m)
	require.NoError(t, err)
	require.NoError(t, e.driver(t).Sweep(t.Context(), m.Owner))
	assert.Equal(t, had, e.Census())
}

// An upload cannot be looked after without that role, and so is not begun.
func TestNoUploadWithoutAdministratorsRole(t *testing.T) {
	e := start(t, quick())
	e.Demote()
	_, err := e.driver(t).Create(t.Context(), e.machine(t, 0))
	require.ErrorContains(t, err, "lets administrators only look after an upload")
	require.ErrorContains(t, err, "-c ovirt.template=")
	assert.Empty(t, e.Census())
	assert.Zero(t, e.Calls()["POST /disks"])
}

// withoutDisks leaves out of a census the disks of VMs.
func withoutDisks(census []string) (rest []string) {
	for _, what := range census {
		if what[:5] != "disk " {
			rest = append(rest, what)
		}
	}
	return rest
}
