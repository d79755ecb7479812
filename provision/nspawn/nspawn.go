// Package nspawn makes machines of systemd-nspawn containers: whole operating systems at native speed that boot in a second and
// share the host's kernel. It needs Linux and root.
//
// Each node is an overlay on a baked tree, in a cgroup and a network namespace of its own. What a node is made of is written down
// before it is made, and every process of it is in its cgroup, so that a node can be taken apart whatever killed its maker.
package nspawn

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
)

// DefaultRoot is where beds lie. It must not be on an overlay file system.
const DefaultRoot = "/var/lib/bedfellow/beds"

const (
	bootTimeout   = 60 * time.Second
	adoptTimeout  = 15 * time.Second // for the sshd of a node that runs, on a busy host
	deleteTimeout = 20 * time.Second
	sshPort       = 22
	userID        = 1000 // of the bed's user in every image
)

// Driver is the nspawn driver.
type Driver struct {
	root   string
	groups cgroups

	bootTimeout time.Duration

	mu   sync.Mutex
	use  map[int]int // see cpuUse
	used time.Time
}

// New returns a driver whose beds lie under root.
func New(root string) *Driver {
	return &Driver{root: root, groups: openCgroups(), bootTimeout: bootTimeout}
}

var (
	_ provision.Driver = (*Driver)(nil)
	_ provision.Fitter = (*Driver)(nil)
)

// Info tells what the driver is.
func (d *Driver) Info() provision.Info {
	return provision.Info{
		Name: "nspawn", SSH: true, SharedKernel: true, Image: bed.Tree, RootlessKubernetes: d.groups.unified, Concurrency: 16,
	}
}

// Check tells what this host lacks.
func (d *Driver) Check(context.Context) []bed.Problem {
	var problems []bed.Problem
	add := func(reason, remedy string) {
		if reason != "" {
			problems = append(problems, bed.Problem{Key: "driver", Value: "nspawn", Reason: reason, Remedy: remedy, Host: true})
		}
	}
	if runtime.GOOS != "linux" {
		add("containers of this kind need Linux", "use the lima driver: -c driver=lima")
		return problems
	}
	if os.Geteuid() != 0 {
		add("needs root: it mounts, makes network namespaces and starts system containers", "run it as root, as in `sudo bed …`")
	}
	add(missing("systemd-nspawn", "systemd-container"))
	add(missing("ip", "iproute2"))
	add(missing("nsenter", "util-linux"))
	if filesystems, err := os.ReadFile("/proc/filesystems"); err == nil && !bytes.Contains(filesystems, []byte("\toverlay\n")) {
		add("the kernel has no overlay file system", "load it: modprobe overlay")
	}
	return problems
}

// Fit tells which of the machines the host cannot hold.
func (d *Driver) Fit(_ context.Context, machines []provision.Machine) []bed.Problem {
	var problems []bed.Problem
	add := func(key, value, reason, remedy string) {
		problems = append(problems, bed.Problem{Key: key, Value: value, Reason: reason, Remedy: remedy, Host: true})
	}
	cpus, memory := len(hostCPUs()), hostMemory()
	var total bed.Size
	var badCPUs, badDisk bool
	for _, m := range machines {
		total += m.Memory
		if m.CPUs > cpus && !badCPUs {
			add("cpus", strconv.Itoa(m.CPUs), fmt.Sprintf("is more than the %d CPUs of this host, which one node cannot have", cpus), fmt.Sprintf("ask for at most %d", cpus))
			badCPUs = true
		}
		if m.Disk != 0 && !badDisk {
			add("disk", m.Disk.String(), "cannot be limited by the nspawn driver, whose nodes share the host's disk", "leave the key disk out")
			badDisk = true
		}
		if m.Network == "outbound" && m.Index == 0 {
			if reason, remedy := canRoute(); reason != "" {
				add("network", m.Network, reason, remedy)
			}
		}
	}
	if total > memory {
		add("memory", machines[0].Memory.String(), fmt.Sprintf("for %d nodes makes %s, more than the %s of this host", len(machines), total, memory),
			fmt.Sprintf("ask for at most %s per node, or for fewer nodes", (memory/bed.Size(len(machines)))/bed.MiB*bed.MiB))
	}
	if len(machines) > maxNodes {
		add("nodes", strconv.Itoa(len(machines)), fmt.Sprintf("is more than the %d nodes this driver's network holds", maxNodes), "ask for fewer")
	}
	return problems
}

