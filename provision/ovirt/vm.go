package ovirt

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
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
	DiskIs        int             `json:"diskIs,omitempty"` // MiB that its disk has, which may be more than was asked for; 0 is not known
	// VM is its own id, once it was up: this is written last. A clone that somebody made of it has the mark too.
	VM string `json:"vm,omitempty"`
}

// about is the description of everything of a bed's, by which it is found.
func about(bedName string) string { return "Bedfellow: bed " + bedName }

// aboutNode is a node's.
func aboutNode(bedName, node string) string { return about(bedName) + ", node " + node }

// ours is a search for VMs of ours: by how they are described, or by their mark, since somebody may have written over either.
func ours(description, comment string) url.Values {
	return url.Values{"search": {fmt.Sprintf(`description="Bedfellow: %s" or comment="*%s*hostPublicKey*"`, description, comment)}}
}

func oursAll() url.Values               { return ours("*", "") }
func oursOf(bedName string) url.Values  { return ours("bed "+bedName+",*", bedName) }
func oursCalled(name string) url.Values { return ours("*node "+name, name) }

func markOf(m provision.Machine, s Settings, address string) mark {
	return mark{
		Name: m.Name, Owner: m.Owner, Index: m.Index, Digest: m.Digest(), Frame: frame(m, s), HostPublicKey: m.HostPublicKey,
		CPUs: m.CPUs, MemoryMiB: int(m.Memory / bed.MiB), DiskMiB: int(m.Disk / bed.MiB), Address: address, Expires: m.Expires, Shape: s.shape(),
	}
}

const shapeFormat = "%d sockets, %d %%"

func (s Settings) shape() string { return fmt.Sprintf(shapeFormat, s.Sockets, s.Guaranteed) }

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
	whole := json.Unmarshal([]byte(comment), &m) == nil
	switch {
	case whole && m.VM != "" && m.VM == idOf(vm): // its own, whatever it is described as now
		return m, true
	case d == nil:
		return mark{}, false
	case !whole || m.Name != d[2] || m.Owner.Bed != d[1]: // somebody has edited it
		return mark{Name: d[2], Owner: provision.Owner{Bed: d[1]}}, true
	}
	return m, m.VM == ""
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
	if drifted := drift(vm, m); m.VM != "" && len(drifted) > 0 {
		st.Digest, st.Detail = "", strings.Join(drifted, "; ")
	}
	return st
}

// drift is what somebody has changed of a VM that was made by a mark.
func drift(vm *ovirtsdk.Vm, m mark) (all []string) {
	var of Settings
	if _, err := fmt.Sscanf(m.Shape, shapeFormat, &of.Sockets, &of.Guaranteed); err == nil && of.Sockets > 0 {
		asked := provision.Machine{CPUs: m.CPUs, Memory: bed.Size(m.MemoryMiB) * bed.MiB}
		if is, was := sizeOf(vm), sizeOf(sizes(ovirtsdk.NewVmBuilder(), asked, of).MustBuild()); is != was {
			all = append(all, fmt.Sprintf("has %s, and was made with %s", is, was))
		}
	}
	if disk := diskOf(vm); disk.MiB > 0 && m.DiskIs > 0 && disk.MiB != m.DiskIs {
		all = append(all, fmt.Sprintf("has a disk of %d MiB, and was made with one of %d MiB", disk.MiB, m.DiskIs))
	}
	if name, _ := vm.Name(); name != m.Name {
		all = append(all, "is called "+name+" in the engine")
	}
	if description, _ := vm.Description(); description != aboutNode(m.Owner.Bed, m.Name) {
		all = append(all, fmt.Sprintf("is described as %q in the engine", description))
	}
	return all
}

// size is what of a VM can be changed in place, its disk left out.
type size struct{ sockets, cores, threads, memoryMiB, guaranteedMiB int64 }

func (s size) String() string {
	return fmt.Sprintf("%d CPUs (sockets × cores × threads: %d × %d × %d) and %d MiB, %d of them guaranteed",
		s.sockets*s.cores*s.threads, s.sockets, s.cores, s.threads, s.memoryMiB, s.guaranteedMiB)
}

func sizeOf(vm *ovirtsdk.Vm) (s size) {
	if cpu, ok := vm.Cpu(); ok {
		if t, ok := cpu.Topology(); ok {
			s.sockets, _ = t.Sockets()
			s.cores, _ = t.Cores()
			s.threads, _ = t.Threads()
		}
	}
	memory, _ := vm.Memory()
	s.memoryMiB = memory / int64(bed.MiB)
	if policy, ok := vm.MemoryPolicy(); ok {
		guaranteed, _ := policy.Guaranteed()
		s.guaranteedMiB = guaranteed / int64(bed.MiB) // which is how the engine keeps it
	}
	return s
}

// bootDisk is a VM's, by id; its size is 0 where the engine was not asked for it.
type bootDisk struct {
	attachment, id string
	MiB            int
}

func diskOf(vm *ovirtsdk.Vm) bootDisk {
	attached, ok := vm.DiskAttachments()
	if !ok {
		return bootDisk{}
	}
	return bootDiskOf(attached.Slice())
}

func bootDiskOf(attached []*ovirtsdk.DiskAttachment) (d bootDisk) {
	for _, a := range attached {
		if bootable, _ := a.Bootable(); !bootable {
			continue
		}
		d.attachment = idOf(a)
		if disk, ok := a.Disk(); ok {
			have, _ := disk.ProvisionedSize()
			d.id, d.MiB = idOf(disk), int(have/int64(bed.MiB))
		}
	}
	return d
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
