package lima

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

const (
	// maxNodes of a bed: one process switches every frame between them, and their network has 250 addresses.
	maxNodes = 100
	// maxOvercommit is how many CPUs a node may have for each of the host's. QEMU sets no limit; beyond this a guest's CPUs wait so long
	// for their turn that its kernel takes them for stuck.
	maxOvercommit = 8
	// leastFree is what a node writes to its disk while it boots and is configured.
	leastFree = bed.GiB
)

// Check tells what this host lacks.
func (d *Driver) Check(ctx context.Context) []bed.Problem {
	var problems []bed.Problem
	add := func(reason, remedy string) {
		problems = append(problems, bed.Problem{Key: "driver", Value: "lima", Reason: reason, Remedy: remedy, Host: true})
	}
	need := commands()
	for _, command := range slices.Sorted(maps.Keys(need)) {
		if _, err := exec.LookPath(command); err != nil {
			add("the command "+command+" is missing", "install it: apt-get install "+need[command]+" (`make tools DRIVER=lima` does)")
		}
	}
	if onNFS(existing(d.root)) {
		add(d.root+" is on NFS, which holds none of Lima's sockets", "move your home, or that directory by a link, to a local disk")
	}
	a, err := lookupAccount(d.account)
	if err != nil {
		add("Lima does not run as root, and the user "+d.account+" to run it as is not there",
			"make it: useradd --system --create-home --home-dir /var/lib/bedfellow/lima --shell /usr/sbin/nologin "+d.account+" (`make tools DRIVER=lima` does)")
		return problems
	}
	limactl, err := findLimactl(d.root)
	if err != nil {
		add("the command limactl is missing", "build it: make tools DRIVER=lima; or install Lima 2 (https://lima-vm.io)")
		return problems
	}
	version, err := limaVersion(ctx, limactl, a, existing(d.root))
	switch {
	case err != nil:
		add(fmt.Sprintf("%s does not run as %s in %s: %v", limactl, a, existing(d.root), err),
			"let that user read and run it, and enter the directory: chmod a+x what leads there, or put limactl into /usr/local/bin")
	case tooOld(version):
		add(fmt.Sprintf("limactl %s at %s is too old", version, limactl), fmt.Sprintf("install Lima %d.0 or newer: make tools DRIVER=lima", minimumMajor))
	}
	return problems
}

// Advise tells what works here and could work better: where no KVM is to be had, guests are emulated.
func (d *Driver) Advise(ctx context.Context) []string {
	a, err := lookupAccount(d.account)
	if err != nil {
		return nil
	}
	var notes []string
	if free, ok := freeSpace(existing(d.root)); ok {
		notes = append(notes, fmt.Sprintf("%s free in %s, where a machine writes %s and more, and %s of memory", free/bed.MiB*bed.MiB, existing(d.root), leastFree, hostMemory()))
	}
	for fits := 32; fits > 0; fits-- { // the longest name that a bed may have anywhere
		name := strings.Repeat("x", fits)
		if tooLong(d.root, provision.Machine{Name: bed.NodeName(name, 98), Owner: provision.Owner{Bed: name}}) == nil {
			notes = append(notes, fmt.Sprintf("names of beds may have %d characters, for the sockets in %s", fits, d.root))
			break
		}
	}
	note := d.probe(ctx, a).note()
	if note == "" {
		return notes
	}
	if qemu, err := exec.LookPath(qemuCommand()); err == nil && a != nil && runGuest(ctx, qemu, "kvm", "host", nil) == nil {
		note += fmt.Sprintf(". Root can use it, so let %s: usermod -aG kvm %s", a, d.account)
	}
	if a == nil && errors.Is(unix.Access("/dev/kvm", unix.R_OK|unix.W_OK), unix.EACCES) {
		note += ". You may not open /dev/kvm: sudo usermod -aG kvm $USER, and log in again"
	}
	return append(notes, note)
}

