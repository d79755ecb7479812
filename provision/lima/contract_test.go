package lima_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/lima"
)

// What the driver and its fake rely on of limactl, as a transcript: the same commands are run on both, and the transcript that the real
// one left is in testdata. `BEDFELLOW_LIMA_IMAGE=… go test -run TestContractReal -update` records it anew.

const transcriptFile = "testdata/contract.golden"

func TestContract(t *testing.T) {
	h := newFakeHost(t)
	want, err := os.ReadFile(transcriptFile)
	require.NoError(t, err)
	c := contract{t: t, root: h.root, driver: h.driver(), patience: 10 * time.Second, brief: "1ms"}
	assert.Equal(t, string(want), c.play(h.machine(t, 0)), "the fake is not as the real limactl was")
	h.clean(t)
}

func TestContractReal(t *testing.T) {
	image := realImage(t)
	h := fakeHost{root: shortRoot(t), image: image}
	c := contract{t: t, root: h.root, driver: lima.New(h.root), patience: 10 * time.Minute, brief: "4s"}
	got := c.play(h.machine(t, 0))
	if *update {
		require.NoError(t, os.WriteFile(transcriptFile, []byte(got), 0o644))
	}
	want, err := os.ReadFile(transcriptFile)
	require.NoError(t, err)
	assert.Equal(t, string(want), got, "limactl is not as it was; -update records what it is")
	h.clean(t)
}

// contract plays the commands and writes down what is to be relied on.
type contract struct {
	t        *testing.T
	root     string
	driver   *lima.Driver
	patience time.Duration // for a boot
	brief    string        // shorter than a boot
	out      strings.Builder
}

const node = "conf-01"

func (c *contract) home() string { return filepath.Join(c.root, "conf") }

func (c *contract) play(m provision.Machine) string {
	t := c.t
	_, err := c.driver.Create(t.Context(), m)
	require.NoError(t, err)
	c.heading("started by the driver")
	c.files()
	c.processes()
	c.list()

	c.heading("start of what runs")
	c.run(`already running`, "start", "--tty=false", node)

	c.heading("the machine is killed")
	killNamed(t, c.home(), node, "qemu-system")
	c.waitFor("ha.pid", false)
	c.list()

	c.heading("start, given less time than a boot takes")
	c.run(`did not receive an event with the .running. status`, "start", "--tty=false", "--timeout="+c.brief, node)
	c.waitFor("qemu.pid", true)
	c.list()

	c.heading("the hostagent is killed")
	killNamed(t, c.home(), node, "hostagent")
	c.list()

	c.heading("the hostagent is asked to stop")
	killNamed(t, c.home(), node, "qemu-system")
	c.forget()
	c.run(`READY`, "start", "--tty=false", "--timeout="+c.patience.String(), node)
	data, err := os.ReadFile(filepath.Join(c.home(), node, "ha.pid"))
	require.NoError(t, err)
	var pid int
	_, err = fmt.Sscan(string(data), &pid)
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, syscall.SIGINT))
	c.waitFor("ha.pid", false)
	c.waitFor("qemu.pid", false)
	c.list()

	c.heading("delete of half an instance")
	half := filepath.Join(c.home(), "half")
	require.NoError(t, os.Mkdir(half, 0o755))
	c.run(`it was NOT deleted`, "delete", "--tty=false", "--force", "half")
	require.NoError(t, os.Remove(half))
	require.NoError(t, c.driver.Delete(t.Context(), node))
	return c.out.String()
}

func (c *contract) heading(text string) { fmt.Fprintf(&c.out, "# %s\n", text) }

// run notes the status of a limactl, and whether it said what it should.
func (c *contract) run(pattern string, args ...string) {
	said, code := c.driver.Said(c.t, c.home(), args...)
	matched := regexp.MustCompile(pattern).MatchString(said)
	assert.True(c.t, matched, "limactl %q said:\n%s", args, said)
	fmt.Fprintf(&c.out, "limactl %s: status %d, says %s: %t\n", args[0], code, pattern, matched)
}

// files notes those that the driver looks for.
func (c *contract) files() {
	for _, pattern := range []string{"conf-01/ha.pid", "conf-01/qemu.pid", "conf-01/ssh.config", "conf-01/ha.stderr.log", "conf-01/serial.log", "_networks/user-v2/*.pid", "_networks/user-v2/*.sock", "_config/user*"} {
		found, _ := filepath.Glob(filepath.Join(c.home(), pattern))
		for _, f := range found {
			fmt.Fprintln(&c.out, "file", strings.TrimPrefix(f, c.home()+"/"))
		}
	}
}

// processes notes what of a bed's processes tells them apart: the command, and which paths and names are among its arguments.
func (c *contract) processes() {
	var lines []string
	for _, pid := range lima.Processes(c.home(), "") {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // a short one, that is gone
		}
		args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		words := []string{filepath.Base(args[0])}
		if strings.HasPrefix(args[0], "ssh: ") {
			words = []string{strings.ReplaceAll(args[0], c.home()+"/", "")}
		}
		for i, arg := range args[1:] {
			if i == 0 && filepath.Base(args[0]) == "limactl" || arg == node || arg == "lima-"+node ||
				slices.Contains([]string{"-pidfile", "--pidfile", "-p"}, args[i]) {
				words = append(words, strings.ReplaceAll(arg, c.home()+"/", ""))
			}
		}
		lines = append(lines, "process "+strings.Join(words, " "))
	}
	slices.Sort(lines)
	fmt.Fprintln(&c.out, strings.Join(slices.Compact(lines), "\n"))
}

// list notes what Lima says of the instance beside what the driver does.
func (c *contract) list() {
	said, code := c.driver.Said(c.t, c.home(), "list", "--format", "json")
	st, err := c.driver.Read(c.t.Context(), node)
	require.NoError(c.t, err)
	for _, line := range strings.Split(said, "\n") {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var i listed
		require.NoError(c.t, json.Unmarshal([]byte(line), &i), line)
		fmt.Fprintf(&c.out, "limactl list: status %d, %s %s is %s, hostagent %t, machine %t, port as in ssh.config: %t\n", code,
			i.VMType, i.Name, i.Status, i.HostAgentPID > 0, i.DriverPID > 0, i.SSHLocalPort == st.Port)
	}
	fmt.Fprintln(&c.out, strings.TrimSpace(fmt.Sprint("driver: ", st.State, " ", st.Detail)))
}

// waitFor waits until a file of the instance is there, or gone.
func (c *contract) waitFor(file string, there bool) {
	require.Eventually(c.t, func() bool {
		_, err := os.Stat(filepath.Join(c.home(), node, file))
		return there && err == nil || !there && errors.Is(err, fs.ErrNotExist)
	}, c.patience, 20*time.Millisecond, file)
}

// forget removes what a killed machine left, as the driver does before a start.
func (c *contract) forget() {
	files, _ := filepath.Glob(filepath.Join(c.home(), node, "*.pid"))
	for _, f := range files {
		require.NoError(c.t, os.Remove(f))
	}
}
