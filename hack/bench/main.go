// Command bench times bin/bed: up, a second up that has nothing to do, and destroy, for beds of several sizes. It prints JSON to
// standard output and what it does to standard error. The Makefile runs it; docs/performance.md tells how to read it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bedfellow/bedfellow/provision/provider"
)

// limit is how long one command may take.
const limit = time.Hour

// stacks are the presets whose beds are timed, by driver.
var stacks = map[string]string{"nspawn": "quickstart", "sim": "quickstart", "lima": "lima-ci"}

// report is what is printed.
type report struct {
	Machine machine   `json:"machine"`
	Time    time.Time `json:"time"`
	Runs    int       `json:"runs"`  // of every command; medians of them
	Cases   []sizes   `json:"cases"` // as far as it got
	// Bare is the median of `limactl start` of one machine, as a bed's node is written for it, where there are beds by Lima.
	Bare float64 `json:"bareLimactlStartSeconds,omitempty"`
	// Kubernetes, where beds with it were wanted.
	Kubernetes []clusters `json:"kubernetes,omitempty"`
}

type machine struct {
	CPU       string `json:"cpu"`
	CPUs      int    `json:"cpus"`
	MemoryMiB int    `json:"memoryMiB"`
	Kernel    string `json:"kernel"`
	// Load of the last minute before the first command and after the last: what else ran, in CPUs.
	LoadBefore float64 `json:"loadBefore"`
	LoadAfter  float64 `json:"loadAfter"`
}

// sizes are the figures of one size of bed.
type sizes struct {
	Driver  string `json:"driver"`
	Nodes   int    `json:"nodes"`
	Up      figure `json:"up"`
	Again   figure `json:"secondUp"`
	Destroy figure `json:"destroy"`
}

// figure is a command's medians.
type figure struct {
	Seconds float64 `json:"seconds"`
	Ours    float64 `json:"providerSeconds"` // in which a call of the engine's to our provider was under way
	Engine  float64 `json:"engineSeconds"`   // the rest: Pulumi's, and what bed does itself
	Slowest float64 `json:"slowestSeconds"`
	// Processor is the time for which the host's processors were at work meanwhile, for whomever, all added up.
	Processor float64 `json:"processorSeconds"`
	PeakMiB   peaks   `json:"peakMiB"`
	measured  []measurement
}

// peaks are the most that one process of each program had in memory, in MiB.
type peaks map[string]int

type measurement struct {
	total, ours, processor float64 // seconds
	peaks                  peaks
	said                   []byte // its progress
}

