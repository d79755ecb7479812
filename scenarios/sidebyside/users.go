package sidebyside

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
)

var accounts = regexp.MustCompile(`^[a-z_][a-z0-9_-]*(,[a-z_][a-z0-9_-]*)*$`)

func checkUsers(value string) error {
	if !accounts.MatchString(value) {
		return errors.New("must be names of accounts with commas between them, such as bed,guest; one that is there twice has two jobs")
	}
	return nil
}

func shareNodes(inv bed.Inventory, v scenario.Values, value string) error {
	users := strings.Split(value, ",")
	if inv.FluxMode == "user" && slices.ContainsFunc(users, func(user string) bool { return user != inv.User }) {
		return fmt.Errorf("a Flux of mode user is user %s's alone; bring the bed up with -c flux.mode=system for more", inv.User)
	}
	jobs := len(users)
	policy := cmp.Or(inv.FluxMatchPolicy, "lonodex")
	if inv.WorkloadManager == "flux" && inv.FluxMode != "user" && jobs > 1 && strings.HasSuffix(policy, "x") {
		return fmt.Errorf("Flux's match policy %s gives each job whole nodes; bring the bed up with -c flux.matchPolicy=%s for %d jobs on the same", policy, strings.TrimSuffix(policy, "x"), jobs)
	}
	for _, n := range on(inv, v) {
		if n.CPUs < jobs {
			return fmt.Errorf("%d jobs at once want a CPU each on every node, and node %s has %d", jobs, n.Name, n.CPUs)
		}
	}
	return nil
}

// share makes a job one of several at once on the same nodes.
func (j Job) share(env *scenario.Env, jobs int) Job {
	j.Shared, j.Ranks = true, min(env.Params.Int("ranks"), leastCPUs(env.Inventory, env.Params)/jobs)*len(j.Nodes)
	return j
}

// admitted is the run as each of the users, who have what it takes on every node.
func admitted(ctx context.Context, env *scenario.Env, users []string) ([]*scenario.Env, error) {
	var names []string
	for _, n := range env.Inventory.Nodes {
		names = append(names, n.Name)
	}
	envs := make([]*scenario.Env, len(users))
	for i, user := range users {
		if user == env.Inventory.User {
			envs[i] = env
			continue
		}
		other, err := env.As(user)
		if err == nil {
			_, err = other.OnEach(ctx, names, `. /etc/bedfellow/usernetes/node.env && docker image inspect -f '{{.Id}}' "$USERNETES_IMAGE"`)
		}
		if err != nil {
			return nil, fmt.Errorf("user %s cannot have a job with Kubernetes on each of the bed's nodes: %w; `bed ssh NODE -- sudo usernetes admit %[1]s` makes that so", user, err)
		}
		if _, err := other.Manager.Resources(ctx); err != nil {
			return nil, fmt.Errorf("user %s cannot have a job on this bed: %w", user, err)
		}
		envs[i] = other
	}
	return envs, nil
}

// atOnce runs such a job of each of the users, all on the same nodes. The first ends as it is to, and the others do their work meanwhile.
func atOnce(ctx context.Context, users []*scenario.Env, j Job) (m scenario.Measured, err error) {
	rans, errs := make([]Ran, len(users)), make([]error, len(users))
	var jobs sync.WaitGroup
	for i, env := range users {
		job := j
		job.Name += fmt.Sprintf("-%d", i+1)
		if i > 0 {
			job.Ending, job.At, job.After = Completed, "", 0
		}
		jobs.Go(func() {
			if rans[i], errs[i] = job.checked(ctx, env); errs[i] != nil {
				errs[i] = fmt.Errorf("job %d, of user %s: %w", i+1, env.Inventory.User, errs[i])
			}
		})
	}
	jobs.Wait()
	m.Log = rans[max(0, slices.IndexFunc(errs, func(err error) bool { return err != nil }))].Log
	if err := errors.Join(errs...); err != nil {
		return m, err
	}
	for i, ran := range rans {
		for _, metric := range ran.Metrics() {
			whole, part, parted := strings.Cut(metric.Name, "/")
			if metric.Name = fmt.Sprintf("%s, job %d", whole, i+1); parted {
				metric.Name += "/" + part
			}
			m.Metrics = append(m.Metrics, metric)
		}
	}
	return m, together(rans)
}

// together is an error unless all of the jobs had begun before any was over.
func together(rans []Ran) error {
	var begun, over time.Time
	for _, r := range rans {
		began, ended := r.Phases[0].At, r.Phases[len(r.Phases)-1].At
		if began.After(begun) {
			begun = began
		}
		if over.IsZero() || ended.Before(over) {
			over = ended
		}
	}
	if begun.After(over) {
		return fmt.Errorf("the jobs did not run at once: the last began %s after the first was over", begun.Sub(over).Round(time.Second))
	}
	return nil
}
