package wlm

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/scenarios/fakebed"
)

// reach is Nodes on a fake bed, a connection per command.
type reach struct{ *fakebed.Bed }

func (r reach) Run(ctx context.Context, node, command string) (remote.Result, error) {
	return r.Feed(ctx, node, command, nil)
}

func (r reach) Feed(ctx context.Context, node, command string, stdin []byte) (remote.Result, error) {
	n, err := r.Inventory.Node(node)
	if err != nil {
		return remote.Result{}, err
	}
	c, err := r.Dial(ctx, n)
	if err != nil {
		return remote.Result{}, err
	}
	defer c.Close()
	return c.Feed(ctx, command, strings.NewReader(string(stdin)))
}

func (r reach) Hold(ctx context.Context, node, command string, stdin []byte) (Held, error) {
	return nil, errors.New("the nodes of scenario hold commands")
}

func open(t *testing.T) (*fakebed.Bed, *slurm) {
	t.Parallel()
	b := fakebed.Start(t, 2)
	m, err := Open(b.Inventory, reach{b})
	require.NoError(t, err)
	s := m.(*slurm)
	s.timing.poll, s.timing.silence, s.timing.nodesBack = 50*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
	s.timing.end, s.timing.overtime = 10*time.Second, 0
	return b, s
}

func job(command ...string) Job {
	return Job{Name: "one", Output: "/tmp/bedfellow-out", Task: Task{Command: command, Ranks: 2},
		Request: Request{On: []string{"fake-02", "fake-03"}, Limit: 5 * time.Second}}
}

func TestSlurmRunsAJob(t *testing.T) {
	b, s := open(t)
	ctx := t.Context()
	version, err := s.Version(ctx)
	require.NoError(t, err)
	require.Equal(t, "slurm-wlm 22.05.8", version)

	j := job("sh", "-c", `echo "$PMI_RANK $(uname -n) $A" "it's"; sleep 0.2`)
	j.Env = map[string]string{"A": "a b"}
	id, err := s.Submit(ctx, j)
	require.NoError(t, err)
	o, err := s.Wait(ctx, id)
	require.NoError(t, err)
	require.NoError(t, o.Err())
	require.Equal(t, Completed, o.State)
	require.Equal(t, "fake-02", o.Host)
	require.Equal(t, []string{"fake-02", "fake-03"}, o.Nodes)
	took := o.Ended.Sub(o.Started)
	require.True(t, took > 400*time.Millisecond && took < 5*time.Second && took%time.Second != 0, "%s: the script's times count, not slurmctld's", took)
	require.Equal(t, "0 fake-02 a b it's\n1 fake-03 a b it's\n", b.Read("nodes/fake-02/tmp/bedfellow-out"))

	id, err = s.Submit(ctx, job("sh", "-c", "echo broken >&2; exit 3"))
	require.NoError(t, err)
	o, err = s.Wait(ctx, id)
	require.NoError(t, err, "a job that failed is an outcome")
	require.Equal(t, Failed, o.State)
	require.NotZero(t, o.ExitCode)
	require.ErrorContains(t, o.Err(), "on node fake-02 ended with status")
}

func scripted(text string) Job {
	j := job()
	j.Script, j.Env = text, map[string]string{"A": "a b"}
	return j
}

