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

// unknown says that slurmctld does not know the job, or knows it as over.
func (s *slurm) unknown(err error) bool {
	var exit *remote.ExitError
	return errors.As(err, &exit) && (strings.Contains(string(exit.Result.Stderr), "Invalid job id specified") ||
		strings.Contains(string(exit.Result.Stderr), "Job/step already completing or completed"))
}

// never says whether a pending job's reason does not go away by itself.
func (s *slurm) never(reason string) bool {
	return slices.Contains([]string{
		"BadConstraints", "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "PartitionInactive", "JobHeldAdmin", "JobHeldUser",
		"launch_failed_requeued_held", "AccountNotAllowed", "InvalidAccount", "InvalidQOS",
	}, reason)
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
func (s *slurm) settle(ctx context.Context, o Outcome, job submitted) (Outcome, error) {
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
