package main

import (
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

// The configuration that is printed, and that `bed ssh` and the printed Ansible inventory use, leads to a node behind another, and checks
// both host keys.
func TestSSHConfigLeadsThroughAnotherNode(t *testing.T) {
	me, err := user.Current()
	require.NoError(t, err)
	key, private := hosttest.NewKey(t)
	authorized := string(ssh.MarshalAuthorizedKey(key.PublicKey()))
	jump, behind := hosttest.StartSSHD(t, authorized), hosttest.StartSSHD(t, authorized)
	inv := bed.Inventory{User: me.Username, Nodes: []bed.InventoryNode{
		{Name: "b-01", Address: "127.0.0.1", Port: jump.Port, HostKey: jump.HostKey},
		{Name: "b-02", Address: "127.0.0.1", Port: behind.Port, HostKey: behind.HostKey, Via: "b-01"},
	}}
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	id := file("id", string(private))
	run := func(inv bed.Inventory) (string, error) {
		config := file("config", sshConfig(inv, id, file("known", remote.KnownHosts(inv))))
		out, err := exec.CommandContext(t.Context(), "ssh", "-F", config, "b-02", "--", "echo", "here").CombinedOutput()
		return string(out), err
	}
	out, err := run(inv)
	require.NoError(t, err, out)
	assert.Equal(t, "here\n", out)
	assert.EqualValues(t, 1, jump.Connections.Load(), "it was not reached through the other node")

	another, _ := hosttest.NewKey(t)
	for i := range inv.Nodes {
		changed := inv
		changed.Nodes = []bed.InventoryNode{inv.Nodes[0], inv.Nodes[1]}
		changed.Nodes[i].HostKey = string(ssh.MarshalAuthorizedKey(another.PublicKey()))
		out, err := run(changed)
		require.Error(t, err)
		assert.Contains(t, out, "Host key verification failed", changed.Nodes[i].Name)
	}
}
