package wlm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bedfellow/bedfellow/pkg/remote"
)

// desk is what waiting for a job needs of its manager.
type desk interface {
	Name() string
	Resources(ctx context.Context) (Resources, error)
	Cancel(ctx context.Context, id ID) error
	// ask looks at a job once.
	ask(ctx context.Context, id ID) (Outcome, error)
	// linger lets pass some time of a job that was begun to be looked at then, less if it ends. still says that it is known not to be over.
	linger(ctx context.Context, id ID, begin time.Time) (still bool)
	// unknown says that an error means that the manager does not know the job.
	unknown(err error) bool
	// vanished finds out about a job that the manager knew and does not know any more.
	vanished(ctx context.Context, id ID, job submitted) (Outcome, error)
	// settle adds to the outcome of a job that is over what only the end knows.
	settle(ctx context.Context, o Outcome, job submitted) (Outcome, error)
	// expand finds out the names of a job's nodes, and which of them has its output.
	expand(ctx context.Context, o *Outcome) error
	// never says whether a pending job's reason does not go away by itself.
	never(reason string) bool
	// look is the last part of an error whose cause the manager knows; queue is a command that lists its jobs.
	look() string
	queue() string
}

// waiter waits for the jobs of a manager.
type waiter struct {
	desk   desk
	nodes  Nodes
	timing timing
	took   atomic.Int64 // the last look at a job, in nanoseconds

	mu   sync.Mutex
	jobs map[ID]submitted
}

// submitted is what has to be known about a job to wait for it.
type submitted struct {
	Request
	output string // the file on its first node that it prints to
	exit   string // the file its script leaves at its end, if it does
}

// timing is how patient the manager is; tests shorten it.
type timing struct {
	command   time.Duration // for one of the manager's commands
	poll      time.Duration // longest time between two looks at a job
	silence   time.Duration // the manager may be away that long, as when it is restarted
	nodesBack time.Duration // nodes that are down may take that long to come back before a pending job is given up
	end       time.Duration // for a cancelled job to be over
	overtime  time.Duration // beyond its limit before a job is cancelled
}

func (w *waiter) init(d desk, nodes Nodes) {
	w.desk, w.nodes, w.jobs = d, nodes, map[ID]submitted{}
	w.timing = timing{
		command: 30 * time.Second, poll: time.Second, silence: time.Minute, nodesBack: 20 * time.Second, end: time.Minute, overtime: 2 * time.Second,
	}
}

// command runs one of a manager's commands on a node and returns what it printed.
func command(ctx context.Context, timeout time.Duration, nodes Nodes, node, env, manager string, stdin []byte, argv []string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %s", timeout))
	defer cancel()
	r, err := nodes.Feed(ctx, node, env+" "+quoteAll(argv), stdin)
	if err != nil {
		return "", fmt.Errorf("%s: %w", manager, err)
	}
	return strings.TrimSpace(string(r.Stdout)), nil
}

// add notes a job that was submitted.
func (w *waiter) add(id ID, job submitted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.jobs[id] = job
}

func (w *waiter) Wait(ctx context.Context, id ID) (Outcome, error) {
	begin := time.Now()
	w.desk.linger(ctx, id, begin)
	o, err := w.watch(ctx, id, func(o Outcome) bool { return o.State.Over() }, func() { w.desk.linger(ctx, id, begin) })
	if err != nil {
		_ = w.desk.expand(context.WithoutCancel(ctx), &o) // where it ran, for what it printed
		return o, err
	}
	w.mu.Lock()
	job := w.jobs[id]
	delete(w.jobs, id)
	w.mu.Unlock()
	return w.desk.settle(ctx, o, job)
}

// attachAtOnce bounds what is fetched of a job's output at once.
const attachAtOnce = 1 << 20

func (w *waiter) Attach(ctx context.Context, id ID, out io.Writer) error {
	w.mu.Lock()
	job, ours := w.jobs[id]
	w.mu.Unlock()
	if !ours || job.output == "" {
		return fmt.Errorf("%s: job %s was not submitted here, or was waited for already: nothing to attach to", w.desk.Name(), id)
	}
	begin, heard, copied, still := time.Now(), time.Now(), 0, false
	var o Outcome
	for {
		var err error
		if !still || o.Host == "" {
			o, err = w.ask(ctx, id)
		}
		if err == nil && o.Host == "" {
			err = w.desk.expand(ctx, &o)
		}
		for more := err == nil && o.Host != ""; more; {
			var part []byte
			part, err = w.part(ctx, o.Host, job.output, copied)
			if len(part) == 0 {
				break
			}
			if _, err := out.Write(part); err != nil {
				return fmt.Errorf("attach to job %s: %w", id, err)
			}
			copied += len(part)
			more = err == nil && len(part) == attachAtOnce
		}
		switch {
		case err == nil && o.State.Over():
			return nil
		case err == nil:
			heard = time.Now()
		case w.desk.unknown(err) || ctx.Err() == nil && time.Since(heard) > w.timing.silence:
			return fmt.Errorf("attach to job %s: %w; %s", id, err, w.desk.look())
		}
		if still = w.desk.linger(ctx, id, begin); ctx.Err() != nil {
			return fmt.Errorf("attach to job %s: %w", id, context.Cause(ctx))
		}
	}
}

