package ovirt_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

// A bed that stands leaves its affinity group, and comes into one, while its nodes run.
func TestSpreadIsChanged(t *testing.T) {
	e := start(t, quick())
	machines := []provision.Machine{e.machine(t, 0), e.machine(t, 1)}
	var was []provision.Status
	up := func(spread string, settings ...string) {
		t.Helper()
		d := e.driver(t, append(settings, "spread", spread)...)
		var now []provision.Status
		for _, m := range machines {
			st, err := d.Create(t.Context(), m)
			require.NoError(t, err)
			now = append(now, st)
		}
		if was != nil {
			assert.Equal(t, was, now)
		}
		was = now
	}
	up("true")
	both := []string{machines[0].Name, machines[1].Name}
	assert.Equal(t, both, e.Members("bedfellow-conf"))
	starts := e.Calls()["POST /vms/*/start"]
	up("false")
	assert.NotContains(t, e.Census(), "affinity group bedfellow-conf")
	assert.Contains(t, e.Census(), "tag bedfellow-conf")
	up("true")
	assert.Equal(t, both, e.Members("bedfellow-conf"))

	// One that was cut short goes on.
	up("false")
	e.Inject(enginetest.Fault{Call: "POST /clusters/*/affinitygroups/*/vms", Times: 1, Status: 403, Detail: "User is not authorized to perform this action."})
	_, err := e.driver(t).Create(t.Context(), machines[0])
	require.ErrorContains(t, err, "put it into the bed's affinity group")
	require.ErrorContains(t, err, "not authorized")
	assert.Empty(t, e.Members("bedfellow-conf"))
	up("true")
	assert.Equal(t, both, e.Members("bedfellow-conf"))

	// What needs a stop in the same go keeps it.
	machines[0].CPUs = 2
	st, err := e.driver(t, "spread", "false").Update(t.Context(), machines[0])
	require.NoError(t, err)
	assert.Equal(t, was[0].Incarnation, st.Incarnation)
	assert.NotContains(t, e.Census(), "affinity group bedfellow-conf")
	assert.Equal(t, starts+1, e.Calls()["POST /vms/*/start"], "by a start for that alone")
	require.NoError(t, e.driver(t).Sweep(t.Context(), machines[0].Owner))
	e.clean(t)
}

// Versions of a template have its name: that is the newest, and one of them is named with its number. What stands stays what it is.
func TestVersionsOfATemplate(t *testing.T) {
	e := start(t, quick())
	m := e.machine(t, 0)
	_, err := e.driver(t).Create(t.Context(), m)
	require.NoError(t, err)
	require.NoError(t, e.driver(t).Delete(t.Context(), m.Name))
	e.AddVersion("hpc")
	d := e.driver(t, "template", "hpc")
	first, err := d.Create(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, "hpc:1", e.MadeOf(m.Name))
	e.AddVersion("hpc")
	e.AddVersion("hpc")
	again, err := e.driver(t, "template", "hpc").Create(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, first, again)
	for i, c := range []struct{ template, is string }{{"hpc", "hpc:3"}, {"hpc:1", "hpc:1"}, {"hpc:2", "hpc:2"}} {
		m := e.machine(t, i+1)
		d := e.driver(t, "template", c.template)
		require.Empty(t, d.Check(t.Context()))
		_, err := d.Create(t.Context(), m)
		require.NoError(t, err)
		assert.Equal(t, c.is, e.MadeOf(m.Name), c.template)
	}
	problems := e.driver(t, "template", "hpc:4").Check(t.Context())
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].String(), `ovirt.template: "hpc:4": is no template that the engine shows this user`)
	assert.Contains(t, problems[0].String(), "did you mean hpc?")
}
