// Package bed is the model of a test bed: what is asked for (Spec, Pool), what that makes (Node, Role) and what stands in the end
// (Inventory). It imports nothing else of this project and does nothing to any machine.
package bed

import (
	"fmt"
	"time"
)

// Limits of a Spec.
const (
	MaxNodes   = 5000
	MaxCPUs    = 1024
	MinMemory  = 128 * MiB
	NameLength = 32 // so that a node's name still fits host names, interface marks and socket paths
)

// Spec is a test bed as asked for. Parse makes one from configuration; a Spec from Parse without problems is valid.
type Spec struct {
	Name              string            // of the bed; unique on a host
	Driver            string            // who makes the machines: nspawn, lima, ovirt, sim, or the cloud aws or openstack
	Image             string            // what is on their disks: debian-12
	WorkloadManager   string            // slurm, flux
	Kubernetes        string            // none, or what KubernetesKinds lists
	KubernetesNetwork KubernetesNetwork // zero without Kubernetes
	Network           string            // isolated, or outbound for a route out of the bed
	Profile           string            // normal, or slow for emulated machines: every time-out is longer
	Flux              string            // path or URL of a Flux artifact; empty leaves it to the environment or the lock
	FluxSettings      FluxSettings      // of a system instance
	TTL               time.Duration     // how long the bed is meant to live; 0 is forever. Stamped on every machine for the sweep
	Settings          map[string]string // of the driver, by its own keys without its name
	Pools             []Pool            // in order; the first node of the first pool is the control node
}

// KubernetesNetwork is how a node of Kubernetes without root, a container, gets out of its host and packets of its siblings get in.
type KubernetesNetwork struct {
	// Driver is RootlessKit's network driver.
	Driver string `json:"driver" pulumi:"driver"`
	// MTU is that of the network in which the nodes are containers, in bytes; pods have 50 less, which VXLAN takes.
	MTU int `json:"mtu" pulumi:"mtu"`
}

// String says it for people.
func (n KubernetesNetwork) String() string { return fmt.Sprintf("%s, MTU %d", n.Driver, n.MTU) }

// DefaultKubernetesNetwork is what every distribution has, with the MTU that is best for it.
func DefaultKubernetesNetwork() KubernetesNetwork {
	return KubernetesNetwork{Driver: "slirp4netns", MTU: defaultKubernetesMTU("slirp4netns")}
}

// HostBridge is the network driver by which all goes through the hosts' kernels, and nothing through user space.
const HostBridge = "lxc-user-nic"

// defaultKubernetesMTU is no wire's where user space takes its time per packet: what is longer than the wire takes is sent in fragments, so the
// most that fits a UDP datagram is best. The kernel has segments instead, which are to fit the wire; 1500 is what most have (docs/network.md).
func defaultKubernetesMTU(driver string) int {
	if driver == HostBridge {
		return 1500
	}
	return maxKubernetesMTU
}

// What of Kubernetes there is on a bed's nodes: a cluster of its own, or only what its jobs bring up theirs with.
const (
	OwnKubernetes  = "usernetes"
	JobsKubernetes = "jobs"
)

// KubernetesKinds are what a bed can have of it.
func KubernetesKinds() []string { return []string{OwnKubernetes, JobsKubernetes} }

// KubernetesNetworkDrivers are those of RootlessKit by which VXLAN passes.
func KubernetesNetworkDrivers() []string { return []string{"slirp4netns", "pasta", HostBridge} }

// The least is IPv6's, and what VXLAN takes of it.
const (
	minKubernetesMTU = 1280 + 50
	maxKubernetesMTU = 65520
)

// FluxSettings are choices of a Flux system instance. The zero value is what the role has.
type FluxSettings struct {
	Mode        string `json:"mode,omitempty" pulumi:"mode,optional"`     // system, which empty is too, or user
	Quorum      int    `json:"quorum,omitempty" pulumi:"quorum,optional"` // how many compute nodes must come up; 0 is all
	QueuePolicy string `json:"queuePolicy,omitempty" pulumi:"queuePolicy,optional"`
	MatchPolicy string `json:"matchPolicy,omitempty" pulumi:"matchPolicy,optional"`
}

// The policies of Fluxion, from flux-config-sched-fluxion-qmanager(5) and flux-config-sched-fluxion-resource(5).
func fluxQueuePolicies() []string { return []string{"fcfs", "easy", "conservative", "hybrid"} }
func fluxMatchPolicies() []string {
	return []string{"first", "firstnodex", "high", "low", "lonode", "lonodex", "hinode", "hinodex"}
}

// Pool is a number of like machines.
type Pool struct {
	Name   string
	Type   string // of machine, as a cloud calls it: c7i.2xlarge; empty elsewhere, and where the cloud's own key says it for all pools
	Nodes  int
	CPUs   int // per node
	Memory Size
	Disk   Size // 0 leaves it to the driver
}

// Role says what a node is for.
type Role string

// The control node serves the workload manager and computes nothing, as u2204-01 did in the talk; compute nodes do the rest.
const (
	Control Role = "control"
	Compute Role = "compute"
)

// Node is one machine of a bed, before anybody has made it.
type Node struct {
	Name   string
	Index  int // from 0, over all pools
	Pool   string
	Type   string // the pool's
	Role   Role
	CPUs   int
	Memory Size
	Disk   Size
}

// Nodes lists the bed's nodes in order. Names depend on the bed's name and the node's position alone, so that a bed that grows
// keeps the names it has: bed u2204 has u2204-01, u2204-02 … A bed of one node has no control node: it does both.
func (s Spec) Nodes() []Node {
	var nodes []Node
	for _, p := range s.Pools {
		for range p.Nodes {
			role := Compute
			if len(nodes) == 0 && s.Size() > 1 {
				role = Control
			}
			nodes = append(nodes, Node{
				Name: NodeName(s.Name, len(nodes)), Index: len(nodes), Pool: p.Name, Type: p.Type, Role: role,
				CPUs: p.CPUs, Memory: p.Memory, Disk: p.Disk,
			})
		}
	}
	return nodes
}

// Size is the number of nodes, the control node included.
func (s Spec) Size() int {
	n := 0
	for _, p := range s.Pools {
		n += p.Nodes
	}
	return n
}

// NodeName is the name of a bed's node by its index from 0.
func NodeName(bed string, index int) string { return fmt.Sprintf("%s-%02d", bed, index+1) }
