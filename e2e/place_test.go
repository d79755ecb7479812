package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/stacks"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

// place is a folder that is to `bed` what a clone is. All of them lie under e2e/work, which git ignores and which stays, so that
// a suite whose stages are skipped finds its bed again.
type place struct {
	dir, stack, bed string
	within          []string // a command, and its arguments, that runs `bed`
	env             []string // of `bed` besides, NAME=VALUE
}

// driver is that of a stack's preset.
func driver(stack string) string {
	preset, _ := stacks.Preset(stack) // of one that there is not, newPlace tells
	var has struct{ Config map[string]string }
	_ = yaml.Unmarshal(preset, &has)
	return has.Config["bedfellow:driver"]
}

// work is the folder of all places; home and tmp are what the commands get as such, so that whatever they leave there is seen.
func work(t testing.TB, parts ...string) string {
	dir, err := filepath.Abs("work")
	require.NoError(t, err)
	return filepath.Join(append([]string{dir}, parts...)...)
}

func tmp() string { return filepath.Join(os.TempDir(), "bf-e2e") }

var build = sync.OnceValue(func() error {
	dir, err := filepath.Abs("work/bin")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/...")
	cmd.Dir = ".."
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
})

// newPlace makes the folder, with the commands of the current tree, or finds it as it was left. The test is skipped where a bed
// of the stack cannot be.
func newPlace(t *testing.T, folder, stack, bedName string) place {
	require.NoError(t, build())
	cli, err := filepath.Abs("../bin/pulumi")
	require.NoError(t, err)
	if limactl, err := filepath.Abs("../bin/limactl"); err == nil {
		_ = os.Remove(work(t, "bin/limactl"))
		if _, err := os.Stat(limactl); err == nil {
			require.NoError(t, os.Symlink(limactl, work(t, "bin/limactl")))
		}
	}
	if _, err := os.Stat(cli); err == nil { // `bed` takes the one beside it
		_ = os.Remove(work(t, "bin/pulumi"))
		require.NoError(t, os.Symlink(cli, work(t, "bin/pulumi")))
	} else if _, err := exec.LookPath("pulumi"); err != nil {
		hosttest.Lacks(t, "a Pulumi CLI, which `make tools` builds")
	}
	p := place{dir: work(t, folder), stack: stack, bed: bedName}
	for _, dir := range []string{p.dir, work(t, "home"), work(t, "said"), tmp()} {
		require.NoError(t, os.MkdirAll(dir, 0o755))
	}
	t.Cleanup(func() { _ = os.Remove(tmp()) }) // stays while a bed or a leftover needs it
	project, err := os.ReadFile("../Pulumi.yaml")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, "Pulumi.yaml"), project, 0o644))
	_ = os.Remove(filepath.Join(p.dir, "bin"))
	require.NoError(t, os.Symlink(work(t, "bin"), filepath.Join(p.dir, "bin")))
	p.needHost(t)
	return p
}

// onlyQuickstart skips what breaks beds by the dozen where another stack is asked for: the quickstart's take seconds.
func onlyQuickstart(t *testing.T) {
	if *stackFlag != "quickstart" {
		t.Skip("breaks the quickstart's beds, as `make test` does")
	}
}

// needHost skips the test where `bed doctor` says that the host cannot serve the stack's driver.
func (p place) needHost(t *testing.T) {
	w, err := engine.Open(p.dir, p.stack, nil)
	require.NoError(t, err)
	spec, err := w.Spec()
	require.NoError(t, err)
	if c := p.run(t, "doctor", "--driver", spec.Driver); c.code == 3 {
		hosttest.Lacks(t, "what the driver "+spec.Driver+" needs:\n"+c.stdout)
	}
}

// call is a command that has ended.
type call struct {
	args           []string
	stdout, stderr string
	code           int
}

func (c call) String() string {
	return fmt.Sprintf("`bed %s` ended with %d\nstdout:\n%s\nstderr:\n%s%s", strings.Join(c.args, " "), c.code, c.stdout, c.stderr, c.waits())
}

// waits are what a call made with -o json was more than two minutes at, the last words of it: who reads a part of a log reads the end.
func (c call) waits() string {
	var out strings.Builder
	all := c.steps()
	for i, e := range all {
		if i+1 < len(all) && all[i+1].Time.Sub(e.Time) > 2*time.Minute {
			fmt.Fprintf(&out, "from %s on for %s: %s, %s\n", e.Time.Format(time.TimeOnly), all[i+1].Time.Sub(e.Time).Round(time.Second), e.Step, e.Detail)
		}
	}
	return out.String()
}

// steps are the progress events of a call made with -o json.
func (c call) steps() []progress.Event {
	var all []progress.Event
	for line := range strings.Lines(c.stderr) {
		var e progress.Event
		if json.Unmarshal([]byte(line), &e) == nil {
			all = append(all, e)
		}
	}
	return all
}

