package wlm

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/remote"
)

func (s *slurm) Wait(ctx context.Context, id ID) (Outcome, error) {
	o, err := s.watch(ctx, id, func(o Outcome) bool { return o.State.Over() })
	if err != nil {
		return o, err
	}
	return s.settle(ctx, o)
}

// watch looks at a job until the condition holds, or until one of Wait's reasons to end the job does.
func (s *slurm) watch(ctx context.Context, id ID, until func(Outcome) bool) (Outcome, error) {
	s.mu.Lock()
	job, ours := s.jobs[id]
	s.mu.Unlock()
	if !ours {
		return Outcome{}, fmt.Errorf("slurm: job %s was not submitted here", id)
	}
	begin := time.Now()
	heard, able := begin, begin // when slurmctld last answered; when the bed last had the nodes
	var ran time.Time
	for {
		o, err := s.ask(ctx, id)
		now := time.Now()
		switch {
		case ctx.Err() != nil:
			o, err := s.stop(ctx, id)
			return o, errors.Join(fmt.Errorf("wait for job %s: %w", id, context.Cause(ctx)), err)
		case unknownJob(err):
			return s.vanished(ctx, id, job)
		case err != nil && now.Sub(heard) > s.timing.silence:
			return Outcome{}, fmt.Errorf("wait for job %s: no answer for %s: %w; %s", id, s.timing.silence, err, s.look())
		case err != nil:
		case until(o) || o.State.Over():
			return o, nil
		case o.State == Running:
			heard = now
			if ran.IsZero() {
				ran = now
			}
			if now.Sub(ran) > job.Limit+s.timing.overtime {
				o, err := s.stop(ctx, id)
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
				r, err = s.Resources(ctx)
			}
			if err != nil || r.Nodes == nil || r.usable(job.On) >= job.Nodes {
				able = now
			}
			reason := ""
			switch {
			case never(o.Reason):
				reason = o.Reason
			case now.Sub(able) > s.timing.nodesBack:
				reason = fmt.Sprintf("only %d of the nodes can be used", r.usable(job.On))
			case now.Sub(begin) > job.Patience:
				_, err := s.stop(ctx, id)
				return o, errors.Join(fmt.Errorf("job %s still pends after %s%s, and was cancelled; the bed has %s; see what is before it with `bed ssh %s -- squeue`",
					id, job.Patience, because(o.Reason), r, s.control), err)
			}
			if reason != "" {
				_, err := s.stop(ctx, id)
				return o, errors.Join(s.unsatisfiable(ctx, job.Request, reason), err)
			}
		}
		select {
		case <-ctx.Done():
		// Often at first, for short jobs; seldom later, since looking takes CPU time that the job may want.
		case <-time.After(min(s.timing.poll, max(50*time.Millisecond, time.Since(begin)/20))):
		}
	}
}

// never says whether a pending job's reason does not go away by itself.
func never(reason string) bool {
	return slices.Contains([]string{
		"BadConstraints", "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "PartitionInactive", "JobHeldAdmin", "JobHeldUser",
		"launch_failed_requeued_held", "AccountNotAllowed", "InvalidAccount", "InvalidQOS",
	}, reason)
}

// stop cancels a job and waits for its end, also when the context has ended.
func (s *slurm) stop(ctx context.Context, id ID) (Outcome, error) {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), s.timing.end, fmt.Errorf("not over %s after it was cancelled", s.timing.end))
	defer cancel()
	if err := s.Cancel(ctx, id); err != nil {
		return Outcome{ID: id, State: Running}, err
	}
	for {
		o, err := s.ask(ctx, id)
		switch {
		case err == nil && o.State.Over():
			return o, nil
		case unknownJob(err):
			return Outcome{ID: id, State: Cancelled}, nil
		case ctx.Err() != nil:
			return o, fmt.Errorf("job %s: %w: %w; %s", id, context.Cause(ctx), err, s.look())
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(s.timing.poll, 200*time.Millisecond)):
		}
	}
}

// A record of `scontrol --oneliner show job` is words of the form Key=value. Values with spaces come after those read here, and
// the job's name, which comes before, is ours and has none.
var jobField = regexp.MustCompile(`(?:^| )(JobState|Reason|ExitCode|StartTime|EndTime|NodeList|BatchHost)=(\S*)`)