func hostMemory() bed.Size {
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) != nil {
		return 1 << 60
	}
	return bed.Size(info.Totalram) * bed.Size(info.Unit) / bed.MiB * bed.MiB
}

// Create adopts or makes the node. See provision.Driver.
func (d *Driver) Create(ctx context.Context, m provision.Machine) (st provision.Status, err error) {
	st, err = d.adopt(ctx, m)
	if !errors.Is(err, errDiffers) {
		return st, err
	}
	step := progress.Start(ctx, "boot %s", m.Name)
	defer func() { step.EndWith(st.Address, err) }()
	defer func() {
		if err != nil {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
			defer cancel()
			err = errors.Join(err, d.undo(cleanup, m))
		}
	}()
	b, n, err := d.register(ctx, m)
	if err != nil {
		return provision.Status{}, err
	}
	if err := d.start(ctx, b, &n, m); err != nil {
		return provision.Status{}, fmt.Errorf("boot node %s: %w", m.Name, err)
	}
	n.Ready = true
	if err := d.writeNode(b.Owner.Bed, m.Name, n); err != nil {
		return provision.Status{}, err
	}
	return d.status(b.Owner.Bed, m.Name), nil
}

// undo removes what a failed Create made; never what is another's, who may have been quicker by the same name.
func (d *Driver) undo(ctx context.Context, m provision.Machine) error {
	if b, err := d.readBed(m.Owner.Bed); err == nil && b.Owner != m.Owner {
		return nil
	}
	if err := d.Delete(ctx, m.Name); err != nil {
		return err
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if len(d.beds()) == 0 {
		d.restoreHost()
	}
	return nil
}

// errDiffers says that there is no such machine, or one that must be made anew.
var errDiffers = errors.New("the machine is not as asked for")

// adopt returns the machine if it stands exactly as asked for. A machine of another state is a *provision.ForeignError; when the
// context ends, nothing was decided.
func (d *Driver) adopt(ctx context.Context, m provision.Machine) (provision.Status, error) {
	if b, err := d.readBed(m.Owner.Bed); err == nil && !b.Owner.Same(m.Owner) {
		return provision.Status{}, &provision.ForeignError{Have: b.Owner, Want: m.Owner}
	}
	st, err := d.Read(ctx, m.Name)
	if err != nil || st.Owner != m.Owner || st.State != provision.Running || st.Digest != m.Digest() {
		return st, errDiffers
	}
	waiting, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	if remote.Await(waiting, target(st)) != nil {
		if ctx.Err() != nil {
			return st, context.Cause(ctx)
		}
		return st, errDiffers
	}
	if !st.Expires.Equal(m.Expires) {
		n, err := d.readNode(m.Owner.Bed, m.Name)
		if err != nil {
			return st, err
		}
		n.Expires, st.Expires = m.Expires, m.Expires
		return st, d.writeNode(m.Owner.Bed, m.Name, n)
	}
	return st, nil
}

func target(st provision.Status) remote.Target {
	return remote.Target{Name: st.Name, Address: st.Address, Port: st.Port, HostKey: st.HostPublicKey}
}

// register writes the bed and the node down and makes the bed's network, one caller at a time.
func (d *Driver) register(ctx context.Context, m provision.Machine) (bedRecord, nodeRecord, error) {
	unlock, err := d.lock()
	if err != nil {
		return bedRecord{}, nodeRecord{}, err
	}
	defer unlock()
	if err := d.noteHost(); err != nil {
		return bedRecord{}, nodeRecord{}, err
	}
	bedName := m.Owner.Bed
	b, err := d.readBed(bedName)
	switch {
	case err == nil && !b.Owner.Same(m.Owner):
		return b, nodeRecord{}, &provision.ForeignError{Have: b.Owner, Want: m.Owner}
	case err == nil && b.Owner == m.Owner && b.Network == m.Network:
	default: // none, a torn one, or one of an earlier life, whose state was lost
		for _, node := range d.nodes(bedName) {
			if err := d.removeNode(ctx, bedName, node); err != nil {
				return b, nodeRecord{}, err
			}
		}
		if err := d.removeBed(ctx, bedName); err != nil {
			return b, nodeRecord{}, err
		}
		subnet, err := freeSubnet(ctx, bedName, d.taken(bedName))
		if err != nil {
			return b, nodeRecord{}, err
		}
		b = bedRecord{Owner: m.Owner, Subnet: subnet, Network: m.Network}
		if err := os.MkdirAll(d.bedDir(bedName), 0o700); err != nil {
			return b, nodeRecord{}, err
		}
		if err := writeJSON(filepath.Join(d.bedDir(bedName), "bed.json"), b); err != nil {
			return b, nodeRecord{}, err
		}
	}
	if err := d.removeNode(ctx, bedName, m.Name); err != nil {
		return b, nodeRecord{}, err
	}
	n := nodeRecord{
		Owner: m.Owner, Index: m.Index, Digest: m.Digest(), Address: address(b.Subnet, nodeOffset+m.Index),
		HostPublicKey: m.HostPublicKey, Incarnation: rand.Text(), Expires: m.Expires,
	}
	n.HostCPUs = d.allotCPUs(m)
	dir := d.nodeDir(bedName, m.Name)
	for _, sub := range []string{"upper", "work", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return b, n, err
		}
	}
	if err := d.writeNode(bedName, m.Name, n); err != nil {
		return b, n, err
	}
	return b, n, makeBedNetwork(ctx, b)
}

