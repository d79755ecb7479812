package provider_test

import (
	"context"
	"os/exec"
	"os/user"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/blang/semver"
	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/integration"
	"github.com/pulumi/pulumi/sdk/v3/go/property"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/ansible"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/provider"
)

// On real ones of all that takes part: a node behind another is reached by Ansible and by our own connections, and by both only where
// the two show their own host keys.
func TestANodeBehindAnother(t *testing.T) {
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		hosttest.Lacks(t, "ansible-playbook")
	}
	me, err := user.Current()
	require.NoError(t, err)
	key, private := hosttest.NewKey(t)
	authorized := string(ssh.MarshalAuthorizedKey(key.PublicKey()))
	jump, behind := hosttest.StartSSHD(t, authorized), hosttest.StartSSHD(t, authorized)
	inv := bed.Inventory{Bed: "b", ID: "01", Driver: "sim", User: me.Username, Nodes: []bed.InventoryNode{
		{Name: "b-01", Address: "127.0.0.1", Port: jump.Port, Role: bed.Control, CPUs: 1, MemoryMiB: 1, HostKey: jump.HostKey},
		{Name: "b-02", Address: "127.0.0.1", Port: behind.Port, Role: bed.Compute, CPUs: 1, MemoryMiB: 1, HostKey: behind.HostKey, Via: "b-01"},
	}}
	require.NoError(t, inv.Check())

	c, err := remote.Dial(t.Context(), remote.Node(inv, inv.Nodes[1], key))
	require.NoError(t, err)
	r, err := c.Run(t.Context(), "echo here")
	require.NoError(t, err)
	assert.Equal(t, "here\n", string(r.Stdout))
	require.NoError(t, c.Close())
	assert.EqualValues(t, 1, jump.Connections.Load(), "it was not reached through the other node")
	require.NoError(t, remote.Answers(t.Context(), remote.Node(inv, inv.Nodes[1], key)))
	assert.EqualValues(t, 2, behind.Connections.Load())

	play := func(inv bed.Inventory) (ansible.Result, error) {
		return ansible.Run{
			Playbooks: fstest.MapFS{"site.yml": {Data: []byte("- hosts: all\n  gather_facts: false\n  tasks: [{command: id}]\n")}}, Playbook: "site.yml",
			Inventory: provider.AnsibleInventory(inv), PrivateKey: private, KnownHosts: []byte(remote.KnownHosts(inv)), SSHHosts: []byte(remote.SSHHosts(inv)),
		}.Do(t.Context())
	}
	before := jump.Connections.Load()
	result, err := play(inv)
	require.NoError(t, err)
	assert.Equal(t, 1, result.Hosts["b-02"].OK)
	assert.Equal(t, before+2, jump.Connections.Load(), "it was not reached through the other node")

	another, _ := hosttest.NewKey(t)
	for i := range inv.Nodes {
		changed := inv
		changed.Nodes = []bed.InventoryNode{inv.Nodes[0], inv.Nodes[1]}
		changed.Nodes[i].HostKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(another.PublicKey())))
		result, err = play(changed)
		assert.ErrorContains(t, err, changed.Nodes[i].Name+": unreachable")
		assert.ErrorContains(t, err, "Host key verification failed")
		assert.Zero(t, result.Hosts["b-02"].OK)
		_, err = remote.Dial(t.Context(), remote.Node(changed, changed.Nodes[1], key))
		var wrong *remote.HostKeyError
		require.ErrorAs(t, err, &wrong)
		assert.Equal(t, changed.Nodes[i].Name, wrong.Node)
	}
}

// standing is a driver whose machines stand, each an sshd of this host.
type standing struct {
	provision.Driver
	machines map[string]provision.Status
}

func (d standing) Info() provision.Info { return provision.Info{SSH: true, Concurrency: 2} }

func (d standing) Read(_ context.Context, name string) (provision.Status, error) {
	st, ok := d.machines[name]
	if !ok {
		return st, provision.ErrNotFound
	}
	return st, nil
}

func (d standing) List(context.Context, string) ([]provision.Status, error) { return nil, nil }

// A pool asks the machine behind another one too. It is this host, so it does not have the node's name, and says so.
func TestPoolAsksAMachineBehindAnother(t *testing.T) {
	me, err := user.Current()
	require.NoError(t, err)
	key, private := hosttest.NewKey(t)
	authorized := string(ssh.MarshalAuthorizedKey(key.PublicKey()))
	jump, behind := hosttest.StartSSHD(t, authorized), hosttest.StartSSHD(t, authorized)
	owner := provision.Owner{Bed: "x", ID: "life1", State: "file:///x"}
	d := standing{machines: map[string]provision.Status{
		"x-01": {Name: "x-01", Owner: owner, State: provision.Running, Address: "127.0.0.1", Port: jump.Port},
		"x-02": {Name: "x-02", Owner: owner, State: provision.Running, Address: "127.0.0.1", Port: behind.Port, Via: "x-01"},
	}}
	made, err := provider.New(provider.Host{OpenDriver: func(string) (provision.Driver, error) { return d, nil }, Images: t.TempDir()})
	require.NoError(t, err)
	server, err := integration.NewServer(t.Context(), provider.Name, semver.MustParse(provider.Version), integration.WithProvider(made))
	require.NoError(t, err)
	state := pool(2).Set("user", text(me.Username)).Set("userPrivateKey", text(string(private)).WithSecret(true)).
		Set("hostPublicKeys", property.New(map[string]property.Value{"x-01": text(jump.HostKey), "x-02": text(behind.HostKey)})).
		Set("machines", property.New([]property.Value{
			property.New(map[string]property.Value{"name": text("x-02"), "state": text("running")}),
		}))
	read := func() property.Map {
		seen, err := server.Read(p.ReadRequest{Urn: urn("Pool"), ID: "it", Properties: state, Inputs: pool(2)})
		require.NoError(t, err)
		return seen.Properties.Get("machines").AsArray().Get(0).AsMap()
	}
	seen := read()
	assert.Contains(t, seen.Get("detail").AsString(), "calls itself ")
	assert.Equal(t, "x-01", seen.Get("via").AsString())
	assert.EqualValues(t, 1, jump.Connections.Load(), "it was not reached through the other machine")

	delete(d.machines, "x-01")
	assert.Contains(t, read().Get("detail").AsString(), "on the way to node x-02: no such machine")
}
