package iperf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Result is what the client of one TCP test says in iperf3's own JSON.
type Result struct {
	Version  string // as in "iperf 3.12"
	Streams  int    // in each direction
	Seconds  int    // asked for, without Omit
	Omit     int    // seconds at the start that are in no figure
	Forward  Flow   // from the client to the server
	Backward *Flow  // from the server to the client; nil when the test had one direction
}

// Flow is what went in one direction, all streams together.
type Flow struct {
	BitsPerSecond float64 // as received
	Bytes         int64   // as received
	Seconds       float64 // until the receiver had it
	Retransmits   *int64  // of TCP segments; nil where iperf3 cannot know
}

// maxJSON bounds what is read: hours of a few streams, a line per second each.
const maxJSON = 64 << 20

// ReadJSON reads the output of one iperf3 -J client. What it does not understand it refuses: a test that ended with an error, was
// not TCP, was reversed or cut short, figures that are missing, not numbers, negative, or at odds with each other.
func ReadJSON(r io.Reader) (Result, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err == nil && len(data) > maxJSON {
		err = fmt.Errorf("more than %d bytes", maxJSON)
	}
	var result Result
	if err == nil {
		result, err = read(data)
	}
	if err != nil {
		return Result{}, fmt.Errorf("iperf3's JSON: %w", err)
	}
	return result, nil
}

func read(data []byte) (result Result, err error) {
	top, err := object(data)
	if err != nil {
		return result, err
	}
	if said, ok := top["error"]; ok {
		var text string
		if json.Unmarshal(said, &text) != nil || text == "" {
			text = string(said)
		}
		return result, fmt.Errorf("iperf3 reports an error: %s", text)
	}
	start, err := inside(top, "start")
	if err != nil {
		return result, err
	}
	if result.Version, err = value[string](start, "version"); err != nil {
		return result, fmt.Errorf("start: %w", err)
	}
	if !strings.HasPrefix(result.Version, "iperf 3.") {
		return result, fmt.Errorf("start: version is %q, where iperf 3 was expected", result.Version)
	}
	if err := result.readTest(start); err != nil {
		return result, fmt.Errorf("start: %w", err)
	}
	end, err := inside(top, "end", nameBackward)
	if err != nil {
		return result, err
	}
	if err := result.readEnd(end); err != nil {
		return result, fmt.Errorf("end: %w", err)
	}
	return result, nil
}

func (r *Result) readTest(start map[string]json.RawMessage) error {
	test, err := inside(start, "test_start")
	if err != nil {
		return err
	}
	protocol, err := value[string](test, "protocol")
	var reverse int
	for _, number := range []struct {
		name   string
		lo, hi int
		to     *int
	}{
		{"num_streams", 1, 128, &r.Streams}, {"duration", 1, 1 << 30, &r.Seconds}, {"omit", 0, 1 << 30, &r.Omit},
		{"reverse", 0, 1, &reverse}, {"bytes", 0, 0, new(int)}, {"blocks", 0, 0, new(int)}, // by time, not by amount
	} {
		v, errValue := value[int](test, number.name)
		if errValue == nil && (v < number.lo || v > number.hi) {
			errValue = fmt.Errorf("%s is %d, where %d to %d was expected", number.name, v, number.lo, number.hi)
		}
		*number.to, err = v, errors.Join(err, errValue)
	}
	switch {
	case err != nil:
		return fmt.Errorf("test_start: %w", err)
	case protocol != "TCP":
		return fmt.Errorf("test_start: protocol is %q, where TCP was expected", protocol)
	case reverse != 0:
		return errors.New("test_start: the test was reversed")
	}
	return nil
}

// back is what the sums of the direction from the server end with.
const back = "_bidir_reverse"

// nameBackward gives the sums of a test of both directions the names that iperf3 gives them from 3.10 on. Before, as in Ubuntu 22.04, those
// of the direction from the server come second, under the same names; both say whose they are, which is checked later.
func nameBackward(members []member) {
	seen := map[string][]int{}
	for i, m := range members {
		seen[m.name] = append(seen[m.name], i)
	}
	if len(seen["sum_sent"]) == 2 && len(seen["sum_received"]) == 2 {
		for _, name := range []string{"sum_sent", "sum_received"} {
			members[seen[name][1]].name += back
		}
	}
}

