package selftest

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
)

//go:embed kubernetes.sh
var kubernetesScript string

const (
	noRoot        = "nothing of Kubernetes runs as root"
	survivesBoot  = "a Deployment survives its node's reboot"
	podWait       = 10 * time.Minute // for pods to run; an emulated node needs most of it
	kubeTimeout   = 40 * time.Minute // of the whole look from inside
	rebootTimeout = 20 * time.Minute
	tryTimeout    = 2 * time.Minute // of one question to a node that may be going down: it may never answer
)

var ofKubernetes = []string{noRoot, survivesBoot}

// KubernetesScenario looks whether a bed's Kubernetes does what it is there for.
func KubernetesScenario() scenario.Scenario {
	return scenario.Scenario{
		Name: "kubernetes-selftest", Summary: "do pods run on every node, reach each other and keep to their limits, and is nothing of it root's?",
		Parameters: []scenario.Parameter{
			{Name: "reboot", Doc: "whether the last node is rebooted, to see that a Deployment survives it: yes or no", Default: "yes", Check: scenario.OneOf("yes", "no")},
		},
		Repeats: 1, Table: table,
		Run: func(ctx context.Context, env *scenario.Env) error {
			if kind := env.Inventory.Kubernetes; kind != bed.OwnKubernetes {
				return bed.Problems{{Key: "kubernetes", Value: cmp.Or(kind, "none"), Host: true, Reason: "is what was asked for: bed " + env.Inventory.Bed + " has no Kubernetes of its own to look at",
					Remedy: "bring the bed up with -c kubernetes=usernetes"}}
			}
			for r := range env.Repeats {
				if err := lookAtKubernetes(ctx, env, r+1); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func lookAtKubernetes(ctx context.Context, env *scenario.Env, repetition int) error {
	nodes := env.Inventory.Nodes
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.Name
	}
	step := progress.Start(ctx, "pods on %d nodes", len(nodes))
	by, err := podsLook(ctx, env, names)
	if step.End(err) != nil {
		return err
	}
	found := make([][]finding, len(nodes))
	rootless, err := env.OnEach(ctx, names, rootProcesses)
	if err != nil {
		return err
	}
	for i, name := range names {
		f := finding{property: noRoot, ok: true, seen: rootless[i]}
		if text, bad := strings.CutPrefix(rootless[i], "root: "); bad {
			f.ok, f.seen = false, text
		}
		found[i] = append(by[name], f)
	}
	if env.Params["reboot"] == "yes" {
		last := len(nodes) - 1
		step := progress.Start(ctx, "reboot of %s under a Deployment", names[last])
		seen, err := survivesReboot(ctx, env, nodes[last])
		if ctx.Err() != nil {
			return step.End(context.Cause(ctx))
		}
		step.EndWith(seen, err)
		f := finding{property: survivesBoot, ok: err == nil, seen: seen}
		if err != nil {
			f.seen = err.Error()
		}
		found[last] = append(found[last], f)
	}
	return keep(env, repetition, found)
}

// podsLook runs the script in the control plane's container and sorts what it says by host.
func podsLook(ctx context.Context, env *scenario.Env, names []string) (map[string][]finding, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, kubeTimeout, fmt.Errorf("it took longer than %s", kubeTimeout))
	defer cancel()
	command := fmt.Sprintf("usernetes shell selftest-%s %d", strings.ToLower(env.Inventory.ID[:min(8, len(env.Inventory.ID))]), int(podWait.Seconds()))
	for _, name := range names {
		command += " " + remote.Quote(name)
	}
	control := env.Inventory.Control().Name
	r, err := env.Nodes.Feed(ctx, control, command, []byte(kubernetesScript))
	if err != nil {
		return nil, fmt.Errorf("look at Kubernetes from node %s: %w", control, err)
	}
	by := map[string][]finding{}
	for line := range strings.Lines(string(r.Stdout)) {
		host, rest, _ := strings.Cut(line, "\t")
		f, err := parse(rest)
		if err != nil || !slices.Contains(names, host) {
			return nil, errors.Join(fmt.Errorf("look at Kubernetes from node %s: it said %q", control, line), err)
		}
		by[host] = append(by[host], f...)
	}
	for _, name := range names {
		if len(by[name]) == 0 {
			return nil, fmt.Errorf("look at Kubernetes from node %s: it said nothing of %s", control, name)
		}
	}
	return by, nil
}

// rootProcesses prints the users of Kubernetes' processes on a host, with "root: " before it if root is one.
const rootProcesses = `ps -eo uid=,comm= | awk '
	$2 ~ /^(kube|etcd$|coredns|flanneld|containerd|runc|dockerd|rootlesskit|slirp4netns|pasta)/ { n++; if ($1 == 0) root = root " " $2 }
	END { if (n == 0) root = " no process of Kubernetes at all"; print (root ? "root:" root : n " processes, none of root") }'`

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: survivor}
spec:
  selector: {matchLabels: {app: survivor}}
  template:
    metadata: {labels: {app: survivor}}
    spec:
      nodeName: u7s-@host@
      terminationGracePeriodSeconds: 0
      containers:
        - {name: server, image: "$repository/tools:1", imagePullPolicy: Never, command: [busybox, httpd, -f, -p, "8080"]}
`

// survivesReboot reboots a node that a Deployment's pod is on, and waits until it is on it again.
func survivesReboot(ctx context.Context, env *scenario.Env, node bed.InventoryNode) (seen string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, rebootTimeout, fmt.Errorf("it was not back within %s", rebootTimeout))
	defer cancel()
	control := env.Inventory.Control().Name
	shell := func(script, args string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, podWait+tryTimeout)
		defer cancel()
		r, err := env.Nodes.Feed(ctx, control, "usernetes shell "+args, []byte(script))
		return strings.TrimSpace(string(r.Stdout)), err
	}
	const namespace = "kubectl -n default "
	defer func() { // also when nobody waits any more
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), tryTimeout)
		defer cancel()
		_, errDelete := env.Nodes.Feed(clean, control, "usernetes shell", []byte(namespace+"delete deployment survivor --ignore-not-found --wait=false"))
		err = errors.Join(err, errDelete)
	}()
	restarts, err := shell(". /etc/kubernetes/bundle.env\n"+namespace+"delete deployment survivor --ignore-not-found --cascade=foreground --timeout=1m >&2\n"+namespace+"apply -f - >&2 <<DEPLOYMENT"+strings.ReplaceAll(deployment, "@host@", node.Name)+"DEPLOYMENT\n"+
		namespace+"rollout status deployment/survivor --timeout=10m >&2 && "+namespace+"get pods -l app=survivor -o jsonpath='{.items[0].status.containerStatuses[0].restartCount}'", "")
	if err != nil {
		return "", err
	}
	count, err := strconv.Atoi(restarts)
	if err != nil {
		return "", fmt.Errorf("how often the Deployment's pod was restarted: %w", err)
	}
	const bootID = "cat /proc/sys/kernel/random/boot_id"
	before, err := env.Nodes.Run(ctx, node.Name, bootID)
	if err != nil {
		return "", err
	}
	start := time.Now()
	run := func(command string) (remote.Result, error) {
		ctx, cancel := context.WithTimeout(ctx, tryTimeout)
		defer cancel()
		return env.Nodes.Run(ctx, node.Name, command)
	}
	_, _ = run("sudo systemctl reboot") // its connection ends as it will
	booted := false
	for {
		if !booted {
			now, errBoot := run(bootID)
			booted = errBoot == nil && string(now.Stdout) != string(before.Stdout)
		}
		if booted {
			if _, errPods := shell(restarted, fmt.Sprintf("%d %d", count+1, int(podWait.Seconds()))); errPods == nil {
				return fmt.Sprintf("it is back after %s", time.Since(start).Round(time.Second)), nil
			}
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(2 * time.Second):
		}
	}
}

// A pod that was running is shown as such until its node is heard of again: one that was started since then is the answer. One process waits
// for it a minute at a time, as a kubectl started anew every other second would take what an emulated control plane has.
const restarted = `
end=$(($(date +%s) + $2))
count() { kubectl -n default get pods -l app=survivor -o jsonpath='{.items[0].status.containerStatuses[0].restartCount}'; }
until { kubectl -n default wait pod -l app=survivor --for=jsonpath='{.status.containerStatuses[0].restartCount}'=$1 --timeout=60s || [ "$(count)" -ge $1 ]; } &&
	kubectl -n default rollout status deployment/survivor --timeout=60s; do
	[ "$(date +%s)" -lt "$end" ] || exit 1
	sleep 5
done
`
