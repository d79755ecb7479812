// Package iperf measures TCP between every two compute nodes with iperf3, one pair at a time, as the talk did, and between pods on them
// beside. In a bed that has only one of them the control node is the other end.
package iperf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
)

// The series: pairs are ordered in the first, and each unordered pair of the second yields a sample in either direction. Those of pods
// have more to their names.
const (
	oneWay   = "one way"
	bothWays = "both ways"
	ofPods   = ", pods"
)

const (
	port    = 5201             // iperf3's own
	startUp = 20 * time.Second // for a server to listen, and again for a test to connect and hand over its figures
	goDown  = 10 * time.Second // for a server to end by itself, and again to be ended
)

// ends are the nodes that can be tested between.
func ends(inv bed.Inventory) []bed.InventoryNode {
	if compute := inv.Compute(); len(compute) > 1 {
		return compute
	}
	return inv.Nodes
}

// Scenario runs iperf3 between the compute nodes.
func Scenario() scenario.Scenario {
	return scenario.Scenario{
		Name: "iperf", Summary: "iperf3 between every two compute nodes, one direction at a time and both, as in the talk",
		Parameters: []scenario.Parameter{
			{Name: "seconds", Doc: "length of each test; the talk's were 60", Default: "2", Check: scenario.Whole(1, 86400)},
			{Name: "omit", Doc: "seconds before them that are in no figure", Default: "0", Check: scenario.Whole(0, 60)},
			{Name: "parallel", Doc: "TCP streams in each direction", Default: "1", Check: scenario.Whole(1, 128)},
			{Name: "between", Doc: "what is tested: hosts, or pods and the hosts they are on in turn", Default: "hosts", Check: scenario.OneOf("hosts", "pods"), Fits: podsFit},
			{Name: "bidirectional", Doc: "also test both directions at once: true or false", Default: "true", Check: truth},
			{Name: "nodes", Doc: "nodes to test between", Default: "all compute nodes; where there is one, the control node too", Check: scenario.Whole(2, bed.MaxNodes),
				Derive: func(inv bed.Inventory, _ scenario.Values) string { return strconv.Itoa(len(ends(inv))) },
				Fits:   nodesFit},
			{Name: "warmups", Doc: "tests of each pair before the measured ones, recorded but not counted", Default: "0", Check: scenario.Whole(0, 1000)},
		},
		Run: run,
	}
}

func truth(s string) error {
	if s != "true" && s != "false" {
		return errors.New("must be true or false")
	}
	return nil
}

func nodesFit(inv bed.Inventory, _ scenario.Values, value string) error {
	n, _ := strconv.Atoi(value)
	if have := len(ends(inv)); n > have || have < 2 {
		return fmt.Errorf("bed %s has %d nodes to test between, and a pair needs two", inv.Bed, have)
	}
	return nil
}

func podsFit(inv bed.Inventory, _ scenario.Values, value string) error {
	if value == "pods" && inv.Kubernetes != bed.OwnKubernetes {
		return fmt.Errorf("bed %s has no Kubernetes of its own, which -c kubernetes=usernetes asks for", inv.Bed)
	}
	return nil
}

// end is where iperf3 runs: a node, or a pod on it.
type end struct {
	node, address string
	enter         []string // before a command that is to run in a pod's network
}

// experiment is one run of the scenario.
type experiment struct {
	*scenario.Env
	hosts                   []end
	dir                     string // the run's own, on every node
	seconds, omit, parallel int
}

