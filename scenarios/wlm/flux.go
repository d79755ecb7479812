package wlm

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

// flux drives the commands of a Flux system instance on the control node, which is its first rank. What they say of jobs and
// resources is read as JSON.
type flux struct {
	waiter
	control     string   // node where its commands run
	environment string   // of its commands: numbers of jobs in ASCII, and which instance is meant
	admin       []string // what makes its owner of the bed's user
	own         bool     // this run's own, of which nothing is left to look at afterwards

	asking sync.Mutex
	pmix   *bool // whether the shell has the plugin that Open MPI starts by; nil is not known
}

func newFlux(inv bed.Inventory, nodes Nodes) *flux {
	f := &flux{control: inv.Control().Name, environment: "FLUX_F58_FORCE_ASCII=1", admin: []string{"sudo"}}
	f.waiter.init(f, nodes)
	return f
}

func (f *flux) Name() string { return "flux" }

func (f *flux) look() string {
	if f.own {
		return "its brokers were this run's own, on the compute nodes"
	}
	return fmt.Sprintf("look at `bed ssh %s -- sudo journalctl -u flux`", f.control)
}

func (f *flux) queue() string {
	if f.own {
		return "nothing: the instance was this run's own"
	}
	return fmt.Sprintf("`bed ssh %s -- flux jobs -A`", f.control)
}

// run runs a command of Flux's.
func (f *flux) run(ctx context.Context, stdin []byte, argv ...string) (string, error) {
	return command(ctx, f.timing.command, f.nodes, f.control, f.environment, f.Name(), stdin, argv)
}

// Version is that of flux-core, with what it was built with.
func (f *flux) Version(ctx context.Context) (string, error) {
	out, err := f.run(ctx, nil, "flux", "version")
	if err != nil {
		return "", err
	}
	var words []string
	for line := range strings.Lines(out) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && (key == "libflux-core" || key == "build-options") {
			words = append(words, strings.TrimSpace(value))
		}
	}
	return "flux-core " + strings.Join(words, " "), nil
}

//go:embed resources.py
var resourcesScript []byte

// Resources asks by Flux's Python bindings, since its command for drained nodes prints tables only.
func (f *flux) Resources(ctx context.Context) (Resources, error) {
	out, err := f.run(ctx, resourcesScript, "flux", "python", "-")
	if err != nil {
		return Resources{}, err
	}
	var found []struct {
		Name, State, Reason string
		CPUs, Free          int
	}
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		return Resources{}, fmt.Errorf("flux: node %s printed %q where its resources were expected: %w", f.control, out, err)
	}
	var r Resources
	for _, n := range found {
		r.Nodes = append(r.Nodes, NodeState{Name: n.Name, CPUs: n.CPUs, FreeCPUs: n.Free, State: n.State, Reason: n.Reason, Usable: n.State == "avail"})
	}
	return r, nil
}

// hasPMIx finds out whether jobs can be started by PMIx.
func (f *flux) hasPMIx(ctx context.Context) (bool, error) {
	f.asking.Lock()
	defer f.asking.Unlock()
	if f.pmix == nil {
		out, err := f.run(ctx, nil, "sh", "-c", "ls -d /usr/lib*/flux/shell/plugins/pmix.so /usr/lib/*/flux/shell/plugins/pmix.so 2>/dev/null | head -n 1")
		if err != nil {
			return false, err
		}
		found := out != ""
		f.pmix = &found
	}
	return *f.pmix, nil
}

// launch are the options by which MPI ranks start: by Flux's own PMI, which MPICH's family takes, and PMIx for Open MPI; a CPU each.
func (f *flux) launch(ctx context.Context, t Task) ([]string, error) {
	pmix, err := f.hasPMIx(ctx)
	if err != nil {
		return nil, err
	}
	argv := []string{fmt.Sprintf("--ntasks=%d", t.Ranks), "--setopt=cpu-affinity=per-task", "--cwd=" + orRoot(t.Dir)}
	if pmix {
		argv = append(argv, "--setopt=pmi=simple,pmix")
	}
	for _, k := range slices.Sorted(maps.Keys(t.Env)) {
		argv = append(argv, "--env="+k+"="+t.Env[k])
	}
	return argv, nil
}

