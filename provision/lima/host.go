package lima

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Account is the system user that runs Lima where the caller is root, which Lima refuses.
const Account = "bedfellow"

const (
	minimumMajor   = 2
	versionTimeout = 10 * time.Second
)

// account is who Lima's commands run as; nil is the caller.
type account struct {
	name, home string
	uid, gid   uint32
	groups     []uint32
}

// lookupAccount finds the named user; nil when the caller is not root.
func lookupAccount(name string) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	a := &account{name: name, home: u.HomeDir}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	numbers := make([]uint32, len(ids)+2)
	for i, id := range append([]string{u.Uid, u.Gid}, ids...) {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		numbers[i] = uint32(n)
	}
	a.uid, a.gid, a.groups = numbers[0], numbers[1], numbers[2:]
	return a, nil
}

// own gives paths to the account.
func (a *account) own(paths ...string) error {
	if a == nil {
		return nil
	}
	var errs []error
	for _, path := range paths {
		errs = append(errs, os.Lchown(path, int(a.uid), int(a.gid)))
	}
	return errors.Join(errs...)
}

// String names the account for messages.
func (a *account) String() string {
	if a == nil {
		return "you"
	}
	return "user " + a.name
}

// host is what a machine is made with: Lima, QEMU, and who runs them.
type host struct {
	account *account
	limactl string // its path
	version string
	accel   accel
}

// command is a command of Lima's in a bed. Nothing of our own environment goes with it: the processes it leaves are the bed's and
// outlive this one, and who clears up after us must not take them for ours. It is alone in its process group.
func (h host) command(home, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = home
	cmd.Env = append(h.account.environment(h.limactl), "LIMA_HOME="+home)
	cmd.Env = append(cmd.Env, h.accel.environment()...)
	cmd.SysProcAttr = h.account.attributes()
	return cmd
}

// byHand is what a person types to run limactl in a LIMA_HOME.
func (h host) byHand(home string, args ...string) string {
	words := append([]string{"LIMA_HOME=" + home, h.limactl}, args...)
	if h.account != nil {
		words = append([]string{"sudo", "-u", h.account.name}, words...)
	}
	return strings.Join(words, " ")
}

// Limactl runs limactl in a LIMA_HOME to its end, as the driver runs it: as the account that Lima runs as, and with the acceleration that
// the host has. It returns what was printed. The error holds what limactl complained of, or says what this host lacks.
func (d *Driver) Limactl(ctx context.Context, home string, args ...string) (string, error) {
	h, err := d.openHost(ctx)
	if err != nil {
		return "", err
	}
	return run(ctx, h.command(home, h.limactl, append([]string{"--tty=false"}, args...)...))
}

// Own gives paths to the account that Lima runs as, which is the caller unless that is root.
func (d *Driver) Own(paths ...string) error {
	a, err := lookupAccount(d.account)
	if err != nil {
		return err
	}
	return a.own(paths...)
}

