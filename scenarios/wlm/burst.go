package wlm

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/remote"
)

// burst runs a shell command that submits jobs of a name and waits for them all, and times it there. cancel is one that ends those left.
func burst(ctx context.Context, nodes Nodes, node, name, submit, cancel string) (time.Duration, error) {
	r, err := nodes.Run(ctx, node, fmt.Sprintf("start=$(date +%%s%%N); { %s; } >&2 && echo $(($(date +%%s%%N) - start))", submit))
	if err != nil {
		// The end of the context ends neither the command, which may be submitting still, nor the jobs. The pattern does not find itself.
		clean, done := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer done()
		_, errCancel := nodes.Run(clean, node, fmt.Sprintf("pkill -f -- %s; %s", remote.Quote("--job-name=["+name[:1]+"]"+regexp.QuoteMeta(name[1:])), cancel))
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return 0, errors.Join(err, errCancel)
	}
	took, err := time.ParseDuration(strings.TrimSpace(string(r.Stdout)) + "ns")
	if err != nil {
		return 0, fmt.Errorf("node %s printed %q where a number of nanoseconds was expected", node, r.Stdout)
	}
	return took, nil
}

// Burst looks whether there are jobs left, ten times a second; sbatch itself could wait, but looks every ten seconds in the end.
func (s *slurm) Burst(ctx context.Context, name string, jobs int) (time.Duration, error) {
	submit := quoteAll([]string{"sbatch", "--quiet", "--job-name=" + name, fmt.Sprintf("--array=1-%d", jobs), "--ntasks=1", "--chdir=/", "--output=/dev/null", "--wrap=true"})
	return burst(ctx, s.nodes, s.control, name, fmt.Sprintf(`%s && while left=$(squeue --noheader --name=%s) || exit; [ -n "$left" ]; do sleep 0.1; done`, submit, remote.Quote(name)),
		"scancel --name="+remote.Quote(name))
}

func (f *flux) Burst(ctx context.Context, name string, jobs int) (time.Duration, error) {
	copies := "1"
	if jobs > 1 { // Flux refuses a set from 1 to 1
		copies = fmt.Sprintf("1-%d", jobs)
	}
	submit := quoteAll([]string{"flux", "submit", "--quiet", "--wait", "--job-name=" + name, "--cc=" + copies, "--ntasks=1", "--cwd=/", "true"})
	return burst(ctx, f.nodes, f.control, name, f.environment+" "+submit,
		fmt.Sprintf("%[1]s flux jobs --suppress-header --count=0 --filter=active --name=%[2]s --format='{id}' | %[1]s xargs -r flux cancel", f.environment, remote.Quote(name)))
}