func (r *Result) readEnd(end map[string]json.RawMessage) (err error) {
	if r.Forward, err = r.flow(end, "", true); err != nil {
		return err
	}
	directions := 1
	_, sent := end["sum_sent"+back]
	_, received := end["sum_received"+back]
	if sent || received {
		flow, err := r.flow(end, back, false)
		if err != nil {
			return err
		}
		r.Backward, directions = &flow, 2
	}
	streams, err := value[[]json.RawMessage](end, "streams")
	if err == nil && len(streams) != directions*r.Streams {
		err = fmt.Errorf("%d streams, where %d in each of %d directions were expected", len(streams), r.Streams, directions)
	}
	return err
}

// flow reads the sums of one direction. The received ones count; the sent ones have the retransmits.
func (r *Result) flow(end map[string]json.RawMessage, suffix string, forward bool) (Flow, error) {
	sent, err := r.sum(end, "sum_sent"+suffix, forward)
	if err != nil {
		return Flow{}, err
	}
	received, err := r.sum(end, "sum_received"+suffix, forward)
	received.Retransmits = sent.Retransmits
	return received, err
}

func (r *Result) sum(end map[string]json.RawMessage, name string, forward bool) (f Flow, err error) {
	sum, err := inside(end, name)
	if err != nil {
		return f, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
		}
	}()
	var errs [3]error
	f.Seconds, errs[0] = value[float64](sum, "seconds")
	f.Bytes, errs[1] = value[int64](sum, "bytes")
	f.BitsPerSecond, errs[2] = value[float64](sum, "bits_per_second")
	if err := errors.Join(errs[:]...); err != nil {
		return f, err
	}
	if _, ok := sum["sender"]; ok {
		if sender, err := value[bool](sum, "sender"); err != nil || sender != forward {
			return f, fmt.Errorf("sender is %s, which is the other direction", sum["sender"])
		}
	}
	if _, ok := sum["retransmits"]; ok {
		n, err := value[int64](sum, "retransmits")
		if err == nil && n < 0 {
			err = fmt.Errorf("retransmits is %d", n)
		}
		if err != nil {
			return f, err
		}
		f.Retransmits = &n
	}
	switch rate := 8 * float64(f.Bytes) / f.Seconds; {
	case f.Bytes <= 0:
		return f, fmt.Errorf("bytes is %d: nothing went through", f.Bytes)
	case !(f.Seconds >= 0.9*float64(r.Seconds)):
		return f, fmt.Errorf("it lasted %g s of %d: it was cut short", f.Seconds, r.Seconds)
	case !(math.Abs(f.BitsPerSecond-rate) <= 0.01*rate):
		return f, fmt.Errorf("%g bits per second are not %d bytes in %g s", f.BitsPerSecond, f.Bytes, f.Seconds)
	}
	return f, nil
}

// member is one of a JSON object.
type member struct {
	name  string
	value json.RawMessage
}

// object reads one JSON object and nothing after it. Unlike json.Unmarshal it takes names as they are written, once they were edited, and
// one that is there twice has no value: iperf3 3.12 repeats some of those that nobody reads here, such as sock_bufsize.
func object(data []byte, edit ...func([]member)) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err == io.EOF {
		return nil, errors.New("nothing there")
	} else if err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, fmt.Errorf("%v, where an object was expected", t)
	}
	var members []member
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, fmt.Errorf("%v, where a name was expected", t)
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, fmt.Errorf("%s: %w", name, whole(err))
		}
		members = append(members, member{name, v})
	}
	if _, err := d.Token(); err != nil {
		return nil, whole(err)
	}
	if t, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("something follows the object: %v", t)
	}
	for _, e := range edit {
		e(members)
	}
	o := map[string]json.RawMessage{}
	for _, m := range members {
		if _, twice := o[m.name]; twice {
			m.value = nil
		}
		o[m.name] = m.value
	}
	return o, nil
}

// whole makes an end of input in the middle of JSON an error that says so.
func whole(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func inside(o map[string]json.RawMessage, name string, edit ...func([]member)) (map[string]json.RawMessage, error) {
	v, ok := o[name]
	if !ok {
		return nil, fmt.Errorf("%s is missing", name)
	}
	if v == nil {
		return nil, fmt.Errorf("%s is there twice", name)
	}
	in, err := object(v, edit...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return in, nil
}

// value reads a member that must be there and not null, which is what iperf3 writes for a number that is none.
func value[T any](o map[string]json.RawMessage, name string) (v T, err error) {
	raw, ok := o[name]
	if !ok {
		return v, fmt.Errorf("%s is missing", name)
	}
	if raw == nil {
		return v, fmt.Errorf("%s is there twice", name)
	}
	var p *T
	if err := json.Unmarshal(raw, &p); err != nil || p == nil {
		return v, fmt.Errorf("%s is %.40s, where a %T was expected", name, raw, v)
	}
	return *p, nil
}