// Fit tells which of the machines the host cannot hold.
func (d *Driver) Fit(ctx context.Context, machines []provision.Machine) []bed.Problem {
	var problems []bed.Problem
	add := func(key, value, reason, remedy string) {
		problems = append(problems, bed.Problem{Key: key, Value: value, Reason: reason, Remedy: remedy, Host: true})
	}
	if len(machines) == 0 {
		return nil
	}
	cpus, memory := runtime.NumCPU()*maxOvercommit, hostMemory()
	var total bed.Size
	var badCPUs, badDisk, badNetwork bool
	for _, m := range machines {
		total += m.Memory
		if m.CPUs > cpus && !badCPUs {
			add("cpus", strconv.Itoa(m.CPUs), fmt.Sprintf("is more than %d times the %d CPUs of this host, with which no guest gets on", maxOvercommit, runtime.NumCPU()),
				fmt.Sprintf("ask for at most %d", cpus))
			badCPUs = true
		}
		if least, err := imageSize(m.Image); err == nil && m.Disk != 0 && m.Disk < least && !badDisk {
			add("disk", m.Disk.String(), fmt.Sprintf("is less than the %s that the image's disk has", least), fmt.Sprintf("ask for at least %s, or leave the key out", least))
			badDisk = true
		}
		if m.Network != "isolated" && m.Network != "outbound" && !badNetwork {
			add("network", m.Network, "is none of isolated, outbound", "write one of them")
			badNetwork = true
		}
	}
	if total > memory {
		add("memory", machines[0].Memory.String(), fmt.Sprintf("for %d nodes makes %s, more than the %s of this host", len(machines), total, memory),
			fmt.Sprintf("ask for at most %s per node, or for fewer nodes", (memory/bed.Size(len(machines)))/bed.MiB*bed.MiB))
	}
	if free, ok := freeSpace(existing(d.root)); ok && free < leastFree*bed.Size(len(machines)) {
		add("nodes", strconv.Itoa(len(machines)), fmt.Sprintf("write at least %s each, and %s has %s left", leastFree, existing(d.root), free/bed.MiB*bed.MiB),
			"make room, or ask for fewer nodes; `bed image list` shows the images that are kept")
	}
	if len(machines) > maxNodes {
		add("nodes", strconv.Itoa(len(machines)), fmt.Sprintf("is more than the %d nodes this driver's network holds", maxNodes), "ask for fewer")
	}
	image := filepath.Join(machines[0].Image, bed.DiskFile)
	if a, err := lookupAccount(d.account); err == nil && a != nil && exists(image) {
		if _, err := run(ctx, host{account: a}.command("/", "test", "-r", image)); err != nil {
			add("image", machines[0].Image, fmt.Sprintf("cannot be read by %s, who runs Lima", a), "let everybody read it and enter what leads there: chmod a+rX …")
		}
	}
	longest := slices.MaxFunc(machines, func(a, b provision.Machine) int { return len(a.Name) - len(b.Name) })
	if p := tooLong(d.root, longest); p != nil {
		problems = append(problems, *p)
	}
	return problems
}

// tooLong tells when a socket of the node's would have a path that is too long for one.
func tooLong(root string, m provision.Machine) *bed.Problem {
	const longest = "ssh.sock.1234567890123456" // what ssh calls it until it is ready
	over := len(filepath.Join(root, m.Owner.Bed, m.Name, longest)) - (socketPath - 1)
	if over <= 0 {
		return nil
	}
	fits := len(m.Owner.Bed) - (over+1)/2 // the node's name begins with the bed's
	p := &bed.Problem{Key: "name", Value: m.Owner.Bed, Host: true, Reason: fmt.Sprintf("is too long for Lima's sockets in %s, whose paths may have %d bytes", root, socketPath-1)}
	if fits > 0 {
		p.Remedy = fmt.Sprintf("give the bed a name of at most %d characters: -c name=…", fits)
	} else {
		p.Remedy = "keep beds in a directory with a shorter path"
	}
	return p
}

// existing is the longest beginning of a path that is there.
func existing(path string) string {
	for {
		if exists(path) || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func freeSpace(dir string) (bed.Size, bool) {
	var info unix.Statfs_t
	if unix.Statfs(dir, &info) != nil {
		return 0, false
	}
	return bed.Size(info.Bavail) * bed.Size(info.Bsize), true
}
