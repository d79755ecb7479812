package bed_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

func known() bed.Known {
	return bed.Known{Drivers: []string{"nspawn", "ovirt", "sim"}, Images: []string{"debian-12"}, WorkloadManagers: []string{"slurm", "flux"}, Kubernetes: []string{"none", "usernetes"}}
}

func TestParseFillsIn(t *testing.T) {
	s, problems := bed.Parse("quickstart", map[string]string{"nodes": "4", "memory": "1.5GiB", "ttl": "90m"}, known())
	require.NoError(t, problems.Err())
	assert.Equal(t, "quickstart", s.Name)
	assert.Equal(t, []bed.Pool{{Name: "nodes", Nodes: 4, CPUs: 1, Memory: 1536 * bed.MiB}}, s.Pools)
}

// Every problem is told at once, each with key, value and remedy.
func TestParseTellsEverything(t *testing.T) {
	_, problems := bed.Parse("quickstart", map[string]string{
		"name": "-", "driver": "x", "image": "y", "workloadManager": "z", "kubernetes": "k", "network": "n", "profile": "p", "ttl": "-1h",
		"nodes": "0", "cpus": "9999", "memory": "8GB", "disk": "8", "nodse": "3", "flux": "flux.tar", "ovirt.url": "https://x",
	}, known())
	var keys []string
	for _, p := range problems {
		keys = append(keys, p.Key)
		assert.NotEmpty(t, p.Value, p.Key)
		assert.NotEmpty(t, p.Reason, p.Key)
		assert.NotEmpty(t, p.Remedy, p.Key)
	}
	assert.Equal(t, []string{"cpus", "disk", "driver", "flux", "image", "kubernetes", "memory", "name", "network", "nodes", "nodse", "ovirt.url", "profile", "ttl", "workloadManager"}, keys)
	assert.Equal(t, 2, problems.ExitCode())
}

func TestParseFluxSettings(t *testing.T) {
	s, problems := bed.Parse("f", map[string]string{"workloadManager": "flux", "nodes": "4", "flux.quorum": "2", "flux.queuePolicy": "fcfs", "flux.matchPolicy": "first"}, known())
	require.NoError(t, problems.Err())
	assert.Equal(t, bed.FluxSettings{Quorum: 2, QueuePolicy: "fcfs", MatchPolicy: "first"}, s.FluxSettings)
	for key, c := range map[string]struct{ value, says string }{
		"flux.quorum": {"4", "3 compute nodes"}, "flux.queuePolicy": {"eazy", "did you mean easy?"}, "flux.matchPolicy": {"best", "lonodex"},
	} {
		_, problems := bed.Parse("f", map[string]string{"workloadManager": "flux", "nodes": "4", key: c.value}, known())
		assert.ErrorContains(t, problems.Err(), c.says, key)
		_, problems = bed.Parse("f", map[string]string{"nodes": "4", key: c.value}, known())
		assert.ErrorContains(t, problems.Err(), "write -c workloadManager=flux", key)
	}
}

func TestParseKubernetesNetwork(t *testing.T) {
	s, problems := bed.Parse("k", map[string]string{"kubernetes": "usernetes"}, known())
	require.NoError(t, problems.Err())
	assert.Equal(t, bed.DefaultKubernetesNetwork(), s.KubernetesNetwork)
	s, problems = bed.Parse("k", map[string]string{"kubernetes": "usernetes", "kubernetes.network": "pasta", "kubernetes.mtu": "1500"}, known())
	require.NoError(t, problems.Err())
	assert.Equal(t, bed.KubernetesNetwork{Driver: "pasta", MTU: 1500}, s.KubernetesNetwork)
	s, problems = bed.Parse("k", map[string]string{"kubernetes": "usernetes", "kubernetes.network": "lxc-user-nic"}, known())
	require.NoError(t, problems.Err())
	assert.Equal(t, bed.KubernetesNetwork{Driver: bed.HostBridge, MTU: 1500}, s.KubernetesNetwork, "the wire's")
	s, problems = bed.Parse("k", map[string]string{"kubernetes": "usernetes", "kubernetes.network": "pasta"}, known())
	require.NoError(t, problems.Err())
	assert.Equal(t, 65520, s.KubernetesNetwork.MTU)
	s, problems = bed.Parse("k", map[string]string{"kubernetes": "usernetes", "kubernetes.network": "lxc-user-nic", "kubernetes.mtu": "8950"}, known())
	require.NoError(t, problems.Err())
	assert.Equal(t, 8950, s.KubernetesNetwork.MTU)
	for _, wrong := range []string{"1329", "65521", "jumbo"} {
		_, problems = bed.Parse("k", map[string]string{"kubernetes": "usernetes", "kubernetes.mtu": wrong}, known())
		assert.ErrorContains(t, problems.Err(), "1330 to 65520", wrong)
	}
	_, problems = bed.Parse("k", map[string]string{"kubernetes": "usernetes", "kubernetes.network": "past"}, known())
	assert.ErrorContains(t, problems.Err(), "did you mean pasta?")
	for key, v := range map[string]string{"kubernetes.network": "pasta", "kubernetes.mtu": "1500"} {
		_, problems = bed.Parse("k", map[string]string{key: v}, known())
		assert.ErrorContains(t, problems.Err(), "write -c kubernetes=usernetes", key)
	}
}

