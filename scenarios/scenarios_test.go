package scenarios

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/fakebed"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
)

// lmp is a fake of LAMMPS: rank 0 writes a real log where it is told, or fails when the job's name is in $FAKE/fail.
const lmp = `#!/bin/sh
# A fake of LAMMPS.
[ "$PMI_RANK" = 0 ] || exit 0
while [ "$1" != -log ]; do shift; done
if grep -qx "$FAKE_JOB" "$FAKE/fail" 2>/dev/null; then
	echo 'ERROR: Lost atoms: original 1216 current 1215 (src/thermo.cpp:494)' | tee "$2" >&2
	exit 1
fi
[ -e "$FAKE/hang" ] && touch "$FAKE/hangs" && sleep 60
cp "$FAKE/hns.log" "$2"
`

// start makes a bed of two compute nodes with a LAMMPS on them, and options for two repetitions of a problem it has a log of.
func start(t *testing.T) (*fakebed.Bed, Options) {
	t.Parallel()
	b := fakebed.Start(t, 2)
	log, err := os.ReadFile("lammps/testdata/hns-2x2x1-2-ranks.log")
	require.NoError(t, err)
	b.Write(t, "hns.log", string(log))
	for _, n := range b.Inventory.Compute() {
		at := "nodes/" + n.Name + "/opt/lammps/"
		b.Write(t, at+"bin/lmp", lmp)
		b.Write(t, at+"VERSION", "LAMMPS 29 Sep 2021\nsource lammps 20220106-2\nflags -O2\ncompiler c++ 12\n")
		b.Write(t, at+"examples/reaxff/HNS/in.reaxff.hns", "variable t index 100\nread_data data.hns-equil\nrun               $t\n")
		b.Write(t, at+"examples/reaxff/HNS/data.hns-equil", "304 atoms\n")
	}
	return b, Options{Inventory: b.Inventory, PrivateKey: b.Key, Stack: "test", Scenario: "lammps", Repeats: 3, Seed: 7,
		Params: map[string]string{"z": "1"}, ResultsRoot: t.TempDir(), Versions: map[string]string{"bed": "1.2.3"}}
}

// nothingLeft says that no node has anything of a run.
func nothingLeft(t *testing.T, b *fakebed.Bed) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(b.Dir, "nodes/*/tmp/*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestRunRecordsEverything(t *testing.T) {
	b, o := start(t)
	dir, summary, err := Run(t.Context(), o)
	require.NoError(t, err)
	nothingLeft(t, b)
	got, err := results.Load(dir)
	require.NoError(t, err)
	require.Equal(t, results.OK, got.Run.Status)
	require.Equal(t, map[string]string{"x": "2", "y": "2", "z": "1", "steps": "100", "nodes": "2", "ranks": "2", "warmups": "1",
		"tolerance": "1e-6", "limit": "10m", "usernetes": "down"}, got.Run.Parameters)
	require.Equal(t, map[string]string{"bed": "1.2.3", "slurm": "slurm-wlm 22.05.8", "MPI": "Open MPI 4.1.4", "LAMMPS": "29 Sep 2021",
		"LAMMPS source": "lammps 20220106-2", "LAMMPS flags": "-O2", "LAMMPS compiler": "c++ 12"}, got.Run.Versions)
	require.Equal(t, "sha256:feed", got.Run.Digests["image debian-12"])
	require.Regexp(t, "^sha256:[0-9a-f]{64}$", got.Run.Digests["lammps lmp"])
	require.Equal(t, []any{"fake-02", "compute", 1, "1", int64(512 << 20)},
		[]any{got.Run.Nodes[1].Name, got.Run.Nodes[1].Role, got.Run.Nodes[1].CPUs, got.Run.Nodes[1].HostCPUs, got.Run.Nodes[1].Memory})
	require.NotEmpty(t, got.Run.Nodes[1].Kernel)
	require.Len(t, got.Run.Ranks, 8, "two ranks of a warm-up and three repetitions")
	r := got.Run.Ranks[7]
	require.Positive(t, r.PID)
	r.PID = 0
	require.Equal(t, results.Rank{Series: "bare", Repetition: 3, Rank: 1, Node: "fake-03"}, r)

	units := map[string]string{}
	for _, s := range summary.Stats {
		require.Equal(t, []int{3, 0, 1}, []int{s.N, s.Failed, s.Warmups}, s.Metric)
		units[s.Metric] = s.Unit
	}
	require.Equal(t, map[string]string{"loop time": "s", "loop time/Pair": "s", "loop time/Neigh": "s", "loop time/Comm": "s", "loop time/Output": "s",
		"loop time/Modify": "s", "loop time/Other": "s", "wall time": "s", "CPU use": "%", "atoms": "", "timestep rate": "1/s", "performance": "ns/day",
		"job time": "s"}, units)
	require.Equal(t, 18.1907, *summary.Stats[0].Median)
	require.FileExists(t, filepath.Join(dir, got.Samples[0].Log))
	require.Contains(t, b.Read("jobs/2/script"), "'srun' '--ntasks=2' '--distribution=block' '--kill-on-bad-exit=1' '--nodes=2'")
}