// span are the options of nodes for a time. Flux's own limit is for the case that nobody waits any more; Wait keeps the exact one.
func span(r Request) []string {
	argv := []string{fmt.Sprintf("--nodes=%d", r.Nodes), fmt.Sprintf("--time-limit=%ds", int(math.Ceil(r.Limit.Seconds()))+60)}
	if !r.Shared {
		argv = append(argv, "--exclusive")
	}
	if len(r.On) > 0 {
		argv = append(argv, "--requires=host:"+strings.Join(r.On, ","))
	}
	return argv
}

// fluxBatch goes before a job's own script, which is the first program of a Flux instance on the job's nodes. What runs on each of them does so
// beside the instance's jobs and takes none of their CPUs. flux exec would keep what commands print until it has 4 KiB of that, or they end; and once
// its standard input has ended and one of the commands too, it would look at the input again without a pause (0.88.0).
const fluxBatch = `#!/bin/sh
export FLUX_F58_FORCE_ASCII=1
job_number=$(flux job id --to=dec "$(flux getattr jobid)") job_hosts=$(flux hostlist --expand --delimiter=' ' "$(flux getattr hostlist)")
each() { stdbuf -oL flux exec --noinput env -u _STDBUF_O "$@"; }
ranks() {
	n=$1
	shift
	flux run --nodes=%d --ntasks="$n" --setopt=cpu-affinity=per-task%s "$@"
}
`

func (f *flux) Submit(ctx context.Context, job Job) (ID, error) {
	if err := job.check(); err != nil {
		return "", err
	}
	if job.Script != "" {
		return f.submitScript(ctx, job)
	}
	launch, err := f.launch(ctx, job.Task)
	if err != nil {
		return "", err
	}
	argv := slices.Concat([]string{"flux", "submit", "--job-name=" + job.Name, "--output=" + job.Output}, span(job.Request), launch)
	if job.Error != "" {
		argv = append(argv, "--error="+job.Error)
	}
	return f.submit(ctx, submitted{Request: job.Request, output: job.Output}, nil, append(append(argv, "--"), job.Command...))
}

// submitScript queues a job whose script runs in a Flux instance of its own on its nodes.
func (f *flux) submitScript(ctx context.Context, job Job) (ID, error) {
	pmix, err := f.hasPMIx(ctx)
	if err != nil {
		return "", err
	}
	option := ""
	if pmix {
		option = " --setopt=pmi=simple,pmix"
	}
	slots := job.Nodes
	if job.Shared {
		slots = job.Task.Ranks
	}
	argv := slices.Concat([]string{"flux", "batch", "--job-name=" + job.Name, fmt.Sprintf("--nslots=%d", slots), "--output=" + job.Output, "--cwd=" + orRoot(job.Dir)}, span(job.Request))
	if job.Nodes > 1 { // else it would go on without a node that is lost, and everything on all of its nodes would fail
		argv = append(argv, fmt.Sprintf("--broker-opts=-Sbroker.critical-ranks=0-%d", job.Nodes-1))
	}
	if job.Error != "" {
		argv = append(argv, "--error="+job.Error)
	}
	return f.submit(ctx, submitted{Request: job.Request, output: job.Output}, []byte(fmt.Sprintf(fluxBatch, job.Nodes, option)+exports(job.Env)+job.Script), argv)
}

func (f *flux) submit(ctx context.Context, job submitted, script []byte, argv []string) (ID, error) {
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	// Once the request is under way its answer is needed, or nobody could cancel the job.
	out, err := f.run(context.WithoutCancel(ctx), script, argv...)
	if err != nil {
		return "", f.refused(ctx, job.Request, err)
	}
	if !strings.HasPrefix(out, "f") || strings.ContainsAny(out, " \n") {
		return "", fmt.Errorf("flux: `%s` on node %s printed %q where a job's number was expected", strings.Join(argv[:2], " "), f.control, out)
	}
	id := ID(out)
	f.add(id, job)
	if ctx.Err() != nil {
		return "", errors.Join(context.Cause(ctx), f.Cancel(context.WithoutCancel(ctx), id))
	}
	return id, nil
}

// refused tells a request that can never be met from other failures, by the texts of the feasibility service and of its validator.
func (f *flux) refused(ctx context.Context, want Request, err error) error {
	var exit *remote.ExitError
	if errors.As(err, &exit) {
		said := strings.TrimSpace(string(exit.Result.Stderr))
		for _, text := range []string{"nsatisfiable", "nfeasible", "Invalid host", "exceeds policy limit"} {
			if strings.Contains(said, text) {
				return f.unsatisfiable(ctx, want, said)
			}
		}
	}
	return fmt.Errorf("submit a job: %w; %s", err, f.look())
}

