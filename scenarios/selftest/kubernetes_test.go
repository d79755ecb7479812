package selftest_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios"
	"github.com/bedfellow/bedfellow/scenarios/fakebed"
)

// fakeUsernetes says for each host what the file "findings" has, or for all what "garbage" has; fakePS shows the processes in "ps". The real
// ones are looked at by TestKubernetes in e2e.
const (
	fakeUsernetes = `#!/bin/sh
[ "$1" = shell ] || exit 64
[ -n "$(cat)" ] || exit 65 # the script
[ ! -e "$FAKE/garbage" ] || exec cat "$FAKE/garbage"
shift 3
for host; do sed "s/^/$host	/" "$FAKE/findings"; done
`
	fakePS = `#!/bin/sh
exec cat "$FAKE/ps"
`
	allIsWell = "node is Ready\tok\tv1.34.2 at 10.104.0.10\npods reach pods\tok\t2 of 2\n"
	rootless  = "1000 rootlesskit\n1000 kubelet\n100999 coredns\n0 systemd\n"
)

func kubernetesBed(t *testing.T, findings, ps string) (*fakebed.Bed, scenarios.Options) {
	b := fakebed.Start(t, 1)
	b.Inventory.Kubernetes, b.Inventory.ID, b.Inventory.SharedKernel = "usernetes", "0123456789ab", false
	b.Write(t, "bin/usernetes", fakeUsernetes)
	b.Write(t, "bin/ps", fakePS)
	b.Write(t, "findings", findings)
	b.Write(t, "ps", ps)
	return b, scenarios.Options{Inventory: b.Inventory, PrivateKey: b.Key, Stack: "test", Scenario: "kubernetes-selftest", Repeats: 1,
		Params: map[string]string{"reboot": "no"}, ResultsRoot: t.TempDir()}
}

func TestKubernetesSelftestKeepsALinePerPropertyAndNode(t *testing.T) {
	_, o := kubernetesBed(t, allIsWell, rootless)
	dir, _, err := scenarios.Run(t.Context(), o)
	require.NoError(t, err)
	r, err := results.Load(dir)
	require.NoError(t, err)
	assert.Equal(t, "usernetes", r.Run.Bed.Kubernetes)
	var seen []string
	for _, s := range r.Samples {
		assert.Equal(t, results.OK, s.Status)
		seen = append(seen, s.Parameters["node"]+": "+s.Series+": "+s.Reason)
	}
	assert.Equal(t, []string{
		"fake-01: node is Ready: v1.34.2 at 10.104.0.10", "fake-01: pods reach pods: 2 of 2", "fake-01: nothing of Kubernetes runs as root: 3 processes, none of root",
		"fake-02: node is Ready: v1.34.2 at 10.104.0.10", "fake-02: pods reach pods: 2 of 2", "fake-02: nothing of Kubernetes runs as root: 3 processes, none of root",
	}, seen)
}

func TestKubernetesSelftestFails(t *testing.T) {
	for name, c := range map[string]struct{ findings, ps, says string }{
		"a property does not hold": {"pods reach pods\tno\t1 of 2, lost: fake-02\n", rootless, "lost: fake-02"},
		"root runs some of it":     {allIsWell, "0 kubelet\n1000 dockerd\n", "kubelet"},
		"none of it runs":          {allIsWell, "0 systemd\n", "no process of Kubernetes"},
		"the script breaks off":    {"", rootless, "said nothing of fake-01"},
	} {
		t.Run(name, func(t *testing.T) {
			_, o := kubernetesBed(t, c.findings, c.ps)
			_, _, err := scenarios.Run(t.Context(), o)
			assert.ErrorContains(t, err, c.says)
		})
	}
	b, o := kubernetesBed(t, allIsWell, rootless)
	b.Write(t, "garbage", "sh: syntax error\n")
	_, _, err := scenarios.Run(t.Context(), o)
	assert.ErrorContains(t, err, "syntax error")

	_, o = kubernetesBed(t, allIsWell, rootless)
	for _, kind := range []string{"", bed.JobsKubernetes} {
		o.Inventory.Kubernetes = kind
		_, _, err = scenarios.Run(t.Context(), o)
		var problems bed.Problems
		require.ErrorAs(t, err, &problems, kind)
		assert.Equal(t, 3, problems.ExitCode())
		assert.ErrorContains(t, err, "-c kubernetes=usernetes")
	}
}
