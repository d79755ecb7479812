package e2e_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/results"
)

// TestKubernetes brings a bed up on which Kubernetes runs without root beside the workload manager, and has it do what it is there for: on one
// node, or with -full on two, and on another one besides that comes and goes.
func TestKubernetes(t *testing.T) {
	if driver(*stackFlag) == "nspawn" {
		t.Skip("Kubernetes without root needs nodes with a kernel and cgroup v2 of their own: `make e2e STACK=lima-ci` has them")
	}
	p := newPlace(t, "kubernetes", *stackFlag, "e2e-k8s")
	p.bundled(t)
	before := census(t)
	t.Cleanup(func() {
		p.ok(t, "destroy", "-s", p.stack)
		same(t, before)
	})
	p.fails(t, 2, p.upArgs("kubernetes=usernetes", "memory=1GiB"), "memory", "2GiB")
	p.fails(t, 2, p.upArgs("kubernetes=minikube"), "kubernetes", "usernetes")
	same(t, before)

	nodes := "nodes=1"
	if *fullFlag {
		nodes = "nodes=2"
	}
	inv, _ := p.up(t, nodes, "cpus=2", "memory=4GiB", "kubernetes=usernetes")
	require.Equal(t, "usernetes", inv.Kubernetes)
	t.Run("kubeconfig", p.kubeconfig)
	t.Run("selftest", p.kubernetesSelftest)
	t.Run("shared node", p.shared)
	t.Run("job killed", p.killed)
	t.Run("workflow", p.workflow)
	t.Run("pod deleted", func(t *testing.T) { p.struck(t, podDeleted) })
	for _, s := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"its own again", p.ownAgain}, {"another node", p.anotherNode}, {"a node forgotten", p.forgotten}, {"again", p.again}, {"pods beside hosts", p.pods},
		{"LAMMPS beside Kubernetes", p.beside}, {"on the hosts' bridge", p.bridged},
	} {
		t.Run(s.name, func(t *testing.T) {
			if !*fullFlag {
				t.Skip("CI has time for one emulated machine's bring-up and selftest, a job's cluster half made and two workflows; `make e2e-full STACK=lima-ci` does this, on two")
			}
			s.run(t)
		})
	}
}

// bundled gives the place what the offline bundle is built from.
func (p place) bundled(t *testing.T) {
	module, err := filepath.Abs("../images/kubernetes")
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(p.dir, "images"), 0o755))
	_ = os.Remove(filepath.Join(p.dir, "images/kubernetes"))
	require.NoError(t, os.Symlink(module, filepath.Join(p.dir, "images/kubernetes")))
}

func (p place) kubernetesSelftest(t *testing.T) {
	inv := p.inventory(t)
	args := []string{"run", "kubernetes-selftest", "-s", p.stack, "-o", "json"}
	properties := []string{"node is Ready", "pods reach services by name", "pods reach pods", "a pod's CPU is limited", "a pod's port is forwarded", "nothing of Kubernetes runs as root"}
	if !*fullFlag { // an emulated control plane is long in coming back from a reboot
		args = append(args, "--param", "reboot=no")
	}
	r := p.kept(t, args...)
	found := map[string]int{}
	for _, s := range r.Samples {
		assert.Equal(t, results.OK, s.Status, "%s on %s: %s", s.Series, s.Parameters["node"], s.Reason)
		found[s.Series]++
	}
	for _, property := range properties {
		assert.Equal(t, len(inv.Nodes), found[property], property)
	}
	if *fullFlag {
		assert.Equal(t, 1, found["a Deployment survives its node's reboot"])
	}
}

// kept is what a run has kept.
func (p place) kept(t *testing.T, args ...string) *results.Result {
	t.Helper()
	return p.load(t, p.ok(t, args...))
}

// load reads what a run has kept.
func (p place) load(t *testing.T, c call) *results.Result {
	t.Helper()
	var said struct{ Dir string }
	require.NoError(t, json.Unmarshal([]byte(c.stdout), &said), "%s", c)
	r, err := results.Load(said.Dir)
	require.NoError(t, err)
	return r
}

func (p place) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	var bundle images.Image
	require.NoError(t, json.Unmarshal([]byte(p.ok(t, "bundle", "-o", "json").stdout), &bundle))
	kubectl := filepath.Join(bundle.Path, "usr/bin/kubectl")
	return p.ok(t, append([]string{"kubeconfig", "-s", p.stack, "--", kubectl, "--cache-dir", t.TempDir()}, args...)...).stdout
}

// clusterNodes are the names that the cluster has for the bed's nodes.
func clusterNodes(inv bed.Inventory) (names []string) {
	for _, n := range inv.Nodes {
		names = append(names, "node/u7s-"+n.Name)
	}
	return names
}

// kubeconfig: the cluster answers from the host, its certificate checked, while the tunnel is open and no longer.
func (p place) kubeconfig(t *testing.T) {
	assert.ElementsMatch(t, clusterNodes(p.inventory(t)), strings.Fields(p.kubectl(t, "get", "nodes", "-o", "name")))
	left, err := filepath.Glob(filepath.Join(filepath.Dir(p.keyFile()), "kubeconfig*"))
	require.NoError(t, err)
	assert.Empty(t, left, "it leads nowhere once the tunnel is gone")
}

// mover is a pod that would rather be on one node, and runs on another when that leaves.
const mover = `usernetes shell u7s-%s <<'EOF'
. /etc/kubernetes/bundle.env
kubectl apply -f - <<POD >&2
apiVersion: apps/v1
kind: Deployment
metadata: {name: mover}
spec:
  selector: {matchLabels: {app: mover}}
  template:
    metadata: {labels: {app: mover}}
    spec:
      terminationGracePeriodSeconds: 1
      affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [$1]}]}}]}}
      containers: [{name: sleeper, image: "$repository/tools:1", imagePullPolicy: Never, command: [busybox, sleep, "100000"]}]
POD
kubectl rollout status deployment/mover --timeout 10m >&2 && kubectl get pods -l app=mover -o jsonpath='{.items[*].spec.nodeName}'
EOF`