func main() {
	runs := flag.Int("n", 3, "runs of every command")
	nspawn := flag.String("nspawn", "1,3,8", "sizes of beds by the nspawn driver; empty for none")
	sim := flag.String("sim", "10,100,1000", "sizes of beds by the sim driver; empty for none")
	vms := flag.String("lima", "", "sizes of beds by the lima driver; empty for none")
	kubernetes := flag.String("kubernetes", "", "sizes of beds by the lima driver that Kubernetes is brought up on; empty for none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *runs, map[string]string{"nspawn": *nspawn, "sim": *sim, "lima": *vms, "kubernetes": *kubernetes}); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, runs int, wanted map[string]string) (err error) {
	b, err := newBench()
	if err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	vm := []string{"image", "build", "debian-13", "--format", "vm"}
	for driver, build := range map[string][]string{"nspawn": {"image", "build"}, "lima": vm, "kubernetes": append(slices.Clone(vm), "--kubernetes")} { // no first up is to bake
		if wanted[driver] == "" {
			continue
		}
		fmt.Fprintln(os.Stderr, "baking, unless the image is kept")
		if _, err := b.command(ctx, build...); err != nil {
			return fmt.Errorf("%w; -%s '' leaves that driver's beds out", err, driver)
		}
	}
	r := report{Machine: thisMachine(), Time: time.Now().UTC().Truncate(time.Second), Runs: runs}
	defer func() { // what was measured is told, whatever follows
		r.Machine.LoadAfter = load()
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		err = errors.Join(err, e.Encode(r))
	}()
	for _, driver := range []string{"nspawn", "sim", "lima"} {
		err := each(driver, wanted[driver], runs, func(nodes int) (func() error, func()) {
			s := sizes{Driver: driver, Nodes: nodes}
			return func() error { return b.cycle(ctx, &s) }, func() {
				for _, f := range []*figure{&s.Up, &s.Again, &s.Destroy} {
					f.conclude()
				}
				r.Cases = append(r.Cases, s)
			}
		})
		if err != nil {
			return err
		}
	}
	err = each("kubernetes", wanted["kubernetes"], runs, func(nodes int) (func() error, func()) {
		c := clusters{Nodes: nodes}
		return func() error { return b.cluster(ctx, &c) }, func() {
			c.conclude()
			r.Kubernetes = append(r.Kubernetes, c)
		}
	})
	if err != nil {
		return err
	}
	if b.yaml != nil {
		r.Bare, err = b.bare(ctx, runs)
	}
	return err
}

// each measures the sizes wanted, each so many times, and then concludes.
func each(what, wanted string, runs int, size func(nodes int) (measure func() error, conclude func())) error {
	for _, text := range strings.FieldsFunc(wanted, func(c rune) bool { return c == ',' }) {
		nodes, err := strconv.Atoi(text)
		if err != nil || nodes < 1 || runs < 1 {
			return fmt.Errorf("%q nodes, %d runs: there is nothing to measure; sizes are whole numbers with commas between", text, runs)
		}
		measure, conclude := size(nodes)
		for i := range runs {
			fmt.Fprintf(os.Stderr, "%s, %d nodes: run %d of %d\n", what, nodes, i+1, runs)
			if err := measure(); err != nil {
				return fmt.Errorf("%s, %d nodes: %w", what, nodes, err)
			}
		}
		conclude()
	}
	return nil
}

// bench is a folder that is to bed what a clone is.
type bench struct {
	dir, bed string
	yaml     []byte // of a node of a bed by Lima
}

func newBench() (*bench, error) {
	bed, err := filepath.Abs("bin/bed")
	if err != nil {
		return nil, err
	}
	project, err := os.ReadFile("Pulumi.yaml")
	if err == nil {
		_, err = os.Stat(bed)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; `make bench` runs this in the clone, after `make tools`", err)
	}
	dir, err := os.MkdirTemp("", "bedfellow-bench-")
	if err != nil {
		return nil, err
	}
	clone, err := os.Getwd()
	return &bench{dir: dir, bed: bed}, errors.Join(
		err,
		os.WriteFile(filepath.Join(dir, "Pulumi.yaml"), project, 0o600),
		os.Symlink(filepath.Join(clone, "images"), filepath.Join(dir, "images")), // what the bundle is built from
		os.Symlink(filepath.Dir(bed), filepath.Join(dir, "bin")))                 // the project looks for the plugin there
}

// cycle makes a bed, makes it once more and removes it. Whatever happens, it removes it.
func (b *bench) cycle(ctx context.Context, s *sizes) (err error) {
	stack, gone := stacks[s.Driver], false
	defer func() {
		if !gone {
			_, e := b.command(context.WithoutCancel(ctx), "destroy", "-s", stack)
			err = errors.Join(err, e)
		}
	}()
	up := []string{"up", "-c", "name=bench", "-c", "driver=" + s.Driver, "-c", "nodes=" + strconv.Itoa(s.Nodes), "-s", stack}
	if s.Driver != "lima" {
		up = append(up, "-c", "memory=512MiB")
	}
	for _, step := range []struct {
		into *figure
		args []string
	}{{&s.Up, up}, {&s.Again, up}, {&s.Destroy, []string{"destroy", "-s", stack}}} {
		m, err := b.command(ctx, step.args...)
		if err != nil {
			return err
		}
		step.into.measured = append(step.into.measured, m)
		if s.Driver == "lima" && b.yaml == nil {
			if err := b.keepYAML(ctx, stack); err != nil {
				return err
			}
		}
	}
	gone = true
	return nil
}

// command runs bed to its end and watches it.
func (b *bench) command(ctx context.Context, args ...string) (m measurement, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	calls := filepath.Join(b.dir, "calls.ndjson")
	if err := os.RemoveAll(calls); err != nil {
		return m, err
	}
	cmd := exec.CommandContext(ctx, b.bed, append(args, "-o", "json")...)
	cmd.Dir = b.dir
	cmd.Env = append(os.Environ(), provider.CallsEnv+"="+calls)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it ends in good order
	cmd.WaitDelay = time.Minute
	var said bytes.Buffer
	cmd.Stderr = &said
	m.peaks = peaks{}
	start, worked := time.Now(), processor()
	if err := cmd.Start(); err != nil {
		return m, err
	}
	ended, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			m.peaks.look(calls)
			select {
			case <-ended:
				return
			case <-time.After(100 * time.Millisecond): // a peak is kept by the kernel until the process ends
			}
		}
	}()
	err = cmd.Wait()
	m.total, m.processor, m.said = time.Since(start).Seconds(), processor()-worked, said.Bytes()
	close(ended)
	<-watched
	if err != nil {
		return m, fmt.Errorf("bed %s: %w; it said:\n%s", strings.Join(args, " "), err, said.String())
	}
	m.ours, err = busy(calls)
	return m, err
}

