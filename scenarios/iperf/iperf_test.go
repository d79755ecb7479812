package iperf_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios"
	"github.com/bedfellow/bedfellow/scenarios/fakebed"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
)

// fakeIperf3 prints real output. A server of it serves while $FAKE/listening is there, which the fake of ss looks for.
const fakeIperf3 = `#!/bin/sh
# A fake of iperf3.
echo "$FAKE_NODE $*" >>"$FAKE/calls"
case " $* " in
*' --version '*) cat "$FAKE/version"; exit ;;
*' -s '*)
	if [ -e "$FAKE/busy" ]; then cat "$FAKE/busy"; exit 1; fi
	[ ! -e "$FAKE/listening" ] || echo overlap >>"$FAKE/overlaps"
	echo $$ >>"$FAKE/pids"
	trap 'rm -f "$FAKE/listening"; exit 1' TERM
	sleep 0.1
	touch "$FAKE/listening"
	while [ -e "$FAKE/listening" ]; do sleep 0.02; done
	echo '{"start": {}, "end": {}}'
	exit ;;
esac
echo $$ >>"$FAKE/pids"
[ -e "$FAKE/hang" ] && touch "$FAKE/hangs" && exec sleep 60
file=one-way.json
case " $* " in *' --bidir '*) file=bidir.json ;; esac
[ "$FAKE_NODE" = "$(cat "$FAKE/refuse" 2>/dev/null)" ] && cat "$FAKE/refused.json" && exit # with status 0, as iperf3 does
rm "$FAKE/listening"
cat "$FAKE/$file"
`

const fakeSS = `#!/bin/sh
# A fake of ss.
[ ! -e "$FAKE/listening" ] || echo 'LISTEN 0 4096 *:5201 *:*'
`

const fakePing = `#!/bin/sh
# A fake of ping.
[ ! -e "$FAKE/lossy" ] || { echo '10 packets transmitted, 0 received, 100% packet loss'; exit 1; }
echo 'rtt min/avg/max/mdev = 0.031/0.054/0.090/0.011 ms'
`

// A pod on the node with the number N is process 100N, and its network is the fake node's.
const fakeUsernetes = `#!/bin/sh
# A fake of usernetes.
echo "$FAKE_NODE usernetes $*" >>"$FAKE/calls"
[ "$1" = shell ] || exit 0
if [ $# = 1 ]; then cat >>"$FAKE/calls"; exit; fi
cat >"$FAKE/podscript"
[ ! -e "$FAKE/nopods" ] || { cat "$FAKE/nopods" >&2; exit 1; }
shift 3
for host; do echo "$host 127.0.0.1"; done
`

const fakePgrep = `#!/bin/sh
# A fake of pgrep.
echo "${FAKE_NODE#fake-0}00"
`

const fakeNsenter = `#!/bin/sh
# A fake of nsenter.
[ "$1 $2 $3 $4 $5" = "--target ${FAKE_NODE#fake-0}00 --user --preserve-credentials --net" ] || exit 9
shift 5
[ "$1" != ss ] || exec "$@"
echo "$FAKE_NODE enters a pod" >>"$FAKE/calls"
exec "$@"
`

func start(t *testing.T, compute int) (*fakebed.Bed, scenarios.Options) {
	t.Parallel()
	b := fakebed.Start(t, compute)
	b.Write(t, "bin/iperf3", fakeIperf3)
	b.Write(t, "bin/ss", fakeSS)
	b.Write(t, "bin/ping", fakePing)
	b.Write(t, "bin/sudo", "#!/bin/sh\n# A fake of sudo.\n[ \"$1\" = -n ] && shift && exec \"$@\"\n")
	b.Write(t, "version", "iperf 3.12 (cJSON 1.7.15)\nLinux x\n")
	for _, name := range []string{"one-way.json", "bidir.json", "refused.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		b.Write(t, name, string(data))
	}
	return b, scenarios.Options{Inventory: b.Inventory, PrivateKey: b.Key, Stack: "test", Scenario: "iperf", Repeats: 2,
		Params: map[string]string{"seconds": "1"}, ResultsRoot: t.TempDir()}
}

func nothingLeft(t *testing.T, b *fakebed.Bed) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(b.Dir, "nodes/*/tmp/*"))
	require.NoError(t, err)
	require.Empty(t, left)
	require.Empty(t, b.Read("overlaps"), "one test at a time")
	for _, pid := range strings.Fields(b.Read("pids")) {
		at, err := os.Readlink("/proc/" + pid + "/cwd")
		require.False(t, err == nil && strings.HasPrefix(at, b.Dir), "process %s is left in %s", pid, at)
	}
}