func TestSlurmRunsAScript(t *testing.T) {
	b, s := open(t)
	id, err := s.Submit(t.Context(), scripted(`echo "$job_number" $job_hosts "$A"
export WORD=hello
echo not | each sh -c 'echo "$(uname -n) $WORD$(cat)"'
ranks 2 sh -c 'echo $PMI_RANK'
exit 3`))
	require.NoError(t, err)
	o, err := s.Wait(t.Context(), id)
	require.NoError(t, err)
	require.Equal(t, []any{Failed, 3}, []any{o.State, o.ExitCode})
	require.Equal(t, "1 fake-02 fake-03 a b\nfake-02 hello\nfake-03 hello\n0\n1\n", b.Read("nodes/fake-02/tmp/bedfellow-out"))

	b.Write(t, "nopmix", "")
	id, err = s.Submit(t.Context(), scripted(`ranks 2 sh -c 'echo "$OMPI"'`))
	require.NoError(t, err)
	o, err = s.Wait(t.Context(), id)
	require.NoError(t, err)
	require.NoError(t, o.Err())
	require.Equal(t, "yes\nyes\n", b.Read("nodes/fake-02/tmp/bedfellow-out"))

	alone := b.Read("jobs/2/args")
	require.Contains(t, alone, "--exclusive\n")
	j := scripted("true")
	j.Shared, j.Task.Ranks = true, 4
	id, err = s.Submit(t.Context(), j)
	require.NoError(t, err)
	_, err = s.Wait(t.Context(), id)
	require.NoError(t, err)
	args := b.Read("jobs/3/args")
	require.Contains(t, args, "--ntasks-per-node=2\n")
	require.NotContains(t, args, "--exclusive")
	j.Task.Ranks = 3
	_, err = s.Submit(t.Context(), j)
	require.ErrorContains(t, err, "3 ranks on 2 nodes that are shared")

	both := scripted("true")
	both.Command = []string{"true"}
	_, err = s.Submit(t.Context(), both)
	require.ErrorContains(t, err, "a command and a script")
}

// What slurmctld says of a job, and what becomes of it.
func TestSlurmStates(t *testing.T) {
	for name, c := range map[string]struct {
		say    string
		state  State
		exit   int
		says   string // in Outcome.Err
		failed string // in Wait's error
	}{
		"completes":           {"PENDING Priority 0:0\nCONFIGURING None 0:0\nRUNNING None 0:0\nCOMPLETING None 0:0\nCOMPLETED None 0:0", Completed, 0, "", "is not there"},
		"fails":               {"RUNNING None 0:0\nFAILED NonZeroExitCode 2:0", Failed, 2, "status 2 (NonZeroExitCode)", ""},
		"killed":              {"FAILED None 0:9", Failed, 137, "status 137", ""},
		"cancelled elsewhere": {"RUNNING None 0:0\nCANCELLED None 0:15", Cancelled, 143, "is cancelled", ""},
		"time limit":          {"RUNNING None 0:0\nTIMEOUT TimeLimit 0:0", Timeout, 0, "longer than its limit", ""},
		"node fails":          {"RUNNING None 0:0\nNODE_FAIL NodeDown 1:0", NodeFail, 1, "lost one of its nodes fake-02, fake-03 (NodeDown)", ""},
		"slurmctld restarts":  {"away\naway\nRUNNING None 0:0\naway\nFAILED None 1:0", Failed, 1, "status 1", ""},
		"slurmctld is gone":   {"RUNNING None 0:0\naway", "", 0, "", "no answer for 300ms"},
		"vanishes":            {"RUNNING None 0:0\ngone", "", 0, "", "left no exit status (/tmp/bedfellow-out.exit) on fake-02, fake-03"},
		"a state of tomorrow": {"DREAMING None 0:0", "", 0, "", `unknown job state "DREAMING"`},
	} {
		t.Run(name, func(t *testing.T) {
			b, s := open(t)
			b.Write(t, "say", c.say+"\n")
			id, err := s.Submit(t.Context(), job("true"))
			require.NoError(t, err)
			o, err := s.Wait(t.Context(), id)
			if c.failed != "" {
				require.ErrorContains(t, err, c.failed)
				return
			}
			require.NoError(t, err)
			require.Equal(t, []any{c.state, c.exit, "fake-02"}, []any{o.State, o.ExitCode, o.Host})
			require.ErrorContains(t, o.Err(), c.says)
			require.Equal(t, 2*time.Second, o.Ended.Sub(o.Started))
		})
	}
}

// A job that slurmctld forgot is known by what its script left.
func TestSlurmVanishedJobThatEnded(t *testing.T) {
	for exit, want := range map[string]State{"0 1000000000 3500000000\n": Completed, "7 1000000000 3500000000\n": Failed} {
		t.Run(string(want), func(t *testing.T) {
			b, s := open(t)
			b.Write(t, "say", "RUNNING None 0:0\ngone\n")
			b.Write(t, "nodes/fake-03/tmp/bedfellow-out.exit", exit)
			id, err := s.Submit(t.Context(), job("true"))
			require.NoError(t, err)
			o, err := s.Wait(t.Context(), id)
			require.NoError(t, err)
			require.Equal(t, []any{want, "fake-03", 2500 * time.Millisecond}, []any{o.State, o.Host, o.Ended.Sub(o.Started)})
		})
	}
}

