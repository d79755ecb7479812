package sidebyside

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/scenarios/lammps"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

//go:embed job.sh
var jobScript string

//go:embed client.py
var client []byte

//go:embed service.yaml
var service []byte

// Point is a simulation of the job: LAMMPS on x × y × z cells, whose time the service learns or is asked for.
type Point struct {
	ID      string
	Use     Use
	X, Y, Z int
}

// Use is what a point is for.
type Use string

// The uses of points.
const (
	Train Use = "train"
	Test  Use = "test"
)

// Job is a batch job with a Kubernetes of its own, a service in it, and simulations that talk to that.
type Job struct {
	Name   string
	Nodes  []string
	Ranks  int  // of each simulation
	Shared bool // has no other CPUs than its ranks'
	Steps  int
	Limit  time.Duration
	Points []Point // in this order
	// Requests are how many the service is asked at the end to learn, and to predict, from a node. Simulations of BusyCells³ cells
	// follow, with the service asked by nobody and all the time. 0 is neither.
	Requests, BusyCells int
	Ending              Ending
	At                  string // the phase that Ending is at, unless it is Completed
	// After is how far into that phase a job is cancelled or killed, which goes on meanwhile. With 0 it waits at the phase's beginning.
	After time.Duration
	// Told, if set, hears of each simulation once, from 0 on, as soon as the job tells of it.
	Told func(s Said, i int) error
}

// LogName is what all that the job printed is called in the run's results.
func (j Job) LogName() string { return j.Name + ".log" }

// Ending is how a job is to end.
type Ending string

// The endings there are.
const (
	Completed Ending = "completed"
	Failed    Ending = "failed"    // its script fails
	Cancelled Ending = "cancelled" // by its manager's command
	TimedOut  Ending = "timeout"
	Killed    Ending = "killed" // all of its processes, by a signal that none of them sees
)

// joining is a phase of a job on several nodes.
const joining = "joining"

// Phases are those that a job is ended at, in their order.
var Phases = []string{"holding", "containers", "control-plane", joining, "readiness", "service", "points", "models", "leaving"}

// Said is what the client has said of a point.
type Said struct {
	ID          string
	Use         Use
	X, Y, Z     int
	Seconds     *float64           // of LAMMPS' loop; nil is a simulation that failed
	Latency     float64            // of the request, in seconds
	Tries       int                // until the service answered
	Points      int                // that the service has learned
	Predictions map[string]float64 // by model, seconds
}

// Models is what the service has said of itself once all was learned. Its models and their scores are in the log as it printed them.
type Models struct {
	Service struct {
		Points   int
		Versions map[string]string
	}
}

// Load is what requests took that were made one after the other, in seconds.
type Load struct {
	Load      string // learn or predict
	Seconds   float64
	Latencies []float64
}

// Beside is the time of a simulation with the service idle or busy beside it; nil is one that failed.
type Beside struct {
	Beside  string
	Seconds *float64
}

// Phase is a part of a job that began at that time.
type Phase struct {
	Name string
	At   time.Time
}

// Ran is what became of a job.
type Ran struct {
	Outcome wlm.Outcome
	Phases  []Phase
	Said    []Said
	Models  *Models // nil when the job did not come to it
	Loads   []Load
	Beside  []Beside
	Log     string // in the results
}

// Took is how long a phase lasted, up to the one after it.
func (r Ran) Took(name string) (time.Duration, bool) {
	for i, p := range r.Phases[:max(0, len(r.Phases)-1)] {
		if p.Name == name {
			return r.Phases[i+1].At.Sub(p.At), true
		}
	}
	return 0, false
}

const (
	podWait    = 15 * time.Minute // for the service's pod; an emulated node needs some of it
	holdLonger = 10 * time.Minute // than the job's limit: its manager ends it, unless it is gone itself
	goneWait   = 40 * time.Minute // for the nodes to have taken everything down; seconds, where CPUs are not emulated
)