func TestEveryPairBothWays(t *testing.T) {
	b, o := start(t, 3)
	o.Params["warmups"] = "1"
	dir, summary, err := scenarios.Run(t.Context(), o)
	require.NoError(t, err)
	nothingLeft(t, b)
	got, err := results.Load(dir)
	require.NoError(t, err)
	require.Empty(t, got.Problems)
	require.Equal(t, "3.12 (cJSON 1.7.15)", got.Run.Versions["iperf3"])
	require.Contains(t, got.Run.Notes[len(got.Run.Notes)-1], "one kernel")
	type key struct{ metric, series, from, to string }
	all := map[key]float64{}
	for _, s := range summary.Stats {
		require.Equal(t, []int{2, 0, 1}, []int{s.N, s.Failed, s.Warmups})
		all[key{s.Metric, s.Series, s.Parameters["from"], s.Parameters["to"]}] = *s.Median
		require.Equal(t, map[string]string{"bandwidth": "Gbit/s", "retransmits": "", "round trip": "ms"}[s.Metric], s.Unit)
	}
	require.Len(t, all, 2*2*6+6, "two metrics, two series, six ordered pairs, and the round trip of each pair")
	require.Equal(t, 0.054, all[key{"round trip", "one way", "fake-04", "fake-02"}])
	require.InDelta(t, 19.275, all[key{"bandwidth", "one way", "fake-04", "fake-02"}], 1e-3)
	require.InDelta(t, 11.065, all[key{"bandwidth", "both ways", "fake-02", "fake-03"}], 1e-3, "the first of the pair is the client")
	require.InDelta(t, 10.186, all[key{"bandwidth", "both ways", "fake-03", "fake-02"}], 1e-3)
	require.Equal(t, 20.0, all[key{"retransmits", "one way", "fake-04", "fake-02"}])
	require.NotContains(t, b.Read("calls"), "fake-01", "the control node takes no part")
	require.Contains(t, b.Read("calls"), "fake-02 -J -c 127.0.0.1 -p 5201 -t 1 -O 0 -P 1 --bidir")
	require.FileExists(t, filepath.Join(dir, got.Samples[0].Log))
}

func TestOneWayOnly(t *testing.T) {
	b, o := start(t, 3)
	o.Params["bidirectional"], o.Params["nodes"] = "false", "2"
	_, summary, err := scenarios.Run(t.Context(), o)
	require.NoError(t, err)
	require.Len(t, summary.Stats, 6)
	require.NotContains(t, b.Read("calls"), "--bidir")
}

func withPods(t *testing.T) (*fakebed.Bed, scenarios.Options) {
	b, o := start(t, 2)
	b.Write(t, "bin/usernetes", fakeUsernetes)
	b.Write(t, "bin/pgrep", fakePgrep)
	b.Write(t, "bin/nsenter", fakeNsenter)
	b.Inventory.Kubernetes = "usernetes"
	o.Inventory = b.Inventory
	o.Params["between"], o.Repeats = "pods", 1
	return b, o
}

func TestPodsBesideTheirHosts(t *testing.T) {
	b, o := withPods(t)
	_, summary, err := scenarios.Run(t.Context(), o)
	require.NoError(t, err)
	nothingLeft(t, b)
	measured := map[string]int{}
	for _, s := range summary.Stats {
		measured[s.Series+" "+s.Metric] += s.N
	}
	require.Equal(t, map[string]int{
		"one way bandwidth": 2, "one way retransmits": 2, "one way round trip": 2, "both ways bandwidth": 2, "both ways retransmits": 2,
		"one way, pods bandwidth": 2, "one way, pods retransmits": 2, "one way, pods round trip": 2, "both ways, pods bandwidth": 2, "both ways, pods retransmits": 2,
	}, measured)
	calls := b.Read("calls")
	require.Equal(t, 2*3+2, strings.Count(calls, "enters a pod"), "a server and a client for each test, and ping after those of one way")
	require.Contains(t, calls, "fake-01 usernetes shell bedfellow-iperf-")
	require.Contains(t, calls, " fake-02 fake-03\n")
	require.Contains(t, b.Read("podscript"), "kind: Pod")
	_, removed, _ := strings.Cut(calls, "fake-01 usernetes shell\n")
	require.Regexp(t, "^pkill -f '\\^sh -s -- bedfellow-iperf-[^ ]+ '; kubectl delete namespace bedfellow-iperf --ignore-not-found --wait=false\n$", removed)
}

