package bed_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

func inventory() bed.Inventory {
	inv := bed.Inventory{Bed: "b", ID: "01", Driver: "sim", Image: "debian-12", WorkloadManager: "slurm", User: "bed"}
	for i, role := range []bed.Role{bed.Control, bed.Compute, bed.Compute} {
		inv.Nodes = append(inv.Nodes, bed.InventoryNode{
			Name: bed.NodeName("b", i), Address: "192.0.2." + string(rune('1'+i)), Port: 22, Role: role, CPUs: 1, MemoryMiB: 1024,
			HostKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDRQ", HostCPUs: "0-1,3", Incarnation: "x",
		})
	}
	return inv
}

func marshal(t testing.TB, inv bed.Inventory) string {
	data, err := json.Marshal(inv)
	require.NoError(t, err)
	return string(data)
}

func TestParseInventoryReadsWhatWasWritten(t *testing.T) {
	for n := 1; n <= 3; n++ {
		inv := inventory()
		inv.Nodes = inv.Nodes[3-n:]
		inv.Nodes[0].Role = bed.Control
		if n == 1 {
			inv.Nodes[0].Role = bed.Compute
		}
		got, err := bed.ParseInventory([]byte(marshal(t, inv)))
		require.NoError(t, err)
		assert.Equal(t, inv, got)
	}
}

// Whatever is not understood is an error that says which node and what about it.
func TestParseInventoryRefuses(t *testing.T) {
	node := func(change func(n *bed.InventoryNode)) func(*bed.Inventory) {
		return func(inv *bed.Inventory) { change(&inv.Nodes[1]) }
	}
	for needle, change := range map[string]func(*bed.Inventory){
		`the bed's name "B!"`:                 func(inv *bed.Inventory) { inv.Bed = "B!" },
		"no id or no driver":                  func(inv *bed.Inventory) { inv.Driver = "" },
		"no user to log in as":                func(inv *bed.Inventory) { inv.User = "bed\nProxyCommand x" },
		"names no image or no workload":       func(inv *bed.Inventory) { inv.WorkloadManager = "" },
		"has 0 nodes":                         func(inv *bed.Inventory) { inv.Nodes = nil },
		"has 5001 nodes":                      func(inv *bed.Inventory) { inv.Nodes = make([]bed.InventoryNode, 5001) },
		"2 control and 1 compute":             node(func(n *bed.InventoryNode) { n.Role = bed.Control }),
		"0 control and 3 compute":             func(inv *bed.Inventory) { inv.Nodes[0].Role = bed.Compute },
		"1 control and 0 compute":             func(inv *bed.Inventory) { inv.Nodes = inv.Nodes[:1] },
		`node 2, "b-02": the role "boss"`:     node(func(n *bed.InventoryNode) { n.Role = "boss" }),
		"two nodes are called b-01":           node(func(n *bed.InventoryNode) { n.Name = "b-01" }),
		"two nodes are called 192.0.2.1 port": node(func(n *bed.InventoryNode) { n.Address = "192.0.2.1" }),
		`"2": the name`:                       node(func(n *bed.InventoryNode) { n.Name = "2" }),
		`"../x": the name`:                    node(func(n *bed.InventoryNode) { n.Name = "../x" }),
		"no port 0":                           node(func(n *bed.InventoryNode) { n.Port = 0 }),
		"no port 70000":                       node(func(n *bed.InventoryNode) { n.Port = 70000 }),
		"no address, port or incarnation":     node(func(n *bed.InventoryNode) { n.Address, n.Port = "", 0 }),
		`the address "-oProxyCommand=x"`:      node(func(n *bed.InventoryNode) { n.Address = "-oProxyCommand=x" }),
		"0 CPUs":                              node(func(n *bed.InventoryNode) { n.CPUs = 0 }),
		"-1 MiB":                              node(func(n *bed.InventoryNode) { n.MemoryMiB = -1 }),
		"the host key":                        node(func(n *bed.InventoryNode) { n.HostKey += "\n* " + n.HostKey }),
		"b-02 is reached through itself":      node(func(n *bed.InventoryNode) { n.Via = "b-02" }),
		`through "1", which is no node`:       node(func(n *bed.InventoryNode) { n.Via = "1" }),
		"through b-03, which is itself": func(inv *bed.Inventory) {
			inv.Nodes[1].Via, inv.Nodes[2].Via = "b-03", "b-01"
		},
		"two nodes are called 192.0.2.2 port 22 through b-01": func(inv *bed.Inventory) {
			inv.Nodes[1].Via, inv.Nodes[2].Via, inv.Nodes[2].Address = "b-01", "b-01", "192.0.2.2"
		},
		"no list of CPUs": node(func(n *bed.InventoryNode) { n.HostCPUs = "all" }),
	} {
		inv := inventory()
		change(&inv)
		got, err := bed.ParseInventory([]byte(marshal(t, inv)))
		assert.ErrorContains(t, err, needle)
		assert.Empty(t, got)
	}
	text := marshal(t, inventory())
	for needle, text := range map[string]string{
		"unknown field": strings.Replace(text, `"port"`, `"ports"`, 1), "after its end": text + "{}", "cannot unmarshal": strings.Replace(text, `:22`, `:2.5`, 1),
		"EOF": "", "no id": `{"bed":"b"}`, "the bed's name": "null",
	} {
		_, err := bed.ParseInventory([]byte(text))
		assert.ErrorContains(t, err, needle)
	}
}

