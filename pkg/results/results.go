// Package results keeps what a scenario measured, on disk, in a form that outlives an interruption and explains itself.
//
// A run is a directory, results/<stack>/<scenario>/<run>/, with
//
//	run.json       what was run on what: Run, rewritten whole and atomically
//	samples.jsonl  one Sample per line, appended and synced as the run goes
//	summary.json   the Summary, written when the run is closed
//	logs/          the raw logs that samples name
//
// Every number is written so that reading it gives the same float64; NaN and infinities are refused.
package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Format is the version of the directory's layout. Load refuses any other.
const Format = 1

// The files of a run directory.
const (
	runFile     = "run.json"
	samplesFile = "samples.jsonl"
	summaryFile = "summary.json"
	logDir      = "logs"
)

// Status says how a run or a repetition ended.
type Status string

// The statuses of a run; a sample is OK or Failed.
const (
	Running     Status = "running" // or its recorder died: there is no later word
	OK          Status = "ok"
	Failed      Status = "failed"
	Interrupted Status = "interrupted"
)

// Run is what was run on what: run.json. Create fills Format, ID, Stack, Scenario, Status and Started.
type Run struct {
	Format   int        `json:"format"`
	ID       string     `json:"id"` // UTC start time and a random part, unique within its scenario's directory
	Stack    string     `json:"stack"`
	Scenario string     `json:"scenario"`
	Status   Status     `json:"status"`
	Started  time.Time  `json:"started"`
	Ended    *time.Time `json:"ended,omitempty"`

	Seed       uint64            `json:"seed"`                 // of the scenario's choices and of the bootstrap
	Parameters map[string]string `json:"parameters,omitempty"` // as the scenario used them, defaults included
	Baseline   string            `json:"baseline,omitempty"`   // the series ratios refer to; empty: the first one measured

	Bed      Bed               `json:"bed"`
	Spec     json.RawMessage   `json:"spec,omitempty"`     // the bed's specification, without secrets
	Versions map[string]string `json:"versions,omitempty"` // program to version
	Digests  map[string]string `json:"digests,omitempty"`  // file or image to digest, such as sha256:…
	Nodes    []Node            `json:"nodes,omitempty"`
	Ranks    []Rank            `json:"ranks,omitempty"`
	Notes    []string          `json:"notes,omitempty"` // what a reader must know, such as "oversubscribed: …"
}

// Bed says what kind of bed a run used. Empty fields are not known or do not apply.
type Bed struct {
	Driver            string `json:"driver,omitempty"`
	Image             string `json:"image,omitempty"`
	ImageDigest       string `json:"imageDigest,omitempty"`
	WorkloadManager   string `json:"workloadManager,omitempty"`
	Kubernetes        string `json:"kubernetes,omitempty"`
	KubernetesNetwork string `json:"kubernetesNetwork,omitempty"` // driver and MTU
	Network           string `json:"network,omitempty"`
}

// Node is one machine of the bed, as it described itself when the run began.
type Node struct {
	Name     string `json:"name"`
	Role     string `json:"role,omitempty"`
	OS       string `json:"os,omitempty"`       // PRETTY_NAME of os-release
	Kernel   string `json:"kernel,omitempty"`   // uname -r
	CPUModel string `json:"cpuModel,omitempty"` // "model name" of /proc/cpuinfo
	CPUs     int    `json:"cpus,omitempty"`     // those its processes may use
	HostCPUs string `json:"hostCpus,omitempty"` // which they are on the host, as a list such as 0-3,8
	Memory   int64  `json:"memory,omitempty"`   // bytes
}

// Rank tells where one MPI rank of one repetition ran.
type Rank struct {
	Series     string `json:"series"`
	Repetition int    `json:"repetition"`
	Warmup     bool   `json:"warmup,omitempty"`
	Rank       int    `json:"rank"`
	Node       string `json:"node"`
	PID        int    `json:"pid,omitempty"` // as the node sees it
}

// Sample is one metric of one repetition: a line of samples.jsonl.
//
// A metric named "whole/part" is a part of the metric "whole": the parts of a repetition add up to it. Reports draw parts as
// one stacked bar.
type Sample struct {
	Series string `json:"series"`
	// Parameters tell apart the points of a series, such as problem sizes or node pairs. Only samples with equal parameters
	// are summarised together and compared.
	Parameters map[string]string `json:"parameters,omitempty"`
	Repetition int               `json:"repetition"` // from 1; warm-ups count for themselves
	Warmup     bool              `json:"warmup,omitempty"`
	// Metric may be empty on a failed sample: then the repetition failed as a whole, in every metric of its series.
	Metric string    `json:"metric,omitempty"`
	Value  float64   `json:"value"`          // null, and 0 here, unless Status is OK
	Unit   string    `json:"unit,omitempty"` // one per metric throughout a run
	Status Status    `json:"status"`         // OK or Failed
	Reason string    `json:"reason,omitempty"`
	Log    string    `json:"log,omitempty"` // relative to the run directory, as Recorder.Log returned it
	Time   time.Time `json:"time"`          // Add sets it when it is zero
}

