// Package wlm lets scenarios run jobs without knowing which workload manager the bed has.
package wlm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

// Manager is a bed's workload manager, used as the bed's user. Its methods are safe for concurrent use.
type Manager interface {
	// Name is the word of the inventory: slurm, flux.
	Name() string
	// Version is what the manager's own command prints.
	Version(ctx context.Context) (string, error)
	// Resources says what there is to run jobs on. The control node is not part of it.
	Resources(ctx context.Context) (Resources, error)
	// Submit queues a job and returns at once. A job that this bed can never run is an *UnsatisfiableError. When the context ends
	// meanwhile, no job is left behind.
	Submit(ctx context.Context, job Job) (ID, error)
	// Wait returns once the job is over; a job that failed is an Outcome, not an error. It cancels the job, and waits for its end,
	// when the context ends, when it runs longer than its Limit (state Timeout), when it pends longer than its Patience, and when
	// what it asks for will not come (*UnsatisfiableError).
	Wait(ctx context.Context, id ID) (Outcome, error)
	// Attach copies to out what the job writes to its Output, from the beginning on and while it runs, and returns once the job is
	// over and all is copied, or when the context ends. Other than Wait it does nothing to the job. A job that was not submitted by
	// this Manager, or was waited for already, is an error.
	Attach(ctx context.Context, id ID, out io.Writer) error
	// Cancel asks for the job's end; Wait tells when that is. A job that is over already is no error.
	Cancel(ctx context.Context, id ID) error
	// Drain has a node get no more jobs, and says why; those on it go on. Undrain takes that back. A node that is so already is no error.
	Drain(ctx context.Context, node, reason string) error
	Undrain(ctx context.Context, node string) error
	// Burst runs that many jobs of one CPU that do nothing, all submitted by one command, and returns how long it was until the last was
	// over. When the context ends, none is left.
	Burst(ctx context.Context, name string, jobs int) (time.Duration, error)
	// Allocate holds nodes for several commands, until Release or the request's Limit. It waits for the nodes like Wait.
	Allocate(ctx context.Context, r Request) (Allocation, error)
}

// Allocation is a number of nodes held.
type Allocation interface {
	ID() ID
	Nodes() []string // by name, in the manager's order
	// Run runs a command as MPI ranks on all nodes of the allocation and returns what they printed. A command that fails is a
	// *remote.ExitError.
	Run(ctx context.Context, t Task) (remote.Result, error)
	// Release gives the nodes back, and ends what still runs on them. It works after the context of Allocate has ended.
	Release(ctx context.Context) error
}

// Nodes reaches a bed's nodes by name, as its user; a *remote.ExitError is a command that ran and failed.
type Nodes interface {
	Run(ctx context.Context, node, command string) (remote.Result, error)
	Feed(ctx context.Context, node, command string, stdin []byte) (remote.Result, error)
	// Hold runs a command whose standard input begins so and stays open until it is released.
	Hold(ctx context.Context, node, command string, stdin []byte) (Held, error)
}

// Open returns the inventory's workload manager. Nothing is sent to any node yet.
func Open(inv bed.Inventory, nodes Nodes) (Manager, error) {
	switch inv.WorkloadManager {
	case "slurm":
		return newSlurm(inv, nodes), nil
	case "flux":
		if inv.FluxMode == "user" {
			return newFluxUser(inv, nodes), nil
		}
		return newFlux(inv, nodes), nil
	default:
		return nil, bed.Problems{{
			Key: "workloadManager", Value: inv.WorkloadManager, Host: true,
			Reason: fmt.Sprintf("bed %s has a workload manager that scenarios cannot use; they can use slurm, flux", inv.Bed),
			Remedy: "bring the bed up with -c workloadManager=slurm",
		}}
	}
}

// ID names a job to its manager.
type ID string

// Task is a command that runs as MPI ranks.
type Task struct {
	Command []string // argv of every rank; nothing is expanded
	Env     map[string]string
	Dir     string // where ranks start, absolute; it must be there on every node
	Ranks   int    // in all; every node runs at least one
}