func run(ctx context.Context, env *scenario.Env) error {
	v := env.Params
	e := &experiment{Env: env, seconds: v.Int("seconds"), omit: v.Int("omit"), parallel: v.Int("parallel")}
	var names []string
	for _, n := range ends(env.Inventory)[:v.Int("nodes")] {
		names = append(names, n.Name)
		e.hosts = append(e.hosts, end{node: n.Name, address: n.BedAddress})
	}
	dir, remove, err := env.Scratch(ctx, names, "")
	if err != nil {
		return err
	}
	defer remove()
	e.dir = dir
	if err := e.prepare(ctx, names); err != nil {
		return fmt.Errorf("prepare iperf3: %w", err)
	}
	kinds := map[string][]end{"": e.hosts}
	if v["between"] == "pods" {
		pods, remove, err := e.startPods(ctx)
		if err != nil {
			return err
		}
		defer remove()
		kinds[ofPods] = pods
	}
	type test struct {
		from, to end
		series   string
		both     bool
	}
	var tests []test
	for i := range e.hosts {
		for j := range e.hosts {
			for _, kind := range slices.Sorted(maps.Keys(kinds)) { // a pair's hosts and pods one after the other
				if i != j {
					tests = append(tests, test{kinds[kind][i], kinds[kind][j], oneWay + kind, false})
				}
				if i < j && v["bidirectional"] == "true" {
					tests = append(tests, test{kinds[kind][i], kinds[kind][j], bothWays + kind, true})
				}
			}
		}
	}
	each := v.Int("warmups") + env.Repeats
	progress.Note(ctx, "%d tests, one after the other, of %s at least", each*len(tests), time.Duration(each*len(tests)*(e.seconds+e.omit))*time.Second)
	failed := &scenario.FailedError{}
	for _, t := range tests {
		failed.Of += each
		err := e.pair(ctx, t.from, t.to, t.series, t.both)
		var some *scenario.FailedError
		switch {
		case errors.As(err, &some):
			if failed.Failed == 0 {
				failed.First, failed.Log = some.First, some.Log
				failed.Name = fmt.Sprintf("%s of %s to %s, %s", some.Name, t.from.node, t.to.node, t.series)
			}
			failed.Failed += some.Failed
		case err != nil:
			return err
		}
	}
	if failed.Failed > 0 {
		return failed
	}
	return nil
}

// prepare looks at what iperf3 the nodes have, which must be the same on all and know --bidir.
func (e *experiment) prepare(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	said, err := e.OnEach(ctx, names, "command -v ss >/dev/null && command -v timeout >/dev/null && iperf3 --version")
	if err != nil {
		return fmt.Errorf("%w; the role base puts iperf3 and ss into an image", err)
	}
	for i := range said {
		said[i], _, _ = strings.Cut(said[i], "\n")
		var major, minor int
		if _, err := fmt.Sscanf(said[i], "iperf %d.%d", &major, &minor); err != nil || major != 3 || minor < 7 {
			return fmt.Errorf("node %s has %q, where iperf 3.7 or newer was expected", names[i], said[i])
		}
		if said[i] != said[0] {
			return fmt.Errorf("node %s has %q and node %s %q: they are not of one image; `bed up` makes them so", names[0], said[0], names[i], said[i])
		}
	}
	if e.Inventory.SharedKernel {
		if err := e.Note(ctx, "the nodes run on one kernel: what they send each other never leaves the host, so this is the speed of its CPUs and not of a network"); err != nil {
			return err
		}
	}
	return e.Record.Update(func(r *results.Run) { r.Versions["iperf3"] = strings.TrimPrefix(said[0], "iperf ") })
}

// pair measures all repetitions of one pair.
func (e *experiment) pair(ctx context.Context, from, to end, series string, both bool) error {
	env := *e.Env
	env.Scenario = fmt.Sprintf("%s %s to %s", e.Scenario, from.node, to.node) // as the steps are called
	s := scenario.Series{Name: series, Parameters: between(from, to), Warmups: e.Params.Int("warmups")}
	return env.Repeat(ctx, s, func(ctx context.Context, r scenario.Repetition) (m scenario.Measured, err error) {
		result, log, err := e.repetition(ctx, strings.Join([]string{strings.NewReplacer(" ", "-", ",", "").Replace(s.Name), from.node, to.node, r.String()}, "-"), from, to, both)
		m.Log = log
		if err == nil {
			m.Metrics = metrics(result.Forward)
		}
		if err == nil && !both {
			var trip scenario.Metric
			trip, err = e.roundTrip(ctx, from, to)
			m.Metrics = append(m.Metrics, trip)
		}
		if both && (err == nil || ctx.Err() == nil) {
			err = errors.Join(err, e.addBackward(s.Name, between(to, from), r, result.Backward, log, err))
		}
		return m, err
	})
}

