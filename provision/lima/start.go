package lima

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
)

// launchTimeout bounds the part of a start that holds the bed's lock: the network, the cloud-init disk, QEMU.
const launchTimeout = 2 * time.Minute

// register makes the bed's LIMA_HOME and writes the bed and the node down. What there was of the node is removed.
func (d *Driver) register(ctx context.Context, h host, m provision.Machine) (home string, n nodeRecord, err error) {
	home = d.home(m.Owner.Bed)
	if p := tooLong(d.root, m); p != nil {
		return home, n, bed.Problems{*p}
	}
	size, err := diskSize(m)
	if err != nil {
		return home, n, err
	}
	unlock, err := d.makeHome(ctx, m.Owner.Bed, h.account)
	if err != nil {
		return home, n, err
	}
	defer unlock()
	b, err := readBed(home)
	if err == nil && !b.Owner.Same(m.Owner) {
		return home, n, &provision.ForeignError{Have: b.Owner, Want: m.Owner}
	}
	if _, errRecord := os.Stat(own(home, m.Name+".json")); errRecord != nil {
		if _, err := os.Lstat(instance(home, m.Name)); err == nil {
			return home, n, fmt.Errorf("node %s: there is a Lima instance of that name at %s that bedfellow did not make; it was not touched. "+
				"Remove it with `%s`, or give the bed another name with -c name=…", m.Name, instance(home, m.Name), h.byHand(home, "delete", m.Name))
		}
	}
	if err != nil || b.Owner != m.Owner { // none, a torn one, or one of an earlier life, whose state was lost
		for _, node := range nodes(home) {
			if err := removeNode(ctx, home, node); err != nil {
				return home, n, err
			}
		}
		if err := writeJSON(own(home, "bed.json"), bedRecord{Owner: m.Owner}); err != nil {
			return home, n, err
		}
	}
	if err := removeNode(ctx, home, m.Name); err != nil {
		return home, n, err
	}
	n = nodeRecord{
		Owner: m.Owner, Index: m.Index, Digest: m.Digest(), Frame: frame(m), CPUs: m.CPUs, Memory: m.Memory, Disk: size,
		BedAddress: bedAddress(m.Index), HostPublicKey: m.HostPublicKey, Incarnation: rand.Text(), Expires: m.Expires,
	}
	return home, n, writeNode(home, m.Name, n)
}

// frame is the digest of all that a machine cannot change without being made anew. Whether it is slow is found out anew every time.
func frame(m provision.Machine) string {
	m.CPUs, m.Memory, m.Disk, m.Slow = 0, 0, 0, false
	return m.Digest()
}

// diskSize is the size of the machine's disk: as asked for, never below the image's.
func diskSize(m provision.Machine) (bed.Size, error) {
	least, err := imageSize(m.Image)
	if err != nil {
		return 0, err
	}
	if m.Disk == 0 {
		return max(defaultDisk, least), nil
	}
	if m.Disk < least {
		return 0, fmt.Errorf("node %s: a disk of %s is too small for the image, whose disk has %s", m.Name, m.Disk, least)
	}
	return m.Disk, nil
}

// imageSize is how large an image's disk is for a guest, in whole MiB.
func imageSize(image string) (bed.Size, error) {
	d, err := readDisk(filepath.Join(image, bed.DiskFile))
	if err != nil {
		return 0, fmt.Errorf("the image: %w; `bed image verify` tells whether it is whole", err)
	}
	return (d.size + bed.MiB - 1) / bed.MiB * bed.MiB, nil
}

// disk is what the header of a qcow2 file says. https://www.qemu.org/docs/master/interop/qcow2.html
type disk struct {
	size bed.Size // for a guest
	base string   // what it is an overlay on, or empty
}

func readDisk(path string) (disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return disk{}, err
	}
	defer f.Close()
	header := make([]byte, 32)
	if _, err := f.ReadAt(header, 0); err != nil || string(header[:4]) != "QFI\xfb" {
		return disk{}, fmt.Errorf("%s is no qcow2 disk (%v)", path, err)
	}
	base := make([]byte, min(binary.BigEndian.Uint32(header[16:]), 1023))
	if _, err := f.ReadAt(base, int64(binary.BigEndian.Uint64(header[8:]))); err != nil {
		return disk{}, fmt.Errorf("read of %s what it is an overlay on: %w", path, err)
	}
	return disk{bed.Size(binary.BigEndian.Uint64(header[24:])), string(base)}, nil
}

