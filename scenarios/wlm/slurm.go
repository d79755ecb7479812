package wlm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

// slurm drives Slurm's commands on the control node. There is no accounting: slurmctld itself is asked, which forgets a job some
// minutes after its end. There is no shared file system either: what a job leaves is on the first of its nodes.
type slurm struct {
	waiter
	control string // node
	compute []string
}

func newSlurm(inv bed.Inventory, nodes Nodes) *slurm {
	s := &slurm{control: inv.Control().Name}
	s.waiter.init(s, nodes)
	for _, n := range inv.Compute() {
		s.compute = append(s.compute, n.Name)
	}
	return s
}

func (s *slurm) Name() string { return "slurm" }

// run runs one of Slurm's commands on the control node. Times in its output are seconds since 1970.
func (s *slurm) run(ctx context.Context, stdin []byte, argv ...string) (string, error) {
	return command(ctx, s.timing.command, s.nodes, s.control, "SLURM_TIME_FORMAT=%s", s.Name(), stdin, argv)
}

// look is the last part of an error whose cause slurmctld knows.
func (s *slurm) look() string {
	return fmt.Sprintf("look at `bed ssh %s -- sudo tail /var/log/slurm/slurmctld.log`", s.control)
}

func (s *slurm) queue() string { return fmt.Sprintf("`bed ssh %s -- squeue`", s.control) }

func (s *slurm) Version(ctx context.Context) (string, error) {
	return s.run(ctx, nil, "sinfo", "--version")
}

// Resources reads a line per node and partition, of name, state, CPUs as allocated/idle/other/total, and reason.
func (s *slurm) Resources(ctx context.Context) (Resources, error) {
	out, err := s.run(ctx, nil, "sinfo", "--noheader", "--Node", "--format=%N|%T|%C|%E")
	if err != nil {
		return Resources{}, err
	}
	var r Resources
	for line := range strings.Lines(out) {
		fields := strings.SplitN(strings.TrimSpace(line), "|", 4)
		node := NodeState{}
		var counts []string
		if len(fields) == 4 {
			node.Name, node.State, node.Reason = fields[0], fields[1], fields[3]
			counts = strings.Split(fields[2], "/")
		}
		if len(counts) != 4 {
			return Resources{}, fmt.Errorf("slurm: `sinfo` on node %s printed %q where a node, its state, CPUs and reason were expected", s.control, line)
		}
		var errFree, errAll error
		node.FreeCPUs, errFree = strconv.Atoi(counts[1])
		node.CPUs, errAll = strconv.Atoi(counts[3])
		if err := errors.Join(errFree, errAll); err != nil {
			return Resources{}, fmt.Errorf("slurm: CPUs of node %s: %w", node.Name, err)
		}
		// A mark behind the state, such as *, says that the node does not answer or is on its way somewhere.
		switch node.State {
		case "idle", "mixed", "allocated", "completing":
			node.Usable, node.Reason = true, ""
		}
		if !slices.ContainsFunc(r.Nodes, func(n NodeState) bool { return n.Name == node.Name }) {
			r.Nodes = append(r.Nodes, node)
		}
	}
	return r, nil
}

// script is what runs on the first node of a job. It leaves its exit status and times, in nanoseconds since 1970, in the file
// exit, at once or not at all.
func script(job Job, exit string) []byte {
	run := launch(job.Task, nil, fmt.Sprintf("--nodes=%d", job.Nodes))
	if job.Script != "" {
		run = exports(job.Env) + fmt.Sprintf(slurmBatch, job.Nodes, hasPMIx) + "(\n" + job.Script + "\n)"
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "#!/bin/sh\nstart=$(date +%%s%%N)\n%s\ncode=$?\n", run)
	fmt.Fprintf(&b, "echo \"$code $start $(date +%%s%%N)\" >%[1]s.part && mv %[1]s.part %[1]s\nexit $code\n", remote.Quote(exit))
	return b.Bytes()
}

// slurmBatch goes before a job's own script. Steps share CPUs: one that waits in the background would have its own otherwise.
const slurmBatch = `export SLURM_OVERLAP=1
job_number=$SLURM_JOB_ID job_hosts=$(scontrol show hostnames)
each() { srun --nodes=%[1]d --ntasks=%[1]d --ntasks-per-node=1 "$@" </dev/null; }
ranks() {
	n=$1
	shift
	if %[2]s; then
		srun --nodes=%[1]d --ntasks="$n" --distribution=block --kill-on-bad-exit=1 "$@"
	else
		mpirun --map-by slot -np "$n" "$@"
	fi
}
`