// anotherNode: one more joins the cluster while the others stay as they are, and leaves it again, after its pods.
func (p place) anotherNode(t *testing.T) {
	inv := p.inventory(t)
	n := len(inv.Nodes)
	const created = "-o=jsonpath={range .items[*]}{.metadata.name} {.metadata.creationTimestamp}{\"\\n\"}{end}"
	before := p.kubectl(t, "get", "nodes", created)
	grown, _ := p.up(t, fmt.Sprintf("nodes=%d", n+1))
	after := p.kubectl(t, "get", "nodes", created)
	assert.Contains(t, after, strings.TrimSpace(before), "who was there is not joined again")
	leaver := grown.Nodes[n].Name
	assert.Contains(t, after, "u7s-"+leaver)
	move := func() string { return p.ok(t, "ssh", "1", "-s", p.stack, "--", fmt.Sprintf(mover, leaver)).stdout }
	require.Equal(t, "u7s-"+leaver, move())
	_, c := p.up(t, fmt.Sprintf("nodes=%d", n))
	drained, ok := c.step(progress.Done, "drain "+leaver)
	assert.True(t, ok, "%s", c)
	assert.Empty(t, drained.Detail)
	ended := p.kubectl(t, "get", "events", `-o=jsonpath={range .items[?(@.reason=="Killing")]}{.involvedObject.name} on {.source.host}{"\n"}{end}`)
	assert.Regexp(t, `(?m)^mover-\S+ on u7s-`+leaver+`$`, ended, "its own node ended the pod, while that was there")
	assert.Equal(t, "u7s-"+inv.Nodes[n-1].Name, move())
	p.kubectl(t, "delete", "deployment", "mover")
	assert.Equal(t, before, p.kubectl(t, "get", "nodes", created))
}

// forgotten: a node that somebody has deleted from the cluster joins it again, and its pods are reached.
func (p place) forgotten(t *testing.T) {
	inv := p.inventory(t)
	last := len(inv.Nodes) - 1
	nodes := strings.ReplaceAll(strings.Join(clusterNodes(inv), " "), "node/", "")
	p.kubectl(t, "delete", "node", "u7s-"+inv.Nodes[last].Name)
	token := p.must(t, inv, 0, "usernetes token")
	said := p.ok(t, "ssh", inv.Nodes[last].Name, "-s", p.stack, "--", "echo "+token+" | usernetes join").stdout
	assert.Contains(t, said, "changed")
	p.ok(t, "ssh", "1", "-s", p.stack, "--", "usernetes ready "+nodes)
	p.pods(t)
}

// pods: bandwidth, retransmits and latency between two nodes, and between pods on them.
func (p place) pods(t *testing.T) {
	r := p.kept(t, "run", "iperf", "-s", p.stack, "-n", "1", "--param", "between=pods", "--param", "seconds=2", "-o", "json")
	seen := map[string]int{}
	for _, s := range r.Samples {
		require.Equal(t, results.OK, s.Status, "%s: %s", s.Series, s.Reason)
		if s.Metric != "retransmits" {
			assert.Positive(t, s.Value, "%s of %s", s.Metric, s.Series)
		}
		if strings.HasSuffix(s.Series, ", pods") {
			seen[s.Metric+", pods"]++
		} else {
			seen[s.Metric]++
		}
	}
	for _, want := range []string{"bandwidth", "bandwidth, pods", "round trip", "round trip, pods", "retransmits", "retransmits, pods"} {
		assert.Positive(t, seen[want], "%s: %v", want, seen)
	}
}

// beside: the same simulation with Kubernetes stopped and idle in turn; it is up again afterwards.
func (p place) beside(t *testing.T) {
	r := p.kept(t, append([]string{"run", "lammps", "-s", p.stack, "-n", "1", "--param", "usernetes=both", "-o", "json"}, small...)...)
	series := map[string]int{}
	for _, s := range r.Samples {
		require.Equal(t, results.OK, s.Status, "%s: %s", s.Series, s.Reason)
		if s.Metric == "loop time" && !s.Warmup {
			series[s.Series]++
		}
	}
	assert.Equal(t, map[string]int{"bare": 1, "bare+usernetes": 1}, series)
	p.kubeconfig(t)
}

// bridged: the hosts' kernels take the network of a cluster that stands over, and give it back without a trace.
func (p place) bridged(t *testing.T) {
	inv := p.inventory(t)
	traces := func() (found []string) {
		for i := range inv.Nodes {
			found = append(found, p.must(t, inv, i, "cat /proc/sys/net/ipv4/ip_forward; ip -o link | cut -d' ' -f2; ip route; sudo nft list tables; systemctl is-enabled usernetes-bridge || true"))
		}
		return found
	}
	before := traces()
	p.up(t, "kubernetes.network="+bed.HostBridge)
	assert.NotEqual(t, before, traces())
	p.again(t)
	p.pods(t)
	p.kubernetesSelftest(t)
	_, err := p.on(t, inv, 0, "sudo usernetes admit guest")
	assert.ErrorContains(t, err, "kubernetes.network=slirp4netns")
	_, err = p.on(t, inv, 0, "id guest")
	require.Error(t, err, "it is refused before anything is made")
	p.up(t, "kubernetes.network="+bed.DefaultKubernetesNetwork().Driver)
	assert.Equal(t, before, traces())
	p.pods(t)
}
