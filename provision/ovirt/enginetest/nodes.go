package enginetest

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

// Nodes has each guest be a machine of another driver, a real node.
type Nodes struct {
	driver provision.Driver
	image  string

	mu     sync.Mutex
	guests map[string]provision.Machine // by VM
}

// NewNodes takes the driver, and the image in its form that all guests boot from, whatever is uploaded.
func NewNodes(d provision.Driver, image string) *Nodes {
	return &Nodes{driver: d, image: image, guests: map[string]provision.Machine{}}
}

// Start makes the guest a node, or has the node that it was run again. It has all of the host's CPUs: what binds to the first CPU of a virtual
// machine finds one.
func (n *Nodes) Start(ctx context.Context, g Guest) (string, error) {
	i := strings.LastIndex(g.Name, "-")
	index, err := strconv.Atoi(g.Name[i+1:])
	if i < 1 || err != nil {
		return "", fmt.Errorf("guest %s has no number, and is no node", g.Name)
	}
	m := provision.Machine{
		Name: g.Name, Owner: provision.Owner{Bed: g.Name[:i], ID: "fake", State: "fake engine"}, Index: index - 1, Role: bed.Compute, CPUs: runtime.NumCPU(), Memory: bed.Size(g.Memory),
		Image: n.image, ImageDigest: "of the fake engine", Network: "isolated", User: g.User, AuthorizedKey: g.AuthorizedKey, HostKey: g.HostKey, HostPublicKey: g.HostPublicKey,
	}
	st, err := n.driver.Create(ctx, m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "engine:", err)
		return "", err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.guests[g.ID] = m
	return st.Address, nil
}

// Stop ends the node: what is on its disk is lost, which a VM's would not be.
func (n *Nodes) Stop(id string) { n.Remove(id) }

// Remove removes the node.
func (n *Nodes) Remove(id string) {
	n.mu.Lock()
	m, ok := n.guests[id]
	delete(n.guests, id)
	n.mu.Unlock()
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.driver.Delete(ctx, m.Name); err != nil {
		fmt.Fprintln(os.Stderr, "engine:", err)
	}
}
