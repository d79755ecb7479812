package ovirt_test

import (
	"context"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/ovirt"
	"github.com/bedfellow/bedfellow/provision/ovirt/enginetest"
)

// At most so many requests make a node once the template is there.
func TestRequestsOfANode(t *testing.T) {
	e := start(t, quick())
	d := e.driver(t)
	_, err := d.Create(t.Context(), e.machine(t, 0))
	require.NoError(t, err)
	before := d.Requests()
	m := e.machine(t, 1)
	m.Disk = bed.GiB
	_, err = d.Create(t.Context(), m)
	require.NoError(t, err)
	assert.LessOrEqual(t, d.Requests()-before, int64(15))
	t.Logf("%d requests", d.Requests()-before)
}

// usual is an engine that takes what a real one does, and a driver that waits as it does there, in so much less time; the image's template is there.
func usual(t testing.TB, faster int, values ...string) (*engine, *ovirt.Driver) {
	t.Helper()
	l := enginetest.Usual()
	for _, d := range []*time.Duration{&l.MakeVM, &l.MakeDisk, &l.MakeTemplate, &l.Launch, &l.Stop, &l.Remove, &l.Transfer, &l.Answer} {
		*d /= time.Duration(faster)
	}
	e := start(t, l)
	d := e.driver(t, values...)
	d.Usual(e.port, faster)
	_, err := d.Create(t.Context(), e.machine(t, 0))
	require.NoError(t, err)
	require.NoError(t, d.Delete(t.Context(), bed.NodeName("conf", 0)))
	return e, d
}

// cost is what a bed has taken to make.
type cost struct {
	took            time.Duration
	requestsPerNode float64
	pending         int     // VMs that were on their way up at once, at most
	peak            float64 // MiB of live memory, the fake engine's included, at most
}

// measure makes a bed of n nodes, as a Pool does, and removes it.
func (e *engine) measure(t testing.TB, d *ovirt.Driver, n int) (c cost) {
	t.Helper()
	machines := make([]provision.Machine, n)
	for i := range machines {
		machines[i] = e.machine(t, i)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			var memory runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&memory)
			c.peak = max(c.peak, float64(memory.HeapAlloc)/(1<<20))
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	before, begin := d.Requests(), time.Now()
	err := remote.Each(t.Context(), machines, d.Info().Concurrency, func(ctx context.Context, _ int, m provision.Machine) error {
		_, err := d.Create(ctx, m)
		return err
	})
	c.took = time.Since(begin)
	close(stop)
	<-done
	require.NoError(t, err)
	c.requestsPerNode = float64(d.Requests()-before) / float64(n)
	c.pending = e.Pending()
	require.Len(t, e.Census(), 2*n+3, "VMs and their disks, the template, the tag and the group")
	for _, m := range machines {
		e.Do(m.Name, enginetest.Erase)
	}
	return c
}

// Seven nodes come up in no more than 1.2 times what one takes.
func TestSevenNodesTakeNoLongerThanOne(t *testing.T) {
	e, d := usual(t, 10)
	best := map[int]time.Duration{}
	for _, n := range []int{1, 7, 1, 7, 1, 7} {
		c := e.measure(t, d, n)
		t.Logf("%d nodes: %s, %.1f requests per node", n, c.took.Round(time.Millisecond), c.requestsPerNode)
		if n > 1 { // one of one also makes what a bed's nodes share
			assert.LessOrEqual(t, c.requestsPerNode, 15.0)
		}
		if best[n] == 0 || c.took < best[n] { // this host has other things to do
			best[n] = c.took
		}
	}
	ratio := float64(best[7]) / float64(best[1])
	t.Logf("seven take %.2f times as long as one", ratio)
	assert.LessOrEqual(t, ratio, 1.2)
}

// Of two hundred nodes no more are in the making than is asked for, and what one takes of memory and of requests is what one of few does.
func TestTwoHundredNodes(t *testing.T) {
	const concurrency = 12
	e, d := usual(t, 40, "concurrency", strconv.Itoa(concurrency))
	few, many := e.measure(t, d, 20), e.measure(t, d, 200)
	each := (many.peak - few.peak) * 1024 / 180
	t.Logf("200 nodes: %s, %d at once, %.1f requests per node; at most %.1f MiB, of 20 nodes %.1f: %.0f KiB for each more, the fake engine's share included",
		many.took.Round(time.Millisecond), many.pending, many.requestsPerNode, many.peak, few.peak, each)
	assert.Equal(t, []int{concurrency, concurrency}, []int{few.pending, many.pending})
	assert.LessOrEqual(t, many.requestsPerNode, 15.0)
	assert.Less(t, each, 64.0)
}

// BenchmarkNodes makes beds on an engine with the latencies of a real one, a tenth as long, from a template that is there.
func BenchmarkNodes(b *testing.B) {
	for _, n := range []int{1, 7, 200} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			e, d := usual(b, 10)
			var last cost
			for b.Loop() {
				last = e.measure(b, d, n)
			}
			b.ReportMetric(last.requestsPerNode, "requests/node")
			b.ReportMetric(last.peak, "MiB")
			b.ReportMetric(last.took.Seconds(), "s/bed")
		})
	}
}
