package e2e_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

var (
	killsFlag = flag.Int("kills", 0, "how many commands are killed; 0 is 5")
	seedFlag  = flag.Uint64("seed", 0, "of what is killed and when; 0 chooses one and prints it")
)

// victims are what is killed: bed with its group, Pulumi's engine, the plugin, and a node's supervisor where this host has one.
func (p place) victims() []string {
	all := []string{"bed", "pulumi", "pulumi-resource-bedfellow", "node"}
	if p.stack == "ovirt" { // whose machines are the oVirt engine's, and that is somebody else's
		return all[:3]
	}
	return all
}

// TestKills: SIGKILL of a victim at a random moment of up or destroy. Then either the next up finishes the bed or destroy leaves nothing.
func TestKills(t *testing.T) {
	if *stackFlag != "quickstart" && *killsFlag == 0 {
		t.Skip("a bed for each kill takes long where machines are emulated: `make soak SOAK=lima-ci KILLS=20`; TestBed/kills and TestOvirt/kills kill twice on their own beds")
	}
	seed := newSeed()
	settings := []string{"nodes=2"}
	var p place
	var e *enginetest.Engine
	var before []string
	if *stackFlag == "ovirt" {
		p, e, before = onFakeEngine(t, "kills", "e2e-kill")
		p.env = append(p.env, "OVIRT_PASSWORD="+e.Password)
		settings = append(settings, smallOvirt()...)
	} else {
		p = newPlace(t, "kills", *stackFlag, "e2e-kill")
		before = census(t)
	}
	clean := func() {
		same(t, before)
		if e != nil {
			onlyTemplates(t, e)
		}
	}
	kills := *killsFlag
	if kills == 0 {
		kills = 5
	}
	t.Logf("replay with: go test ./e2e -run TestKills -args -stack %s -kills %d -seed %d", p.stack, kills, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	t.Cleanup(func() { p.ok(t, "destroy", "-s", p.stack); clean() })

	// How long they take when left alone says when to strike.
	took := map[string]time.Duration{}
	timed := func(command string, args ...string) {
		begin := time.Now()
		p.ok(t, args...)
		took[command] = time.Since(begin)
	}
	up, destroy := p.upArgs(settings...), []string{"destroy", "-s", p.stack}
	if e != nil { // the first uploads the image, which the others do not
		p.ok(t, up...)
		p.ok(t, destroy...)
	}
	timed("up", up...)
	timed("destroy", destroy...)
	clean()

	struck := 0
	for i := range kills {
		command, args := "up", up
		if random.IntN(3) == 0 {
			command, args = "destroy", destroy
			p.ok(t, up...)
		} else if e != nil && random.IntN(3) == 0 {
			p.ok(t, "sweep", "--images", "--delete") // and so that this one does, unless the bed stands
		}
		victims := p.victims()
		victim := victims[random.IntN(len(victims))]
		moment := time.Duration(random.Float64() * 1.05 * float64(took[command]))
		finish := []string{"up", "destroy"}[random.IntN(2)]
		t.Logf("%d: %s of %s %s into it, then %s", i+1, victim, command, moment.Round(time.Millisecond), finish)

		c := p.start(t, nil, args...)
		time.Sleep(moment) // the random moment itself
		if p.strike(t, c, victim) {
			struck++
		}
		c.wait(t)
		if finish == "up" {
			inv, _ := p.up(t)
			p.computes(t, inv)
			continue
		}
		p.ok(t, destroy...)
		clean()
	}
	t.Logf("%d of %d struck something that was there", struck, kills)
	if kills >= 5 {
		assert.NotZero(t, struck, "nothing was ever killed")
	}
}

// newSeed is the one that was asked for, or a new one.
func newSeed() uint64 {
	if *seedFlag != 0 {
		return *seedFlag
	}
	return uint64(time.Now().UnixNano())
}

// kills: SIGKILL at a random moment of an up that changes every machine, and of a destroy. The next up finishes, the next destroy leaves
// nothing, as the stage after this one sees. It is the last thing that is done to the bed.
func (p place) kills(t *testing.T) {
	inv := p.inventory(t)
	if inv.Driver == "nspawn" {
		t.Skip("TestKills does, on beds of its own")
	}
	seed := newSeed()
	t.Logf("replay with: -args -stack %s -seed %d", p.stack, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	victims, took := p.victims(), 2*time.Minute
	if inv.Driver == "ovirt" {
		took = 40 * time.Second
	}
	for _, c := range []struct {
		args []string
		took time.Duration // about
	}{{p.upArgs(fmt.Sprintf("memory=%dMiB", inv.Nodes[0].MemoryMiB+192)), took}, {[]string{"destroy", "-s", p.stack}, 6 * time.Second}} {
		victim, moment := victims[random.IntN(len(victims))], time.Duration(random.Float64()*float64(c.took))
		t.Logf("%s of %s %s into it", victim, c.args[0], moment.Round(time.Millisecond))
		run := p.start(t, nil, c.args...)
		time.Sleep(moment) // the random moment itself
		t.Logf("struck: %v", p.strike(t, run, victim))
		run.wait(t)
		if c.args[0] == "up" {
			inv, _ := p.up(t)
			p.computes(t, inv)
		}
	}
}

// strike kills what is there of the victim at this moment, and says whether there was anything.
func (p place) strike(t *testing.T, c *process, victim string) bool {
	t.Helper()
	switch victim {
	case "bed":
		return syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) == nil
	case "node":
		return killAny(t, func(comm, line, environ string) bool {
			if p.stack == "quickstart" {
				return comm == "systemd-nspawn" && strings.Contains(line, "--machine="+p.bed+"-")
			}
			return strings.HasPrefix(comm, "qemu-system") && strings.Contains(environ, "LIMA_HOME="+filepath.Join(limaRoot(t), p.bed))
		})
	default:
		return killAny(t, func(_, line, environ string) bool {
			name, _, _ := strings.Cut(line, "\x00")
			return filepath.Base(name) == victim && strings.Contains(environ, "HOME="+work(t, "home")) && strings.Contains(environ, p.dir)
		})
	}
}

// killAny kills one process that fits.
func killAny(t *testing.T, fits func(comm, line, environ string) bool) bool {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, dir := range dirs {
		read := func(name string) string { data, _ := os.ReadFile(filepath.Join(dir, name)); return string(data) }
		if !fits(strings.TrimSpace(read("comm")), read("cmdline"), read("environ")) {
			continue
		}
		var pid int
		if json.Unmarshal([]byte(filepath.Base(dir)), &pid) == nil && syscall.Kill(pid, syscall.SIGKILL) == nil {
			return true
		}
	}
	return false
}

// TestKilledBeforeRecording: machines stand and no state knows of them, because everything was killed between making and
// recording. They are seen, and destroy removes them.
func TestKilledBeforeRecording(t *testing.T) {
	onlyQuickstart(t)
	p := newPlace(t, "unrecorded", "quickstart", "e2e-unrec")
	before := census(t)
	t.Cleanup(func() { p.ok(t, "destroy", "-s", p.stack); same(t, before) })

	c := p.start(t, nil, p.upArgs("nodes=2")...)
	c.await(t, progress.Done, "boot ")
	for _, victim := range []string{"pulumi", "pulumi-resource-bedfellow", "bed"} {
		p.strike(t, c, victim)
	}
	c.wait(t)
	assert.Contains(t, p.sweep(t, "--owner", p.bed), bed.NodeName(p.bed, 0)[:len(p.bed)], "the machines are in view")

	// Even with everything gone that this folder knew.
	require.NoError(t, os.RemoveAll(filepath.Join(p.dir, ".bed")))
	assert.Contains(t, p.sweep(t), `"`+p.bed+`"`, "sweep lists what no state knows")
	p.ok(t, "destroy", "-s", p.stack)
	same(t, before)
}

// TestSweep removes what is named, and nothing else.
func TestSweep(t *testing.T) {
	onlyQuickstart(t)
	lost := newPlace(t, "lost", "quickstart", "e2e-lost")
	kept := newPlace(t, "kept", "quickstart", "e2e-kept")
	before := census(t)
	t.Cleanup(func() {
		lost.ok(t, "destroy", "-s", "quickstart")
		kept.ok(t, "destroy", "-s", "quickstart")
		same(t, before)
	})
	lost.up(t, "nodes=1")
	inv, _ := kept.up(t, "nodes=1")
	require.NoError(t, os.RemoveAll(filepath.Join(lost.dir, ".bed")))

	list := lost.sweep(t)
	assert.Contains(t, list, `"e2e-lost"`)
	assert.Contains(t, list, `"e2e-kept"`, "the other clone's is unknown here too")
	assert.NotContains(t, kept.sweep(t), `"e2e-kept"`, "its own clone knows it")
	lost.fails(t, 2, []string{"sweep", "--delete"}, "--owner")
	lost.ok(t, "sweep", "--delete", "--owner", "e2e-lost")
	assert.NotContains(t, lost.sweep(t), `"e2e-lost"`)
	kept.computes(t, inv)
	kept.ok(t, "destroy", "-s", "quickstart")
	same(t, before)
}

func (p place) sweep(t *testing.T, args ...string) string {
	t.Helper()
	return p.ok(t, append([]string{"sweep", "-o", "json"}, args...)...).stdout
}
