package iperf

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

//go:embed pods.sh
var podsScript string

const (
	podsWait    = 10 * time.Minute // for pods to run; an emulated node needs most of it
	podsTimeout = podsWait + 5*time.Minute
	podsGone    = 2 * time.Minute // for their removal to be taken down by the API server
)

// startPods has Kubernetes run a pod on each node, and returns the ends of tests in them: programs enter a pod's network from its host, as the
// bed's user, in whose namespace it is. So both kinds of test have the same iperf3. remove deletes the pods, also when the context has ended.
func (e *experiment) startPods(ctx context.Context) (pods []end, remove func(), err error) {
	control := e.Inventory.Control().Name
	mark := "bedfellow-iperf-" + path.Base(e.Record.Dir())
	command := fmt.Sprintf("usernetes shell %s %d", mark, int(podsWait.Seconds()))
	var names []string
	for _, n := range e.hosts {
		names = append(names, n.node)
		command += " " + remote.Quote(n.node)
	}
	clear := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), podsGone)
		defer cancel()
		// A script whose caller was interrupted goes on in the container.
		script := fmt.Sprintf("pkill -f '^sh -s -- %s '; kubectl delete namespace bedfellow-iperf --ignore-not-found --wait=false\n", mark)
		if _, err := e.Nodes.Feed(ctx, control, "usernetes shell", []byte(script)); err != nil {
			_ = e.Note(ctx, "namespace bedfellow-iperf is left in Kubernetes: %v", err)
		}
	}
	defer func() {
		if err != nil {
			clear()
		}
	}()
	step := progress.Start(ctx, "pods on %d nodes", len(names))
	ctx, cancel := context.WithTimeoutCause(ctx, podsTimeout, fmt.Errorf("they did not run within %s", podsTimeout))
	defer cancel()
	r, err := e.Nodes.Feed(ctx, control, command, []byte(podsScript))
	if step.End(err) != nil {
		return nil, nil, fmt.Errorf("run pods: %w", err)
	}
	addresses := map[string]string{}
	for line := range strings.Lines(string(r.Stdout)) {
		if fields := strings.Fields(line); len(fields) == 2 {
			addresses[fields[0]] = fields[1]
		}
	}
	processes, err := e.OnEach(ctx, names, fmt.Sprintf("pgrep -o -f '^busybox sh -c .*%s'", mark))
	if err != nil {
		return nil, nil, fmt.Errorf("find the pods' processes: %w", err)
	}
	for i, name := range names {
		address, err := netip.ParseAddr(addresses[name])
		if err != nil {
			return nil, nil, fmt.Errorf("run pods: Kubernetes says %q of the address of the one on node %s: %w", addresses[name], name, err)
		}
		pods = append(pods, end{node: name, address: address.String(), enter: []string{"nsenter", "--target", processes[i], "--user", "--preserve-credentials", "--net"}})
	}
	return pods, clear, nil
}
