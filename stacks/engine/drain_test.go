package engine_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/scenarios/fakebed"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

// Nodes that leave get no pods any more before the first of them is emptied. Those that stay after all, also because a run was killed, have pods again.
func TestPodsLeaveBeforeTheirNodes(t *testing.T) {
	b := fakebed.Start(t, 3)
	b.Write(t, "bin/usernetes", `#!/bin/sh
# A fake of usernetes, which fails at what $FAKE/wrong says.
echo "$*" >>"$FAKE/calls"
! grep -qF -- "$*" "$FAKE/wrong" 2>/dev/null || { cat "$FAKE/why" >&2; exit 1; }
`)
	standing := engine.Standing{Inventory: b.Inventory, PrivateKey: b.Key}
	w := open(t, clone(t), nil)
	calls := func(do func()) []string {
		b.Write(t, "calls", "")
		do()
		return strings.FieldsFunc(b.Read("calls"), func(r rune) bool { return r == '\n' })
	}
	const drain = "kubectl drain --force --ignore-daemonsets --delete-emptydir-data --timeout 2m u7s-"
	names := func() []string { return []string{"fake-03", "fake-04"} }
	both := []string{"kubectl cordon u7s-fake-03", "kubectl cordon u7s-fake-04", drain + "fake-03", drain + "fake-04"}
	back := []string{"kubectl uncordon u7s-fake-03", "kubectl uncordon u7s-fake-04"}

	grown, shrunk := standing, standing
	shrunk.Inventory.Nodes = standing.Inventory.Nodes[:2]
	left := func() []string { // by a run before
		return calls(func() { engine.Evict(t.Context(), w, grown, nil)(&grown) })
	}

	var after func(*engine.Standing)
	assert.Equal(t, both, calls(func() { after = engine.Evict(t.Context(), w, standing, names()) }))
	assert.Empty(t, calls(func() { after(&shrunk) }))
	assert.Empty(t, left())

	assert.Equal(t, both, calls(func() { after = engine.Evict(t.Context(), w, standing, names()) }))
	assert.Equal(t, back, calls(func() { after(nil) }), "the engine failed")
	assert.Empty(t, left())

	assert.Equal(t, both, calls(func() { engine.Evict(t.Context(), w, standing, names()) }), "and is killed")
	assert.Equal(t, back, left())
	assert.Empty(t, left())

	var notes []string
	ctx := progress.With(t.Context(), func(e progress.Event) {
		if e.Kind == progress.Noted {
			notes = append(notes, e.Detail)
		}
	})
	b.Write(t, "wrong", both[0])
	b.Write(t, "why", "Error from server (NotFound): nodes \"u7s-fake-03\" not found\n")
	assert.Equal(t, []string{both[0], both[1], both[3]}, calls(func() { engine.Evict(ctx, w, standing, names())(&shrunk) }), "one that Kubernetes does not know")
	assert.Empty(t, notes, "it has no pods")
	b.Write(t, "why", "not today\n")
	assert.Equal(t, []string{both[0], both[1], both[3]}, calls(func() { engine.Evict(ctx, w, standing, names())(&shrunk) }))
	require.Len(t, notes, 1)
	assert.Contains(t, notes[0], "did not drain fake-03, fake-04, whose pods go with it")
	assert.Contains(t, notes[0], "not today")

	b.Write(t, "wrong", "")
	standing.Inventory.Nodes = slices.Clone(standing.Inventory.Nodes)
	standing.Inventory.Nodes[3].Port = 1
	assert.Equal(t, []string{both[0], both[1], both[2], back[0]}, calls(func() { engine.Evict(ctx, w, standing, names())(nil) }), "a dead one has no pods that could end")
	assert.Contains(t, notes[1], "only those of fake-03, fake-04 that answer")
	assert.Equal(t, back[1:], left(), "once it answers again, at another port")
	assert.Empty(t, left())
}
