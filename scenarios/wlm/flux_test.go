package wlm

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/scenarios/fakebed"
)

// The tests below are on a fake of Flux's command; TestFlux in package e2e, with the scenario flux-selftest, is on the real one.

func openFlux(t *testing.T) (*fakebed.Bed, *flux) {
	t.Parallel()
	b := fakebed.Start(t, 2)
	b.Inventory.WorkloadManager = "flux"
	m, err := Open(b.Inventory, reach{b})
	require.NoError(t, err)
	f := m.(*flux)
	f.timing.poll, f.timing.silence, f.timing.nodesBack = 50*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
	f.timing.end, f.timing.overtime = 10*time.Second, 0
	return b, f
}

func TestFluxRunsAJob(t *testing.T) {
	b, f := openFlux(t)
	version, err := f.Version(t.Context())
	require.NoError(t, err)
	require.Equal(t, "flux-core 0.88.0 +systemd+hwloc==2.9.0", version)

	j := job("sh", "-c", `echo "$(uname -n) $A" "it's"`)
	j.Env = map[string]string{"A": "a b"}
	id, err := f.Submit(t.Context(), j)
	require.NoError(t, err)
	o, err := f.Wait(t.Context(), id)
	require.NoError(t, err)
	require.NoError(t, o.Err())
	require.Equal(t, "fake-02", o.Host)
	require.Equal(t, []string{"fake-02", "fake-03"}, o.Nodes)
	require.Equal(t, 2125*time.Millisecond, o.Ended.Sub(o.Started))
	require.Equal(t, "fake-02 a b it's\n", b.Read("nodes/fake-02/tmp/bedfellow-out"))
	args := b.Read("jobs/f1/args")
	for _, want := range []string{"--nodes=2\n", "--exclusive\n", "--ntasks=2\n", "--requires=host:fake-02,fake-03\n", "--time-limit=65s\n", "--setopt=cpu-affinity=per-task\n"} {
		require.Contains(t, args, want)
	}

	id, err = f.Submit(t.Context(), job("sh", "-c", "exit 3"))
	require.NoError(t, err)
	o, err = f.Wait(t.Context(), id)
	require.NoError(t, err, "a job that failed is an outcome")
	require.Equal(t, []any{Failed, 3}, []any{o.State, o.ExitCode})

	r, err := f.Resources(t.Context())
	require.NoError(t, err)
	require.Equal(t, "2 nodes with 2 CPUs in all", r.String())
}

// The fake runs no script; package e2e has Flux itself do it.
func TestFluxIsGivenAScript(t *testing.T) {
	b, f := openFlux(t)
	id, err := f.Submit(t.Context(), scripted("ranks 2 true\n"))
	require.NoError(t, err)
	args, script := b.Read("jobs/f1/args"), b.Read("jobs/f1/script")
	for _, want := range []string{"batch\n", "--nodes=2\n", "--broker-opts=-Sbroker.critical-ranks=0-1\n", "--nslots=2\n", "--exclusive\n", "--requires=host:fake-02,fake-03\n", "/tmp/bedfellow-out\n", "--cwd=/\n"} {
		require.Contains(t, args, want)
	}
	require.Regexp(t, `(?s)^#!/bin/sh\n.*\nexport A='a b'\nranks 2 true\n$`, script)
	require.NoError(t, f.Cancel(t.Context(), id))

	j := scripted("true")
	j.Shared, j.Task.Ranks = true, 4
	id, err = f.Submit(t.Context(), j)
	require.NoError(t, err)
	args = b.Read("jobs/f2/args")
	require.Contains(t, args, "--nslots=4\n")
	require.NotContains(t, args, "--exclusive")
	require.NoError(t, f.Cancel(t.Context(), id))
}

func TestFluxStates(t *testing.T) {
	for name, c := range map[string]struct {
		say    string
		state  State
		exit   int
		failed string // in Wait's error
	}{
		"completes":           {"SCHED - -\nRUN - -\nCLEANUP - -\nINACTIVE COMPLETED 0", Completed, 0, ""},
		"fails":               {"RUN - -\nINACTIVE FAILED 2", Failed, 2, ""},
		"its shell is killed": {"INACTIVE FAILED -9", Failed, 137, ""},
		"cancelled elsewhere": {"RUN - -\nINACTIVE CANCELED 143", Cancelled, 143, ""},
		"time limit":          {"RUN - -\nINACTIVE TIMEOUT 142", Timeout, 142, ""},
		"Flux restarts":       {"away\nRUN - -\naway\nINACTIVE FAILED 1", Failed, 1, ""},
		"Flux is gone":        {"RUN - -\naway", "", 0, "no answer for 300ms"},
		"vanishes":            {"RUN - -\ngone", "", 0, "its instance lost its state"},
		"a state of tomorrow": {"DREAM - -", "", 0, `unknown state "DREAM"`},
	} {
		t.Run(name, func(t *testing.T) {
			b, f := openFlux(t)
			b.Write(t, "say", c.say+"\n")
			id, err := f.Submit(t.Context(), job("true"))
			require.NoError(t, err)
			o, err := f.Wait(t.Context(), id)
			if c.failed != "" {
				require.ErrorContains(t, err, c.failed)
				if name == "Flux is gone" {
					require.FileExists(t, b.Dir+"/jobs/f1/cancelled", "it is back before the job is over, say")
				}
				return
			}
			require.NoError(t, err)
			require.Equal(t, []any{c.state, c.exit}, []any{o.State, o.ExitCode})
		})
	}
}