// step finds the first event of a kind whose step begins so.
func (c call) step(kind progress.Kind, begins string) (progress.Event, bool) {
	for _, e := range c.steps() {
		if e.Kind == kind && strings.HasPrefix(e.Step, begins) {
			return e, true
		}
	}
	return progress.Event{}, false
}

const callTimeout = 10 * time.Minute // a first `up` bakes

// patience is a time for a node to do something in: longer where machines may be emulated.
func (p place) patience(native time.Duration) time.Duration {
	if driver(p.stack) == "lima" {
		return 6 * native
	}
	return native
}

// run runs `bed` in the place to its end.
func (p place) run(t *testing.T, args ...string) call {
	t.Helper()
	return p.start(t, nil, args...).wait(t)
}

// ok is run for a call that must go well.
func (p place) ok(t *testing.T, args ...string) call {
	t.Helper()
	c := p.run(t, args...)
	require.Zero(t, c.code, "%s", c)
	return c
}

// fails is run for a call that must end with the code and say each needle.
func (p place) fails(t *testing.T, code int, args []string, needles ...string) call {
	t.Helper()
	c := p.run(t, args...)
	require.Equal(t, code, c.code, "%s", c)
	for _, needle := range needles {
		require.Contains(t, c.stderr, needle, "%s", c)
	}
	return c
}

// up makes the bed and returns what it says.
func (p place) up(t *testing.T, settings ...string) (bed.Inventory, call) {
	t.Helper()
	c := p.ok(t, p.upArgs(settings...)...)
	var out struct{ Inventory bed.Inventory }
	require.NoError(t, json.Unmarshal([]byte(c.stdout), &out), "%s", c)
	return out.Inventory, c
}

func (p place) upArgs(settings ...string) []string {
	args := []string{"up", "-s", p.stack, "-o", "json", "-c", "name=" + p.bed}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	return args
}

// process is a command at work, leader of a process group.
type process struct {
	cmd    *exec.Cmd
	args   []string
	stdout bytes.Buffer

	mu     sync.Mutex
	stderr bytes.Buffer
	more   chan struct{} // a line has come
	read   chan struct{} // closed at the end of stderr
	cancel context.CancelFunc
}

func (p place) start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	patience := callTimeout
	if driver(p.stack) == "lima" { // a suite that one command keeps waiting ends before CI ends it, and says what that said
		patience *= 4
		if *fullFlag {
			patience *= 2
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	run := &process{args: args, more: make(chan struct{}, 1), read: make(chan struct{}), cancel: cancel}
	argv := slices.Concat(p.within, []string{filepath.Join(p.dir, "bin/bed")}, args)
	run.cmd = exec.CommandContext(ctx, argv[0], argv[1:]...)
	run.cmd.Dir = p.dir
	run.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + work(t, "home"), "TMPDIR=" + tmp(), "LANG=C.UTF-8"}, slices.Concat(p.env, env)...)
	run.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	run.cmd.Cancel = func() error { return syscall.Kill(-run.cmd.Process.Pid, syscall.SIGKILL) }
	run.cmd.Stdout = &run.stdout
	r, w, err := os.Pipe()
	require.NoError(t, err)
	run.cmd.Stderr = w
	require.NoError(t, run.cmd.Start())
	_ = w.Close()
	go run.listen(r)
	return run
}

func (p *process) listen(r io.ReadCloser) {
	defer close(p.read)
	defer r.Close()
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		p.mu.Lock()
		p.stderr.Write(line)
		p.mu.Unlock()
		select {
		case p.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (p *process) sofar(code int) call {
	p.mu.Lock()
	defer p.mu.Unlock()
	return call{args: p.args, stderr: p.stderr.String(), code: code}
}

// await waits until the command, called with -o json, reports an event of the kind whose step begins so.
func (p *process) await(t *testing.T, kind progress.Kind, begins string) {
	t.Helper()
	for {
		c := p.sofar(-1)
		if _, ok := c.step(kind, begins); ok {
			return
		}
		select {
		case <-p.more:
		case <-p.read:
			c := p.wait(t)
			require.Fail(t, "it ended before it "+string(kind)+" "+begins, "%s", c)
		}
	}
}

// interrupt is Ctrl-C: a signal to the whole group.
func (p *process) interrupt(t *testing.T) {
	require.NoError(t, syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT))
}

var calls atomic.Int32

// wait returns the ended command and keeps what it said in work/said.
func (p *process) wait(t *testing.T) call {
	t.Helper()
	defer p.cancel()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	select { // a child that outlives it may hold stderr open; the census will name it
	case <-p.read:
	case <-time.After(5 * time.Second):
	}
	c := p.sofar(p.cmd.ProcessState.ExitCode())
	c.stdout = p.stdout.String()
	name := fmt.Sprintf("%s-%03d-%s", filepath.Base(p.cmd.Dir), calls.Add(1), p.args[0])
	require.NoError(t, os.WriteFile(work(t, "said", name), []byte(c.String()), 0o600))
	return c
}