// sampleFields is Sample without its methods, and sampleLine its line: a failed sample has no value.
type (
	sampleFields Sample
	sampleLine   struct {
		sampleFields
		Value *float64 `json:"value"`
	}
)

// MarshalJSON writes a value of null for a sample that failed.
func (s Sample) MarshalJSON() ([]byte, error) {
	line := sampleLine{sampleFields: sampleFields(s)}
	if s.Status == OK {
		line.Value = &s.Value
	}
	return json.Marshal(line)
}

// UnmarshalJSON refuses unknown fields and an OK sample without a value.
func (s *Sample) UnmarshalJSON(data []byte) error {
	var line sampleLine
	if err := decode(data, &line); err != nil {
		return err
	}
	*s = Sample(line.sampleFields)
	s.Value = 0
	switch {
	case line.Value != nil:
		s.Value = *line.Value
	case s.Status == OK:
		return errors.New(`"value" is missing although "status" is ok`)
	}
	return nil
}

// check says what is wrong with a sample on its own.
func (s Sample) check() error {
	switch {
	case s.Series == "":
		return errors.New("no series")
	case s.Repetition < 1:
		return fmt.Errorf("repetition %d: they count from 1", s.Repetition)
	case s.Status != OK && s.Status != Failed:
		return fmt.Errorf("status %q: a sample is %q or %q", s.Status, OK, Failed)
	case s.Status == OK && s.Metric == "":
		return errors.New("an ok sample without a metric")
	case s.Status == Failed && s.Reason == "":
		return errors.New("a failed sample without a reason")
	case math.IsNaN(s.Value) || math.IsInf(s.Value, 0):
		return fmt.Errorf("value %v of %s is not a finite number: record the repetition as failed", s.Value, s.Metric)
	case s.Log != "" && !filepath.IsLocal(s.Log):
		return fmt.Errorf("log %q is not inside the run directory", s.Log)
	}
	return nil
}

// checker finds samples that contradict each other: a metric in two units, the same repetition twice, one that is both good
// and failed as a whole.
type checker struct {
	units map[string]string
	seen  map[string]bool
}

func (c *checker) add(s Sample) error {
	if err := s.check(); err != nil {
		return err
	}
	repetition := strings.Join([]string{keyOf(s), fmt.Sprint(s.Repetition, s.Warmup)}, "\x00")
	id, good, lost := repetition+"\x00metric "+s.Metric, repetition+"\x00good", repetition+"\x00metric "
	if (s.Metric == "" && c.seen[good]) || (s.Status == OK && c.seen[lost]) {
		return fmt.Errorf("repetition %d of series %q has good metrics and is failed as a whole: fail the metrics instead", s.Repetition, s.Series)
	}
	if c.seen[id] {
		return fmt.Errorf("repetition %d of series %q has %s twice", s.Repetition, s.Series, orWhole(s.Metric))
	}
	if known, ok := c.units[s.Metric]; ok && s.Status == OK && known != s.Unit {
		return fmt.Errorf("metric %s is in %q, but was in %q before", s.Metric, s.Unit, known)
	}
	if c.seen == nil {
		c.seen, c.units = map[string]bool{}, map[string]string{}
	}
	c.seen[id] = true
	if s.Status == OK {
		c.seen[good] = true
		c.units[s.Metric] = s.Unit
	}
	return nil
}

func orWhole(metric string) string {
	if metric == "" {
		return "a failure"
	}
	return "metric " + metric
}

// keyOf names the series and parameters of a sample, for grouping.
func keyOf(s Sample) string {
	return s.Series + "\x00" + FormatParameters(s.Parameters)
}

// FormatParameters writes parameters as "k=v, k=v", sorted by key.
func FormatParameters(p map[string]string) string {
	pairs := make([]string, 0, len(p))
	for k, v := range p {
		pairs = append(pairs, k+"="+v)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ", ")
}

// decode reads exactly one JSON value into v and refuses fields that v does not have.
func decode(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one JSON value")
	}
	return nil
}
