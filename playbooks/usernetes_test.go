package playbooks_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/playbooks"
)

// Where the nodes of a job's cluster are, on a host with networks of its own: job 3's would be where the machines of Lima have the bed's. The
// routes are a kernel's, in a network namespace of the test's.
func TestAJobsSubnetsAreWhereTheHostIsNot(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root, who makes network namespaces")
	}
	script, err := fs.ReadFile(playbooks.FS, "roles/usernetes/files/usernetes")
	require.NoError(t, err)
	text := string(script)
	from, to := strings.Index(text, "busy() {"), strings.Index(text, "# The guard waits")
	require.True(t, 0 < from && from < to)
	functions := "die() { echo \"$*\" >&2; exit 1; }\n" + text[from:to]
	at := func(networks []string, slots ...int) (string, error) {
		setup := "set -eu\nip link add d0 type veth peer name d1\nip link set d1 up\nip link set d0 up\nip route add default dev d0\n"
		for _, n := range networks {
			setup += "ip route add " + n + " dev d0\n"
		}
		for _, slot := range slots {
			setup += fmt.Sprintf("at=$(octet %d)\necho \"$at\"\n", slot)
		}
		out, err := exec.Command("unshare", "-n", "sh", "-c", functions+setup).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	for _, c := range []struct {
		networks []string
		slots    []int
		want     string
	}{
		{nil, []int{0, 3, 99}, "101\n104\n200"},
		{[]string{"192.168.104.0/24", "10.104.0.0/16"}, []int{2, 3, 4}, "103\n201\n105"},
		{[]string{"10.104.7.0/24", "10.112.0.0/14"}, []int{3, 10, 11, 12, 13, 14, 15}, "201\n111\n202\n203\n204\n205\n116"},
	} {
		got, err := at(c.networks, c.slots...)
		require.NoError(t, err, got)
		assert.Equal(t, c.want, got, "%v", c.networks)
	}
	got, err := at([]string{"10.0.0.0/8"}, 0)
	assert.Error(t, err)
	assert.Contains(t, got, "this host's networks leave none of")
}