// Over names the nodes, running or not, whose disk is an overlay on the one at path: they are lost with it.
func (d *Driver) Over(path string) (over []string) {
	for _, b := range d.beds() {
		for _, n := range subdirectories(d.home(b)) {
			if own, err := readDisk(filepath.Join(instance(d.home(b), n), "disk")); err == nil && sameFile(own.base, path) {
				over = append(over, n)
			}
		}
	}
	return over
}

func sameFile(a, b string) bool {
	one, errOne := os.Stat(a)
	other, errOther := os.Stat(b)
	return errOne == nil && errOther == nil && os.SameFile(one, other)
}

// cmdlineFile of an instance is what QEMU gets, whatever lima.yaml says once there is a disk.
const cmdlineFile = "kernel.cmdline"

// assemble puts the instance together beside those there are, and moves it among them when it is whole: Lima never sees half of one.
// The disk is an overlay on the image's, placed here because Lima itself would copy the image, at `create` already, and takes no
// overlay for one.
func (d *Driver) assemble(ctx context.Context, h host, home string, n nodeRecord, m provision.Machine) error {
	text, err := render(m, n.Disk, limaKey(home))
	if err != nil {
		return err
	}
	dir := own(home, m.Name+".new")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	files := map[string][]byte{"lima.yaml": text, "lima-version": []byte(h.version)}
	links := map[string]string{}
	if usesQEMU() {
		overlay := filepath.Join(dir, "disk")
		cmd := h.command(home, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", filepath.Join(m.Image, bed.DiskFile),
			overlay, strconv.FormatInt(int64(n.Disk), 10))
		cmd.SysProcAttr.Credential = nil // the directory is not the account's yet
		if _, err := run(ctx, cmd); err != nil {
			return fmt.Errorf("make the disk of node %s: %w", m.Name, err)
		}
		if cmdline, ok := direct(m); ok {
			files[cmdlineFile] = []byte(cmdline)
			links["kernel"], links["initrd"] = filepath.Join(m.Image, bed.KernelFile), filepath.Join(m.Image, bed.InitrdFile)
		}
		if err := h.account.own(overlay); err != nil {
			return err
		}
	}
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.WriteFile(path, data, 0o600), h.account.own(path)); err != nil {
			return err
		}
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := h.account.own(dir); err != nil {
		return err
	}
	return os.Rename(dir, instance(home, m.Name))
}

