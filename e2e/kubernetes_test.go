package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/results"
)

// TestKubernetes brings a bed up on which Kubernetes runs without root beside the workload manager, and has it do what it is there for.
func TestKubernetes(t *testing.T) {
	if !strings.HasPrefix(*stackFlag, "lima") {
		t.Skip("Kubernetes without root needs nodes with a kernel and cgroup v2 of their own: `make e2e-full STACK=lima-ci` has them")
	}
	if !*fullFlag {
		t.Skip("CI's time does not hold the bundle's build and two more emulated machines; `make e2e-full STACK=lima-ci` does")
	}
	p := newPlace(t, "kubernetes", *stackFlag, "e2e-k8s")
	module, err := filepath.Abs("../images/kubernetes")
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(p.dir, "images"), 0o755))
	_ = os.Remove(filepath.Join(p.dir, "images/kubernetes"))
	require.NoError(t, os.Symlink(module, filepath.Join(p.dir, "images/kubernetes")))
	before := census(t)
	t.Cleanup(func() {
		p.ok(t, "destroy", "-s", p.stack)
		same(t, before)
	})
	p.fails(t, 2, p.upArgs("kubernetes=usernetes", "memory=1GiB"), "memory", "2GiB")
	p.fails(t, 2, p.upArgs("kubernetes=minikube"), "kubernetes", "usernetes")
	same(t, before)

	inv, _ := p.up(t, "nodes=2", "cpus=2", "memory=4GiB", "kubernetes=usernetes")
	require.Equal(t, "usernetes", inv.Kubernetes)
	t.Run("again", p.again)
	t.Run("selftest", func(t *testing.T) {
		c := p.ok(t, "run", "kubernetes-selftest", "-s", p.stack, "-o", "json")
		var said struct{ Dir string }
		require.NoError(t, json.Unmarshal([]byte(c.stdout), &said), "%s", c)
		r, err := results.Load(said.Dir)
		require.NoError(t, err)
		found := map[string]int{}
		for _, s := range r.Samples {
			assert.Equal(t, results.OK, s.Status, "%s on %s: %s", s.Series, s.Parameters["node"], s.Reason)
			found[s.Series]++
		}
		for _, property := range []string{"node is Ready", "pods reach services by name", "pods reach pods", "a pod's CPU is limited", "a pod's port is forwarded", "nothing of Kubernetes runs as root"} {
			assert.Equal(t, len(inv.Nodes), found[property], property)
		}
	})
	t.Run("kubeconfig", func(t *testing.T) {
		var bundle images.Image
		require.NoError(t, json.Unmarshal([]byte(p.ok(t, "bundle", "-o", "json").stdout), &bundle))
		kubectl := filepath.Join(bundle.Path, "usr/bin/kubectl")
		c := p.ok(t, "kubeconfig", "-s", p.stack, "--", kubectl, "get", "nodes", "-o", "name")
		for _, n := range inv.Nodes {
			assert.Contains(t, c.stdout, "node/u7s-"+n.Name)
		}
		assert.NoFileExists(t, filepath.Join(filepath.Dir(p.keyFile()), "kubeconfig"), "it leads nowhere once the tunnel is gone")
	})
}
