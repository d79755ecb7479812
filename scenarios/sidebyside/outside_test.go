package sidebyside

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/fakebed"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
)

// fakeUsernetes notes what it is told, and which instance that is about; package e2e has real nodes do it. What is called as $FAKE/wrong says fails.
const fakeUsernetes = `#!/bin/sh
# A fake of usernetes.
[ "$1" != gone ] && [ "$1" != instances ] || exit 0
echo "$FAKE_NODE $*" >>"$FAKE/calls"
[ "$1" != "$(cat "$FAKE/wrong" 2>/dev/null)" ] || { echo "no $1 today" >&2; exit 1; }
pid=$FAKE/nodes/$FAKE_NODE/${USERNETES_INSTANCE:?}
case $1 in
hold) echo $$ >"$pid"; echo held; exec sleep 60 ;;
release) [ ! -e "$pid" ] || { kill "$(cat "$pid")"; rm "$pid"; } ;;
token) echo a secret ;;
join) echo "$FAKE_NODE was told $(cat)" >>"$FAKE/calls" ;;
esac
`

func TestKubernetesOnIdleNodes(t *testing.T) {
	for _, wrong := range []string{"", "hold", "init", "join", "dns"} {
		t.Run(wrong, func(t *testing.T) {
			b := fakebed.Start(t, 2)
			for name, text := range map[string]string{"bin/usernetes": fakeUsernetes, "bin/docker": "#!/bin/sh\n# A fake of docker, which has nothing.\n", "bin/systemctl": "#!/bin/sh\n# A fake.\nexit 3\n", "wrong": wrong} {
				b.Write(t, name, text)
			}
			nodes, err := scenario.NewNodes(b.Inventory, b.Key)
			require.NoError(t, err)
			t.Cleanup(func() { assert.NoError(t, nodes.Close()) })
			record, err := results.Create(t.TempDir(), "fake", "sidebyside", results.Run{})
			require.NoError(t, err)
			ran, err := outside(t.Context(), &scenario.Env{Inventory: b.Inventory, Nodes: nodes, Record: record}, b.Inventory.Compute(), time.Minute)
			calls := b.Read("calls")
			for _, n := range b.Inventory.Compute() {
				assert.Contains(t, calls, n.Name+" release\n", "whatever came before")
			}
			assert.NotContains(t, calls, b.Inventory.Control().Name, "which is no node of the job's")
			if wrong != "" {
				assert.ErrorContains(t, err, "no "+wrong+" today")
				return
			}
			require.NoError(t, err)
			var phases []string
			for _, p := range ran.Phases {
				phases = append(phases, p.Name)
			}
			assert.Equal(t, []string{"holding", "containers", "control-plane", "joining", "readiness", "leaving", "gone"}, phases)
			first, second := b.Inventory.Compute()[0].Name, b.Inventory.Compute()[1].Name
			for _, call := range []string{first + " up", second + " up", first + " init", first + " token", second + " was told a secret", first + " ready u7s-" + first + " u7s-" + second, second + " dns"} {
				assert.Equal(t, 1, strings.Count(calls, call+"\n"), call)
			}
			assert.NotContains(t, calls, first+" join")
		})
	}
}

// Whatever is left of an instance on a node is told, also where another node cannot be asked.
func TestWhatIsLeftIsTold(t *testing.T) {
	b := fakebed.Start(t, 2)
	first, second := b.Inventory.Compute()[0].Name, b.Inventory.Compute()[1].Name
	for name, text := range map[string]string{
		"bin/usernetes": "#!/bin/sh\n# A fake of usernetes.\ncase $1 in gone) cat \"$FAKE/silent-$FAKE_NODE\" 2>/dev/null && exit 1; exit 0 ;; instances) cat \"$FAKE/instances-$FAKE_NODE\" 2>/dev/null ;; esac\n",
		"bin/docker":    "#!/bin/sh\n# A fake of docker.\n[ \"$1\" != volume ] || cat \"$FAKE/volumes-$FAKE_NODE\" 2>/dev/null\ntrue\n",
		"bin/systemctl": "#!/bin/sh\n# A fake.\nexit 3\n",
	} {
		b.Write(t, name, text)
	}
	nodes, err := scenario.NewNodes(b.Inventory, b.Key)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, nodes.Close()) })
	look := func() error {
		return gone(t.Context(), &scenario.Env{Inventory: b.Inventory, Nodes: nodes}, []string{first, second}, "job-7")
	}
	require.NoError(t, look())
	b.Write(t, "volumes-"+second, "volume usernetes-job-7\nvolume usernetes-job-70\n")
	b.Write(t, "instances-"+second, "job-7\n")
	err = look()
	require.ErrorContains(t, err, "node "+second+" still has volume usernetes-job-7, instance job-7;")
	assert.ErrorContains(t, err, "USERNETES_INSTANCE=job-7 usernetes release")
	b.Write(t, "silent-"+first, "")
	err = look()
	require.ErrorContains(t, err, first)
	assert.ErrorContains(t, err, "node "+second+" still has volume usernetes-job-7")
}
