package lima_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/drivertest"
	"github.com/bedfellow/bedfellow/provision/lima"
)

func TestMain(m *testing.M) {
	self, _ := os.Executable()
	if fake, ok := fakes()[filepath.Base(self)]; ok {
		if err := fake(os.Args[1:]); err != nil {
			say("fatal", "%s", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func itoa(n int) string { return strconv.Itoa(n) }

// fakeHost is a host on which all commands are fakes.
type fakeHost struct {
	bin, root, image string
}

func newFakeHost(t *testing.T) fakeHost {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		hosttest.Lacks(t, "what the fake is for: Linux on amd64")
	}
	dir := shortRoot(t)
	h := fakeHost{bin: filepath.Join(dir, "bin"), root: filepath.Join(dir, "beds"), image: filepath.Join(dir, "image")}
	for _, sub := range []string{h.bin, h.root, h.image} {
		require.NoError(t, os.Mkdir(sub, 0o755))
	}
	require.NoError(t, link(h.bin))
	for name, data := range map[string][]byte{
		bed.DiskFile: qcow2(3<<30, ""), bed.KernelFile: []byte("kernel"), bed.InitrdFile: []byte("initrd"), bed.CmdlineFile: []byte("console=ttyS0"),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(h.image, name), data, 0o644))
	}
	t.Setenv("PATH", h.bin+":"+os.Getenv("PATH"))
	t.Cleanup(func() { // whatever a failed test has left
		for _, pid := range lima.Processes(filepath.Join(h.root, "conf"), "") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return h
}

// open returns a driver; for root, Lima is nobody.
func (h fakeHost) open(*testing.T) provision.Driver { return h.driver() }

func (h fakeHost) driver() *lima.Driver {
	d := lima.New(h.root)
	d.SetAccount("nobody")
	d.SetBootTimeout(20 * time.Second)
	return d
}

func (h fakeHost) home() string { return filepath.Join(h.root, "conf") }

func (h fakeHost) machine(t *testing.T, i int) provision.Machine {
	private, public := drivertest.Key(t)
	_, user := drivertest.Key(t)
	owner := provision.Owner{Bed: "conf", ID: "1", State: "file:///faults"}
	return provision.Machine{
		Name: bed.NodeName("conf", i), Owner: owner, Index: i, Role: bed.Compute, CPUs: 1, Memory: 512 * bed.MiB, Image: h.image,
		ImageDigest: "sha256:fake", Network: "isolated", User: "bed", AuthorizedKey: user, HostKey: private, HostPublicKey: public,
	}
}

// fault has the next starts of a node go wrong: once, unless times says otherwise.
func (h fakeHost) fault(t *testing.T, node, start string, times int) {
	data, err := json.Marshal(faults{node: {Start: start, Times: times}})
	require.NoError(t, err)
	file := filepath.Join(h.bin, "faults.json")
	require.NoError(t, os.WriteFile(file, data, 0o666))
	require.NoError(t, os.Chmod(file, 0o666))
}

// clean asserts that nothing of any bed is there.
func (h fakeHost) clean(t *testing.T) {
	t.Helper()
	assert.Empty(t, lima.Processes(h.home(), ""), "processes are left")
	assert.Empty(t, census(t, h.root))
}

func TestConformance(t *testing.T) {
	for _, victim := range []string{"qemu-system", "hostagent", "usernet"} {
		t.Run("killed "+victim, func(t *testing.T) {
			h := newFakeHost(t)
			drivertest.Suite{
				Open: h.open, Image: h.image, ImageDigest: "sha256:fake", Bed: "conf", Timeout: time.Minute,
				Kill: func(t *testing.T, name string) {
					if victim == "usernet" {
						name = ""
					}
					killNamed(t, h.home(), name, victim)
				},
				Census: func(t *testing.T) []string { return census(t, h.root) },
			}.Run(t)
		})
	}
}

// A start that fails leaves nothing, and its error says where to look.
func TestFailedStart(t *testing.T) {
	for wrong, needles := range map[string][]string{
		"fail":    {"conf-01", "limactl start conf-01", "no space left on device", "bed doctor"},
		"timeout": {"conf-01", "running` status", "Booting the fake kernel", "profile=slow"},
		"deaf":    {"conf-01", "was not up within", "Booting the fake kernel"},
		"stuck":   {"conf-01", "running` status"},
		"hang":    {"conf-01", "was not up within"},
		"stolen":  {"conf-01", "shows the host key"},
	} {
		t.Run(wrong, func(t *testing.T) {
			h := newFakeHost(t)
			h.fault(t, "conf-01", wrong, 0)
			d := h.driver()
			d.SetBootTimeout(2 * time.Second)
			_, err := d.Create(t.Context(), h.machine(t, 0))
			for _, needle := range needles {
				assert.ErrorContains(t, err, needle)
			}
			h.clean(t)
		})
	}
}

// maker makes the machine that it reads, in a process of its own, to be killed.
func maker(args []string) error {
	var m provision.Machine
	if err := json.NewDecoder(os.Stdin).Decode(&m); err != nil {
		return err
	}
	_, err := fakeHost{root: args[0]}.driver().Create(context.Background(), m)
	return err
}

// What a maker leaves that is killed, the next one removes, or the sweep.
func TestKilledMaker(t *testing.T) {
	for name, mend := range map[string]func(*testing.T, *lima.Driver, provision.Machine){
		"create": func(t *testing.T, d *lima.Driver, m provision.Machine) {
			st, err := d.Create(t.Context(), m)
			require.NoError(t, err)
			assert.Equal(t, provision.Running, st.State)
			require.NoError(t, d.Delete(t.Context(), m.Name))
		},
		"sweep": func(t *testing.T, d *lima.Driver, m provision.Machine) {
			require.NoError(t, d.Sweep(t.Context(), m.Owner))
		},
	} {
		for _, wrong := range []string{"hang", "deaf"} { // before and after the machine's processes are there
			t.Run(name+" after "+wrong, func(t *testing.T) {
				h := newFakeHost(t)
				m := h.machine(t, 0)
				h.fault(t, m.Name, wrong, 1)
				data, err := json.Marshal(m)
				require.NoError(t, err)
				cmd := exec.Command(filepath.Join(h.bin, "maker"), h.root)
				cmd.Stdin = bytes.NewReader(data)
				require.NoError(t, cmd.Start())
				sign := map[string]string{"hang": "_bed/conf-01.log", "deaf": "conf-01/qemu.pid"}[wrong]
				assert.Eventually(t, func() bool {
					data, _ := os.ReadFile(filepath.Join(h.home(), sign))
					return len(data) > 0
				}, 10*time.Second, time.Millisecond)
				require.NoError(t, cmd.Process.Kill())
				_ = cmd.Wait()
				st, err := h.driver().Read(t.Context(), m.Name)
				require.NoError(t, err)
				assert.Equal(t, provision.Broken, st.State)
				assert.Equal(t, "half made", st.Detail)
				mend(t, h.driver(), m)
				h.clean(t)
			})
		}
	}
}

// Of an instance only lima.yaml is there, as a Lima that failed leaves it.
func TestHalfAnInstance(t *testing.T) {
	h := newFakeHost(t)
	m := h.machine(t, 0)
	_, err := h.driver().Create(t.Context(), m)
	require.NoError(t, err)
	for _, pid := range lima.Processes(h.home(), "") {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	files, err := os.ReadDir(filepath.Join(h.home(), m.Name))
	require.NoError(t, err)
	for _, f := range files {
		if f.Name() != "lima.yaml" {
			require.NoError(t, os.Remove(filepath.Join(h.home(), m.Name, f.Name())))
		}
	}
	st, err := h.driver().Create(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, provision.Running, st.State)
	require.NoError(t, h.driver().Delete(t.Context(), m.Name))
	h.clean(t)
}

// Machines that are started at once have one network and one key pair.
func TestOneNetwork(t *testing.T) {
	h := newFakeHost(t)
	require.NoError(t, os.WriteFile(filepath.Join(h.bin, "dawdle"), nil, 0o644))
	machines := make([]provision.Machine, 4)
	for i := range machines {
		machines[i] = h.machine(t, i)
	}
	require.NoError(t, remote.Each(t.Context(), machines, len(machines), func(ctx context.Context, _ int, m provision.Machine) error {
		_, err := h.driver().Create(ctx, m)
		return err
	}))
	networks := 0
	for _, pid := range lima.Processes(h.home(), "") {
		if data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); strings.Contains(string(data), "usernet\x00") {
			networks++
		}
	}
	assert.Equal(t, 1, networks)
	require.NoError(t, h.driver().Sweep(t.Context(), machines[0].Owner))
	h.clean(t)
}

// A machine that Lima calls degraded and that answers will do.
func TestDegraded(t *testing.T) {
	h := newFakeHost(t)
	h.fault(t, "conf-01", "degraded", 0)
	d := h.driver()
	var told []string
	st, err := d.Create(progress.With(t.Context(), func(e progress.Event) { told = append(told, string(e.Kind)+" "+e.Detail) }), h.machine(t, 0))
	require.NoError(t, err)
	assert.Equal(t, provision.Running, st.State)
	said := strings.Join(told, "\n")
	assert.Contains(t, said, "noted node conf-01 runs, and lacks")
	assert.Contains(t, said, "port forwarding may not work")
	require.NoError(t, d.Delete(t.Context(), "conf-01"))
	h.clean(t)
}

// A machine that answers is up, whatever Lima goes on waiting for: a kernel that panicked has taken with it what Lima had written, or Lima's ssh waits
// for one that is no more.
func TestAnswersWhileLimaWaits(t *testing.T) {
	h := newFakeHost(t)
	h.fault(t, "conf-01", "waits", 0)
	d := h.driver()
	d.SetGrace(100 * time.Millisecond)
	var told []string
	st, err := d.Create(progress.With(t.Context(), func(e progress.Event) { told = append(told, string(e.Kind)+" "+e.Detail) }), h.machine(t, 0))
	require.NoError(t, err)
	assert.Equal(t, provision.Running, st.State)
	assert.Contains(t, strings.Join(told, "\n"), "noted node conf-01 answers, and for 100ms Lima has waited for something else of it")
	st, err = d.Read(t.Context(), "conf-01")
	require.NoError(t, err)
	assert.Equal(t, provision.Running, st.State, "limactl alone was ended")
	require.NoError(t, d.Delete(t.Context(), "conf-01"))
	h.clean(t)
}

// The key that Lima enters with is there before Lima looks, and a machine takes it at every boot.
func TestLimasKey(t *testing.T) {
	h := newFakeHost(t)
	_, err := h.driver().Create(t.Context(), h.machine(t, 0))
	require.NoError(t, err)
	public, err := os.ReadFile(filepath.Join(h.home(), "_config/user.pub"))
	require.NoError(t, err)
	private, err := os.ReadFile(filepath.Join(h.home(), "_config/user"))
	require.NoError(t, err)
	signer, err := ssh.ParsePrivateKey(private)
	require.NoError(t, err)
	assert.Equal(t, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))+" lima\n", string(public))
	text, err := os.ReadFile(filepath.Join(h.home(), "conf-01/lima.yaml"))
	require.NoError(t, err)
	assert.Contains(t, string(text), "|| echo '"+strings.TrimSpace(string(public))+"' >> \"$keys\"")
	_, err = h.driver().Create(t.Context(), h.machine(t, 1))
	require.NoError(t, err)
	again, err := os.ReadFile(filepath.Join(h.home(), "_config/user.pub"))
	require.NoError(t, err)
	assert.Equal(t, string(public), string(again), "the bed has one")
	require.NoError(t, h.driver().Sweep(t.Context(), h.machine(t, 0).Owner))
	h.clean(t)
}

// A limactl that hangs is left behind soon when nobody waits for it any more. What it logged last is what is told of it.
func TestCancelled(t *testing.T) {
	h := newFakeHost(t)
	h.fault(t, "conf-01", "hang", 0)
	ctx, cancel := context.WithCancelCause(t.Context())
	ctx = progress.With(ctx, func(e progress.Event) {
		if e.Kind == progress.Updated && e.Detail == "Using the existing instance `conf-01`" {
			cancel(errors.New("changed my mind"))
		}
	})
	start := time.Now()
	_, err := h.driver().Create(ctx, h.machine(t, 0))
	require.ErrorContains(t, err, "changed my mind")
	assert.Less(t, time.Since(start), 10*time.Second)
	h.clean(t)
}

// What Lima 2.2.0 logs, and what is no log line.
func TestMessage(t *testing.T) {
	for line, want := range map[string]string{
		"time=\"2026-11-28T12:16:30Z\" level=info msg=\"[hostagent] Waiting for the essential requirement 1 of 2: `ssh`\"":                             "Waiting for the essential requirement 1 of 2: `ssh`",
		"time=\"2026-11-28T12:16:30Z\" level=warning msg=\"[hostagent] /dev/kvm is \\\"gone\\\".\" error=\"stat /dev/kvm: no such file or directory\"": "/dev/kvm is \"gone\".",
		"time=\"2026-11-28T12:16:30Z\" level=info msg=done":                                                                                            "done",
		"panic: no such thing": "",
		"":                     "",
	} {
		said := filepath.Join(t.TempDir(), "said")
		require.NoError(t, os.WriteFile(said, []byte("earlier\n"+line+"\n"), 0o600))
		assert.Equal(t, want, lima.Message(said), line)
	}
	assert.Empty(t, lima.Message("/nowhere"))
}

// Whatever was killed, Delete leaves nothing, also without limactl.
func TestDeleteWhateverWasKilled(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, h fakeHost){
		"hostagent": func(t *testing.T, h fakeHost) { killNamed(t, h.home(), "conf-01", "hostagent") },
		"qemu":      func(t *testing.T, h fakeHost) { killNamed(t, h.home(), "conf-01", "qemu-system") },
		"network":   func(t *testing.T, h fakeHost) { killNamed(t, h.home(), "", "usernet") },
		"everything": func(t *testing.T, h fakeHost) {
			for _, pid := range lima.Processes(h.home(), "") {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		},
		"limactl": func(t *testing.T, h fakeHost) { require.NoError(t, os.Remove(filepath.Join(h.bin, "limactl"))) },
		"lima.yaml": func(t *testing.T, h fakeHost) {
			require.NoError(t, os.Remove(filepath.Join(h.home(), "conf-01/lima.yaml")))
		},
		"pid files": func(t *testing.T, h fakeHost) {
			for _, f := range []string{"ha.pid", "qemu.pid"} {
				require.NoError(t, os.Remove(filepath.Join(h.home(), "conf-01", f)))
			}
		},
		"record": func(t *testing.T, h fakeHost) {
			require.NoError(t, os.WriteFile(filepath.Join(h.home(), "_bed/conf-01.json"), []byte("{"), 0o600))
		},
		"bed's record": func(t *testing.T, h fakeHost) {
			require.NoError(t, os.Remove(filepath.Join(h.home(), "_bed/bed.json")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newFakeHost(t)
			_, err := h.driver().Create(t.Context(), h.machine(t, 0))
			require.NoError(t, err)
			harm(t, h)
			d := h.driver()
			owners, err := d.Owners(t.Context())
			require.NoError(t, err)
			require.Len(t, owners, 1)
			require.NoError(t, d.Sweep(t.Context(), owners[0]))
			h.clean(t)
		})
	}
}

// A machine whose processes are gone, as after the host's reboot, comes up with the disk it had, although its pid files name other
// processes by now.
func TestReboot(t *testing.T) {
	h := newFakeHost(t)
	m := h.machine(t, 0)
	first, err := h.driver().Create(t.Context(), m)
	require.NoError(t, err)
	for _, pid := range lima.Processes(h.home(), "") {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	other := exec.Command("sleep", "60")
	require.NoError(t, other.Start())
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	for _, file := range []string{"conf-01/ha.pid", "conf-01/qemu.pid", "_networks/user-v2/usernet_user-v2.pid"} {
		require.NoError(t, os.WriteFile(filepath.Join(h.home(), file), []byte(itoa(other.Process.Pid)), 0o644))
	}
	st, err := h.driver().Read(t.Context(), m.Name)
	require.NoError(t, err)
	assert.Equal(t, provision.Stopped, st.State)

	st, err = h.driver().Create(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, provision.Running, st.State)
	assert.Equal(t, first.Incarnation, st.Incarnation)
	require.NoError(t, syscall.Kill(other.Process.Pid, 0), "another's process was killed")
	require.NoError(t, h.driver().Delete(t.Context(), m.Name))
	h.clean(t)
}

// A machine that cannot be started keeps its disk, and comes up with it when it can; one that runs with it and cannot be reached is made anew.
func TestRestartFails(t *testing.T) {
	h := newFakeHost(t)
	m := h.machine(t, 0)
	first, err := h.driver().Create(t.Context(), m)
	require.NoError(t, err)
	killNamed(t, h.home(), m.Name, "qemu-system")
	h.fault(t, m.Name, "fail", 1)
	_, err = h.driver().Create(t.Context(), m)
	require.ErrorContains(t, err, "no space left on device")
	require.ErrorContains(t, err, "disk is kept")
	st, err := h.driver().Create(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, first.Incarnation, st.Incarnation)

	killNamed(t, h.home(), m.Name, "qemu-system")
	h.fault(t, m.Name, "deaf", 1)
	var notes []string
	ctx := progress.With(t.Context(), func(e progress.Event) { notes = append(notes, e.Detail) })
	d := h.driver()
	d.SetBootTimeout(5 * time.Second)
	st, err = d.Create(ctx, m)
	require.NoError(t, err)
	assert.NotEqual(t, first.Incarnation, st.Incarnation)
	assert.Contains(t, strings.Join(notes, "\n"), "made anew")
	require.NoError(t, h.driver().Delete(t.Context(), m.Name))
	h.clean(t)
}

// CPUs, memory and a larger disk keep the disk; a smaller one does not.
func TestUpdateInPlace(t *testing.T) {
	h := newFakeHost(t)
	m := h.machine(t, 0)
	first, err := h.driver().Create(t.Context(), m)
	require.NoError(t, err)
	m.CPUs, m.Memory, m.Disk = 2, bed.GiB, 30*bed.GiB
	st, err := h.driver().Update(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, first.Incarnation, st.Incarnation)
	assert.Equal(t, m.Digest(), st.Digest)
	assert.Equal(t, provision.Running, st.State)
	text, err := os.ReadFile(filepath.Join(h.home(), m.Name, "lima.yaml"))
	require.NoError(t, err)
	for _, line := range []string{"cpus: 2", "memory: 1GiB", "disk: 30GiB"} {
		assert.Contains(t, string(text), line)
	}
	m.Disk = 10 * bed.GiB
	st, err = h.driver().Update(t.Context(), m)
	require.NoError(t, err)
	assert.NotEqual(t, first.Incarnation, st.Incarnation)
	require.NoError(t, h.driver().Delete(t.Context(), m.Name))
	h.clean(t)
}

func TestTheKernelsCommandLine(t *testing.T) {
	h := newFakeHost(t)
	m := h.machine(t, 0)
	first, err := h.driver().Create(t.Context(), m)
	require.NoError(t, err)
	read := func() string {
		data, err := os.ReadFile(filepath.Join(h.home(), m.Name, "kernel.cmdline")) // which QEMU is started with
		require.NoError(t, err)
		return string(data)
	}
	assert.Equal(t, "console=ttyS0", read())
	m.Slow = true
	slow, err := h.driver().Update(t.Context(), m)
	require.NoError(t, err)
	assert.Equal(t, first.Incarnation, slow.Incarnation, "its disk does not depend on what runs it")
	assert.Equal(t, "console=ttyS0 mitigations=off maxcpus=1", read())
	require.NoError(t, h.driver().Delete(t.Context(), m.Name))
	h.clean(t)
}

// An instance that somebody else has in the LIMA_HOME is not touched, by Create or by the bed's end.
func TestForeignInstance(t *testing.T) {
	h := newFakeHost(t)
	theirs := filepath.Join(h.home(), "conf-01")
	require.NoError(t, os.MkdirAll(theirs, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(theirs, "lima.yaml"), []byte("plain: true\n"), 0o644))
	owners, err := h.driver().Owners(t.Context())
	require.NoError(t, err)
	assert.Empty(t, owners, "no bed of ours")

	_, err = h.driver().Create(t.Context(), h.machine(t, 0))
	require.ErrorContains(t, err, "did not make")
	assert.FileExists(t, filepath.Join(theirs, "lima.yaml"))
	assert.NoDirExists(t, filepath.Join(h.home(), "_bed"))

	_, err = h.driver().Create(t.Context(), h.machine(t, 1))
	require.NoError(t, err)
	require.NoError(t, h.driver().Delete(t.Context(), "conf-02"))
	assert.FileExists(t, filepath.Join(theirs, "lima.yaml"))
	assert.NoDirExists(t, filepath.Join(h.home(), "_bed"))
}

// An image's disk is under what a machine holds, be it running or stopped, and is so no longer once the machine is gone.
func TestOver(t *testing.T) {
	h := newFakeHost(t)
	other := filepath.Join(t.TempDir(), "disk.qcow2")
	require.NoError(t, os.WriteFile(other, qcow2(1<<30, ""), 0o644))
	disk := filepath.Join(h.image, bed.DiskFile)
	assert.Empty(t, h.driver().Over(disk))
	_, err := h.driver().Create(t.Context(), h.machine(t, 0))
	require.NoError(t, err)
	assert.Equal(t, []string{"conf-01"}, h.driver().Over(disk))
	killNamed(t, h.home(), "conf-01", "qemu-system")
	assert.Equal(t, []string{"conf-01"}, h.driver().Over(disk))
	assert.Empty(t, h.driver().Over(other))
	require.NoError(t, h.driver().Delete(t.Context(), "conf-01"))
	assert.Empty(t, h.driver().Over(disk))
}

// Headers as qemu-img writes them.
func TestReadDisk(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		hosttest.Lacks(t, "qemu-img")
	}
	dir := t.TempDir()
	base, over := filepath.Join(dir, "a base"), filepath.Join(dir, "over")
	for _, args := range [][]string{{base, "3G"}, {"-F", "qcow2", "-b", base, over, "5G"}} {
		out, err := exec.Command("qemu-img", append([]string{"create", "-q", "-f", "qcow2"}, args...)...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	for path, want := range map[string]string{base: "", over: base} {
		_, got, err := lima.ReadDisk(path)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	size, _, err := lima.ReadDisk(over)
	require.NoError(t, err)
	assert.Equal(t, 5*bed.GiB, size)
	require.NoError(t, os.Truncate(over, 64))
	_, _, err = lima.ReadDisk(over)
	assert.ErrorContains(t, err, "what it is an overlay on")
}

// Two beds of one account have nothing to do with each other.
func TestTwoBeds(t *testing.T) {
	h := newFakeHost(t)
	ours, theirs := h.machine(t, 0), h.machine(t, 0)
	theirs.Name, theirs.Owner.Bed = "two-01", "two"
	for _, m := range []provision.Machine{ours, theirs} {
		_, err := h.driver().Create(t.Context(), m)
		require.NoError(t, err)
	}
	require.NoError(t, h.driver().Delete(t.Context(), ours.Name))
	st, err := h.driver().Read(t.Context(), theirs.Name)
	require.NoError(t, err)
	assert.Equal(t, provision.Running, st.State, st.Detail)
	require.NoError(t, h.driver().Delete(t.Context(), theirs.Name))
	h.clean(t)
}

// A truncated image is said to be one, and nothing is left.
func TestTruncatedImage(t *testing.T) {
	h := newFakeHost(t)
	require.NoError(t, os.Truncate(filepath.Join(h.image, bed.DiskFile), 10))
	_, err := h.driver().Create(t.Context(), h.machine(t, 0))
	require.ErrorContains(t, err, "no qcow2 disk")
	require.ErrorContains(t, err, "bed image verify")
	h.clean(t)
}

// A process that bears our engine's mark must not hand it on: the engine kills those that have it.
func TestEnvironmentIsNotHandedOn(t *testing.T) {
	h := newFakeHost(t)
	t.Setenv("BEDFELLOW_MARK", "of-this-run")
	t.Setenv("PULUMI_CONFIG_PASSPHRASE", "secret")
	_, err := h.driver().Create(t.Context(), h.machine(t, 0))
	require.NoError(t, err)
	pids := lima.Processes(h.home(), "")
	require.GreaterOrEqual(t, len(pids), 4, "hostagent, machine, network and ssh")
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		require.NoError(t, err)
		assert.NotContains(t, string(data), "BEDFELLOW_MARK")
		assert.NotContains(t, string(data), "PULUMI")
	}
	require.NoError(t, h.driver().Delete(t.Context(), "conf-01"))
	h.clean(t)
}