func TestCheckAllowsNodesThatAreNotMade(t *testing.T) {
	inv := inventory()
	for i := range inv.Nodes[1:] {
		inv.Nodes[i+1].Address, inv.Nodes[i+1].Port, inv.Nodes[i+1].Incarnation = "", 0, ""
	}
	require.NoError(t, inv.Check())
	assert.True(t, inv.Nodes[0].Made())
	assert.False(t, inv.Nodes[1].Made())
}

// What a node sees at an address is not what this host sees there.
func TestCheckAllowsTheSameAddressBehindAnotherNode(t *testing.T) {
	inv := inventory()
	inv.Nodes[1].Via, inv.Nodes[1].Address = "b-01", inv.Nodes[2].Address
	got, err := bed.ParseInventory([]byte(marshal(t, inv)))
	require.NoError(t, err)
	assert.Equal(t, inv, got)
}

// FuzzParseInventory: nothing crashes the reader, and what it accepts is a bed with a control node and compute nodes that says the
// same when it is written and read again.
func FuzzParseInventory(f *testing.F) {
	text := marshal(f, inventory())
	f.Add(text)
	f.Add(strings.Replace(text, `"control"`, `"compute"`, 1))
	f.Add(strings.Replace(text, `"name":"b-02"`, `"name":"b-01"`, 1))
	f.Add(strings.ReplaceAll(text, `"port":22`, `"port":0`))
	f.Add(strings.Replace(text, `"nodes":[`, `"nodes":[null,`, 1))
	f.Add(strings.Replace(text, `"bed":"b"`, `"bed":"b","BED":"c"`, 1))
	f.Add(strings.Replace(text, `"name":"b-03"`, `"name":"2"`, 1))
	f.Add(`{"bed":"b","nodes":[]}`)
	f.Add(`[]`)
	f.Fuzz(func(t *testing.T, text string) {
		inv, err := bed.ParseInventory([]byte(text))
		if err != nil {
			if !strings.HasPrefix(err.Error(), "inventory: ") || !reflect.DeepEqual(inv, bed.Inventory{}) {
				t.Fatalf("%v with %+v", err, inv)
			}
			return
		}
		if len(inv.Compute()) == 0 || inv.Control().Name == "" || len(inv.Compute()) < len(inv.Nodes)-1 {
			t.Fatalf("accepted %+v", inv)
		}
		for i, n := range inv.Nodes {
			if found, err := inv.Node(n.Name); err != nil || found != n || strings.ContainsAny(n.Name+n.Address+inv.User, "/ \n") || n.Port < 1 {
				t.Fatalf("accepted node %d: %+v (%v)", i, n, err)
			}
		}
		again, err := bed.ParseInventory([]byte(marshal(t, inv)))
		if err != nil || !reflect.DeepEqual(inv, again) {
			t.Fatalf("accepted %+v, which reads again as %+v (%v)", inv, again, err)
		}
	})
}
