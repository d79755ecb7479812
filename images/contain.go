package images

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bedfellow/bedfellow/pkg/proc"
)

// A bake mounts and spawns only inside namespaces of its own, which the kernel takes down whole when the bake dies, however it
// dies: the first process of the PID namespace dies with unshare, and unshare with the thread that started it.
func contained(script string, args ...string) []string {
	return append([]string{
		"unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "/bin/sh", "-euc", script, "sh",
	}, args...)
}

// contained is contained as this bake needs it: a replay has no network device but a loopback. That is up, for Open MPI's compilers
// refuse to work where there is no interface at all.
func (b *bakery) contained(script string, args ...string) []string {
	if b.replay == nil {
		return contained(script, args...)
	}
	return slices.Insert(contained("ip link set lo up; "+script, args...), 1, "--net")
}

// enterTree is a script that makes the tree $1 fit for programs in it, with $2 as its package cache, and then runs the rest of
// its arguments. Nothing in the tree can reach the host's devices or kernel settings but the usual few.
const enterTree = `
tree=$1 debs=$2; shift 2
mount -t proc -o nosuid,nodev,noexec proc "$tree/proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$tree/sys"
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs "$tree/run"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$tree/tmp"
mount -t tmpfs -o nosuid,mode=755 tmpfs "$tree/dev"
for d in null zero full random urandom tty; do : >"$tree/dev/$d"; mount --bind "/dev/$d" "$tree/dev/$d"; done
mkdir "$tree/dev/pts" "$tree/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$tree/dev/pts"
ln -s pts/ptmx "$tree/dev/ptmx"; ln -s /proc/self/fd "$tree/dev/fd"
mount -t tmpfs -o nosuid,nodev,mode=1777 tmpfs "$tree/dev/shm"
mount --bind "$debs" "$tree/var/cache/apt/archives"
cat /etc/resolv.conf >"$tree/run/resolv.conf"
rm -f "$tree/etc/resolv.conf"; ln -s /run/resolv.conf "$tree/etc/resolv.conf"
exec "$@"
`

// run runs a command that holds the bake's lock, and returns its output. Its environment is small and the same everywhere.
func (b *bakery) run(ctx context.Context, argv []string) (string, error) {
	return b.runWith(ctx, environment(), argv)
}

func (b *bakery) runWith(ctx context.Context, env, argv []string) (string, error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out bytes.Buffer
	said := &lastBytes{limit: 64 << 10}
	cmd.Stdout, cmd.Stderr = &out, said
	cmd.Env = env
	cmd.ExtraFiles = []*os.File{b.lock.File}
	cmd.SysProcAttr = proc.DieWithParent(&syscall.SysProcAttr{})
	cmd.WaitDelay = 5 * time.Second
	errc := make(chan error)
	go func() {
		// The parent-death signal is tied to the thread.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		errc <- cmd.Run()
	}()
	err := <-errc
	if ctx.Err() != nil {
		return "", fmt.Errorf("interrupted: %w", context.Cause(ctx))
	}
	if err != nil {
		return "", &commandError{argv: argv, said: said.String(), err: err}
	}
	return out.String(), nil
}

// environment is what programs of a bake get: a UTF-8 locale, no questions, the way out that the caller has, and the mark by
// which the next command finds what a killed one left.
func environment() []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "LC_ALL=C.UTF-8",
		"TMPDIR=/tmp", "DEBIAN_FRONTEND=noninteractive", "PYTHONDONTWRITEBYTECODE=1", "PYTHONHASHSEED=0",
	}
	if mark := os.Getenv("BEDFELLOW_MARK"); mark != "" {
		env = append(env, "BEDFELLOW_MARK="+mark)
	}
	if path := os.Getenv("PATH"); path != "" {
		env[0] = "PATH=" + path
	}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); slices.Contains([]string{"http_proxy", "https_proxy", "no_proxy"}, strings.ToLower(name)) {
			env = append(env, v)
		}
	}
	return env
}

// commandError is a command that failed, with the end of what it said.
type commandError struct {
	argv []string
	said string
	err  error
}

func (e *commandError) Error() string {
	lines := strings.Split(strings.TrimSpace(e.said), "\n")
	if len(lines) > 20 {
		lines = lines[len(lines)-20:]
	}
	return fmt.Sprintf("%s: %v; it said:\n%s", e.program(), e.err, strings.Join(lines, "\n"))
}

func (e *commandError) Unwrap() error { return e.err }

// program is the command's name without what contains it.
func (e *commandError) program() string {
	for _, name := range []string{"mmdebstrap", "apt-get", "dpkg-query", "chroot", "cp", "tar", "go"} {
		if slices.Contains(e.argv, name) {
			return name
		}
	}
	return e.argv[0]
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	limit int
	buf   []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.buf = append(l.buf, p...)
	if over := len(l.buf) - l.limit; over > 0 {
		l.buf = append(l.buf[:0], l.buf[over:]...)
	}
	return len(p), nil
}

func (l *lastBytes) String() string { return string(l.buf) }
