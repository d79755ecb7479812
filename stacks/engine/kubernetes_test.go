package engine_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/stacks"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

func TestWhichNodesAreDrained(t *testing.T) {
	spec := func(kubernetes string, nodes int) bed.Spec {
		return bed.Spec{Name: "k", Kubernetes: kubernetes, Pools: []bed.Pool{{Nodes: nodes}}}
	}
	inv := bed.Inventory{Bed: "k", Kubernetes: bed.OwnKubernetes}
	for i := range 3 {
		inv.Nodes = append(inv.Nodes, bed.InventoryNode{Name: bed.NodeName("k", i), Role: bed.Compute})
	}
	inv.Nodes[0].Role = bed.Control
	assert.Equal(t, []string{"k-02", "k-03"}, engine.Leaving(inv, spec(bed.OwnKubernetes, 1)))
	assert.Empty(t, engine.Leaving(inv, spec(bed.OwnKubernetes, 3)))
	assert.Empty(t, engine.Leaving(inv, spec(bed.OwnKubernetes, 4)))
	assert.Empty(t, engine.Leaving(inv, spec(bed.JobsKubernetes, 1)), "its cluster goes as a whole")
	other := spec(bed.OwnKubernetes, 1)
	other.Name = "l"
	assert.Empty(t, engine.Leaving(inv, other), "it is made anew under another name")
}

func TestWhatKeepsKubernetesFromABed(t *testing.T) {
	module, err := filepath.Abs("../../images/kubernetes")
	require.NoError(t, err)
	t.Setenv(images.KubernetesEnv, module)
	spec := func(memory string) bed.Spec {
		s, problems := bed.Parse("k", map[string]string{"driver": "lima", "image": "debian-13", "kubernetes": "usernetes", "memory": memory}, stacks.Known())
		require.Empty(t, problems)
		return s
	}
	vms := provision.Info{Name: "lima", Image: bed.VM}
	assert.Empty(t, engine.KubernetesProblems(spec("2GiB"), vms))

	small := engine.KubernetesProblems(spec("1GiB"), vms)
	require.Len(t, small, 1, "once, not for every node")
	assert.Equal(t, "memory", small[0].Key)
	assert.Equal(t, 2, small.ExitCode())

	spec2 := spec("2GiB")
	spec2.Pools[0].Nodes = 257
	many := engine.KubernetesProblems(spec2, vms)
	require.Len(t, many, 1)
	assert.Equal(t, "nodes", many[0].Key)
	assert.Equal(t, 2, many.ExitCode())

	withPasta := spec("2GiB")
	withPasta.KubernetesNetwork.Driver = "pasta"
	assert.Empty(t, engine.KubernetesProblems(withPasta, vms))
	withPasta.Image = "ubuntu-22.04"
	old := engine.KubernetesProblems(withPasta, vms)
	require.Len(t, old, 1)
	assert.ErrorContains(t, old, "-c image=debian-13")

	bridged := spec("2GiB")
	bridged.KubernetesNetwork.Driver = bed.HostBridge
	for _, bridged.Image = range []string{"debian-12", "debian-13", "ubuntu-22.04"} {
		assert.Empty(t, engine.KubernetesProblems(bridged, vms), bridged.Image)
	}
	assert.ErrorContains(t, engine.KubernetesProblems(bridged, provision.Info{Name: "nspawn", Image: bed.Tree}), "driver lima")

	shared := engine.KubernetesProblems(spec("2GiB"), provision.Info{Name: "nspawn", Image: bed.Tree})
	require.Len(t, shared, 1)
	assert.ErrorContains(t, shared, "driver lima: bed up -s lima-ci -c kubernetes=usernetes")
	assert.ErrorContains(t, shared, "this host has cgroup v1")
	assert.NotContains(t, engine.KubernetesProblems(spec("2GiB"), provision.Info{Name: "nspawn", Image: bed.Tree, RootlessKubernetes: true}).Error(), "cgroup v1")
	jobs := spec("2GiB")
	jobs.Kubernetes = bed.JobsKubernetes
	assert.ErrorContains(t, engine.KubernetesProblems(jobs, provision.Info{Name: "nspawn", Image: bed.Tree}), "-c kubernetes=jobs")
	assert.Equal(t, 3, shared.ExitCode())

	t.Setenv(images.KubernetesEnv, t.TempDir())
	nothing := engine.KubernetesProblems(spec("2GiB"), vms)
	require.Len(t, nothing, 1)
	assert.ErrorContains(t, nothing, "clone of Bedfellow")
	assert.Equal(t, 3, nothing.ExitCode())
}