// boot starts the instance and waits until the machine answers with the pinned host key. What runs then outlives this process.
func (d *Driver) boot(ctx context.Context, step *progress.Step, h host, home string, m provision.Machine) error {
	timeout := cmp.Or(d.bootTimeout, h.accel.bootTimeout())
	if m.Slow && h.accel.KVM { // an emulated machine is slow in any case, and has its time
		timeout *= 3
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it was not up within %s", timeout))
	defer cancel()
	said := own(home, m.Name+".log")
	err := d.launch(ctx, step, h, home, m, said, timeout)
	if err == nil {
		step.Update("waiting for its sshd")
		err = await(ctx, home, m)
	}
	if err == nil {
		return nil
	}
	dir := instance(home, m.Name)
	next := "`bed doctor --driver lima` looks at the host"
	if !m.Slow {
		next = "-c profile=slow on a slow host; " + next
	}
	return fmt.Errorf("boot node %s: %w\n  limactl said:\n%s\n  the end of ha.stderr.log:\n%s\n  the end of its console:\n%s\n"+
		"  Next: %s", m.Name, err, tail(said, 5), tail(filepath.Join(dir, "ha.stderr.log"), 8), tail(newest(filepath.Join(dir, "serial*.log")), 15), next)
}

// await waits for the machine's sshd, at the port that Lima chose for this boot.
func await(ctx context.Context, home string, m provision.Machine) error {
	return remote.Await(ctx, remote.Target{Name: m.Name, Address: hostAddress, Port: sshPort(home, m.Name), HostKey: m.HostPublicKey})
}

// launch runs `limactl start` to its end, or for some time longer than it takes the machine to answer: what Lima waits for then, a kernel that
// panicked and started again may have taken with it. Starts of a bed begin one after the other: until QEMU runs, they share the network, which two
// start.
func (d *Driver) launch(ctx context.Context, step *progress.Step, h host, home string, m provision.Machine, said string, timeout time.Duration) error {
	node := m.Name
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	unlock, err := lock(ctx, home)
	if err != nil {
		return err
	}
	locked := true
	release := func() {
		if locked {
			unlock()
			locked = false
		}
	}
	defer release()
	forgetDead(home, node)
	log, err := os.OpenFile(said, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := h.command(home, h.limactl, "start", "--tty=false", "--timeout="+timeout.String(), node)
	cmd.Env = append(cmd.Env, "TMPDIR="+filepath.Join(home, tempDir),
		// In minutes: for the guest to ask for an address, which Lima gives it two for.
		fmt.Sprintf("LIMA_USERNET_RESOLVE_IP_ADDRESS_TIMEOUT=%d", int(timeout/time.Minute)+1))
	cmd.Stdout, cmd.Stderr = log, log // a file: limactl outlives us if we are killed, and must not die of a broken pipe
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start limactl: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	launched := time.NewTimer(launchTimeout)
	defer launched.Stop()
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	tell := time.NewTicker(time.Second)
	defer tell.Stop()
	told := ""
	grace := cmp.Or(d.grace, h.accel.grace())
	answers := make(chan error, 1)
	var enough <-chan time.Time
	for {
		select {
		case err := <-ended:
			return judge(ctx, err, home, node, said)
		case <-tell.C:
			if now := message(said); now != "" && now != told {
				step.Update("%s", now)
				told = now
			}
		case <-ctx.Done():
			killGroup(cmd)
			<-ended
			return context.Cause(ctx)
		case <-launched.C:
			if locked {
				killGroup(cmd)
				<-ended
				return fmt.Errorf("limactl did not start the machine within %s", launchTimeout)
			}
		case <-tick.C:
			if locked && look(home, node) == (roles{true, true, true}) {
				release()
				tick.Stop()
				go func() { answers <- await(ctx, home, m) }()
			}
		case err := <-answers:
			if err == nil {
				if deadline, ok := ctx.Deadline(); ok { // a machine that answers is not given up
					grace = min(grace, time.Until(deadline)*3/4)
				}
				enough = time.After(grace)
			}
		case <-enough:
			_ = cmd.Process.Kill() // limactl alone: its hostagent and the machine have groups of their own
			<-ended
			progress.Note(ctx, "node %s answers, and for %s Lima has waited for something else of it: %s. Lima is not waited for any more; %s tells more",
				node, grace.Round(time.Millisecond), message(said), filepath.Join(instance(home, node), "ha.stderr.log"))
			return nil
		}
	}
}

// message is what limactl logged last, without level and time; empty where that is no message.
func message(said string) string {
	data, _ := os.ReadFile(said)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	_, quoted, _ := strings.Cut(lines[len(lines)-1], " msg=")
	prefix, err := strconv.QuotedPrefix(quoted)
	if err != nil { // a word alone is not quoted
		return quoted
	}
	msg, _ := strconv.Unquote(prefix)
	return strings.TrimPrefix(msg, "[hostagent] ")
}

// judge tells what the end of `limactl start` means. A machine that Lima calls degraded runs and lacks what Lima wanted of it; whether
// that is enough, its sshd says.
func judge(ctx context.Context, err error, home, node, said string) error {
	if err == nil {
		return nil
	}
	data, _ := os.ReadFile(said)
	if strings.Contains(strings.ToLower(string(data)), "degraded") && look(home, node) == (roles{true, true, true}) {
		progress.Note(ctx, "node %s runs, and lacks what Lima wanted of it:\n%s", node, tail(said, 3))
		return nil
	}
	return fmt.Errorf("`limactl start %s`: %w", node, err)
}

// sshPort is where Lima forwards to the machine's sshd; 0 before its first start.
func sshPort(home, node string) int {
	data, _ := os.ReadFile(filepath.Join(instance(home, node), "ssh.config"))
	for _, line := range strings.Split(string(data), "\n") {
		if port, ok := strings.CutPrefix(strings.TrimSpace(line), "Port "); ok {
			n, _ := strconv.Atoi(port)
			return n
		}
	}
	return 0
}

// newest is the file that was written last, of those that are not empty.
func newest(pattern string) string {
	files, _ := filepath.Glob(pattern)
	var path string
	var when time.Time
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && info.Size() > 0 && info.ModTime().After(when) {
			path, when = f, info.ModTime()
		}
	}
	return path
}

const longestLine = 300 // in an error; Lima logs whole scripts

// tail is the end of a log, indented.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) || len(data) == 0 {
		return "    (nothing)"
	}
	all := strings.Split(strings.TrimSpace(strings.ReplaceAll(string(data), "\r", "")), "\n")
	all = all[max(0, len(all)-lines):]
	for i, line := range all {
		if len(line) > longestLine {
			all[i] = line[:longestLine] + "…"
		}
	}
	return "    " + strings.Join(all, "\n    ")
}
