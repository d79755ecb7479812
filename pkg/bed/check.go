package bed

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
)

var (
	nodePattern    = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`) // no number, which means a place in the bed
	hostPattern    = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)
	userPattern    = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)
	hostKeyPattern = regexp.MustCompile(`^[a-z0-9@.-]+ [A-Za-z0-9+/]{16,}={0,2}( [!-~]+)?\n?$`)
	cpusPattern    = regexp.MustCompile(`^[0-9]*([,-][0-9]+)*$`)
)

// ParseInventory reads the JSON of an Inventory, as a stack's output has it. What it accepts is a bed whose every node stands and
// that Check finds nothing wrong with; a field that it does not know is an error too.
func ParseInventory(data []byte) (Inventory, error) {
	var inv Inventory
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&inv); err != nil {
		return Inventory{}, fmt.Errorf("inventory: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return Inventory{}, errors.New("inventory: there is something after its end")
	}
	if err := inv.Check(); err != nil {
		return Inventory{}, err
	}
	if inv.Image == "" || inv.WorkloadManager == "" {
		return Inventory{}, fmt.Errorf("inventory: bed %s names no image or no workload manager", inv.Bed)
	}
	for _, n := range inv.Nodes {
		if !n.Made() {
			return Inventory{}, fmt.Errorf("inventory: node %s has no address, port or incarnation", n.Name)
		}
	}
	return inv, nil
}

// Made tells whether the node has a machine.
func (n InventoryNode) Made() bool { return n.Address != "" && n.Port != 0 && n.Incarnation != "" }

// Check says what keeps an inventory from being that of a bed, or nothing. A bed that is half made may have nodes without a
// machine. Names are fit for a command line, a file name and a line of ssh's configuration.
func (inv Inventory) Check() error {
	switch err := CheckName(inv.Bed); {
	case err != nil:
		return fmt.Errorf("inventory: the bed's name %q %w", inv.Bed, err)
	case inv.ID == "" || inv.Driver == "":
		return fmt.Errorf("inventory: bed %s has no id or no driver", inv.Bed)
	case !userPattern.MatchString(inv.User):
		return fmt.Errorf("inventory: %q is no user to log in as", inv.User)
	case len(inv.Nodes) == 0 || len(inv.Nodes) > MaxNodes:
		return fmt.Errorf("inventory: bed %s has %d nodes; a bed has 1 to %d", inv.Bed, len(inv.Nodes), MaxNodes)
	}
	via := map[string]string{}
	for _, n := range inv.Nodes {
		via[n.Name] = n.Via
	}
	seen := map[string]bool{}
	for i, n := range inv.Nodes {
		if err := n.check(); err != nil {
			return fmt.Errorf("inventory: node %d, %q: %w", i+1, n.Name, err)
		}
		place := fmt.Sprintf("%s port %d", n.Address, n.Port)
		if n.Via != "" {
			next, known := via[n.Via]
			switch {
			case n.Via == n.Name:
				return fmt.Errorf("inventory: node %s is reached through itself", n.Name)
			case !known:
				return fmt.Errorf("inventory: node %s is reached through %q, which is no node of bed %s", n.Name, n.Via, inv.Bed)
			case next != "":
				return fmt.Errorf("inventory: node %s is reached through %s, which is itself reached through %s; one on the way is the most", n.Name, n.Via, next)
			}
			place += " through " + n.Via // another node may see another machine there
		}
		for _, one := range []string{n.Name, place} {
			if seen[one] && (one == n.Name || n.Made()) {
				return fmt.Errorf("inventory: two nodes are called %s", one)
			}
			seen[one] = true
		}
	}
	control, compute := len(inv.withRole(Control)), len(inv.Compute())
	if compute == 0 || control > 1 || control == 0 && compute > 1 {
		return fmt.Errorf("inventory: bed %s has %d control and %d compute nodes; one node computes, of more one is for control and the rest computes", inv.Bed, control, compute)
	}
	return nil
}

func (n InventoryNode) check() error {
	_, notIP := netip.ParseAddr(n.Address)
	switch {
	case !nodePattern.MatchString(n.Name):
		return errors.New("the name is none of a host")
	case n.Role != Control && n.Role != Compute:
		return fmt.Errorf("the role %q is neither %s nor %s", n.Role, Control, Compute)
	case n.Address != "" && notIP != nil && !hostPattern.MatchString(n.Address):
		return fmt.Errorf("the address %q is none", n.Address)
	case n.Port < 0 || n.Port > 65535 || n.Port == 0 && n.Address != "":
		return fmt.Errorf("there is no port %d", n.Port)
	case n.CPUs < 1 || n.CPUs > MaxCPUs:
		return fmt.Errorf("it has %d CPUs; a node has 1 to %d", n.CPUs, MaxCPUs)
	case n.MemoryMiB < 1:
		return fmt.Errorf("it has %d MiB of memory", n.MemoryMiB)
	case !hostKeyPattern.MatchString(n.HostKey):
		return fmt.Errorf("the host key %.40q is none in the form of authorized_keys", n.HostKey)
	case !cpusPattern.MatchString(n.HostCPUs):
		return fmt.Errorf("%q is no list of CPUs", n.HostCPUs)
	}
	return nil
}