func TestSlurmCannotEverRun(t *testing.T) {
	has := "It has 2 nodes with 2 CPUs in all"
	t.Run("refused", func(t *testing.T) {
		b, s := open(t)
		b.Write(t, "refuse", "sbatch: error: Batch job submission failed: Requested node configuration is not available\n")
		_, err := s.Submit(t.Context(), job("true"))
		var never *UnsatisfiableError
		require.ErrorAs(t, err, &never)
		require.ErrorContains(t, err, has)
		b.Write(t, "refuse", "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)\n")
		_, err = s.Submit(t.Context(), job("true"))
		require.ErrorContains(t, err, "slurmctld.log")
		var other *UnsatisfiableError
		require.False(t, errors.As(err, &other))
	})
	for reason, sinfo := range map[string]string{
		"PartitionNodeLimit":                       "",
		"Nodes_required_for_job_are_DOWN,_DRAINED": "fake-02|idle|0/1/0/1|none\nfake-03|down*|0/0/1/1|Not responding\n",
	} {
		t.Run(reason, func(t *testing.T) {
			b, s := open(t)
			b.Write(t, "say", "PENDING "+reason+" 0:0\n")
			if sinfo != "" {
				b.Write(t, "sinfo", sinfo)
			}
			id, err := s.Submit(t.Context(), job("true"))
			require.NoError(t, err)
			_, err = s.Wait(t.Context(), id)
			var never *UnsatisfiableError
			require.ErrorAs(t, err, &never)
			require.ErrorContains(t, err, has)
			if sinfo != "" {
				require.ErrorContains(t, err, "only 1 of the nodes can be used")
				require.ErrorContains(t, err, "fake-03 is down* (Not responding)")
			}
			require.FileExists(t, filepath.Join(b.Dir, "jobs/1/cancelled"))
		})
	}
	t.Run("patience", func(t *testing.T) {
		b, s := open(t)
		b.Write(t, "say", "PENDING Priority 0:0\n")
		j := job("true")
		j.Patience = 100 * time.Millisecond
		id, err := s.Submit(t.Context(), j)
		require.NoError(t, err)
		_, err = s.Wait(t.Context(), id)
		require.ErrorContains(t, err, "still pends after 100ms (Priority), and was cancelled")
		require.FileExists(t, filepath.Join(b.Dir, "jobs/1/cancelled"))
	})
}

func TestSlurmEndsJobs(t *testing.T) {
	t.Run("context", func(t *testing.T) {
		b, s := open(t)
		id, err := s.Submit(t.Context(), job("sleep", "60"))
		require.NoError(t, err)
		reason := errors.New("Ctrl-C")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(300*time.Millisecond, func() { cancel(reason) })
		o, err := s.Wait(ctx, id)
		require.ErrorIs(t, err, reason)
		require.Equal(t, Cancelled, o.State)
		require.FileExists(t, filepath.Join(b.Dir, "jobs/1/cancelled"))
		_, err = s.Submit(ctx, job("true"))
		require.ErrorIs(t, err, reason)
		require.NoError(t, s.Cancel(t.Context(), "99"), "a job that is over is no error")
	})
	t.Run("limit", func(t *testing.T) {
		_, s := open(t)
		j := job("sleep", "60")
		j.Limit = 300 * time.Millisecond
		id, err := s.Submit(t.Context(), j)
		require.NoError(t, err)
		o, err := s.Wait(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, Timeout, o.State)
	})
	t.Run("allocation", func(t *testing.T) {
		b, s := open(t)
		a, err := s.Allocate(t.Context(), Request{Nodes: 2, Ranks: 2, Limit: time.Minute})
		require.NoError(t, err)
		require.Equal(t, []string{"fake-02", "fake-03"}, a.Nodes())
		r, err := a.Run(t.Context(), Task{Command: []string{"echo", "hello"}, Ranks: 1})
		require.NoError(t, err)
		require.Equal(t, "hello\n", string(r.Stdout))
		require.NoError(t, a.Release(t.Context()))
		require.FileExists(t, filepath.Join(b.Dir, "jobs/1/cancelled"))
	})
}

