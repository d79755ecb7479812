package ovirt

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"

	ovirtsdk "github.com/ovirt/go-ovirt"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/cloudinit"
)

// mark is what a VM's comment says of whose it is and what it was made as, in JSON. It comes with the VM, in one request: none is without.
type mark struct {
	Name          string          `json:"name"` // the node's, whatever somebody has called the VM since
	Owner         provision.Owner `json:"owner"`
	Index         int             `json:"index"`
	Digest        string          `json:"digest"`
	Frame         string          `json:"frame"` // of what cannot be changed in place
	HostPublicKey string          `json:"hostPublicKey"`
	CPUs          int             `json:"cpus"`
	MemoryMiB     int             `json:"memoryMiB"`
	DiskMiB       int             `json:"diskMiB,omitempty"`
	Address       string          `json:"address,omitempty"` // one that was given
	Expires       time.Time       `json:"expires,omitzero"`
	Shape         string          `json:"shape"`            // sockets and guarantee
	Spread        bool            `json:"spread,omitempty"` // it is in the bed's affinity group; written once it is
	// VM is its own id, once it was up: this is written last. A clone that somebody made of it has the mark too.
	VM string `json:"vm,omitempty"`
}

// about is the description of everything of a bed's, by which it is found.
func about(bedName string) string { return "Bedfellow: bed " + bedName }

// aboutNode is a node's.
func aboutNode(bedName, node string) string { return about(bedName) + ", node " + node }

const aboutAll = "Bedfellow: *"

func markOf(m provision.Machine, s Settings, address string) mark {
	return mark{
		Name: m.Name, Owner: m.Owner, Index: m.Index, Digest: m.Digest(), Frame: frame(m, s), HostPublicKey: m.HostPublicKey,
		CPUs: m.CPUs, MemoryMiB: int(m.Memory / bed.MiB), DiskMiB: int(m.Disk / bed.MiB), Address: address, Expires: m.Expires, Shape: s.shape(),
	}
}

func (s Settings) shape() string { return fmt.Sprintf("%d sockets, %d %%", s.Sockets, s.Guaranteed) }

// frame is a fingerprint of what a machine must be made anew for.
func frame(m provision.Machine, s Settings) string {
	m.CPUs, m.Memory, m.Disk, m.Slow = 0, 0, 0, false
	address := ""
	if m.Index < len(s.Addresses) {
		address = s.Addresses[m.Index].String() + s.Gateway.String()
	}
	sum := sha256.Sum256(fmt.Append(nil, m.Digest(), []string{s.DataCenter, s.Cluster, s.StorageDomain, s.VnicProfile, s.Template, address}))
	return hex.EncodeToString(sum[:16])
}

func (m mark) String() string {
	data, err := json.Marshal(m)
	if err != nil {
		panic(err) // a struct of strings and numbers
	}
	return string(data)
}

// readMark is the mark of a VM of ours.
func readMark(vm *ovirtsdk.Vm) (m mark, ok bool) {
	comment, _ := vm.Comment()
	description, _ := vm.Description()
	d := aboutPattern.FindStringSubmatch(description)
	if d == nil {
		return m, false
	}
	if json.Unmarshal([]byte(comment), &m) != nil || m.Name != d[2] || m.Owner.Bed != d[1] { // somebody has edited it
		return mark{Name: d[2], Owner: provision.Owner{Bed: d[1]}}, true
	}
	return m, m.VM == "" || m.VM == idOf(vm)
}

var aboutPattern = regexp.MustCompile(`^Bedfellow: bed ([a-z0-9-]+), node ([a-z0-9-]+)$`)

// boot is the cloud-config that makes a booting machine the node it is. The engine puts its own keys before it, and says itself what it is.
func boot(m provision.Machine, s Settings) (string, error) {
	n := cloudinit.Node{Name: m.Name, User: m.User, HostKey: m.HostKey, HostPublicKey: m.HostPublicKey, AuthorizedKey: m.AuthorizedKey}
	if len(s.Addresses) > 0 {
		n.Address = s.Addresses[m.Index].String()
		if s.Gateway.IsValid() {
			n.Gateway = s.Gateway.String()
		}
	}
	return cloudinit.Config(n)
}