func TestPodsThatDoNotRunAreRemoved(t *testing.T) {
	b, o := withPods(t)
	b.Write(t, "nopods", "timed out waiting for the condition on pods/on-fake-02\n")
	_, _, err := scenarios.Run(t.Context(), o)
	require.ErrorContains(t, err, "run pods: on node fake-01")
	require.ErrorContains(t, err, "timed out waiting for the condition on pods/on-fake-02")
	require.Contains(t, b.Read("calls"), "delete namespace bedfellow-iperf")
	nothingLeft(t, b)
}

func TestPodsNeedKubernetes(t *testing.T) {
	b, o := start(t, 2)
	o.Params["between"] = "pods"
	_, _, err := scenarios.Run(t.Context(), o)
	require.ErrorContains(t, err, "-c kubernetes=usernetes asks for")
	require.Empty(t, b.Read("calls"))
}

func TestALinkThatLosesPingsFails(t *testing.T) {
	b, o := start(t, 2)
	b.Write(t, "lossy", "")
	o.Params["bidirectional"], o.Repeats = "false", 1
	_, _, err := scenarios.Run(t.Context(), o)
	require.ErrorContains(t, err, "100% packet loss")
	nothingLeft(t, b)
}

func TestGoesOnAfterAPairThatFails(t *testing.T) {
	b, o := start(t, 2)
	b.Write(t, "refuse", "fake-03")
	dir, _, err := scenarios.Run(t.Context(), o)
	var failed *scenario.FailedError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, []any{2, 6, "1 of fake-03 to fake-02, one way"}, []any{failed.Failed, failed.Of, failed.Name})
	require.ErrorContains(t, err, "Connection refused")
	require.FileExists(t, failed.Log)
	nothingLeft(t, b)
	got, err := results.Load(dir)
	require.NoError(t, err)
	require.Equal(t, results.Failed, got.Run.Status)
}

func TestBothDirectionsFailTogether(t *testing.T) {
	b, o := start(t, 2)
	b.Write(t, "bidir.json", b.Read("one-way.json")) // as an iperf3 that takes --bidir for something else
	o.Repeats = 1
	dir, _, err := scenarios.Run(t.Context(), o)
	require.ErrorContains(t, err, "iperf3 tested both directions: false, but true was asked for")
	got, err := results.Load(dir)
	require.NoError(t, err)
	failed := map[string]bool{}
	for _, s := range got.Samples {
		if s.Status == results.Failed {
			failed[s.Series+" "+s.Parameters["from"]] = true
		}
	}
	require.Equal(t, map[string]bool{"both ways fake-02": true, "both ways fake-03": true}, failed)
}

func TestServerThatCannotListen(t *testing.T) {
	b, o := start(t, 2)
	b.Write(t, "busy", `{"start": {}, "error": "error - unable to start listener for connections: Address already in use"}`)
	o.Repeats = 1
	_, _, err := scenarios.Run(t.Context(), o)
	require.ErrorContains(t, err, "3 of 3 repetitions failed")
	require.ErrorContains(t, err, "the server: iperf3's JSON: iperf3 reports an error: error - unable to start listener")
	nothingLeft(t, b)
}

func TestInterrupted(t *testing.T) {
	b, o := start(t, 2)
	b.Write(t, "hang", "")
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("Ctrl-C")
	go func() {
		for t.Context().Err() == nil {
			if _, err := os.Stat(filepath.Join(b.Dir, "hangs")); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		cancel(stop)
	}()
	dir, _, err := scenarios.Run(ctx, o)
	require.ErrorIs(t, err, stop)
	require.Len(t, strings.Fields(b.Read("pids")), 2, "a server and a client")
	nothingLeft(t, b)
	got, err := results.Load(dir)
	require.NoError(t, err)
	require.Equal(t, results.Interrupted, got.Run.Status)
	require.Empty(t, got.Samples)
}

func TestUnfitNodes(t *testing.T) {
	b, o := start(t, 2)
	b.Write(t, "version", "iperf 3.1.3\n")
	_, _, err := scenarios.Run(t.Context(), o)
	require.ErrorContains(t, err, `node fake-02 has "iperf 3.1.3", where iperf 3.7 or newer was expected`)
	nothingLeft(t, b)
	o.Inventory.Nodes = o.Inventory.Nodes[:1]
	o.Params["bidirectional"] = "yes"
	_, _, err = scenarios.Run(t.Context(), o)
	var problems bed.Problems
	require.ErrorAs(t, err, &problems)
	require.ErrorContains(t, err, "bed fake has 1 nodes to test between, and a pair needs two")
	require.ErrorContains(t, err, "must be true or false")
}