// exports are shell commands that set an environment.
func exports(env map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(env)) {
		fmt.Fprintf(&b, "export %s=%s\n", k, remote.Quote(env[k]))
	}
	return b.String()
}

// hasPMIx succeeds where Slurm starts MPI ranks by PMIx, which Open MPI takes. Ubuntu 22.04's does not.
const hasPMIx = "srun --mpi=list 2>&1 | grep -qw pmix"

// launch starts ranks by srun or, where that cannot, by Open MPI's mpirun, which finds its job in the environment: the one that it is in,
// or another's.
func launch(task Task, another []string, options ...string) string {
	ranks := fmt.Sprint(task.Ranks)
	srun := slices.Concat([]string{"srun", "--ntasks=" + ranks, "--distribution=block", "--kill-on-bad-exit=1"}, options, rank(task))
	mpirun := slices.Concat(another, []string{"mpirun", "--map-by", "slot", "-np", ranks}, rank(task))
	return fmt.Sprintf("if %s; then %s; else %s; fi", hasPMIx, quoteAll(srun), quoteAll(mpirun))
}

// rank is the command line of one rank.
func rank(t Task) []string {
	if len(t.Env) == 0 {
		return t.Command
	}
	argv := []string{"env"}
	for _, k := range slices.Sorted(maps.Keys(t.Env)) {
		argv = append(argv, k+"="+t.Env[k])
	}
	return append(argv, t.Command...)
}

func (s *slurm) Submit(ctx context.Context, job Job) (ID, error) {
	if err := job.check(); err != nil {
		return "", err
	}
	errFile := job.Error
	if errFile == "" {
		errFile = job.Output
	}
	exit := job.Output + ".exit"
	return s.submit(ctx, job.Name, job.Dir, job.Output, errFile, submitted{job.Request, job.Output, exit}, script(job, exit))
}

func (s *slurm) submit(ctx context.Context, name, dir, output, errFile string, job submitted, script []byte) (ID, error) {
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	// Slurm counts limits in minutes. This one is for the case that nobody waits any more; Wait keeps the exact one.
	minutes := int(math.Ceil(job.Limit.Minutes())) + 1
	argv := []string{"sbatch", "--parsable", "--no-requeue", "--job-name=" + name,
		fmt.Sprintf("--nodes=%d", job.Nodes), fmt.Sprintf("--ntasks=%d", job.Ranks), fmt.Sprintf("--time=%d", minutes),
		"--chdir=" + orRoot(dir), "--output=" + pattern(output), "--error=" + pattern(errFile), "--open-mode=truncate"}
	if job.Shared {
		argv = append(argv, fmt.Sprintf("--ntasks-per-node=%d", job.Ranks/job.Nodes))
	} else {
		argv = append(argv, "--exclusive")
	}
	if len(job.On) > 0 {
		argv = append(argv, "--nodelist="+strings.Join(job.On, ","))
	}
	// Once sbatch has begun, its answer is needed, or nobody could cancel the job.
	out, err := s.run(context.WithoutCancel(ctx), script, argv...)
	if err != nil {
		return "", s.refused(ctx, job.Request, err)
	}
	number, _, _ := strings.Cut(out, ";") // a federation's cluster name may follow
	if _, err := strconv.Atoi(number); err != nil {
		return "", fmt.Errorf("slurm: `sbatch` on node %s printed %q where a job number was expected", s.control, out)
	}
	id := ID(number)
	s.add(id, job)
	if ctx.Err() != nil {
		return "", errors.Join(context.Cause(ctx), s.Cancel(context.WithoutCancel(ctx), id))
	}
	return id, nil
}

// refused tells a request that can never be met from other failures of sbatch, by the texts of slurm_errno.c.
func (s *slurm) refused(ctx context.Context, want Request, err error) error {
	var exit *remote.ExitError
	if errors.As(err, &exit) {
		for _, text := range []string{
			"Requested node configuration is not available", "Requested partition configuration not available now",
			"More processors requested than permitted", "Node count specification invalid", "Invalid node name specified",
			"Requested time limit is invalid",
		} {
			if strings.Contains(string(exit.Result.Stderr), text) {
				return s.unsatisfiable(ctx, want, text)
			}
		}
	}
	return fmt.Errorf("submit a job: %w; %s", err, s.look())
}