// sizes are what of a VM can be changed in place.
func sizes(b *ovirtsdk.VmBuilder, m provision.Machine, s Settings) *ovirtsdk.VmBuilder {
	sockets := s.Sockets
	for m.CPUs%sockets != 0 { // cores are whole
		sockets--
	}
	topology := ovirtsdk.NewCpuTopologyBuilder().Sockets(int64(sockets)).Cores(int64(m.CPUs / sockets)).Threads(1).MustBuild()
	memory := int64(m.Memory)
	return b.Cpu(ovirtsdk.NewCpuBuilder().Topology(topology).MustBuild()).Memory(memory).
		MemoryPolicy(ovirtsdk.NewMemoryPolicyBuilder().Guaranteed(max(memory*int64(s.Guaranteed)/100, 1<<20)).Max(4 * memory).MustBuild())
}

// render is a machine as the engine is to make it.
func render(m provision.Machine, s Settings, cluster, template string) (*ovirtsdk.Vm, error) {
	address := ""
	script, err := boot(m, s)
	if err != nil {
		return nil, err
	}
	start := ovirtsdk.NewInitializationBuilder().HostName(m.Name).CustomScript(script).MustBuild()
	if len(s.Addresses) > 0 {
		address = s.Addresses[m.Index].Addr().String()
	}
	return sizes(ovirtsdk.NewVmBuilder(), m, s).
		Name(m.Name).Description(aboutNode(m.Owner.Bed, m.Name)).Comment(markOf(m, s, address).String()).
		Cluster(ovirtsdk.NewClusterBuilder().Id(cluster).MustBuild()).Template(ovirtsdk.NewTemplateBuilder().Id(template).MustBuild()).
		Initialization(start).Build()
}

// status tells how a VM of ours is.
func (d *Driver) status(vm *ovirtsdk.Vm, m mark) provision.Status {
	st := provision.Status{
		Name: m.Name, Owner: m.Owner, Digest: m.Digest, HostPublicKey: m.HostPublicKey, Incarnation: idOf(vm), Expires: m.Expires,
		Address: m.Address, BedAddress: m.Address, Port: d.port,
	}
	if m.Address == "" {
		st.Address = reported(vm)
		st.BedAddress = st.Address
	}
	said, _ := vm.Status()
	switch said {
	case ovirtsdk.VMSTATUS_UP, ovirtsdk.VMSTATUS_POWERING_UP, ovirtsdk.VMSTATUS_REBOOT_IN_PROGRESS, ovirtsdk.VMSTATUS_MIGRATING:
		st.State = provision.Running
	case ovirtsdk.VMSTATUS_DOWN, ovirtsdk.VMSTATUS_SUSPENDED, ovirtsdk.VMSTATUS_PAUSED, ovirtsdk.VMSTATUS_POWERING_DOWN:
		st.State, st.Detail = provision.Stopped, "the engine says that it is "+string(said)
	default:
		st.State, st.Detail = provision.Broken, "the engine says that it is "+string(said)
	}
	if m.VM == "" {
		st.State, st.Detail = provision.Broken, "half made"
	}
	if cpus, memory := has(vm); cpus != m.CPUs || memory != m.MemoryMiB { // what was made is no longer so
		st.Digest, st.Detail = "", fmt.Sprintf("has %d CPUs and %d MiB, and was made with %d and %d", cpus, memory, m.CPUs, m.MemoryMiB)
	}
	if name, _ := vm.Name(); name != m.Name {
		st.Digest, st.Detail = "", "is called "+name+" in the engine"
	}
	return st
}

// has are a VM's CPUs and memory.
func has(vm *ovirtsdk.Vm) (cpus, memoryMiB int) {
	if cpu, ok := vm.Cpu(); ok {
		if t, ok := cpu.Topology(); ok {
			product := int64(1)
			for _, n := range []func() (int64, bool){t.Sockets, t.Cores, t.Threads} {
				if v, ok := n(); ok {
					product *= v
				}
			}
			cpus = int(product)
		}
	}
	memory, _ := vm.Memory()
	return cpus, int(bed.Size(memory) / bed.MiB)
}

// reported is the address that the guest's agent tells: of its first interface that is none of a container's.
func reported(vm *ovirtsdk.Vm) string {
	devices, ok := vm.ReportedDevices()
	if !ok {
		return ""
	}
	for _, d := range devices.Slice() {
		name, _ := d.Name()
		if !strings.HasPrefix(name, "e") {
			continue
		}
		ips, ok := d.Ips()
		if !ok {
			continue
		}
		for _, ip := range ips.Slice() {
			version, _ := ip.Version()
			if a, ok := ip.Address(); ok && version == ovirtsdk.IPVERSION_V4 && !strings.HasPrefix(a, "169.254.") {
				return a
			}
		}
	}
	return ""
}
