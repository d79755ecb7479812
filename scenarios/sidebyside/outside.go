package sidebyside

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
)

// outside brings Kubernetes up on idle nodes as a job does on its own, by the same commands, but told by SSH and not by a workload manager, and
// takes it down: what a job's set-up is held against. Its phases are a job's.
func outside(ctx context.Context, env *scenario.Env, on []bed.InventoryNode, limit time.Duration) (r Ran, err error) {
	var nodes, cluster []string
	for _, n := range on {
		nodes, cluster = append(nodes, n.Name), append(cluster, "u7s-"+n.Name)
	}
	dir, remove, err := env.Scratch(ctx, nodes, "-outside")
	if err != nil {
		return r, err
	}
	defer remove()
	number := 1 + rand.IntN(1<<24)
	instance := fmt.Sprintf("outside-%d", number)
	step := progress.Start(ctx, "%s on %d nodes", instance, len(nodes))
	each := func(nodes []string, command string) func() error {
		return func() error {
			_, err := env.OnEach(ctx, nodes, "export USERNETES_INSTANCE="+instance+"; "+command)
			return err
		}
	}
	control, token := nodes[:1], path.Join(dir, "token")
	phases := []struct {
		name string
		do   func() error
	}{
		// A run that is killed tells nobody to let go: what holds the instance does so by itself in the end.
		{"holding", each(nodes, fmt.Sprintf(`setsid timeout %d usernetes hold %d %s </dev/null >%[4]s/held 2>&1 &
until grep -qx held %[4]s/held; do
	kill -0 $! 2>/dev/null || { cat %[4]s/held >&2; exit 1; }
	sleep 0.1
done`, int(limit.Seconds()), number, on[0].BedAddress, dir))},
		{"containers", each(nodes, "usernetes up")},
		{"control-plane", each(control, "usernetes init")},
		{joining, func() error {
			if len(nodes) == 1 {
				return nil
			}
			out, err := env.OnEach(ctx, control, "USERNETES_INSTANCE="+instance+" usernetes token")
			if err == nil {
				err = env.Put(ctx, nodes[1:], token, []byte(out[0]+"\n"), 0o600)
			}
			if err != nil {
				return err
			}
			return each(nodes[1:], "usernetes join <"+token)()
		}},
		{"readiness", func() error {
			if err := each(control, "usernetes ready "+strings.Join(cluster, " "))(); err != nil {
				return err
			}
			return each(nodes, "usernetes dns")()
		}},
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	for _, phase := range phases {
		step.Update("%s", phase.name)
		r.Phases = append(r.Phases, Phase{phase.name, time.Now()})
		if err = phase.do(); err != nil {
			err = fmt.Errorf("%s: %w", phase.name, err)
			break
		}
	}
	r.Phases = append(r.Phases, Phase{"leaving", time.Now()})
	down, stop := context.WithTimeoutCause(context.WithoutCancel(ctx), goneWait, fmt.Errorf("not within %s", goneWait))
	defer stop()
	_, errDown := env.OnEach(down, nodes, "USERNETES_INSTANCE="+instance+" usernetes release")
	r.Phases = append(r.Phases, Phase{"gone", time.Now()})
	if err = errors.Join(err, errDown); err == nil {
		err = gone(ctx, env, nodes, instance)
	}
	return r, step.End(err)
}
