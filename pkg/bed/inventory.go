package bed

import "fmt"

// Inventory is a bed that stands: the stack output that scenarios, Ansible and ssh start from. It holds no secret.
type Inventory struct {
	Bed               string             `json:"bed" pulumi:"bed"`
	ID                string             `json:"id" pulumi:"id"` // random, made once per bed; part of the owner mark
	Driver            string             `json:"driver" pulumi:"driver"`
	SharedKernel      bool               `json:"sharedKernel" pulumi:"sharedKernel"` // nodes run on the host's kernel
	Image             string             `json:"image" pulumi:"image"`               // definition
	ImageDigest       string             `json:"imageDigest" pulumi:"imageDigest"`
	WorkloadManager   string             `json:"workloadManager" pulumi:"workloadManager"`
	FluxMode          string             `json:"fluxMode,omitempty" pulumi:"fluxMode,optional"`                   // user: scenarios start an instance of their own
	FluxMatchPolicy   string             `json:"fluxMatchPolicy,omitempty" pulumi:"fluxMatchPolicy,optional"`     // of Fluxion; empty is lonodex
	Kubernetes        string             `json:"kubernetes,omitempty" pulumi:"kubernetes,optional"`               // of KubernetesKinds, or empty without
	KubernetesNetwork *KubernetesNetwork `json:"kubernetesNetwork,omitempty" pulumi:"kubernetesNetwork,optional"` // nil without
	User              string             `json:"user" pulumi:"user"`                                              // to log in as; may sudo
	Nodes             []InventoryNode    `json:"nodes" pulumi:"nodes"`
}

// InventoryNode is one running machine.
type InventoryNode struct {
	Name    string `json:"name" pulumi:"name"`       // what `hostname` prints on it
	Address string `json:"address" pulumi:"address"` // where the host reaches its sshd, with Port
	Port    int    `json:"port" pulumi:"port"`
	// Via is the node of the bed through which this one's sshd is reached; Address and Port are then as that one sees them.
	Via string `json:"via,omitempty" pulumi:"via,optional"`
	// BedAddress is where its siblings reach it.
	BedAddress string `json:"bedAddress" pulumi:"bedAddress"`
	Role       Role   `json:"role" pulumi:"role"`
	CPUs       int    `json:"cpus" pulumi:"cpus"`
	MemoryMiB  int    `json:"memoryMiB" pulumi:"memoryMiB"`
	HostKey    string `json:"hostKey" pulumi:"hostKey"` // public, in authorized_keys form
	// HostCPUs are the host's CPUs that run this node where the driver pins, as in "0-1"; Oversubscribed says that another node
	// runs on them too.
	HostCPUs       string `json:"hostCPUs,omitempty" pulumi:"hostCPUs,optional"`
	Oversubscribed bool   `json:"oversubscribed,omitempty" pulumi:"oversubscribed,optional"`
	// Incarnation changes whenever the node's disk is made anew.
	Incarnation string `json:"incarnation" pulumi:"incarnation"`
}

// Node finds a node by its name or by its number within the bed ("2" is the second).
func (inv Inventory) Node(name string) (InventoryNode, error) {
	for i, n := range inv.Nodes {
		if n.Name == name || fmt.Sprint(i+1) == name {
			return n, nil
		}
	}
	names := make([]string, len(inv.Nodes))
	for i, n := range inv.Nodes {
		names[i] = n.Name
	}
	return InventoryNode{}, Problems{{Key: "node", Value: name, Reason: fmt.Sprintf("bed %s has no such node; it has %v", inv.Bed, names), Remedy: "name one of them"}}
}

// Compute lists the nodes that run jobs.
func (inv Inventory) Compute() []InventoryNode { return inv.withRole(Compute) }

// Control is the node that serves the workload manager. A bed of one node serves and computes on it.
func (inv Inventory) Control() InventoryNode {
	if c := inv.withRole(Control); len(c) > 0 {
		return c[0]
	}
	return inv.Nodes[0]
}

func (inv Inventory) withRole(r Role) []InventoryNode {
	var nodes []InventoryNode
	for _, n := range inv.Nodes {
		if n.Role == r {
			nodes = append(nodes, n)
		}
	}
	return nodes
}