func (f *flux) Cancel(ctx context.Context, id ID) error {
	_, err := f.run(ctx, nil, "flux", "cancel", string(id))
	if err != nil && !f.unknown(err) {
		return fmt.Errorf("cancel job %s: %w; %s", id, err, f.look())
	}
	return nil
}

// unknown says that Flux does not know the job, or knows it as over.
func (f *flux) unknown(err error) bool {
	var exit *remote.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	said := string(exit.Result.Stderr)
	return strings.Contains(said, "unknown job id") || strings.Contains(said, "job is inactive") || strings.Contains(said, " unknown")
}

// fluxJob is what `flux jobs --json` tells of a job. Times are seconds since 1970.
type fluxJob struct {
	State, Result, Nodelist, URI string
	Returncode                   *int
	Run                          float64 `json:"t_run"`
	Cleanup                      float64 `json:"t_cleanup"`
	Exception                    struct {
		Occurred   bool
		Type, Note string
	}
	Annotations struct {
		Sched struct {
			ReasonPending string `json:"reason_pending"`
		}
		User struct{ Ready int }
	}
}

func (f *flux) ask(ctx context.Context, id ID) (Outcome, error) {
	out, err := f.run(ctx, nil, "flux", "jobs", "--json", string(id))
	if err != nil {
		return Outcome{ID: id}, err
	}
	return readFluxJob(id, out)
}

// linger waits for the last event of a job, which Flux tells at once and without the start of an interpreter that looking at it takes. What it
// cannot wait for, as in an instance that restarts, it looks at after the usual pause.
func (f *flux) linger(ctx context.Context, id ID, begin time.Time) bool {
	most := min(fluxLinger, max(f.timing.poll, time.Since(begin)/20))
	_, err := f.run(ctx, nil, "flux", "job", "wait-event", "--quiet", fmt.Sprintf("--timeout=%.2fs", most.Seconds()), string(id), "clean")
	var exit *remote.ExitError
	switch {
	case err == nil:
		return false
	case errors.As(err, &exit) && bytes.Contains(exit.Result.Stderr, []byte("timeout on event")):
		return true
	}
	f.pause(ctx, begin)
	return false
}

// fluxLinger is the longest time between two looks at a job of Flux, whose end is told at once.
const fluxLinger = 10 * time.Second

// readFluxJob reads what `flux jobs --json` prints of one job.
func readFluxJob(id ID, text string) (Outcome, error) {
	var j fluxJob
	if err := json.Unmarshal([]byte(text), &j); err != nil || j.State == "" {
		return Outcome{ID: id}, errors.Join(fmt.Errorf("flux: job %s: %q where its state was expected", id, text), err)
	}
	o := Outcome{ID: id, nodeList: j.Nodelist, uri: j.URI, Started: fraction(j.Run), Ended: fraction(j.Cleanup)}
	switch j.State {
	case "NEW", "DEPEND", "PRIORITY", "SCHED":
		o.State, o.Reason = Pending, j.Annotations.Sched.ReasonPending
		return o, nil
	case "RUN", "CLEANUP":
		o.State = Running
		if j.Annotations.User.Ready == 0 {
			o.uri = ""
		}
		return o, nil
	case "INACTIVE":
	default:
		return o, fmt.Errorf("flux: job %s: unknown state %q", id, j.State)
	}
	if j.Exception.Occurred {
		o.Reason = strings.TrimSpace(j.Exception.Type + ": " + j.Exception.Note)
	}
	if j.Returncode != nil {
		o.ExitCode = *j.Returncode
		if o.ExitCode < 0 { // the shell itself was ended by that signal; -128 is a job that never began
			o.ExitCode = 128 + -o.ExitCode%128
		}
	}
	switch {
	case j.Result == "COMPLETED":
		o.State, o.Reason = Completed, ""
	case j.Result == "FAILED" && lostNode(j.Exception.Note):
		o.State = NodeFail
	case j.Result == "FAILED":
		o.State = Failed
	case j.Result == "CANCELED":
		o.State = Cancelled
	case j.Result == "TIMEOUT":
		o.State = Timeout
	default:
		return o, fmt.Errorf("flux: job %s: unknown result %q", id, j.Result)
	}
	return o, nil
}

// lostNode says that a job's exception is the loss of a broker, by the texts of the job-exec module and the overlay.
func lostNode(note string) bool {
	return strings.Contains(note, "node failure") || strings.Contains(note, "lost contact") || strings.Contains(note, "Host is unreachable") || strings.Contains(note, "No route to host")
}