// fakeKubernetes is commands that note what they are told.
func fakeKubernetes(t *testing.T, b *fakebed.Bed) {
	b.Write(t, "bin/usernetes", "#!/bin/sh\n# A fake of usernetes.\n"+`echo "$FAKE_NODE $*" >>"$FAKE/kubernetes"; [ ! -e "$FAKE/jobs/1" ] || [ "$1" != ready ] || [ ! -e "$FAKE/notready" ]`+"\n")
	b.Inventory.Kubernetes = "usernetes"
}

func TestLAMMPSWithAndWithoutKubernetesInTurn(t *testing.T) {
	b, o := start(t)
	fakeKubernetes(t, b)
	o.Inventory, o.Repeats, o.Params["usernetes"] = b.Inventory, 2, "both"
	dir, summary, err := Run(t.Context(), o)
	require.NoError(t, err)
	nothingLeft(t, b)
	var order []string
	got, err := results.Load(dir)
	require.NoError(t, err)
	for _, s := range got.Samples {
		if s.Metric == "loop time" {
			order = append(order, s.Series)
		}
	}
	require.Equal(t, []string{"bare", "bare+usernetes", "bare", "bare+usernetes", "bare", "bare+usernetes"}, order, "a warm-up and two repetitions")
	require.Equal(t, []int{2, 1}, []int{summary.Stats[0].N, summary.Stats[0].Warmups})
	calls := b.Read("kubernetes")
	for line, times := range map[string]int{
		"fake-01 down\n": 3, "fake-03 down\n": 3, "fake-03 up\n": 3, "fake-01 init\nfake-01 ready u7s-fake-01 u7s-fake-02 u7s-fake-03\n": 3, "fake-02 dns\n": 3,
	} {
		require.Equal(t, times, strings.Count(calls, line), "%s in\n%s", line, calls)
	}
	require.FileExists(t, filepath.Join(dir, "logs/bare+usernetes-2.log"))
}

func TestLAMMPSBesideKubernetesIsCalledSo(t *testing.T) {
	b, o := start(t)
	fakeKubernetes(t, b)
	o.Inventory, o.Repeats = b.Inventory, 1
	_, summary, err := Run(t.Context(), o)
	require.NoError(t, err)
	require.Equal(t, "bare+usernetes", summary.Stats[0].Series)
	require.Equal(t, 1, strings.Count(b.Read("kubernetes"), "fake-02 dns"), "that it is up is seen, once")
	require.NotContains(t, b.Read("kubernetes"), "down")
}