// Request says what a job or an allocation needs. Nodes are given whole, unless it is Shared.
type Request struct {
	Nodes    int           // how many
	On       []string      // exactly these, by name; empty leaves the choice to the manager
	Ranks    int           // CPUs to have for ranks, in all; at most one per CPU
	Limit    time.Duration // of the running time; must be given
	Patience time.Duration // how long it may pend; 0 is five minutes
	Shared   bool          // takes no more than a CPU for each rank, as many on every node, and leaves the others to others
}

// Job is a Task, or a Script instead of its Command, to be queued.
type Job struct {
	Task
	// Script is run by sh, once, on the first node, in Dir and with Env. In it are these, whichever the manager:
	//
	//	each COMMAND…     runs a command once on every node at the same time, without standard input
	//	ranks N COMMAND…  runs a command as N MPI ranks over all nodes, each of which runs at least one
	//	$job_number       the job's, which no other of the bed's has at the same time
	//	$job_hosts        the nodes' names, the first of which this is
	//
	// Commands in the background share the nodes' CPUs with those in front of them. What the job started on its nodes ends with it.
	Script  string
	Request // whose Ranks are unused
	Name    string
	// Output and Error are files, absolute, on the node Outcome.Host, in a directory that is there on every node. Error may be
	// empty: then both go to Output. The manager keeps a file of its own beside Output, with the suffix .exit.
	Output, Error string
}

var jobName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (r *Request) check() error {
	var errs []error
	if len(r.On) > 0 && r.Nodes == 0 {
		r.Nodes = len(r.On)
	}
	if r.Nodes < 1 || len(r.On) > 0 && len(r.On) != r.Nodes {
		errs = append(errs, fmt.Errorf("%d nodes, %d of them by name", r.Nodes, len(r.On)))
	}
	if r.Ranks < r.Nodes {
		errs = append(errs, fmt.Errorf("%d ranks on %d nodes: every node runs at least one", r.Ranks, r.Nodes))
	}
	if r.Shared && r.Nodes > 0 && r.Ranks%r.Nodes != 0 {
		errs = append(errs, fmt.Errorf("%d ranks on %d nodes that are shared: every node runs as many", r.Ranks, r.Nodes))
	}
	if r.Limit <= 0 {
		errs = append(errs, errors.New("no time limit"))
	}
	if r.Patience == 0 {
		r.Patience = 5 * time.Minute
	}
	return errors.Join(errs...)
}

func (t Task) check() error {
	var errs []error
	if len(t.Command) == 0 {
		errs = append(errs, errors.New("no command"))
	}
	return errors.Join(append(errs, t.checkDir())...)
}

func (t Task) checkDir() error {
	var errs []error
	if t.Dir != "" && !path.IsAbs(t.Dir) {
		errs = append(errs, fmt.Errorf("directory %q is not absolute", t.Dir))
	}
	return errors.Join(errs...)
}

func (j *Job) check() error {
	j.Request.Ranks = j.Task.Ranks
	errs := []error{j.Request.check()}
	switch {
	case j.Script == "":
		errs = append(errs, j.Task.check())
	case len(j.Command) > 0:
		errs = append(errs, errors.New("a command and a script"))
	default:
		errs = append(errs, j.checkDir())
	}
	if !jobName.MatchString(j.Name) {
		errs = append(errs, fmt.Errorf("name %q: letters, digits, '.', '_' and '-' are allowed, 64 at most", j.Name))
	}
	if !path.IsAbs(j.Output) || j.Error != "" && !path.IsAbs(j.Error) {
		errs = append(errs, fmt.Errorf("output %q and error %q must be absolute paths", j.Output, j.Error))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("job %s is not one to submit: %w", j.Name, err)
	}
	return nil
}

// State is where a job stands.
type State string