func TestKeysOfADriver(t *testing.T) {
	s, problems := bed.Parse("o", map[string]string{"driver": "ovirt", "ovirt.cluster": "HPC", "ovirt.url": "https://engine/ovirt-engine/api"}, known())
	require.NoError(t, problems.Err())
	assert.Equal(t, map[string]string{"cluster": "HPC", "url": "https://engine/ovirt-engine/api"}, s.Settings)
	_, problems = bed.Parse("o", map[string]string{"ovirt.cluster": "HPC"}, known())
	assert.ErrorContains(t, problems.Err(), "write -c driver=ovirt")
	_, problems = bed.Parse("o", map[string]string{"driver": "ovirt", "ovirt.clustr": "HPC"}, known())
	assert.ErrorContains(t, problems.Err(), "did you mean ovirt.cluster?")
}

func TestExitCode(t *testing.T) {
	assert.Equal(t, 3, bed.Problems{{Host: true}}.ExitCode())
	assert.Equal(t, 2, bed.Problems{{Host: true}, {}}.ExitCode(), "what is wrong everywhere comes first")
	assert.NoError(t, bed.Problems{}.Err())
}

func TestParsePools(t *testing.T) {
	s, problems := bed.Parse("mixed", map[string]string{"pools": `[{"name":"login","nodes":1,"memory":"1GiB"},{"name":"big","nodes":2,"cpus":8,"memory":"16GiB"}]`}, known())
	require.NoError(t, problems.Err())
	nodes := s.Nodes()
	require.Len(t, nodes, 3)
	assert.Equal(t, bed.Node{Name: "mixed-01", Pool: "login", Role: bed.Control, CPUs: 1, Memory: bed.GiB}, nodes[0])
	assert.Equal(t, bed.Node{Name: "mixed-03", Index: 2, Pool: "big", Role: bed.Compute, CPUs: 8, Memory: 16 * bed.GiB}, nodes[2])

	_, problems = bed.Parse("mixed", map[string]string{"pools": `[{"name":"a","nodes":3000},{"name":"a","nodes":3000,"cpu":2}]`, "nodes": "3"}, known())
	said := problems.Error()
	for _, needle := range []string{"pools[1].name", "pools[1].cpu", "nodes", "more than 5000 nodes"} {
		assert.Contains(t, said, needle)
	}

	s, problems = bed.Parse("mixed", map[string]string{"pools": `[{"name":"a","nodes":1,"type":"c7i.large"},{"name":"b","nodes":1}]`, "nodes": ""}, known())
	require.NoError(t, problems.Err(), "an empty value takes a preset's back")
	assert.Equal(t, "c7i.large", s.Nodes()[0].Type)
	assert.Empty(t, s.Nodes()[1].Type)

	s, problems = bed.Parse("like", map[string]string{"pools": "", "nodes": "", "cpus": "", "memory": "", "disk": "", "name": "", "image": "", "profile": ""}, known())
	require.NoError(t, problems.Err())
	plain, _ := bed.Parse("like", nil, known())
	assert.Equal(t, plain, s)
	_, problems = bed.Parse("like", map[string]string{"nods": ""}, known())
	assert.ErrorContains(t, problems.Err(), "nodes", "what is no key is none, empty or not")
}

