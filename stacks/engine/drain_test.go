package engine_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/bedfellow/bedfellow/scenarios/fakebed"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

// Nodes that leave get no pods any more before the first of them is emptied. Those that stay after all, also because a run was killed, have pods again.
func TestPodsLeaveBeforeTheirNodes(t *testing.T) {
	b := fakebed.Start(t, 3)
	b.Write(t, "bin/usernetes", `#!/bin/sh
# A fake of usernetes, which fails at what $FAKE/wrong says.
echo "$*" >>"$FAKE/calls"
! grep -qF -- "$*" "$FAKE/wrong" 2>/dev/null || { echo "not today" >&2; exit 1; }
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

	var after func(bool)
	assert.Equal(t, both, calls(func() { after = engine.Evict(t.Context(), w, standing, names()) }))
	assert.Empty(t, calls(func() { after(true) }), "they are gone")
	assert.Empty(t, calls(func() { engine.Evict(t.Context(), w, standing, nil)(true) }))

	assert.Equal(t, both, calls(func() { after = engine.Evict(t.Context(), w, standing, names()) }))
	assert.Equal(t, back, calls(func() { after(false) }), "the engine failed")
	assert.Empty(t, calls(func() { engine.Evict(t.Context(), w, standing, nil)(true) }))

	assert.Equal(t, both, calls(func() { engine.Evict(t.Context(), w, standing, names()) }), "and is killed")
	assert.Equal(t, back, calls(func() { engine.Evict(t.Context(), w, standing, nil)(true) }))

	b.Write(t, "wrong", both[0])
	assert.Equal(t, []string{both[0], both[1], both[3]}, calls(func() { engine.Evict(t.Context(), w, standing, names())(true) }), "one that Kubernetes does not know")

	b.Write(t, "wrong", "")
	standing.Inventory.Nodes[3].Port = 1
	assert.Equal(t, []string{both[0], both[2], back[0]}, calls(func() { engine.Evict(t.Context(), w, standing, names())(false) }), "a dead one has no pods that could end")
}
