package remote_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

// startBehind starts a node and another, through which the first one's target leads.
func startBehind(t *testing.T) (n, jump *fakeNode) {
	n, jump = startNode(t), startNode(t)
	jump.target.Name = "jump"
	n.target.Via = &jump.target
	return n, jump
}

// left fails the test unless all connections to the node end.
func (n *fakeNode) left(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool { return n.open.Load() == 0 }, 10*time.Second, 5*time.Millisecond, "node %s has connections", n.target.Name)
}

func TestThroughAnotherNode(t *testing.T) {
	n, jump := startBehind(t)
	c := dial(t, n.target)
	r, err := c.Run(t.Context(), "echo out")
	require.NoError(t, err)
	assert.Equal(t, "out\n", string(r.Stdout))
	assert.EqualValues(t, 1, jump.logins.Load(), "it was not reached through the other node")
	require.NoError(t, c.Close())
	n.left(t)
	jump.left(t)
}

// Whoever falls silent, the connections to both are given up.
func TestASilentNodeThroughAnotherIsGivenUp(t *testing.T) {
	remote.SetSilence(t, 10*time.Millisecond, 300*time.Millisecond)
	n, jump := startBehind(t)
	c := dial(t, n.target)
	n.silent.Store(true)
	_, err := c.Run(t.Context(), "sleep 60")
	require.ErrorContains(t, err, "it has not answered for 300ms")
	jump.left(t)
}

// A machine with another host key gets nothing, wherever it stands, and the error says which it was.
func TestHostKeyDiffersOnTheWay(t *testing.T) {
	another := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(newSigner(t).PublicKey())))
	for _, wrong := range []string{"node", "jump"} {
		n, jump := startBehind(t)
		via := jump.target
		target := n.target
		target.Via = &via
		if wrong == "node" {
			target.HostKey = another
		} else {
			via.HostKey = another
		}
		_, dialErr := remote.Dial(t.Context(), target)
		for name, err := range map[string]error{"Dial": dialErr, "Answers": remote.Answers(t.Context(), target), "Await": remote.Await(t.Context(), target)} {
			var differs *remote.HostKeyError
			require.ErrorAs(t, err, &differs, name)
			assert.Equal(t, wrong, differs.Node, name)
			assert.ErrorContains(t, err, "node node", name)
			assert.ErrorContains(t, err, "node jump", name)
		}
		assert.Zero(t, n.logins.Load(), "somebody tried to log in")
		if wrong == "jump" {
			assert.Zero(t, jump.logins.Load(), "somebody tried to log in")
		}
		n.left(t)
		jump.left(t)
	}
}

// A probe logs in to the node on the way alone. To be refused there is no answer of the node behind.
func TestAnswersThroughAnotherNode(t *testing.T) {
	n, jump := startBehind(t)
	n.target.Signer = nil
	require.NoError(t, remote.Answers(t.Context(), n.target))
	jump.left(t)

	jump.target.Signer = newSigner(t)
	err := remote.Answers(t.Context(), n.target)
	assert.ErrorContains(t, err, "on the way to node node: log in to node jump: ")
	assert.ErrorContains(t, err, "unable to authenticate")

	jump.target.Signer = nil
	assert.ErrorContains(t, remote.Answers(t.Context(), n.target), "connect to node node through node jump: there is no key")
}

// The context ends what hangs, on the way and behind it, and nothing stays.
func TestCancelEndsAHandshakeThroughAnotherNode(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	for hangs, message := range map[string]string{"node": "log in to node node through node jump: ", "jump": "on the way to node node: log in to node jump: "} {
		n, jump := startBehind(t)
		if hangs == "node" {
			n.target.Port = silent.Addr().(*net.TCPAddr).Port
		} else {
			jump.target.Port = silent.Addr().(*net.TCPAddr).Port
		}
		stop := errors.New("stopped by a person")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(200*time.Millisecond, func() { cancel(stop) })
		began := time.Now()
		_, err := remote.Dial(ctx, n.target)
		require.ErrorIs(t, err, stop)
		assert.ErrorContains(t, err, message)
		assert.Less(t, time.Since(began), 10*time.Second)
		jump.left(t)
	}
}

func TestNobodyListensBehindTheOtherNode(t *testing.T) {
	n, jump := startBehind(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n.target.Port = closed.Addr().(*net.TCPAddr).Port
	require.NoError(t, closed.Close())
	_, err = remote.Dial(t.Context(), n.target)
	assert.ErrorContains(t, err, "connect to node node through node jump: ")
	assert.ErrorContains(t, err, "connection refused")
	jump.left(t)
}

func TestNodeOfAnInventory(t *testing.T) {
	signer := newSigner(t)
	inv := bed.Inventory{User: "bed", Nodes: []bed.InventoryNode{
		{Name: "b-01", Address: "192.0.2.1", Port: 2222, HostKey: "ssh-ed25519 A\n"},
		{Name: "b-02", Address: "10.0.0.2", Port: 22, HostKey: "ssh-ed25519 B", Via: "b-01"},
		{Name: "b-03", HostKey: "ssh-ed25519 C"},
	}}
	first := remote.Target{Name: "b-01", Address: "192.0.2.1", Port: 2222, User: "bed", HostKey: "ssh-ed25519 A\n", Signer: signer}
	assert.Equal(t, first, remote.Node(inv, inv.Nodes[0], signer))
	assert.Equal(t, remote.Target{Name: "b-02", Address: "10.0.0.2", Port: 22, User: "bed", HostKey: "ssh-ed25519 B", Signer: signer, Via: &first},
		remote.Node(inv, inv.Nodes[1], signer))

	assert.Equal(t, `Host b-01
  HostName 192.0.2.1
  Port 2222
  HostKeyAlias b-01
  User bed
Host b-02
  HostName 10.0.0.2
  Port 22
  HostKeyAlias b-02
  User bed
  ProxyJump b-01
# b-03 is not made; `+"`bed up` makes it\n", remote.SSHHosts(inv))
	assert.Equal(t, "b-01 ssh-ed25519 A\nb-02 ssh-ed25519 B\nb-03 ssh-ed25519 C\n", remote.KnownHosts(inv))
}