// Run runs a job and waits until nothing of it is left on its nodes, however it ended. An error is that it could not be run or that something is
// left; how the job ended is in Ran.
func (j Job) Run(ctx context.Context, env *scenario.Env) (r Ran, err error) {
	dir, remove, err := env.Scratch(ctx, j.Nodes, "-"+j.Name)
	if err != nil {
		return r, err
	}
	defer remove()
	input, err := lammps.Input(ctx, env, j.Nodes[0], j.Steps)
	if err != nil {
		return r, err
	}
	var points strings.Builder
	for _, p := range j.Points {
		fmt.Fprintf(&points, "%s %s %d %d %d\n", p.ID, p.Use, p.X, p.Y, p.Z)
	}
	for name, data := range map[string][]byte{"client.py": client, "service.yaml": service, "points": []byte(points.String()), "input": []byte(input)} {
		if err := env.Put(ctx, j.Nodes, path.Join(dir, name), data, 0o600); err != nil {
			return r, err
		}
	}
	stop := j.At
	if j.Ending == Completed || j.After > 0 {
		stop = ""
	}
	id, err := env.Manager.Submit(ctx, wlm.Job{
		Name: j.Name, Output: path.Join(dir, "out"), Error: path.Join(dir, "err"), Script: jobScript,
		Task: wlm.Task{Ranks: j.Ranks, Dir: lammps.Example, Env: map[string]string{
			"dir": dir, "lmp": lammps.Binary, "input": path.Join(dir, "input"), "ranks": strconv.Itoa(j.Ranks), "ending": string(j.Ending), "stop_at": stop,
			"limit": strconv.Itoa(int((j.Limit + holdLonger).Seconds())), "requests": strconv.Itoa(j.Requests), "busy_cells": strconv.Itoa(j.BusyCells),
			"USERNETES_PATIENCE": strconv.Itoa(int(podWait.Seconds())),
		}},
		Request: wlm.Request{On: j.Nodes, Limit: j.Limit, Shared: j.Shared},
	})
	if err != nil {
		return r, err
	}
	step := progress.Start(ctx, "%s on %d nodes", j.Name, len(j.Nodes))
	told := map[string]bool{} // simulations, by their points; nobody reads at once with another
	tell := func(s Said) error {
		if j.Told == nil || told[s.ID] {
			return nil
		}
		told[s.ID] = true
		return j.Told(s, len(told)-1)
	}
	var ended sync.Once
	var ending sync.WaitGroup
	over, done := context.WithCancel(ctx)
	defer done()
	reading := &reader{told: tell, phase: func(p Phase, said int) {
		step.Update("%s", describe(p.Name, said, len(j.Points)))
		if p.Name == j.At && j.Ending != Completed {
			ended.Do(func() {
				ending.Go(func() {
					select {
					case <-time.After(j.After):
						j.end(ctx, env, id, dir)
					case <-over.Done():
					}
				})
			})
		}
	}}
	var attached sync.WaitGroup
	attached.Go(func() {
		if err := env.Manager.Attach(ctx, id, reading); err != nil && ctx.Err() == nil { // all of it is read below, if it can be
			_ = env.Note(ctx, "job %s was not followed to its end: %v", id, err)
		}
	})
	r.Outcome, err = env.Manager.Wait(ctx, id)
	done()
	attached.Wait()
	ending.Wait()
	_ = step.End(err)
	whole := &reader{told: tell, phase: func(Phase, int) {}}
	errRead := j.read(context.WithoutCancel(ctx), env, &r, dir, whole)
	if errRead != nil || len(whole.said) < len(reading.said) || len(whole.phases) < len(reading.phases) { // of a node that is gone, say: then this is all there is
		whole = reading
		var errLog error
		r.Log, errLog = env.Record.Log(j.LogName(), reading.all.Bytes())
		err = errors.Join(err, errRead, errLog)
	}
	r.Phases, r.Said, r.Models, r.Loads, r.Beside = whole.phases, whole.said, whole.models, whole.loads, whole.beside
	instance := cmp.Or(whole.instance, reading.instance)
	if instance == "" && r.Outcome.Host != "" {
		return r, errors.Join(err, whole.err, fmt.Errorf("job %s did not say what it has on its nodes %s: `bed ssh NODE -- sudo runuser -l %s -c 'usernetes instances'` tells", id, strings.Join(j.Nodes, ", "), env.Inventory.User))
	}
	return r, errors.Join(err, whole.err, gone(ctx, env, j.Nodes, instance))
}

func describe(phase string, said, of int) string {
	if phase == "points" {
		return fmt.Sprintf("%d of %d simulations", said, of)
	}
	return phase
}

// kill ends with SIGKILL every process that has the job's environment, and the shells that started them: what waits outside the job has neither.
// All are stopped first, so that none sees another end.
const kill = `pids=$(for file in $(grep -lsxz 'dir=%s' /proc/[0-9]*/environ); do
	pid=${file#/proc/}
	ps -o pid=,ppid= -p "${pid%%/environ}"
done)
found=
for pid in $pids; do
	[ "$(ps -o comm= -p "$pid")" = systemd ] || found="$found $pid"
done
kill -STOP $found 2>/dev/null
kill -9 $found 2>/dev/null
true`

// end ends a job in the way that it is to end.
func (j Job) end(ctx context.Context, env *scenario.Env, id wlm.ID, dir string) {
	var err error
	switch j.Ending {
	case Cancelled:
		err = env.Manager.Cancel(ctx, id)
	case Killed:
		_, err = env.OnEach(ctx, j.Nodes, fmt.Sprintf(kill, dir))
	}
	if err != nil {
		_ = env.Note(ctx, "the job was not ended: %v", err)
	}
}