// ask looks at a job, and remembers how long that took.
func (w *waiter) ask(ctx context.Context, id ID) (Outcome, error) {
	start := time.Now()
	o, err := w.desk.ask(ctx, id)
	w.took.Store(int64(time.Since(start)))
	return o, err
}

// longestPause is that between two looks at a job that take seconds themselves, on emulated nodes that have a lot to do.
const longestPause = 10 * time.Second

// pause lets pass some time of a job that was begun to be looked at then: little at first, for short jobs, and more later and where looking takes long,
// since it takes CPU time that the job may want.
func (w *waiter) pause(ctx context.Context, begin time.Time) {
	most := max(w.timing.poll, min(longestPause, 10*time.Duration(w.took.Load())))
	select {
	case <-ctx.Done():
	case <-time.After(min(most, max(50*time.Millisecond, time.Since(begin)/20))):
	}
}

// part is what follows in a job's output on its node, which may not be there yet.
func (w *waiter) part(ctx context.Context, node, file string, from int) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, w.timing.command, fmt.Errorf("%s not copied within %s", file, w.timing.command))
	defer cancel()
	r, err := w.nodes.Run(ctx, node, fmt.Sprintf("[ ! -e %[1]s ] || tail -c +%[2]d %[1]s | head -c %[3]d", remote.Quote(file), from+1, attachAtOnce))
	if err != nil {
		return nil, fmt.Errorf("copy %s of node %s: %w", file, node, err)
	}
	return r.Stdout, nil
}

// watch looks at a job until the condition holds, or until one of Wait's reasons to end the job does, with pauses between.
func (w *waiter) watch(ctx context.Context, id ID, until func(Outcome) bool, pause func()) (Outcome, error) {
	w.mu.Lock()
	job, ours := w.jobs[id]
	w.mu.Unlock()
	if !ours {
		return Outcome{}, fmt.Errorf("%s: job %s was not submitted here", w.desk.Name(), id)
	}
	begin := time.Now()
	heard, able := begin, begin // when the manager last answered; when the bed last had the nodes
	var ran time.Time
	for {
		o, err := w.ask(ctx, id)
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			o, err := w.stop(ctx, id)
			return o, errors.Join(fmt.Errorf("wait for job %s: %w", id, context.Cause(ctx)), err)
		case w.desk.unknown(err):
			return w.desk.vanished(ctx, id, job)
		case err != nil && now.Sub(heard) > w.timing.silence:
			_, errStop := w.stop(ctx, id) // whoever does not answer now may well do so later, and nobody waits for the job any more
			return Outcome{}, errors.Join(fmt.Errorf("wait for job %s: no answer for %s: %w; %s", id, w.timing.silence, err, w.desk.look()), errStop)
		case err != nil:
		case until(o) || o.State.Over():
			return o, nil
		case o.State == Running:
			heard = now
			if ran.IsZero() {
				ran = now
			}
			if now.Sub(ran) > job.Limit+w.timing.overtime {
				o, err := w.stop(ctx, id)
				if o.State == Cancelled {
					o.State = Timeout
				}
				return o, err
			}
		case o.State == Pending:
			heard = now
			var r Resources
			var err error
			if now.Sub(begin) > time.Second { // most jobs never pend that long
				r, err = w.desk.Resources(ctx)
			}
			if err != nil || r.Nodes == nil || r.usable(job.On) >= job.Nodes {
				able = now
			}
			reason := ""
			switch {
			case w.desk.never(o.Reason):
				reason = o.Reason
			case now.Sub(able) > w.timing.nodesBack:
				reason = fmt.Sprintf("only %d of the nodes can be used", r.usable(job.On))
			case now.Sub(begin) > job.Patience:
				_, err := w.stop(ctx, id)
				return o, errors.Join(fmt.Errorf("job %s still pends after %s%s, and was cancelled; the bed has %s; see what is before it with %s",
					id, job.Patience, because(o.Reason), r, w.desk.queue()), err)
			}
			if reason != "" {
				_, err := w.stop(ctx, id)
				return o, errors.Join(w.unsatisfiable(ctx, job.Request, reason), err)
			}
		}
		pause()
	}
}

// stop cancels a job and waits for its end, also when the context has ended.
func (w *waiter) stop(ctx context.Context, id ID) (Outcome, error) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), w.timing.end, fmt.Errorf("not over %s after it was cancelled", w.timing.end))
	defer cancel()
	if err := w.desk.Cancel(ctx, id); err != nil {
		return Outcome{ID: id, State: Running}, err
	}
	for {
		o, err := w.desk.ask(ctx, id)
		switch {
		case err == nil && o.State.Over():
			return o, nil
		case w.desk.unknown(err):
			return Outcome{ID: id, State: Cancelled}, nil
		case ctx.Err() != nil:
			return o, errors.Join(fmt.Errorf("job %s: %w; %s", id, context.Cause(ctx), w.desk.look()), err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(w.timing.poll, 200*time.Millisecond)):
		}
	}
}

// unsatisfiable says that a job will never run, with what there is.
func (w *waiter) unsatisfiable(ctx context.Context, want Request, reason string) error {
	have, err := w.desk.Resources(context.WithoutCancel(ctx))
	if err != nil {
		return fmt.Errorf("%s cannot run a job: %s; what it has is not known: %w", w.desk.Name(), reason, err)
	}
	return &UnsatisfiableError{Manager: w.desk.Name(), Reason: reason, Want: want, Have: have}
}