// look takes down the peak so far of the processes that bear the name of the file in their environment.
func (p peaks) look(calls string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		exe, err := os.Readlink(dir + "/exe")
		name := filepath.Base(exe)
		if err != nil || !slices.Contains([]string{"bed", "pulumi", "pulumi-resource-bedfellow"}, name) {
			continue
		}
		environ, _ := os.ReadFile(dir + "/environ")
		status, _ := os.ReadFile(dir + "/status") // the process may end meanwhile
		if _, rest, ok := strings.Cut(string(status), "VmHWM:"); ok && bytes.Contains(environ, []byte(calls)) {
			var kib int
			if _, err := fmt.Sscan(rest, &kib); err == nil {
				p[name] = max(p[name], kib>>10)
			}
		}
	}
}

// busy is how many seconds at least one call was under way.
func busy(path string) (float64, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil // no call
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var calls []provider.Call
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var c provider.Call
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		calls = append(calls, c)
	}
	slices.SortFunc(calls, func(a, b provider.Call) int { return a.Start.Compare(b.Start) })
	var total time.Duration
	var until time.Time
	for _, c := range calls {
		if c.Start.Before(until) {
			c.Start = until
		}
		if c.End.After(c.Start) {
			total += c.End.Sub(c.Start)
			until = c.End
		}
	}
	return total.Seconds(), nil
}

// conclude fills in the medians.
func (f *figure) conclude() {
	var total, ours, engine, processor []float64
	f.PeakMiB = peaks{}
	for _, m := range f.measured {
		total, ours, engine, processor = append(total, m.total), append(ours, m.ours), append(engine, m.total-m.ours), append(processor, m.processor)
		for name, mib := range m.peaks {
			f.PeakMiB[name] = max(f.PeakMiB[name], mib)
		}
	}
	f.Seconds, f.Ours, f.Engine, f.Slowest, f.Processor = median(total), median(ours), median(engine), milli(slices.Max(total)), median(processor)
}

// median sorts the values; it is in whole milliseconds.
func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	return milli((values[(n-1)/2] + values[n/2]) / 2)
}

func milli(seconds float64) float64 { return math.Round(seconds*1000) / 1000 }

func thisMachine() machine {
	m := machine{CPUs: runtime.NumCPU(), LoadBefore: load()}
	info, _ := os.ReadFile("/proc/cpuinfo")
	if _, rest, ok := strings.Cut(string(info), "model name"); ok {
		name, _, _ := strings.Cut(rest, "\n")
		m.CPU = strings.Trim(name, "\t: ")
	}
	var s syscall.Sysinfo_t
	if syscall.Sysinfo(&s) == nil {
		m.MemoryMiB = int(s.Totalram * uint64(s.Unit) >> 20)
	}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = strings.TrimSpace(string(kernel))
	return m
}

// processor is for how many seconds the processors have worked since the host started, all added up: for users, nicely or not, for the
// kernel and for interrupts, see proc_stat(5).
func processor() float64 {
	var user, nice, system, idle, wait, irq, softirq float64
	text, _ := os.ReadFile("/proc/stat")
	_, _ = fmt.Sscanf(string(text), "cpu %g %g %g %g %g %g %g", &user, &nice, &system, &idle, &wait, &irq, &softirq)
	return (user + nice + system + irq + softirq) / 100 // a tick is a hundredth of a second whatever the kernel's own
}

// load is the load of the last minute.
func load() float64 {
	var l float64
	text, _ := os.ReadFile("/proc/loadavg")
	_, _ = fmt.Sscan(string(text), &l)
	return l
}