// reader takes in what a job prints, line by line.
type reader struct {
	phase    func(p Phase, said int)
	told     func(Said) error
	all      bytes.Buffer
	rest     []byte
	phases   []Phase
	instance string // of Kubernetes
	said     []Said
	models   *Models
	loads    []Load
	beside   []Beside
	err      error
}

func (r *reader) Write(data []byte) (int, error) {
	r.all.Write(data)
	r.rest = append(r.rest, data...)
	for {
		line, rest, whole := bytes.Cut(r.rest, []byte("\n"))
		if !whole {
			return len(data), nil
		}
		r.rest = rest
		if err := r.line(string(line)); err != nil && r.err == nil {
			r.err = fmt.Errorf("the job printed %q: %w", line, err)
		}
	}
}

var phaseLine = regexp.MustCompile(`^(\d+)\.(\d{9}) ([a-z-]+)(?: (\S+))?$`)

func (r *reader) line(line string) error {
	if m := phaseLine.FindStringSubmatch(line); m != nil {
		seconds, _ := strconv.ParseInt(m[1], 10, 64)
		nanos, _ := strconv.ParseInt(m[2], 10, 64)
		p := Phase{m[3], time.Unix(seconds, nanos)}
		if r.phases = append(r.phases, p); m[4] != "" {
			r.instance = m[4]
		}
		r.phase(p, len(r.said))
		return nil
	}
	switch {
	case strings.HasPrefix(line, `{"service"`):
		r.models = &Models{}
		return json.Unmarshal([]byte(line), r.models)
	case strings.HasPrefix(line, `{"load"`):
		r.loads = append(r.loads, Load{})
		return json.Unmarshal([]byte(line), &r.loads[len(r.loads)-1])
	case strings.HasPrefix(line, `{"beside"`):
		r.beside = append(r.beside, Beside{})
		return json.Unmarshal([]byte(line), &r.beside[len(r.beside)-1])
	}
	var s Said
	if err := json.Unmarshal([]byte(line), &s); err != nil {
		return err
	}
	r.said = append(r.said, s)
	r.phase(Phase{"points", time.Time{}}, len(r.said))
	return r.told(s)
}

// left prints what is left of an instance on a node.
const left = `export USERNETES_INSTANCE=%[1]s
usernetes gone || exit
names=$(docker ps -a --format 'container {{.Names}}' && docker volume ls --format 'volume {{.Name}}' && docker network ls --format 'network {{.Name}}') || exit
echo "$names" | grep -x '[a-z]* usernetes-%[1]s'
systemctl --user -q is-active usernetes-%[1]s && echo unit usernetes-%[1]s
usernetes instances | grep -x %[1]s | sed 's/^/instance /'
true`

// gone waits until the nodes have taken down an instance, also when the context has ended, and looks whether anything is left of it.
func gone(ctx context.Context, env *scenario.Env, nodes []string, instance string) error {
	if instance == "" {
		return nil // it never began
	}
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), goneWait, fmt.Errorf("not within %s", goneWait))
	defer cancel()
	step := progress.Start(ctx, "nodes without %s", instance)
	found, err := env.OnEach(ctx, nodes, fmt.Sprintf(left, instance))
	for i, what := range found {
		if what != "" {
			err = errors.Join(err, fmt.Errorf("node %s still has %s", nodes[i], strings.ReplaceAll(what, "\n", ", ")))
		}
	}
	if step.End(err) != nil {
		return fmt.Errorf("what was to be gone: %w; `bed ssh NODE -- sudo runuser -l %s -c 'USERNETES_INSTANCE=%s usernetes release'` takes it down", err, env.Inventory.User, instance)
	}
	return nil
}

// read reads what a job printed, and puts it into the results.
func (j Job) read(ctx context.Context, env *scenario.Env, r *Ran, dir string, to *reader) error {
	if r.Outcome.Host == "" {
		return nil // it never began
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	printed, err := env.Nodes.Run(ctx, r.Outcome.Host, fmt.Sprintf("cat %[1]s/out; cat %[1]s/err >&2", dir))
	if err != nil {
		return fmt.Errorf("read what the job printed: %w", err)
	}
	if _, err := to.Write(printed.Stdout); err != nil {
		return err
	}
	r.Log, err = env.Record.Log(j.LogName(), append(printed.Stdout, printed.Stderr...))
	return err
}

// Needs finds what a bed lacks for such jobs.
func Needs(inv bed.Inventory) error {
	if inv.Kubernetes == "" {
		return bed.Problems{{Key: "kubernetes", Value: "none", Host: true, Reason: "is what was asked for: nodes of bed " + inv.Bed + " have nothing to run a Kubernetes of a job's own with",
			Remedy: "bring the bed up with -c kubernetes=usernetes, or -c kubernetes=jobs for jobs' alone"}}
	}
	return nil
}
