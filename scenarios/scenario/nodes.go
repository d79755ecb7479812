package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/scenarios/wlm"
)

// Nodes are the connections to a bed's nodes: one each, made when first needed, and again after one broke. Every node's host key
// is checked against the inventory's. It is safe for concurrent use.
type Nodes struct {
	inventory bed.Inventory
	signer    ssh.Signer
	slots     map[string]*slot

	mu      sync.Mutex
	holding []*remote.Client // by Hold; some may have ended
	others  []*Nodes         // by As
}

// slot is the connection to one node. Its lock is held while dialling only.
type slot struct {
	mu     sync.Mutex
	client *remote.Client
	closed bool
}

// hangUp is how long a command may take to end after its context did, before its connection is given up.
const hangUp = 3 * time.Second

// NewNodes takes the bed user's private key, in PEM form. Nothing is dialled yet.
func NewNodes(inv bed.Inventory, privateKey []byte) (*Nodes, error) {
	signer, err := ssh.ParsePrivateKey(privateKey)
	if err != nil {
		return nil, fmt.Errorf("the user key of bed %s cannot be read: %w", inv.Bed, err)
	}
	return newNodes(inv, signer), nil
}

func newNodes(inv bed.Inventory, signer ssh.Signer) *Nodes {
	n := &Nodes{inventory: inv, signer: signer, slots: map[string]*slot{}}
	for _, node := range inv.Nodes {
		n.slots[node.Name] = &slot{}
	}
	return n
}

// As reaches the same nodes by the same key as another user of theirs, until n is closed.
func (n *Nodes) As(user string) *Nodes {
	inv := n.inventory
	inv.User = user
	other := newNodes(inv, n.signer)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.others = append(n.others, other)
	return other
}

// Close ends all connections. Later calls fail.
func (n *Nodes) Close() error {
	var errs []error
	for _, s := range n.slots {
		s.mu.Lock()
		s.closed = true
		if s.client != nil {
			errs = append(errs, s.client.Close())
		}
		s.mu.Unlock()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, client := range n.holding {
		_ = client.Close() // an error says that it is closed
	}
	for _, other := range n.others {
		errs = append(errs, other.Close())
	}
	return errors.Join(errs...)
}

// Client returns the connection to a node. It is the pool's: do not close it.
func (n *Nodes) Client(ctx context.Context, node string) (*remote.Client, error) {
	at, err := n.inventory.Node(node)
	if err != nil {
		return nil, err
	}
	s := n.slots[at.Name]
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, fmt.Errorf("the connections to bed %s are closed", n.inventory.Bed)
	case s.client != nil:
		return s.client, nil
	}
	s.client, err = n.dial(ctx, at)
	return s.client, err
}

// Run runs a shell command on a node, like remote.Client's.
func (n *Nodes) Run(ctx context.Context, node, command string) (remote.Result, error) {
	return n.Feed(ctx, node, command, nil)
}

// Feed is Run with standard input. It returns soon after the context's end, even when the node has gone without a word.
func (n *Nodes) Feed(ctx context.Context, node, command string, stdin []byte) (remote.Result, error) {
	client, err := n.Client(ctx, node)
	if err != nil {
		return remote.Result{}, err
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-done:
		case <-time.After(hangUp):
			n.drop(client)
		}
	})
	r, err := client.Feed(ctx, command, bytes.NewReader(stdin))
	close(done)
	stop()
	var exit *remote.ExitError
	if err != nil && !errors.As(err, &exit) && ctx.Err() == nil {
		n.drop(client)
	}
	return r, err
}

// Hold runs a command whose standard input begins so and stays open until it is released, or this process is no more. It has a
// connection of its own: one that other commands use ends with the first of them that hangs.
func (n *Nodes) Hold(ctx context.Context, node, command string, stdin []byte) (wlm.Held, error) {
	at, err := n.inventory.Node(node)
	if err != nil {
		return nil, err
	}
	client, err := n.dial(ctx, at)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.holding = append(n.holding, client)
	n.mu.Unlock()
	r, w := io.Pipe()
	h := &held{stdin: w, done: make(chan struct{})}
	go func() {
		defer close(h.done)
		_, h.err = client.Feed(context.WithoutCancel(ctx), command, io.MultiReader(bytes.NewReader(stdin), r))
		_, _ = r.Close(), client.Close()
	}()
	return h, nil
}

func (n *Nodes) dial(ctx context.Context, at bed.InventoryNode) (*remote.Client, error) {
	client, err := remote.Dial(ctx, remote.Node(n.inventory, at, n.signer))
	if err != nil {
		return nil, fmt.Errorf("%w; see `bed status`, and `bed up` repairs the node", err)
	}
	return client, nil
}

type held struct {
	stdin *io.PipeWriter
	done  chan struct{}
	err   error // once done
}

func (h *held) Done() <-chan struct{} { return h.done }

func (h *held) Release() error {
	_ = h.stdin.Close()
	select {
	case <-h.done:
		return h.err
	case <-time.After(releaseTimeout):
		return fmt.Errorf("the command did not end within %s of being let go", releaseTimeout)
	}
}

const releaseTimeout = time.Minute

// drop forgets a connection that broke, so that the next command makes a new one.
func (n *Nodes) drop(c *remote.Client) {
	_ = c.Close()
	s := n.slots[c.Target.Name]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == c {
		s.client = nil
	}
}
