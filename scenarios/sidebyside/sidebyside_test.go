package sidebyside

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

const printed = `1795467886.000000000 holding job-12
1795467887.500000000 containers
1795467897.500000000 control-plane
1795467917.500000000 readiness
1795467937.500000000 service
1795467947.500000000 points
{"id": "train-0001", "use": "train", "x": 1, "y": 2, "z": 1, "seconds": 0.5, "latency": 0.002, "tries": 1, "points": 1}
{"id": "train-0002", "use": "train", "x": 2, "y": 2, "z": 1}
{"id": "test-0001", "use": "test", "x": 1, "y": 1, "z": 1, "seconds": 0.25, "latency": 0.001, "tries": 3, "predictions": {"linear": 0.3}, "points": 1}
1795467957.500000000 models
{"service": {"points": 1, "versions": {"numpy": "2"}}, "metrics": {}, "models": []}
1795467958.500000000 leaving
1795467960.500000000 gone
`

// ran is what a job has printed, in pieces as they may come.
func ran(t *testing.T, text string, state wlm.State) Ran {
	t.Helper()
	r := &reader{told: func(Said) error { return nil }, phase: func(Phase, int) {}}
	for _, piece := range strings.SplitAfter(text, ":") {
		_, err := r.Write([]byte(piece))
		require.NoError(t, err)
	}
	require.NoError(t, r.err)
	assert.Equal(t, "job-12", r.instance)
	return Ran{Outcome: wlm.Outcome{ID: "12", State: state}, Log: "logs/a.log", Phases: r.phases, Said: r.said, Models: r.models, Loads: r.loads, Beside: r.beside}
}

func asked() Job {
	return Job{Ending: Completed, At: "points", Points: []Point{{"train-0001", Train, 1, 2, 1}, {"train-0002", Train, 2, 2, 1}, {"test-0001", Test, 1, 1, 1}}}
}

func TestWhatAJobPrintsIsRead(t *testing.T) {
	r := ran(t, printed, wlm.Completed)
	require.NoError(t, r.Complete(asked()), "a simulation that failed is told of, and not learned")
	require.EqualError(t, r.check(asked()), "simulation train-0002 of 2x2x1 cells failed; what it said is in the run's logs/a.log")
	assert.Nil(t, r.Said[1].Seconds)
	assert.Equal(t, map[string]float64{"linear": 0.3}, r.Said[2].Predictions)
	metrics := map[string]float64{}
	for _, m := range r.Metrics() {
		metrics[m.Name] = m.Value
	}
	assert.Equal(t, map[string]float64{
		"set-up": 51.5, "set-up/holding": 1.5, "set-up/containers": 10, "set-up/control-plane": 20, "set-up/readiness": 20, "service": 10, "simulations": 10,
		"learn latency": 2, "predict latency": 1, "teardown": 2,
	}, metrics)
}

func TestRequestsAndWhatIsBesideThem(t *testing.T) {
	const more = `1795467958.000000000 requests
{"load": "learn", "seconds": 0.5, "latencies": [0.1, 0.3, 0.1]}
{"load": "predict", "seconds": 0.25, "latencies": [0.05]}
1795467958.000000000 busy
{"beside": "idle", "seconds": 2}
{"beside": "busy", "seconds": 3}
`
	text := strings.Replace(printed, "1795467958.500000000 leaving", more+"1795467958.500000000 leaving", 1)
	job := asked()
	job.Requests = 3
	r := ran(t, text, wlm.Completed)
	require.NoError(t, r.Complete(job))
	metrics := map[string]float64{}
	for _, m := range r.Metrics() {
		metrics[m.Name] = m.Value
	}
	for name, want := range map[string]float64{"learn requests": 6, "learn requests, median latency": 100, "predict requests": 4, "simulation, service idle": 2, "simulation, service busy": 3, "simulation, service busy over idle": 1.5} {
		assert.InDelta(t, want, metrics[name], 1e-9, name)
	}
	assert.ErrorContains(t, ran(t, printed, wlm.Completed).check(job), "0 kinds of requests")
	assert.ErrorContains(t, ran(t, strings.Replace(text, `"seconds": 3`, `"seconds": null`, 1), wlm.Completed).check(job), "service busy beside it failed")
}

func TestAJobThatDidNotDoItsWork(t *testing.T) {
	for name, c := range map[string]struct {
		from, to string
		says     string
	}{
		"a point not told of":   {`{"id": "train-0002", "use": "train", "x": 2, "y": 2, "z": 1}` + "\n", "", "2 simulations of 3"},
		"another point":         {`"x": 2`, `"x": 3`, "where it was to tell of train-0002"},
		"a point counted twice": {`{"points": 1,`, `{"points": 2,`, "has learned 2 points, and 1 were simulated"},
		"a point lost":          {`{"points": 1,`, `{"points": 0,`, "has learned 0 points"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(printed, c.from, c.to, 1)
			require.NotEqual(t, printed, text)
			assert.ErrorContains(t, ran(t, text, wlm.Completed).check(asked()), c.says)
		})
	}
	r := &reader{told: func(Said) error { return nil }, phase: func(Phase, int) {}}
	_, _ = r.Write([]byte("what is this\n"))
	assert.ErrorContains(t, r.err, "what is this")
}