// start mounts, links and boots a registered node and waits for its sshd.
func (d *Driver) start(ctx context.Context, b bedRecord, n *nodeRecord, m provision.Machine) error {
	bedName, dir := b.Owner.Bed, d.nodeDir(b.Owner.Bed, m.Name)
	root := filepath.Join(dir, "root")
	if err := syscall.Mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", m.Image, dir, dir)); err != nil {
		return fmt.Errorf("mount an overlay of %s on %s: %w (is the image whole? `bed image verify` tells; overlays do not stack on every file system)", m.Image, root, err)
	}
	var info syscall.Stat_t
	if err := syscall.Stat(root, &info); err != nil {
		return err
	}
	n.RootInode = fmt.Sprintf("inode-%d:%d", info.Dev, info.Ino)
	if err := d.writeNode(bedName, m.Name, *n); err != nil {
		return err
	}
	if err := personalise(root, m); err != nil {
		return err
	}
	if err := makeNodeNetwork(ctx, b, m.Name, m.Index); err != nil {
		return err
	}
	argv, err := d.groups.launch(bedName, m.Name, limits{cpus: m.CPUs, pinned: formatCPUs(n.HostCPUs), memory: m.Memory}, []string{
		// Started inside the node's network namespace, not given its path: with that option the node's /sys shows the host's
		// devices, and MPI libraries choose their network by what is there.
		"nsenter", "--net=" + filepath.Join(netnsDir, nodeNS(m.Name)),
		"systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--directory=" + root, "--machine=" + m.Name,
		"--capability=CAP_NET_ADMIN", "--console=read-only", "--link-journal=no", "--resolv-conf=off", "--timezone=off",
	})
	if err != nil {
		return err
	}
	return d.boot(ctx, m, *n, argv, filepath.Join(dir, "console.log"))
}

// boot runs the supervisor, which outlives this process, and waits until the node answers.
func (d *Driver) boot(ctx context.Context, m provision.Machine, n nodeRecord, argv []string, console string) error {
	log, err := os.OpenFile(console, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	timeout := d.bootTimeout
	if m.Slow {
		timeout *= 10
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("its sshd did not answer within %s", timeout))
	defer cancel()
	ctx, died := context.WithCancelCause(ctx)
	defer died(nil)
	cmd := exec.Command(argv[0], argv[1:]...) // not bound to ctx: it lives on
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start systemd-nspawn: %w", err)
	}
	go func() {
		err := cmd.Wait()
		died(fmt.Errorf("systemd-nspawn ended (%v) before the node answered", err))
	}()
	err = remote.Await(ctx, remote.Target{Name: m.Name, Address: n.Address.String(), Port: sshPort, HostKey: m.HostPublicKey})
	if err != nil {
		return fmt.Errorf("%w; the node was removed again. On a slow host try -c profile=slow. The end of its console:\n%s", err, tail(console, 15))
	}
	return nil
}