// What the real 0.88.0 printed, shortened.
func TestFluxJobsAreRead(t *testing.T) {
	o, err := readFluxJob("f1", `{"t_run": 1795651259.5453458, "t_cleanup": 1795651261.7253914, "ranks": "[1-3]", "nodelist": "fx-[02-04]", "success": true,
		"result": "COMPLETED", "waitstatus": 0, "state": "INACTIVE", "returncode": 0, "annotations": {"sched": {"selection_type": "immediate"}}, "exception": {"occurred": false}}`)
	require.NoError(t, err)
	require.Equal(t, []any{Completed, 0, "fx-[02-04]"}, []any{o.State, o.ExitCode, o.nodeList})
	require.InDelta(t, 2.180046, o.Ended.Sub(o.Started).Seconds(), 2e-6)

	o, err = readFluxJob("f1", `{"state": "RUN", "uri": "ssh://fx-02/tmp/flux-Cfw90t/local-0", "exception": {"occurred": false}}`)
	require.NoError(t, err)
	require.Equal(t, []any{Running, ""}, []any{o.State, o.uri}, "the instance is not whole before its script says so")

	o, err = readFluxJob("f1", `{"state": "INACTIVE", "result": "FAILED", "returncode": 1, "exception": {"occurred": true, "severity": 0, "type": "exec", "note": "lost contact with job shell on broker fx-03"}}`)
	require.NoError(t, err)
	require.Equal(t, []any{NodeFail, "exec: lost contact with job shell on broker fx-03"}, []any{o.State, o.Reason})
	// What flux-core 0.88.0 says when a broker is killed.
	o, err = readFluxJob("f1", `{"state": "INACTIVE", "result": "FAILED", "returncode": 1, "exception": {"occurred": true, "severity": 0, "type": "exec", "note": "node failure on rep-04 (rank 3)"}}`)
	require.NoError(t, err)
	require.Equal(t, NodeFail, o.State)

	for _, wrong := range []string{"", "[]", "{}", `{"state": "INACTIVE", "result": "BORED"}`, "no such job"} {
		_, err := readFluxJob("f1", wrong)
		require.Error(t, err, wrong)
	}
}

func TestFluxCannotEverRun(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		b, f := openFlux(t)
		b.Write(t, "refuse", "flux-submit: ERROR: [Errno 22] Unsatisfiable request\n")
		_, err := f.Submit(t.Context(), job("true"))
		var never *UnsatisfiableError
		require.ErrorAs(t, err, &never)
		require.ErrorContains(t, err, "It has 2 nodes with 2 CPUs in all")
		b.Write(t, "refuse", "flux-submit: ERROR: Unable to connect to Flux: Connection refused\n")
		_, err = f.Submit(t.Context(), job("true"))
		require.ErrorContains(t, err, "journalctl -u flux")
		require.False(t, errors.As(err, new(*UnsatisfiableError)))
	})
	t.Run("nodes are down", func(t *testing.T) {
		b, f := openFlux(t)
		b.Write(t, "say", "SCHED - -\n")
		b.Write(t, "sinfo", "fake-02|idle|0/1/0/1|none\nfake-03|down|0/0/1/1|\n")
		id, err := f.Submit(t.Context(), job("true"))
		require.NoError(t, err)
		_, err = f.Wait(t.Context(), id)
		require.ErrorContains(t, err, "only 1 of the nodes can be used")
		require.ErrorContains(t, err, "fake-03 is offline")
	})
}

func TestFluxEndsJobs(t *testing.T) {
	t.Run("context", func(t *testing.T) {
		b, f := openFlux(t)
		id, err := f.Submit(t.Context(), job("sleep", "60"))
		require.NoError(t, err)
		require.NoError(t, f.Cancel(t.Context(), id))
		require.FileExists(t, b.Dir+"/jobs/f1/cancelled")
		o, err := f.Wait(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, Cancelled, o.State)
		require.NoError(t, f.Cancel(t.Context(), "f99"), "a job that is over is no error")
	})
	t.Run("context of whoever waits", func(t *testing.T) {
		_, f := openFlux(t)
		id, err := f.Submit(t.Context(), job("sleep", "60"))
		require.NoError(t, err)
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("enough"))
		defer cancel()
		o, err := f.Wait(ctx, id)
		require.ErrorContains(t, err, "enough")
		require.Equal(t, "fake-02", o.Host, "what it printed is to be read there")
	})
	t.Run("limit", func(t *testing.T) {
		_, f := openFlux(t)
		j := job("sleep", "60")
		j.Limit = 300 * time.Millisecond
		id, err := f.Submit(t.Context(), j)
		require.NoError(t, err)
		o, err := f.Wait(t.Context(), id)
		require.NoError(t, err)
		require.Equal(t, Timeout, o.State)
	})
	t.Run("allocation", func(t *testing.T) {
		b, f := openFlux(t)
		a, err := f.Allocate(t.Context(), Request{Nodes: 2, Ranks: 2, Limit: time.Minute})
		require.NoError(t, err)
		require.Equal(t, []string{"fake-02", "fake-03"}, a.Nodes())
		require.Contains(t, b.Read("jobs/f1/script"), "exec sleep 60")
		r, err := a.Run(t.Context(), Task{Command: []string{"echo", "hello"}, Ranks: 2})
		require.NoError(t, err)
		require.Equal(t, "local:///tmp/flux-x/local-0\nhello\n", string(r.Stdout), "in the instance that the job is")
		require.NoError(t, a.Release(t.Context()))
		require.FileExists(t, b.Dir+"/jobs/f1/cancelled")
	})
}

func TestFluxAttach(t *testing.T) {
	_, f := openFlux(t)
	attaches(t, f)
}