// A bed that grows keeps the names, numbers and roles of the nodes it has.
func TestNodesAreStable(t *testing.T) {
	big := bed.Spec{Name: "u2204", Pools: []bed.Pool{{Nodes: 1200}}}.Nodes()
	seen := map[string]bool{}
	for _, n := range big {
		require.False(t, seen[n.Name], n.Name)
		seen[n.Name] = true
	}
	for _, size := range []int{2, 3, 99, 100, 101} {
		assert.Equal(t, big[:size], bed.Spec{Name: "u2204", Pools: []bed.Pool{{Nodes: size}}}.Nodes())
	}
	assert.Equal(t, bed.Compute, bed.Spec{Name: "u2204", Pools: []bed.Pool{{Nodes: 1}}}.Nodes()[0].Role, "a bed of one serves and computes")
}

func TestNearest(t *testing.T) {
	assert.Equal(t, "nodes", bed.Nearest("node", bed.Keys()))
	assert.Equal(t, "workloadManager", bed.Nearest("workloadmanger", bed.Keys()))
	assert.Empty(t, bed.Nearest("zzzz", bed.Keys()))
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]bed.Size{"1GiB": bed.GiB, "1.5GiB": 1536 * bed.MiB, "512 MiB": 512 * bed.MiB, "2048KiB": 2 * bed.MiB} {
		got, err := bed.ParseSize(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
		back, err := bed.ParseSize(got.String())
		require.NoError(t, err, got.String())
		assert.Equal(t, got, back, "written and read again")
	}
	for text, needle := range map[string]string{
		"8GB": "8GiB", "8": "no unit", "": "not a size", "-1GiB": "not a size", "0GiB": "more than nothing", "99999999999999GiB": "too large", "1e3GiB": "not a size", "1.1MiB": "whole MiB", "1KiB": "whole MiB",
	} {
		_, err := bed.ParseSize(text)
		assert.ErrorContains(t, err, needle, text)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("quickstart", "nodes", "3", "memory", "2GiB")
	f.Add("x", "pools", `[{"name":"a","nodes":1e9}]`, "ttl", "8h")
	f.Add("x", "pools", `[null,{"name":"a","nodes":{}}]`, "ovirt.", "")
	f.Add("x", "nodes", "2", "memory", "")
	f.Add("x", "memory", "0.0000001KiB", "disk", "1.0000001GiB")
	f.Fuzz(func(t *testing.T, stack, key1, value1, key2, value2 string) {
		s, problems := bed.Parse(stack, map[string]string{key1: value1, key2: value2}, known())
		if len(problems) > 0 {
			if problems.ExitCode() != 2 || problems.Error() == "" {
				t.Fatalf("a problem of the configuration alone: %v", problems)
			}
			return
		}
		if err := bed.CheckName(s.Name); err != nil || s.Size() < 1 || s.Size() > bed.MaxNodes {
			t.Fatalf("accepted %+v", s)
		}
		for _, n := range s.Nodes() {
			if n.CPUs < 1 || n.CPUs > bed.MaxCPUs || n.Memory < bed.MinMemory || n.Memory%bed.MiB != 0 || n.Disk < 0 || n.Disk%bed.MiB != 0 || len(n.Name) > 63 {
				t.Fatalf("accepted node %+v", n)
			}
		}
		if _, err := json.Marshal(s); err != nil || strings.ContainsAny(s.Name, "/ \n") {
			t.Fatalf("accepted %+v: %v", s, err)
		}
	})
}

// What is secret is in no message, under whatever key somebody has put it.
func TestSecretsAreNotShown(t *testing.T) {
	for key, says := range map[string]string{
		"ovirt.password": "is about driver ovirt", "ovirt.token": "is about driver ovirt", "ovirt.pasword": "did you mean ovirt.password?", "OVIRT_TOKEN": "did you mean ovirt.token?",
	} {
		_, problems := bed.Parse("quickstart", map[string]string{key: "hunter-2"}, known())
		require.Len(t, problems, 1, key)
		assert.Contains(t, problems[0].String(), says)
		assert.NotContains(t, problems[0].String(), "hunter-2")
		assert.Empty(t, problems[0].Value)
	}
}
