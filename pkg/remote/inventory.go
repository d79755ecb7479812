package remote

import (
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// Node is a node of an inventory, one that Check finds nothing wrong with, as its user with their key reaches it.
func Node(inv bed.Inventory, n bed.InventoryNode, signer ssh.Signer) Target {
	t := Target{Name: n.Name, Address: n.Address, Port: n.Port, User: inv.User, HostKey: n.HostKey, Signer: signer}
	for _, other := range inv.Nodes {
		if other.Name == n.Via {
			via := Node(inv, other, signer)
			t.Via = &via
		}
	}
	return t
}

// SSHHosts is the part of a configuration of ssh that says how to reach each node by its name, the host keys being those of KnownHosts.
// A node that has no address yet, in a bed whose making was broken off, is named in a comment only: ssh refuses a whole file with an empty HostName.
// ssh takes its other options, the key among them, from the same configuration also for a node on the way, and for that from nowhere else.
func SSHHosts(inv bed.Inventory) string {
	var b strings.Builder
	for _, n := range inv.Nodes {
		if n.Address == "" {
			fmt.Fprintf(&b, "# %s is not made; `bed up` makes it\n", n.Name)
			continue
		}
		fmt.Fprintf(&b, "Host %[1]s\n  HostName %[2]s\n  Port %[3]d\n  HostKeyAlias %[1]s\n  User %[4]s\n", n.Name, n.Address, n.Port, inv.User)
		if n.Via != "" {
			fmt.Fprintf(&b, "  ProxyJump %s\n", n.Via)
		}
	}
	return b.String()
}

// KnownHosts are the nodes' host keys by name, in ssh's form. An address may be another machine's behind another node.
func KnownHosts(inv bed.Inventory) string {
	var b strings.Builder
	for _, n := range inv.Nodes {
		fmt.Fprintf(&b, "%s %s\n", n.Name, strings.TrimSpace(n.HostKey))
	}
	return b.String()
}
