// Package progress carries what is being done, as a stream of typed events, from where work happens to whoever shows it.
//
// Work reports through the context, so that no signature changes when somebody wants to watch:
//
//	step := progress.Start(ctx, "bake debian-12")
//	step.Update("%d packages", n)
//	...
//	step.End(err)
//
// A context without a sink makes all of this silent and free.
package progress

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"
)

// Kind says what an event tells of its step.
type Kind string

// The kinds of events. A step has one Started, any number of Updated, then one Done or Failed. A Noted event belongs to no
// running step.
const (
	Started Kind = "started"
	Updated Kind = "updated"
	Done    Kind = "done"
	Failed  Kind = "failed"
	Noted   Kind = "noted"
)

// Event is one thing that happened. Its JSON form is the wire format between the provider plugin and `bed`, and that of
// `-o json` progress.
type Event struct {
	Time   time.Time `json:"time"`
	Step   string    `json:"step"`             // what a person calls it: "bake debian-12", "boot quickstart-2"
	Kind   Kind      `json:"kind"`             //
	Detail string    `json:"detail,omitempty"` // the newest fact on Updated and Done, the error on Failed
	// Seconds the step took; on Done and Failed only.
	Seconds float64 `json:"seconds,omitempty"`
}

// Sink receives events. It must be safe for concurrent use and must not block for long.
type Sink func(Event)

type sinkKey struct{}

// With returns a context whose steps are reported to sink.
func With(ctx context.Context, sink Sink) context.Context {
	return context.WithValue(ctx, sinkKey{}, sink)
}

// SinkOf returns the context's sink, or one that discards.
func SinkOf(ctx context.Context) Sink {
	if s, ok := ctx.Value(sinkKey{}).(Sink); ok && s != nil {
		return s
	}
	return func(Event) {}
}

// Step is a piece of work under way. Its methods are safe for concurrent use.
type Step struct {
	name  string
	sink  Sink
	start time.Time
	once  sync.Once
}

// Start reports that the named step has begun. End must be called.
func Start(ctx context.Context, format string, args ...any) *Step {
	s := &Step{name: fmt.Sprintf(format, args...), sink: SinkOf(ctx), start: time.Now()}
	s.sink(Event{Time: s.start, Step: s.name, Kind: Started})
	return s
}

// Update reports the newest fact about the step: one line, no final stop.
func (s *Step) Update(format string, args ...any) {
	s.sink(Event{Time: time.Now(), Step: s.name, Kind: Updated, Detail: fmt.Sprintf(format, args...)})
}

// End reports that the step is over, failed when err is not nil. Calls after the first do nothing. It returns err, so that
// `return step.End(err)` reads well.
func (s *Step) End(err error) error {
	s.EndWith("", err)
	return err
}

// EndWith is End with a closing fact for the good case, such as "3 nodes".
func (s *Step) EndWith(detail string, err error) {
	s.once.Do(func() {
		e := Event{Time: time.Now(), Step: s.name, Kind: Done, Detail: detail, Seconds: time.Since(s.start).Seconds()}
		if err != nil {
			e.Kind, e.Detail = Failed, err.Error()
		}
		s.sink(e)
	})
}

// Note reports a fact that belongs to no step, such as a warning.
func Note(ctx context.Context, format string, args ...any) {
	SinkOf(ctx)(Event{Time: time.Now(), Kind: Noted, Detail: fmt.Sprintf(format, args...)})
}

// JSON returns a sink that writes each event as a line of JSON. Lines are written whole, so several processes may append to
// one file. Errors of w are ignored: progress never fails the work it tells about.
func JSON(w io.Writer) Sink {
	var mu sync.Mutex
	return func(e Event) {
		line, err := json.Marshal(e)
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		_, _ = w.Write(append(line, '\n'))
	}
}

// Tee returns a sink that hands every event to each of sinks, in order.
func Tee(sinks ...Sink) Sink {
	return func(e Event) {
		for _, s := range sinks {
			s(e)
		}
	}
}
