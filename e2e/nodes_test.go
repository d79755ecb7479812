package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/ansible"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision/lima"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

// inventory is the bed as its state has it.
func (p place) inventory(t *testing.T) bed.Inventory {
	t.Helper()
	inv, err := bed.ParseInventory([]byte(p.ok(t, "inventory", "-s", p.stack).stdout))
	require.NoError(t, err)
	return inv
}

func (p place) keyFile() string {
	return filepath.Join(p.dir, ".bed/stacks", p.stack, "id_ed25519")
}

// on runs a shell command on a node, over a connection that accepts that node's key alone.
func (p place) on(t *testing.T, inv bed.Inventory, node int, command string) (string, error) {
	t.Helper()
	key, err := os.ReadFile(p.keyFile())
	require.NoError(t, err)
	signer, err := ssh.ParsePrivateKey(key)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), p.patience(30*time.Second))
	defer cancel()
	c, err := remote.Dial(ctx, remote.Node(inv, inv.Nodes[node], signer))
	if err != nil {
		return "", err
	}
	defer c.Close()
	r, err := c.Run(ctx, command)
	return strings.TrimSpace(string(r.Stdout)), err
}

// behind: nodes that are reached through the first one alone, as those of an OpenStack bed are, by our own connections and by Ansible's.
func (p place) behind(t *testing.T) {
	inv := p.inventory(t)
	if len(inv.Nodes) == 1 {
		t.Skip("this stack has one node, and nobody behind it")
	}
	for i := range inv.Nodes[1:] {
		n := &inv.Nodes[i+1]
		n.Via, n.Address, n.Port = inv.Nodes[0].Name, n.BedAddress, 22
	}
	require.NoError(t, inv.Check())
	last := len(inv.Nodes) - 1
	assert.Equal(t, inv.Nodes[last].Name, p.must(t, inv, last, "hostname"))
	key, err := os.ReadFile(p.keyFile())
	require.NoError(t, err)
	const playbook = `[{"hosts": "all", "gather_facts": false, "tasks": [{"name": "Touch", "ansible.builtin.file": {"path": "/tmp/behind", "state": "touch", "mode": "0600"}}]}]`
	result, err := ansible.Run{
		Playbooks: fstest.MapFS{"site.yml": {Data: []byte(playbook)}}, Playbook: "site.yml", Inventory: provider.AnsibleInventory(inv), SSHHosts: []byte(remote.SSHHosts(inv)),
		PrivateKey: key, KnownHosts: []byte(remote.KnownHosts(inv)), Forks: len(inv.Nodes), Slow: driver(p.stack) == "lima", Enter: "bed ssh %s",
	}.Do(t.Context())
	require.NoError(t, err)
	assert.Equal(t, len(inv.Nodes), result.Changed)
	p.must(t, inv, last, "rm /tmp/behind")
	inv.Nodes[0].HostKey = inv.Nodes[last].HostKey
	_, err = p.on(t, inv, last, "hostname")
	var wrong *remote.HostKeyError
	require.ErrorAs(t, err, &wrong)
	assert.Equal(t, inv.Nodes[0].Name, wrong.Node)
}

// must is on for a command that goes well.
func (p place) must(t *testing.T, inv bed.Inventory, node int, command string) string {
	t.Helper()
	out, err := p.on(t, inv, node, command)
	require.NoError(t, err)
	return out
}

// computes fails the test unless the workload manager runs a job on every compute node at once.
func (p place) computes(t *testing.T, inv bed.Inventory) {
	t.Helper()
	p.computesWithin(t, inv, 20*time.Second)
}

func (p place) computesWithin(t *testing.T, inv bed.Inventory, wait time.Duration) {
	t.Helper()
	var names []string
	for _, n := range inv.Compute() {
		names = append(names, n.Name)
	}
	require.Equal(t, "slurm", inv.WorkloadManager, "this suite speaks Slurm only")
	control := 0
	require.Equal(t, inv.Control().Name, inv.Nodes[control].Name)
	out, err := p.on(t, inv, control, fmt.Sprintf("srun --mpi=none --immediate=%.0f -N%d --ntasks-per-node=1 hostname", wait.Seconds(), len(names)))
	if err != nil {
		why, _ := p.on(t, inv, control, "squeue; scontrol show node; sudo tail -n 40 /var/log/slurm/slurmctld.log")
		require.NoError(t, err, "Slurm says:\n%s", why)
	}
	require.ElementsMatch(t, names, strings.Fields(out), "the nodes that ran a rank")
}

// states are what `bed status` says of each node.
func (p place) states(t *testing.T) map[string]engine.Machine {
	t.Helper()
	var out struct {
		Machines []engine.Machine
		Profile  string
	}
	require.NoError(t, json.Unmarshal([]byte(p.ok(t, "status", "-s", p.stack, "-o", "json").stdout), &out))
	want := "normal"
	if driver(p.stack) == "lima" && lima.New(limaRoot(t)).Info().Emulated {
		want = "slow"
	}
	assert.Equal(t, want, out.Profile)
	found := map[string]engine.Machine{}
	for _, m := range out.Machines {
		found[m.Name] = m
	}
	return found
}

// incarnations are when each node's disk was made, by name.
func incarnations(inv bed.Inventory) map[string]string {
	found := map[string]string{}
	for _, n := range inv.Nodes {
		found[n.Name] = n.Incarnation
	}
	return found
}

// changes is what the engine did in a call.
func changes(t *testing.T, c call) map[string]int {
	t.Helper()
	var out struct{ Changes map[string]int }
	require.NoError(t, json.Unmarshal([]byte(c.stdout), &out), "%s", c)
	return out.Changes
}

// supervisor is the process that holds a node of the nspawn driver, init its child.
func supervisor(t *testing.T, node string) int {
	t.Helper()
	return onePID(t, "-f", "^systemd-nspawn .*--machine="+node+" ")
}

func initOf(t *testing.T, node string) int {
	t.Helper()
	return onePID(t, "-P", fmt.Sprint(supervisor(t, node)))
}

func onePID(t *testing.T, args ...string) int {
	t.Helper()
	out, err := exec.Command("pgrep", args...).Output()
	require.NoError(t, err, "pgrep %v", args)
	var pid int
	_, err = fmt.Sscan(string(out), &pid)
	require.NoError(t, err)
	return pid
}

// kill ends a process by force and waits until it is gone.
func kill(t *testing.T, pid int) {
	t.Helper()
	require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	eventually(t, fmt.Sprintf("the death of process %d", pid), 10*time.Second, func() error {
		if alive(pid) {
			return fmt.Errorf("process %d is alive", pid)
		}
		return nil
	})
}

// alive says whether a process runs. One that is dead and that its parent has not asked after yet does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z")
}

// needNspawn skips a test that takes a node apart by hand, for which it must know how the driver makes one.
func needNspawn(t *testing.T, inv bed.Inventory) {
	if inv.Driver != "nspawn" {
		t.Skipf("this test knows how to break nodes of the nspawn driver only, not of %s", inv.Driver)
	}
}
