package provider

import (
	"encoding/json"
	"fmt"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// Standing reads a Pool's outputs, as an exported state holds them with its secrets shown, into what is known of the bed: for one
// whose configuration failed, so that it has no other output. Nodes may be without a machine. The key logs in to the others.
func Standing(outputs json.RawMessage) (inv bed.Inventory, key []byte, err error) {
	var raw any
	if err := json.Unmarshal(outputs, &raw); err != nil {
		return inv, nil, err
	}
	plain, err := json.Marshal(shown(raw))
	if err != nil {
		return inv, nil, err
	}
	var pool PoolState // its fields are named as the properties are
	if err := json.Unmarshal(plain, &pool); err != nil {
		return inv, nil, err
	}
	inv = bed.Inventory{Bed: pool.Owner.Bed, ID: pool.Owner.ID, Driver: pool.Driver, ImageDigest: pool.ImageDigest, User: pool.User}
	found := map[string]PoolMachine{}
	for _, m := range pool.Machines {
		if _, twice := found[m.Name]; twice {
			return bed.Inventory{}, nil, fmt.Errorf("two machines are called %s", m.Name)
		}
		found[m.Name] = m
	}
	for _, n := range pool.Nodes {
		m := found[n.Name]
		inv.Nodes = append(inv.Nodes, bed.InventoryNode{
			Name: n.Name, Address: m.Address, Port: m.Port, Via: m.Via, BedAddress: m.BedAddress, Role: bed.Role(n.Role), CPUs: n.CPUs, MemoryMiB: n.MemoryMiB,
			HostKey: pool.HostPublicKeys[n.Name], HostCPUs: m.HostCPUs, Oversubscribed: m.Oversubscribed, Incarnation: m.Incarnation,
		})
	}
	if err := inv.Check(); err != nil {
		return bed.Inventory{}, nil, err
	}
	return inv, []byte(pool.UserPrivateKey), nil
}

// shown replaces each secret by its value: Pulumi marks one by this key, and holds the value as JSON in a string.
func shown(v any) any {
	switch v := v.(type) {
	case map[string]any:
		if text, ok := v["plaintext"].(string); ok && v["4dabf18193072939515e22adb298388d"] != nil {
			var inner any
			if json.Unmarshal([]byte(text), &inner) == nil {
				return shown(inner)
			}
		}
		for key, inner := range v {
			v[key] = shown(inner)
		}
	case []any:
		for i, inner := range v {
			v[i] = shown(inner)
		}
	}
	return v
}