// ask looks at a job once. ExitCode, Started and Ended are what slurmctld knows.
func (s *slurm) ask(ctx context.Context, id ID) (Outcome, error) {
	out, err := s.run(ctx, nil, "scontrol", "--oneliner", "show", "job", string(id))
	if err != nil {
		return Outcome{ID: id}, err
	}
	fields := map[string]string{}
	for _, m := range jobField.FindAllStringSubmatch(out, -1) {
		if _, known := fields[m[1]]; !known && m[2] != "(null)" {
			fields[m[1]] = m[2]
		}
	}
	o := Outcome{ID: id, Reason: fields["Reason"], Host: fields["BatchHost"], Started: seconds(fields["StartTime"]), Ended: seconds(fields["EndTime"])}
	if o.State, err = slurmState(fields["JobState"]); err != nil {
		return o, fmt.Errorf("slurm: job %s: %w in %q", id, err, out)
	}
	var code, signal int
	if _, err := fmt.Sscanf(fields["ExitCode"], "%d:%d", &code, &signal); err != nil {
		return o, fmt.Errorf("slurm: job %s: exit code %q where status:signal was expected", id, fields["ExitCode"])
	}
	o.ExitCode = code
	if signal != 0 {
		o.ExitCode = 128 + signal
	}
	o.nodeList = fields["NodeList"]
	return o, nil
}

// expand turns Slurm's short form of a job's nodes, as in q-[02-03], into names.
func (s *slurm) expand(ctx context.Context, o *Outcome) error {
	if o.nodeList == "" {
		return nil
	}
	names, err := s.run(ctx, nil, "scontrol", "show", "hostnames", o.nodeList)
	o.Nodes = strings.Fields(names)
	return err
}

func seconds(s string) time.Time {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && n > 0 {
		return time.Unix(n, 0)
	}
	return time.Time{} // "Unknown"
}

// slurmState is the job states of squeue(1) in our words.
func slurmState(word string) (State, error) {
	switch word {
	case "PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT":
		return Pending, nil
	case "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING":
		return Running, nil
	case "COMPLETED":
		return Completed, nil
	case "FAILED", "OUT_OF_MEMORY":
		return Failed, nil
	case "CANCELLED", "PREEMPTED", "REVOKED":
		return Cancelled, nil
	case "TIMEOUT", "DEADLINE":
		return Timeout, nil
	case "NODE_FAIL", "BOOT_FAIL":
		return NodeFail, nil
	default:
		return "", fmt.Errorf("unknown job state %q", word)
	}
}

// settle adds to an outcome what the job's script left on its node. A job that came to its own end must have left it.
func (s *slurm) settle(ctx context.Context, o Outcome) (Outcome, error) {
	s.mu.Lock()
	job := s.jobs[o.ID]
	delete(s.jobs, o.ID)
	s.mu.Unlock()
	if err := s.expand(ctx, &o); err != nil {
		return o, err
	}
	if o.Host == "" || o.State != Completed && o.State != Failed {
		return o, nil
	}
	left, err := s.left(ctx, o.Host, job.exit)
	switch {
	case err == nil:
		o.ExitCode, o.Started, o.Ended = left.ExitCode, left.Started, left.Ended
	case o.State == Completed:
		return o, fmt.Errorf("job %s completed on node %s, but its exit status is not there: %w", o.ID, o.Host, err)
	}
	return o, nil
}

// left reads what script writes.
func (s *slurm) left(ctx context.Context, node, exit string) (Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timing.command)
	defer cancel()
	r, err := s.nodes.Run(ctx, node, "cat "+remote.Quote(exit))
	if err != nil {
		return Outcome{}, err
	}
	var code int
	var start, end int64
	if _, err := fmt.Sscanf(string(r.Stdout), "%d %d %d\n", &code, &start, &end); err != nil || end < start {
		return Outcome{}, fmt.Errorf("on node %s: %s holds %q where a status and two times were expected", node, exit, r.Stdout)
	}
	return Outcome{ExitCode: code, Started: time.Unix(0, start), Ended: time.Unix(0, end)}, nil
}

// vanished finds out about a job that slurmctld has forgotten, as after losing its state: the node that ran its script may know.
func (s *slurm) vanished(ctx context.Context, id ID, job submitted) (Outcome, error) {
	where := job.On
	if len(where) == 0 {
		where = s.compute
	}
	var found Outcome
	if job.exit != "" {
		outcomes := make([]Outcome, len(where))
		_ = remote.Each(ctx, where, 32, func(ctx context.Context, i int, node string) (err error) {
			if outcomes[i], err = s.left(ctx, node, job.exit); err == nil {
				outcomes[i].Host = node
			}
			return nil
		})
		if i := slices.IndexFunc(outcomes, func(o Outcome) bool { return o.Host != "" }); i >= 0 {
			found = outcomes[i]
		}
	}
	if found.Host == "" {
		return Outcome{ID: id}, fmt.Errorf("job %s is unknown to Slurm on node %s and left no exit status (%s) on %s: slurmctld lost its state or the job's node is gone; %s",
			id, s.control, job.exit, strings.Join(where, ", "), s.look())
	}
	found.ID, found.State, found.Reason = id, Completed, ""
	if found.ExitCode != 0 {
		found.State = Failed
	}
	return found, nil
}