// The states of a job. From Completed on it is over.
const (
	Pending   State = "pending"
	Running   State = "running"   // or about to begin or end
	Completed State = "completed" // with exit code 0
	Failed    State = "failed"    // with another one, or by a signal
	Cancelled State = "cancelled"
	Timeout   State = "timeout"   // it ran longer than its limit
	NodeFail  State = "node-fail" // a node of its own died
)

// Over says that the state does not change any more.
func (s State) Over() bool { return s != Pending && s != Running }

// Outcome is how a job ended.
type Outcome struct {
	ID       ID
	State    State
	Reason   string   // the manager's word for the state, where it has one
	ExitCode int      // of the command; 128 + signal when a signal ended it
	Host     string   // the node that has Output and Error; empty when the job never began
	Nodes    []string // by name, in the manager's order
	// Started and Ended enclose the launch of the ranks, the ranks and their end, by Host's clock: to the microsecond when the job
	// came to its own end, to the second when it was ended.
	Started, Ended time.Time

	nodeList string // Nodes, before expansion
	uri      string // of the instance that the job is, if it is one
}

// Err is nil for a completed job, else it says how the job ended and where to look.
func (o Outcome) Err() error {
	where := ""
	if o.Host != "" {
		where = " on node " + o.Host
	}
	switch o.State {
	case Completed:
		return nil
	case Failed:
		return fmt.Errorf("job %s%s ended with status %d%s", o.ID, where, o.ExitCode, because(o.Reason))
	case Timeout:
		return fmt.Errorf("job %s%s ran longer than its limit and was ended", o.ID, where)
	case NodeFail:
		return fmt.Errorf("job %s lost one of its nodes %s%s: look at them with `bed status`", o.ID, strings.Join(o.Nodes, ", "), because(o.Reason))
	default:
		return fmt.Errorf("job %s%s is %s%s", o.ID, where, o.State, because(o.Reason))
	}
}

func because(reason string) string {
	if reason == "" || reason == "None" {
		return ""
	}
	return " (" + reason + ")"
}

// Resources is what a manager runs jobs on.
type Resources struct {
	Nodes []NodeState
}

// NodeState is one node as the manager sees it.
type NodeState struct {
	Name     string
	CPUs     int
	FreeCPUs int
	State    string // the manager's word
	Usable   bool   // it runs jobs now or when the ones on it are over
	Reason   string // why it is not usable, where the manager knows
}

// CPUs adds up those of all nodes, usable or not.
func (r Resources) CPUs() int {
	n := 0
	for _, node := range r.Nodes {
		n += node.CPUs
	}
	return n
}

// usable counts the nodes that run jobs; only those in on when it is not empty.
func (r Resources) usable(on []string) int {
	wanted := map[string]bool{}
	for _, name := range on {
		wanted[name] = true
	}
	n := 0
	for _, node := range r.Nodes {
		if node.Usable && (len(on) == 0 || wanted[node.Name]) {
			n++
		}
	}
	return n
}

// String tells all of it in a line: sums, and the nodes that cannot be used, each with the reason.
func (r Resources) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d nodes with %d CPUs in all", len(r.Nodes), r.CPUs())
	for _, n := range r.Nodes {
		if !n.Usable {
			fmt.Fprintf(&b, "; %s is %s%s", n.Name, n.State, because(n.Reason))
		}
	}
	return b.String()
}

// UnsatisfiableError says that a job will never run on this bed as it is. Nothing of the job is left.
type UnsatisfiableError struct {
	Manager string
	Reason  string // the manager's, or what nodes are missing
	Want    Request
	Have    Resources
}

func (e *UnsatisfiableError) Error() string {
	want := fmt.Sprintf("%d nodes", e.Want.Nodes)
	if len(e.Want.On) > 0 {
		want = "nodes " + strings.Join(e.Want.On, ", ")
	}
	return fmt.Sprintf("%s cannot give %s with %d CPUs for %s: %s. It has %s. Ask for what there is, or look at the nodes with `bed status`; `bed up` repairs them",
		e.Manager, want, e.Want.Ranks, e.Want.Limit, e.Reason, e.Have)
}