// environment is that of a user who has just logged in, and finds what lies beside the command.
func (a *account) environment(command string) []string {
	var dirs []string
	if filepath.IsAbs(command) {
		dirs = append(dirs, filepath.Dir(command))
	}
	dirs = append(dirs, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin", "/opt/homebrew/bin")
	env := []string{"PATH=" + strings.Join(dirs, ":"), "LANG=C.UTF-8"}
	if a == nil {
		home, _ := os.UserHomeDir()
		return append(env, "HOME="+home, "USER="+os.Getenv("USER"))
	}
	return append(env, "HOME="+a.home, "USER="+a.name, "LOGNAME="+a.name)
}

func (a *account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a != nil {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
	}
	return attr
}

// run runs a command to its end, or kills its process group when the context is over. The error holds what the command said.
func run(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("`%s`: %w", strings.Join(cmd.Args, " "), err)
	}
	stop := context.AfterFunc(ctx, func() { killGroup(cmd) })
	err := cmd.Wait()
	if !stop() && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return out.String(), fmt.Errorf("`%s`: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

func killGroup(cmd *exec.Cmd) { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }

// SystemLimactl is where `make tools` puts limactl as root, beside the default root of beds: the user that Lima runs as need not be
// able to enter the checkout.
const SystemLimactl = "/var/lib/bedfellow/bin/limactl"

// findLimactl looks beside this executable, where `make tools` puts it as root, and on the PATH: what was built for us goes before what
// the host has. As root, one that others may not run counts only when there is no other.
func findLimactl(root string) (string, error) {
	var candidates, found []string
	if self, err := os.Executable(); err == nil {
		candidates = append(candidates, filepath.Join(filepath.Dir(self), "limactl"))
	}
	var last error
	for _, name := range append(candidates, filepath.Join(filepath.Dir(root), "bin/limactl"), "limactl") {
		path, err := exec.LookPath(name)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err == nil {
			found = append(found, path)
		}
		last = err
	}
	if len(found) == 0 {
		return "", last
	}
	for _, path := range found {
		if os.Geteuid() != 0 || othersMayRun(path) {
			return path, nil
		}
	}
	return found[0], nil
}

// othersMayRun tells whether a user who owns nothing on the way to a program, and is in no group of it, may run it.
func othersMayRun(path string) bool {
	path = resolved(path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o005 != 0o005 {
		return false
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm()&0o001 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// limaVersion asks limactl itself, as whom it will run, in the directory where it will work.
func limaVersion(ctx context.Context, limactl string, a *account, dir string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, versionTimeout, fmt.Errorf("no answer within %s", versionTimeout))
	defer cancel()
	h := host{account: a, limactl: limactl}
	out, err := run(ctx, h.command(dir, limactl, "--version"))
	if err != nil {
		return "", err
	}
	fields := strings.Fields(out)
	if len(fields) == 0 {
		return "", fmt.Errorf("`limactl --version` said nothing")
	}
	return strings.TrimPrefix(fields[len(fields)-1], "v"), nil
}

func tooOld(version string) bool {
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	return err == nil && n < minimumMajor // a version that is no number is a build of one's own
}

// openHost finds what machines are made with. It is asked for once per driver; an error is not remembered.
func (d *Driver) openHost(ctx context.Context) (host, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.host != nil {
		return *d.host, nil
	}
	a, err := lookupAccount(d.account)
	if err != nil {
		return host{}, fmt.Errorf("lima cannot run as root, and the user to run it as is not there: %w (`make tools` makes it)", err)
	}
	limactl, err := findLimactl(d.root)
	if err != nil {
		return host{}, fmt.Errorf("%w (`make tools DRIVER=lima` builds it; `bed doctor --driver lima` says what else is missing)", err)
	}
	version, err := limaVersion(ctx, limactl, a, "/")
	if err != nil {
		return host{}, err
	}
	if tooOld(version) {
		return host{}, fmt.Errorf("limactl %s at %s is too old: %d.0 or newer is needed (`make tools DRIVER=lima` builds one)", version, limactl, minimumMajor)
	}
	h := host{account: a, limactl: limactl, version: version, accel: d.probe(ctx, a)}
	if ctx.Err() != nil { // what the probe found is not to be relied on
		return h, context.Cause(ctx)
	}
	d.host = &h
	return h, nil
}

// limaArch is Lima's and QEMU's name of this host's architecture.
func limaArch() string {
	names := map[string]string{"amd64": "x86_64", "arm64": "aarch64", "riscv64": "riscv64", "s390x": "s390x", "ppc64le": "ppc64le"}
	return names[runtime.GOARCH]
}

func qemuCommand() string {
	return "qemu-system-" + strings.TrimSuffix(limaArch(), "le")
}

// usesQEMU tells whether QEMU runs the machines; on macOS Apple's virtualisation framework does.
func usesQEMU() bool { return runtime.GOOS != "darwin" }

// commands are what Lima needs beside itself, with the Debian packages they come from.
func commands() map[string]string {
	need := map[string]string{"ssh": "openssh-client", "ssh-keygen": "openssh-client"}
	if usesQEMU() {
		need["qemu-img"] = "qemu-utils"
		need[qemuCommand()] = map[string]string{"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}[limaArch()]
		if need[qemuCommand()] == "" {
			need[qemuCommand()] = "qemu-system-misc"
		}
	}
	return need
}