func TestLAMMPSRestoresKubernetes(t *testing.T) {
	b, o := start(t)
	fakeKubernetes(t, b)
	b.Write(t, "notready", "")
	o.Inventory, o.Repeats, o.Params["usernetes"] = b.Inventory, 1, "both"
	_, _, err := Run(t.Context(), o)
	require.ErrorContains(t, err, "2 of 4 repetitions failed; the first, warmup-1 of bare+usernetes: start Kubernetes: on node fake-01")
	_, afterwards, _ := strings.Cut(b.Read("kubernetes"), "ready")
	for _, n := range b.Inventory.Nodes {
		require.Equal(t, 2, strings.Count(afterwards, n.Name+" down\n"), "before the second repetition on bare nodes, and when all is over")
		require.Equal(t, 2, strings.Count(afterwards, n.Name+" up\n"))
	}
	// One that was only to be up is not stopped.
	before := b.Read("kubernetes")
	o.Params["usernetes"] = "up"
	_, _, err = Run(t.Context(), o)
	require.ErrorContains(t, err, "start Kubernetes: on node fake-01")
	mended := strings.TrimPrefix(b.Read("kubernetes"), before)
	require.NotContains(t, mended, "down")
	require.Contains(t, mended, "fake-02 up\n")
	o.Params["usernetes"] = "both"

	for _, kind := range []string{"", bed.JobsKubernetes} {
		o.Inventory.Kubernetes = kind
		_, _, err = Run(t.Context(), o)
		require.ErrorContains(t, err, "-c kubernetes=usernetes asks for", kind)
	}
}

func TestRunGoesOnAfterAFailedRepetition(t *testing.T) {
	b, o := start(t)
	b.Write(t, "fail", "lammps-2\n")
	var steps []progress.Event
	dir, summary, err := Run(progress.With(t.Context(), func(e progress.Event) { steps = append(steps, e) }), o)
	var failed *scenario.FailedError
	require.ErrorAs(t, err, &failed)
	require.Equal(t, []any{1, 4, "2", filepath.Join(dir, "logs/2.log")}, []any{failed.Failed, failed.Of, failed.Name, failed.Log})
	require.ErrorContains(t, err, "1 of 4 repetitions failed; the first, 2: job 3 on node fake-02 ended with status")
	require.ErrorContains(t, err, "ERROR: Lost atoms")
	require.FileExists(t, failed.Log)
	require.Equal(t, []int{2, 1}, []int{summary.Stats[0].N, summary.Stats[0].Failed})
	last := steps[len(steps)-1]
	require.Equal(t, []any{"lammps bare 3/3", progress.Done, "loop time 18.1907 s"}, []any{last.Step, last.Kind, last.Detail})
	got, err := results.Load(dir)
	require.NoError(t, err)
	require.Equal(t, results.Failed, got.Run.Status)
	nothingLeft(t, b)
}

func TestRunChecksThePhysics(t *testing.T) {
	b, o := start(t)
	o.Params["z"] = "2" // the fake's log is of another problem
	_, _, err := Run(t.Context(), o)
	require.ErrorContains(t, err, "4 of 4 repetitions failed")
	require.ErrorContains(t, err, "1216 atoms, but 2·2·2 cells of 304 have 2432")
	nothingLeft(t, b)
}