func fraction(seconds float64) time.Time {
	if seconds <= 0 {
		return time.Time{}
	}
	whole, part := math.Modf(seconds)
	return time.Unix(int64(whole), int64(part*1e6)*1000)
}

func (f *flux) never(string) bool { return false } // what Flux can never run it refuses

func (f *flux) vanished(_ context.Context, id ID, _ submitted) (Outcome, error) {
	return Outcome{ID: id}, fmt.Errorf("job %s is unknown to Flux on node %s: its instance lost its state; %s", id, f.control, f.look())
}

func (f *flux) settle(ctx context.Context, o Outcome, _ submitted) (Outcome, error) {
	err := f.expand(ctx, &o)
	return o, err
}

// expand turns Flux's short form of a job's nodes, as in q-[02-03], into names, the first of which has the job's output.
func (f *flux) expand(ctx context.Context, o *Outcome) error {
	if o.nodeList == "" {
		return nil
	}
	out, err := f.run(ctx, nil, "flux", "hostlist", "--expand", o.nodeList)
	if o.Nodes = strings.Fields(out); len(o.Nodes) > 0 {
		o.Host = o.Nodes[0]
	}
	return err
}

// Allocate holds nodes by a job that is a Flux instance of its own on them. Its script, which runs once all its brokers are there, says
// so on the job, and sleeps: by the address alone, which is known earlier, the instance still lacks nodes.
func (f *flux) Allocate(ctx context.Context, r Request) (Allocation, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("no allocation to ask for: %w", err)
	}
	script := fmt.Sprintf("#!/bin/sh\nflux --parent job memo \"$(flux getattr jobid)\" ready=1\nexec sleep %d\n", int(math.Ceil(r.Limit.Seconds())))
	id, err := f.submit(ctx, submitted{Request: r}, []byte(script), slices.Concat([]string{"flux", "batch", "--job-name=hold",
		fmt.Sprintf("--nslots=%d", r.Nodes), "--output=/dev/null"}, span(r)))
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	o, err := f.watch(ctx, id, func(o Outcome) bool { return o.State == Running && o.uri != "" }, func() { f.pause(ctx, begin) })
	if err == nil && o.State.Over() {
		err = o.Err()
	}
	if err == nil {
		err = f.expand(ctx, &o)
		// ssh://node/path of the instance's socket there
		_, socket, ok := strings.Cut(strings.TrimPrefix(o.uri, "ssh://"), "/")
		if err == nil && (!ok || o.Host == "") {
			err = fmt.Errorf("flux: job %s has the address %q, where ssh://node/path was expected", id, o.uri)
		}
		if err == nil {
			return &fluxAllocation{f, id, o.Nodes, "local:///" + socket}, nil
		}
		_, stopErr := f.stop(ctx, id)
		err = errors.Join(err, stopErr)
	}
	return nil, fmt.Errorf("allocate %d nodes: %w", r.Nodes, err)
}

type fluxAllocation struct {
	flux  *flux
	id    ID
	nodes []string
	uri   string // of the instance, on the first of the nodes
}

func (a *fluxAllocation) ID() ID          { return a.id }
func (a *fluxAllocation) Nodes() []string { return slices.Clone(a.nodes) }

func (a *fluxAllocation) Run(ctx context.Context, t Task) (remote.Result, error) {
	if err := t.check(); err != nil {
		return remote.Result{}, fmt.Errorf("in allocation %s: %w", a.id, err)
	}
	launch, err := a.flux.launch(ctx, t)
	if err != nil {
		return remote.Result{}, err
	}
	argv := slices.Concat([]string{"flux", "run", fmt.Sprintf("--nodes=%d", len(a.nodes)), "--input=/dev/null"}, launch, []string{"--"}, t.Command)
	return a.flux.nodes.Run(ctx, a.nodes[0], "FLUX_URI="+remote.Quote(a.uri)+" "+quoteAll(argv))
}

func (a *fluxAllocation) Release(ctx context.Context) error {
	_, err := a.flux.stop(ctx, a.id)
	return err
}

func (f *flux) Drain(ctx context.Context, node, reason string) error {
	_, err := f.run(ctx, nil, append(slices.Clone(f.admin), "flux", "resource", "drain", "--force", node, reason)...)
	return err
}

func (f *flux) Undrain(ctx context.Context, node string) error {
	_, err := f.run(ctx, nil, append(slices.Clone(f.admin), "flux", "resource", "undrain", "--update", node)...)
	return err
}