func TestJobsThatAreNone(t *testing.T) {
	_, s := open(t)
	j := Job{Name: "a b", Output: "out", Task: Task{Dir: "here"}, Request: Request{Nodes: 2, On: []string{"fake-02"}}}
	_, err := s.Submit(t.Context(), j)
	for _, says := range []string{"no command", `"here" is not absolute`, "2 nodes, 1 of them by name", "0 ranks on 2 nodes", "no time limit", `name "a b"`, `output "out"`} {
		require.ErrorContains(t, err, says)
	}
	inv := bed.Inventory{Bed: "b", WorkloadManager: "pbs"}
	_, err = Open(inv, nil)
	var problems bed.Problems
	require.ErrorAs(t, err, &problems)
	require.Equal(t, 3, problems.ExitCode())
}

var update = flag.Bool("update", false, "write golden files")

func TestScriptGolden(t *testing.T) {
	got := script(Job{Task: Task{Command: []string{"lmp", "-v", "x", "it's 2"}, Env: map[string]string{"B": "2", "A": "1 1"}, Ranks: 4}, Request: Request{Nodes: 2}}, "/tmp/bed x/1.out.exit")
	file := filepath.Join("testdata", "script.golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, got, 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}

func TestSlurmWithoutPMIx(t *testing.T) {
	b, s := open(t)
	b.Write(t, "nopmix", "")
	id, err := s.Submit(t.Context(), job("sh", "-c", `echo "$PMI_RANK $(uname -n) $OMPI"`))
	require.NoError(t, err)
	o, err := s.Wait(t.Context(), id)
	require.NoError(t, err)
	require.NoError(t, o.Err())
	require.Equal(t, "0 fake-02 yes\n1 fake-03 yes\n", b.Read("nodes/fake-02/tmp/bedfellow-out"))

	a, err := s.Allocate(t.Context(), Request{Nodes: 2, Ranks: 3, Limit: time.Minute})
	require.NoError(t, err)
	r, err := a.Run(t.Context(), Task{Command: []string{"sh", "-c", `echo "$OMPI $SLURM_JOB_ID $SLURM_NODELIST $SLURM_TASKS_PER_NODE"`}, Ranks: 3})
	require.NoError(t, err)
	require.Equal(t, strings.Repeat("yes "+string(a.ID())+" fake-02,fake-03 2,1\n", 3), string(r.Stdout))
	require.NoError(t, a.Release(t.Context()))
}

func TestSlurmAttach(t *testing.T) {
	_, s := open(t)
	attaches(t, s)
}

// attaches follows a job whose second line comes only once its first was copied, and whose output is larger than what is fetched at once.
func attaches(t *testing.T, m Manager) {
	ctx := t.Context()
	dir := t.TempDir()
	script := `test "$(uname -n)" = fake-03 && exit; echo first; until [ -e "$0/read" ]; do sleep 0.05; done; head -c 1500000 /dev/zero; echo last`
	id, err := m.Submit(ctx, job("sh", "-c", script, dir))
	require.NoError(t, err)
	var said bytes.Buffer
	require.NoError(t, m.Attach(ctx, id, writerFunc(func(p []byte) (int, error) {
		if said.Write(p); said.String() == "first\n" {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "read"), nil, 0o600))
		}
		return len(p), nil
	})))
	require.Equal(t, "first\n"+strings.Repeat("\x00", 1500000)+"last\n", said.String())
	_, err = m.Wait(ctx, id)
	require.NoError(t, err)
	require.ErrorContains(t, m.Attach(ctx, id, io.Discard), "was waited for already")

	id, err = m.Submit(ctx, job("sh", "-c", "echo something; sleep 3"))
	require.NoError(t, err)
	short, cancel := context.WithTimeoutCause(ctx, 300*time.Millisecond, errors.New("seen enough"))
	defer cancel()
	require.ErrorContains(t, m.Attach(short, id, io.Discard), "seen enough")
	require.ErrorContains(t, m.Attach(ctx, id, writerFunc(func(p []byte) (int, error) { return 0, errors.New("the reader is full") })), "the reader is full")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