func tail(path string, lines int) string {
	data, _ := os.ReadFile(path)
	all := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(data), "\r", "")), "\n")
	return "    " + strings.Join(all[max(0, len(all)-lines):], "\n    ")
}

// personalise writes what tells this node from its siblings into its root: name, keys, an empty machine id to be filled at boot.
func personalise(root string, m provision.Machine) error {
	host, err := os.OpenRoot(root) // no link inside the tree leads out of it
	if err != nil {
		return err
	}
	defer host.Close()
	home := filepath.Join("home", m.User)
	files := []struct {
		path, text string
		mode       fs.FileMode
		user       int
	}{
		{"etc/hostname", m.Name + "\n", 0o644, 0},
		{"etc/machine-id", "", 0o444, 0},
		{"etc/ssh/ssh_host_ed25519_key", m.HostKey, 0o600, 0},
		{"etc/ssh/ssh_host_ed25519_key.pub", m.HostPublicKey + "\n", 0o644, 0},
		{filepath.Join(home, ".ssh/authorized_keys"), m.AuthorizedKey + "\n", 0o600, userID},
	}
	if _, err := host.Stat(home); err != nil {
		return fmt.Errorf("the image has no home for user %s: %w (bake it with the role base)", m.User, err)
	}
	if err := host.MkdirAll(filepath.Join(home, ".ssh"), 0o700); err != nil {
		return err
	}
	if err := host.Chown(filepath.Join(home, ".ssh"), userID, userID); err != nil {
		return err
	}
	for _, f := range files {
		if err := errors.Join(host.WriteFile(f.path, []byte(f.text), f.mode), host.Chmod(f.path, f.mode), host.Chown(f.path, f.user, f.user)); err != nil {
			return fmt.Errorf("write %s of node %s: %w", f.path, m.Name, err)
		}
	}
	return nil
}

// Read tells how the node is.
func (d *Driver) Read(_ context.Context, name string) (provision.Status, error) {
	bedName, ok := d.bedOf(name)
	if !ok {
		return provision.Status{}, fmt.Errorf("node %s: %w", name, provision.ErrNotFound)
	}
	return d.status(bedName, name), nil
}

func (d *Driver) status(bedName, name string) provision.Status {
	st := provision.Status{Name: name, Port: sshPort, State: provision.Running}
	b, err := d.readBed(bedName)
	if err != nil {
		st.Owner.Bed, st.State, st.Detail = bedName, provision.Broken, err.Error()
		return st
	}
	st.Owner = b.Owner
	n, err := d.readNode(bedName, name)
	if err != nil {
		st.State, st.Detail = provision.Broken, err.Error()
		return st
	}
	st.Owner, st.Digest, st.HostPublicKey, st.Incarnation, st.Expires = n.Owner, n.Digest, n.HostPublicKey, n.Incarnation, n.Expires
	st.HostCPUs, st.Oversubscribed = formatCPUs(n.HostCPUs), d.shared(n.HostCPUs)
	if n.Address != (netip.Addr{}) {
		st.Address = n.Address.String()
		st.BedAddress = st.Address
	}
	pids := d.groups.pids(bedName, name)
	switch {
	case len(pids) == 0:
		st.State, st.Detail = provision.Stopped, "none of its processes is there"
	case !hasSupervisor(pids):
		st.State, st.Detail = provision.Broken, fmt.Sprintf("its systemd-nspawn was killed; %d processes are left", len(pids))
	case !n.Ready:
		st.State, st.Detail = provision.Broken, "half made"
	}
	return st
}

func hasSupervisor(pids []int) bool {
	for _, pid := range pids {
		if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && strings.TrimSpace(string(name)) == "systemd-nspawn" {
			return true
		}
	}
	return false
}

// Update makes the node anew when it is no longer as asked for; a container boots faster than it could be changed.
func (d *Driver) Update(ctx context.Context, m provision.Machine) (provision.Status, error) {
	return d.Create(ctx, m)
}

// List shows the nodes of all beds, or of one.
func (d *Driver) List(_ context.Context, owner string) ([]provision.Status, error) {
	var all []provision.Status
	for _, b := range d.beds() {
		if owner != "" && owner != b {
			continue
		}
		for _, n := range d.nodes(b) {
			all = append(all, d.status(b, n))
		}
	}
	return all, nil
}