func TestRunInterrupted(t *testing.T) {
	b, o := start(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("Ctrl-C")
	b.Write(t, "hang", "")
	go func() {
		for b.Read("jobs/1/name") == "" || !exists(filepath.Join(b.Dir, "hangs")) {
			if t.Context().Err() != nil {
				return
			}
		}
		cancel(stop)
	}()
	dir, _, err := Run(ctx, o)
	require.ErrorIs(t, err, stop)
	require.FileExists(t, filepath.Join(b.Dir, "jobs/1/cancelled"))
	nothingLeft(t, b)
	got, err := results.Load(dir)
	require.NoError(t, err)
	require.Equal(t, results.Interrupted, got.Run.Status)
	require.Empty(t, got.Samples)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

func TestRunWithUnlikeNodes(t *testing.T) {
	b, o := start(t)
	b.Write(t, "nodes/fake-03/opt/lammps/examples/reaxff/HNS/data.hns-equil", "303 atoms\n")
	dir, _, err := Run(t.Context(), o)
	require.ErrorContains(t, err, "nodes fake-02 and fake-03 have different files")
	require.DirExists(t, dir)
	nothingLeft(t, b)
}

func TestRunNotesOversubscription(t *testing.T) {
	_, o := start(t)
	o.Inventory.Nodes[1].Oversubscribed = true
	dir, _, err := Run(t.Context(), o)
	require.NoError(t, err)
	got, err := results.Load(dir)
	require.NoError(t, err)
	require.Len(t, got.Run.Notes, 1)
	require.Contains(t, got.Run.Notes[0], "oversubscribed: ")
	require.Contains(t, got.Run.Notes[0], "fake-02 on host CPUs 1")
}

func TestOptionsThatCannotBe(t *testing.T) {
	inv := bed.Inventory{Bed: "b", WorkloadManager: "slurm", Nodes: []bed.InventoryNode{
		{Name: "b-01", Role: bed.Control, CPUs: 8}, {Name: "b-02", Role: bed.Compute, CPUs: 2}, {Name: "b-03", Role: bed.Compute, CPUs: 4},
	}}
	for name, c := range map[string]struct {
		scenario string
		repeats  int
		params   map[string]string
		code     int
		says     []string
	}{
		"all at once": {"lammps", 0, map[string]string{"step": "1", "x": "0", "y": "-1", "z": "1.5", "nodes": "9", "tolerance": "NaN", "limit": "10", "warmups": "-1"}, 2,
			[]string{`repeats: "0": must be a whole number from 1 to 10000`, `step: "1": is not a parameter of scenario lammps`, "did you mean steps?",
				`x: "0": must be`, `y: "-1": must be`, `z: "1.5": must be`, `nodes: "9": bed b has 2 compute nodes with 6 CPUs in all`,
				`tolerance: "NaN": must be a number from 0 to 1`, `limit: "10": must be a length of time`, `warmups: "-1"`}},
		"too many nodes":     {"lammps", 5, map[string]string{"nodes": "3"}, 3, []string{"bed b has 2 compute nodes with 6 CPUs in all"}},
		"too many ranks":     {"lammps", 5, map[string]string{"nodes": "1", "ranks": "3"}, 3, []string{"the 1 nodes of bed b have 2 CPUs"}},
		"fewer than nodes":   {"lammps", 5, map[string]string{"ranks": "1"}, 3, []string{"is less than the 2 nodes"}},
		"misspelt scenario":  {"lamps", 5, nil, 2, []string{`scenario: "lamps": is not known here; there is lammps`, "did you mean lammps?"}},
		"no scenario at all": {"", 5, nil, 2, []string{"there is lammps"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := Run(t.Context(), Options{Inventory: inv, Stack: "s", Scenario: c.scenario, Repeats: c.repeats, Params: c.params, ResultsRoot: t.TempDir()})
			var problems bed.Problems
			require.ErrorAs(t, err, &problems)
			require.Equal(t, c.code, problems.ExitCode())
			for _, says := range c.says {
				require.ErrorContains(t, err, says)
			}
		})
	}
}

func TestDefaultsOfTheBed(t *testing.T) {
	inv := bed.Inventory{Nodes: []bed.InventoryNode{{Role: bed.Control, CPUs: 8}, {Role: bed.Compute, CPUs: 2}, {Role: bed.Compute, CPUs: 4}}}
	s := All()[0]
	v, problems := s.Resolve(inv, nil)
	require.Empty(t, problems)
	require.Equal(t, []int{2, 6}, []int{v.Int("nodes"), v.Int("ranks")}, "all CPUs of all compute nodes, not those of the control node")
	v, problems = s.Resolve(inv, map[string]string{"nodes": "1"})
	require.Empty(t, problems)
	require.Equal(t, 2, v.Int("ranks"))
}