func TestHowAJobWasToEnd(t *testing.T) {
	until := func(phase string) string {
		text, _, found := strings.Cut(printed, " "+phase)
		require.True(t, found)
		return text + " " + phase + "\n"
	}
	job := asked()
	job.Ending, job.At = Cancelled, "readiness"
	assert.NoError(t, ran(t, until("readiness"), wlm.Cancelled).check(job))
	assert.NoError(t, ran(t, until("readiness")+"1795467958.500000000 leaving\n", wlm.Cancelled).check(job))
	assert.ErrorContains(t, ran(t, until("containers"), wlm.Cancelled).check(job), "was last at containers")
	assert.ErrorContains(t, ran(t, printed, wlm.Completed).check(job), "is completed, and was to be cancelled")

	// One that fails by itself is taken down too, and does not count as one that was told to.
	job.Ending = Failed
	down := "1795467958.500000000 leaving\n1795467959.500000000 gone\n"
	failed := ran(t, until("readiness")+down, wlm.Failed)
	failed.Outcome.ExitCode = failsWith
	assert.NoError(t, failed.check(job))
	failed.Outcome.ExitCode = 1
	assert.ErrorContains(t, failed.check(job), "failed by itself")
	assert.ErrorContains(t, ran(t, until("containers")+down, wlm.Failed).check(job), "was last at gone")
	job.Ending = Completed
	assert.ErrorContains(t, ran(t, until("readiness"), wlm.Timeout).check(job), "is timeout, and was to be completed; it was last at readiness")
}

func TestPointsAreOfTheirSeed(t *testing.T) {
	one := Draw(7, 1000, 250, [3]int{32, 8, 16})
	assert.Equal(t, one, Draw(7, 1000, 250, [3]int{32, 8, 16}))
	assert.NotEqual(t, one, Draw(8, 1000, 250, [3]int{32, 8, 16}))
	most, uses := [3]int{}, map[Use]int{}
	for _, p := range one {
		require.True(t, p.X >= 1 && p.Y >= 1 && p.Z >= 1)
		most = [3]int{max(most[0], p.X), max(most[1], p.Y), max(most[2], p.Z)}
		uses[p.Use]++
	}
	assert.Equal(t, [3]int{32, 8, 16}, most, "in more than a thousand points every number comes")
	assert.Equal(t, map[Use]int{Train: 1000, Test: 250}, uses)
	assert.Equal(t, "test-0001", one[1000].ID)
}

func TestUsersShareNodes(t *testing.T) {
	for _, good := range []string{"bed", "bed,guest", "bed,bed"} {
		assert.NoError(t, checkUsers(good), good)
	}
	for _, bad := range []string{"", "bed,", "bed guest", "Bed"} {
		assert.Error(t, checkUsers(bad), bad)
	}
	inv := bed.Inventory{Nodes: []bed.InventoryNode{{Name: "a", Role: bed.Compute, CPUs: 2}, {Name: "b", Role: bed.Compute, CPUs: 1}}}
	assert.NoError(t, shareNodes(inv, scenario.Values{"nodes": "1"}, "bed,guest"))
	assert.ErrorContains(t, shareNodes(inv, scenario.Values{"nodes": "2"}, "bed,guest"), "node b has 1")
	inv.WorkloadManager, inv.FluxMatchPolicy = "flux", "lonode"
	assert.NoError(t, shareNodes(inv, scenario.Values{"nodes": "1"}, "bed,guest"))

	first, second := ran(t, printed, wlm.Completed), ran(t, printed, wlm.Completed)
	assert.NoError(t, together([]Ran{first, second}))
	for i := range second.Phases {
		second.Phases[i].At = second.Phases[i].At.Add(2 * time.Minute)
	}
	assert.ErrorContains(t, together([]Ran{second, first}), "the last began 46s after the first was over")
}

func TestIdleNodesAreHeldAgainstOneJobThatCompletes(t *testing.T) {
	inv := bed.Inventory{User: "bed", Nodes: []bed.InventoryNode{{Name: "a", Role: bed.Compute, CPUs: 2}}}
	_, problems := Scenario().Resolve(inv, map[string]string{"idle": "yes"})
	assert.Empty(t, problems)
	for name, value := range map[string]string{"ending": "failed", "users": "bed,bed"} {
		_, problems := Scenario().Resolve(inv, map[string]string{"idle": "yes", name: value})
		assert.ErrorContains(t, problems, "leave out ending and users", name)
	}
}

func TestHowAJobIsToEndIsChecked(t *testing.T) {
	inv := bed.Inventory{User: "bed", Nodes: []bed.InventoryNode{{Name: "a", Role: bed.Compute, CPUs: 2}, {Name: "b", Role: bed.Compute, CPUs: 2}}}
	for says, given := range map[string]map[string]string{
		"is a phase of jobs on several nodes":         {"ending": "cancelled", "at": "joining", "nodes": "1"},
		"is for jobs that are cancelled or killed":    {"ending": "timeout", "after": "5s"},
		"must be a length of time":                    {"ending": "killed", "after": "now"},
		"bring the bed up with -c flux.mode=system":   {"users": "bed,guest"},
		"must be one of holding, containers, control": {"at": "nowhere"},
		"-c flux.matchPolicy=lonode for 2 jobs":       {"users": "bed,bed"},
		"":                                            {"ending": "killed", "at": "joining", "after": "5s"},
	} {
		inv.FluxMode, inv.WorkloadManager = map[bool]string{true: "user"}[given["users"] == "bed,guest"], "flux"
		_, problems := Scenario().Resolve(inv, given)
		if says == "" {
			assert.Empty(t, problems)
		} else {
			assert.ErrorContains(t, problems, says)
		}
	}
}

// The job's script runs by a POSIX shell; package e2e has real nodes run it.
func TestTheScriptIsOneOfTheShell(t *testing.T) {
	cmd := exec.Command("sh", "-n")
	cmd.Stdin = strings.NewReader(jobScript)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, phase := range Phases {
		assert.Regexp(t, `(?m)^\s*phase `+phase+`\b`, jobScript)
	}
	assert.Contains(t, jobScript, fmt.Sprintf("|| exit %d\n", failsWith))
}