func between(from, to end) map[string]string {
	return map[string]string{"from": from.node, "to": to.node}
}

const pings = "ping -q -n -c 10 -i 0.2 -w 30 "

// roundTrip asks after a test, with nothing else under way, how long an answer takes.
func (e *experiment) roundTrip(ctx context.Context, from, to end) (scenario.Metric, error) {
	as := []string{"sudo", "-n"} // Debian 13's ping is for root, and for whom a sysctl lets
	if len(from.enter) > 0 {
		as = from.enter
	}
	said, err := e.Nodes.Run(ctx, from.node, strings.Join(append(slices.Clone(as), pings+to.address), " "))
	if err != nil {
		return scenario.Metric{}, err
	}
	_, figures, _ := strings.Cut(string(said.Stdout), "rtt min/avg/max/mdev = ")
	if fields := strings.Split(figures, "/"); len(fields) == 4 {
		ms, err := strconv.ParseFloat(fields[1], 64)
		if err == nil {
			return scenario.Metric{Name: "round trip", Value: ms, Unit: "ms"}, nil
		}
	}
	return scenario.Metric{}, fmt.Errorf("ping on node %s said %q, where its round trips were expected", from.node, said.Stdout)
}

func metrics(f Flow) []scenario.Metric {
	m := []scenario.Metric{{Name: "bandwidth", Value: f.BitsPerSecond / 1e9, Unit: "Gbit/s"}}
	if f.Retransmits != nil {
		m = append(m, scenario.Metric{Name: "retransmits", Value: float64(*f.Retransmits)})
	}
	return m
}

// addBackward records the other direction of a test of both, whose first direction Repeat records.
func (e *experiment) addBackward(series string, parameters map[string]string, r scenario.Repetition, f *Flow, log string, failure error) error {
	sample := results.Sample{Series: series, Parameters: parameters, Repetition: r.Number, Warmup: r.Warmup, Log: log, Status: results.OK}
	if failure != nil {
		sample.Status, sample.Reason = results.Failed, failure.Error()
		return e.Record.Add(sample)
	}
	var samples []results.Sample
	for _, m := range metrics(*f) {
		sample.Metric, sample.Value, sample.Unit = m.Name, m.Value, m.Unit
		samples = append(samples, sample)
	}
	return e.Record.Add(samples...)
}

// server is an iperf3 that serves one test. When done is closed, it has ended or its node is out of reach.
type server struct {
	done chan struct{}
	said remote.Result
	err  error
}

// complaint says how the server ended, which was not well.
func (s *server) complaint() error {
	if _, err := ReadJSON(bytes.NewReader(s.said.Stdout)); err != nil && bytes.Contains(s.said.Stdout, []byte(`"error"`)) {
		return fmt.Errorf("the server: %w", err)
	}
	if s.err != nil {
		return fmt.Errorf("the server: %w", s.err)
	}
	return nil
}