func (s *slurm) Cancel(ctx context.Context, id ID) error {
	_, err := s.run(ctx, nil, "scancel", string(id))
	if err != nil && !s.unknown(err) {
		return fmt.Errorf("cancel job %s: %w; do it by hand with `bed ssh %s -- scancel %s`", id, err, s.control, id)
	}
	return nil
}

func (s *slurm) Drain(ctx context.Context, node, reason string) error {
	_, err := s.run(ctx, nil, "sudo", "scontrol", "update", "nodename="+node, "state=drain", "reason="+reason)
	return err
}

// Undrain finds a node that is not drained in a state that resuming is an error of.
func (s *slurm) Undrain(ctx context.Context, node string) error {
	_, err := s.run(ctx, nil, "sudo", "scontrol", "update", "nodename="+node, "state=resume")
	var exit *remote.ExitError
	if errors.As(err, &exit) && strings.Contains(string(exit.Result.Stderr), "Invalid node state") {
		return nil
	}
	return err
}

func (s *slurm) linger(ctx context.Context, _ ID, begin time.Time) bool {
	s.pause(ctx, begin)
	return false
}

// Allocate holds nodes by a job that sleeps on them.
func (s *slurm) Allocate(ctx context.Context, r Request) (Allocation, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("no allocation to ask for: %w", err)
	}
	sleep := fmt.Sprintf("#!/bin/sh\nexec sleep %d\n", int(math.Ceil(r.Limit.Seconds())))
	id, err := s.submit(ctx, "hold", "", "/dev/null", "/dev/null", submitted{Request: r}, []byte(sleep))
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	o, err := s.watch(ctx, id, func(o Outcome) bool { return o.State != Pending }, func() { s.pause(ctx, begin) })
	if err == nil && o.State.Over() {
		err = o.Err()
	}
	if err == nil {
		if err = s.expand(ctx, &o); err != nil {
			_, stopErr := s.stop(ctx, id)
			err = errors.Join(err, stopErr)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("allocate %d nodes: %w", r.Nodes, err)
	}
	return &slurmAllocation{s, id, o.Nodes}, nil
}

type slurmAllocation struct {
	slurm *slurm
	id    ID
	nodes []string
}

func (a *slurmAllocation) ID() ID          { return a.id }
func (a *slurmAllocation) Nodes() []string { return slices.Clone(a.nodes) }

func (a *slurmAllocation) Run(ctx context.Context, t Task) (remote.Result, error) {
	if err := t.check(); err != nil {
		return remote.Result{}, fmt.Errorf("in allocation %s: %w", a.id, err)
	}
	perNode := make([]string, len(a.nodes))
	for i := range perNode {
		perNode[i] = fmt.Sprint((t.Ranks + len(a.nodes) - 1 - i) / len(a.nodes))
	}
	job := []string{"env", "SLURM_JOB_ID=" + string(a.id), "SLURM_JOBID=" + string(a.id), fmt.Sprintf("SLURM_NNODES=%d", len(a.nodes)),
		"SLURM_NODELIST=" + strings.Join(a.nodes, ","), "SLURM_TASKS_PER_NODE=" + strings.Join(perNode, ",")}
	return a.slurm.nodes.Run(ctx, a.slurm.control, fmt.Sprintf("cd %s && %s", remote.Quote(orRoot(t.Dir)), launch(t, job,
		"--jobid="+string(a.id), fmt.Sprintf("--nodes=%d", len(a.nodes)), "--input=none", "--chdir="+orRoot(t.Dir))))
}

func (a *slurmAllocation) Release(ctx context.Context) error {
	_, err := a.slurm.stop(ctx, a.id)
	return err
}

func quoteAll(argv []string) string {
	words := make([]string, len(argv))
	for i, a := range argv {
		words[i] = remote.Quote(a)
	}
	return strings.Join(words, " ")
}

func orRoot(dir string) string {
	if dir == "" {
		return "/"
	}
	return dir
}

// pattern is a file name of which sbatch replaces nothing.
func pattern(file string) string { return strings.ReplaceAll(file, "%", "%%") }