// repetition runs one test: a server, as soon as it listens a client, and then neither is left.
func (e *experiment) repetition(ctx context.Context, name string, from, to end, both bool) (result Result, log string, err error) {
	serverAt, clientAt := path.Join(e.dir, name+".server"), path.Join(e.dir, name+".client")
	length := time.Duration(e.seconds+e.omit) * time.Second
	serving, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &server{done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.said, s.err = e.Nodes.Run(serving, to.node, e.launch(serverAt, length+3*startUp, slices.Concat(to.enter, []string{"iperf3", "-s", "-1", "-J", "-p", strconv.Itoa(port)})))
	}()
	var said remote.Result
	err = e.listening(ctx, to, s)
	if err == nil {
		client := slices.Concat(from.enter, []string{"iperf3", "-J", "-c", to.address, "-p", strconv.Itoa(port), "-t", strconv.Itoa(e.seconds), "-O", strconv.Itoa(e.omit), "-P", strconv.Itoa(e.parallel)})
		if both {
			client = append(client, "--bidir")
		}
		said, err = e.Nodes.Run(ctx, from.node, e.launch(clientAt, length+startUp, client))
		var exit *remote.ExitError
		if err != nil && !errors.As(err, &exit) {
			e.stop(ctx, from.node, clientAt)
		}
	}
	if len(said.Stdout) > 0 {
		// iperf3 may end with status 0 after an error, and says more in its JSON than by any other status.
		var errRead error
		if result, errRead = ReadJSON(bytes.NewReader(said.Stdout)); errRead != nil {
			err = errRead
		}
	}
	if err == nil {
		select {
		case <-s.done:
		case <-ctx.Done():
		case <-time.After(goDown):
			err = fmt.Errorf("the server on node %s did not end after its test", to.node)
		}
	}
	if err != nil || ctx.Err() != nil {
		e.stop(ctx, to.node, serverAt)
		cancel()
		<-s.done
	}
	if ctx.Err() != nil {
		return result, "", context.Cause(ctx)
	}
	if len(said.Stdout) > 0 {
		kept, errLog := e.Record.Log(name+".json", said.Stdout)
		log, err = kept, errors.Join(err, errLog)
	}
	if err == nil {
		err = e.fits(result, both)
	}
	if err == nil {
		err = s.complaint()
	}
	return result, log, err
}

// fits says whether the test was the one that was asked for.
func (e *experiment) fits(r Result, both bool) error {
	switch {
	case r.Version == "":
		return errors.New("iperf3 printed nothing")
	case r.Streams != e.parallel || r.Seconds != e.seconds || r.Omit != e.omit:
		return fmt.Errorf("iperf3 ran %d streams for %d s after %d s, but %d for %d s after %d s were asked for", r.Streams, r.Seconds, r.Omit, e.parallel, e.seconds, e.omit)
	case (r.Backward != nil) != both:
		return fmt.Errorf("iperf3 tested both directions: %t, but %t was asked for", r.Backward != nil, both)
	}
	return nil
}

// listening waits until the node's server listens.
func (e *experiment) listening(ctx context.Context, at end, s *server) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startUp, fmt.Errorf("the server on node %s did not listen within %s", at.node, startUp))
	defer cancel()
	for {
		r, err := e.Nodes.Run(ctx, at.node, strings.Join(append(at.enter, fmt.Sprintf("ss -Hltn 'sport = :%d'", port)), " "))
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(r.Stdout)) > 0 {
			return nil
		}
		select {
		case <-s.done:
			if err := s.complaint(); err != nil {
				return err
			}
			return fmt.Errorf("the server on node %s ended before its test", at.node)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// launch is a shell command that becomes a program, tells its process id for stop, and ends after a time whatever becomes of bed.
func (e *experiment) launch(at string, limit time.Duration, program []string) string {
	words := make([]string, len(program))
	for i, w := range program {
		words[i] = remote.Quote(w)
	}
	return fmt.Sprintf("cd %[1]s && echo $$ >%[2]s.pid && [ ! -e %[2]s.stop ] && exec timeout -k 2 %[3]d %[4]s",
		remote.Quote(e.dir), remote.Quote(at), int(limit.Seconds()), strings.Join(words, " "))
}

// stopping ends what launch began, or keeps it from beginning: one of the two sees the other's file. A process of the same id
// that is not in the run's directory is somebody else's.
const stopping = `touch %[2]s.stop 2>/dev/null
p=$(cat %[2]s.pid 2>/dev/null) && [ -n "$p" ] || exit 0
alive() { [ "/proc/$p/cwd" -ef %[1]s ]; }
alive && kill "$p" || exit 0
i=0
while alive && [ $i -lt 40 ]; do i=$((i + 1)); sleep 0.1; done
! alive || { kill -KILL -- "-$p"; sleep 0.1; ! alive; }`

// stop ends a program of launch on a node, also when the context has ended.
func (e *experiment) stop(ctx context.Context, node, at string) {
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), goDown)
	defer cancel()
	if _, err := e.Nodes.Run(short, node, fmt.Sprintf(stopping, remote.Quote(e.dir), remote.Quote(at))); err != nil {
		_ = e.Note(ctx, "iperf3 may be left on node %s until its time is up: %v", node, err)
	}
}
