// Package lammps measures LAMMPS' ReaxFF HNS example, the benchmark of the talk, on a bed.
package lammps

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Log is what LAMMPS printed about one run, to the precision it printed.
type Log struct {
	Version        string        // such as "6 Jan 2022"
	LoopTime       float64       // seconds
	Procs          int           // Tasks × Threads
	Tasks          int           // MPI tasks
	Threads        int           // OpenMP threads per task; 1 when built without
	Steps          int           //
	Atoms          int64         //
	CPUUse         float64       // percent; 100 is a whole CPU for every one of Procs
	NsPerDay       float64       // simulated nanoseconds per day
	HoursPerNs     float64       //
	StepsPerSecond float64       //
	WallTime       time.Duration // whole seconds, set-up included
	Thermo         Thermo        //
	Breakdown      []Section     // of the loop time
	Warnings       []string      // LAMMPS' own, such as a QEq solver that did not converge
}

// Thermo is the table of thermodynamic output. Every row has a number for every column, in the units of the input (real for
// HNS: kcal/mol, K, atm); its first column is Step.
type Thermo struct {
	Columns []string
	Rows    [][]float64
}

// Section is one part of the loop time over the MPI tasks, in seconds. Min and Max are NaN where LAMMPS prints an average only
// (Other).
type Section struct {
	Name          string
	Min, Avg, Max float64
	VarAvg        float64 // percent; NaN as Min
	Share         float64 // percent of the loop time
}

// Energy is the last row's total energy, or its potential energy where the input does not print the total (HNS does not). The
// column tells which.
func (l Log) Energy() (value float64, column string, err error) {
	for _, name := range []string{"TotEng", "E_total", "PotEng"} {
		if i := slices.Index(l.Thermo.Columns, name); i >= 0 {
			return l.Thermo.Rows[len(l.Thermo.Rows)-1][i], name, nil
		}
	}
	return 0, "", fmt.Errorf("the thermo table has no TotEng, E_total or PotEng, only %s: the input's thermo_style must print one",
		strings.Join(l.Thermo.Columns, ", "))
}

// ParseLog reads the log file or the screen output of a LAMMPS run. It refuses, with the line's number and what it expected
// there, whatever it does not understand: a truncated log, an ERROR, a second run, a number that does not parse, figures that
// contradict each other.
func ParseLog(r io.Reader) (Log, error) {
	p := parser{expect: (*parser).version}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		p.n++
		line := strings.TrimSpace(lines.Text())
		if err := p.line(line); err != nil {
			return Log{}, fmt.Errorf("lammps log, line %d: %w, in %q", p.n, err, shorten(line))
		}
	}
	if err := lines.Err(); err != nil {
		return Log{}, fmt.Errorf("lammps log, line %d: %w", p.n+1, err)
	}
	if p.expect != nil {
		return Log{}, fmt.Errorf("lammps log ends after line %d, where %s was expected: it is truncated or LAMMPS was killed", p.n, p.awaits)
	}
	return p.log, nil
}

// parser reads a line at a time. expect is what handles the next line, nil after the last one; awaits says what it waits for.
type parser struct {
	log    Log
	n      int
	expect func(*parser, string) error
	awaits string
}

var (
	versionLine = regexp.MustCompile(`^LAMMPS \((.+)\)$`)
	memoryLine  = regexp.MustCompile(`^Per MPI rank memory allocation `)
	loopLine    = regexp.MustCompile(`^Loop time of (\S+) on (\S+) procs for (\S+) steps with (\S+) atoms$`)
	speedLine   = regexp.MustCompile(`^Performance: (\S+) ns/day, (\S+) hours/ns, (\S+) timesteps/s(?:, \S+ [kMGT]?atom-step/s)?$`)
	cpuLine     = regexp.MustCompile(`^(\S+)% CPU use with (\S+) MPI tasks x (\S+) OpenMP threads$`)
	totalLine   = regexp.MustCompile(`^Total wall time: (\d+):(\d\d):(\d\d)$`)
	errorLine   = regexp.MustCompile(`^(ERROR\b|Last command:|MPI_ABORT|srun: error|slurmstepd: error)`)
	number      = regexp.MustCompile(`^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$`)
)

const breakdownHeader = "Section |  min time  |  avg time  |  max time  |%varavg| %total"

func (p *parser) line(line string) error {
	switch {
	case errorLine.MatchString(line):
		return errors.New("LAMMPS or its launcher reports an error")
	case strings.HasPrefix(line, "WARNING"):
		p.log.Warnings = append(p.log.Warnings, line)
		return nil
	case p.expect == nil && line != "":
		return errors.New("nothing was expected after the total wall time: one run per log")
	case p.expect == nil:
		return nil
	case versionLine.MatchString(line) && p.log.Version != "":
		return errors.New("a second LAMMPS starts: one run per log")
	case loopLine.MatchString(line) && p.log.LoopTime != 0:
		return errors.New("a second run ends: one run per log")
	case memoryLine.MatchString(line) && p.log.Thermo.Columns != nil:
		return errors.New("a second run begins: one run per log")
	}
	return p.expect(p, line)
}

func (p *parser) then(awaits string, expect func(*parser, string) error) {
	p.awaits, p.expect = awaits, expect
}

func (p *parser) version(line string) error {
	p.awaits = "LAMMPS (version)"
	if m := versionLine.FindStringSubmatch(line); m != nil {
		p.log.Version = m[1]
		p.then("the run's start (Per MPI rank memory allocation)", (*parser).setUp)
	}
	return nil
}

// setUp skips the echo of the input and what its commands print.
func (p *parser) setUp(line string) error {
	switch {
	case memoryLine.MatchString(line):
		p.then("the header of the thermo table", (*parser).header)
	case loopLine.MatchString(line), strings.HasPrefix(line, "Total wall time:"):
		return fmt.Errorf("%s was expected before", p.awaits)
	}
	return nil
}

func (p *parser) header(line string) error {
	columns := strings.Fields(line)
	if len(columns) < 2 || columns[0] != "Step" {
		return errors.New("a thermo table that starts with the column Step was expected (thermo_style one or custom)")
	}
	for i, c := range columns {
		if slices.Contains(columns[:i], c) {
			return fmt.Errorf("column %s is there twice", c)
		}
	}
	p.log.Thermo.Columns = columns
	p.then("the end of the run (Loop time of …)", (*parser).row)
	return nil
}

func (p *parser) row(line string) error {
	if m := loopLine.FindStringSubmatch(line); m != nil {
		return p.loop(m)
	}
	cells := strings.Fields(line)
	if len(cells) != len(p.log.Thermo.Columns) {
		return fmt.Errorf("a row of %d numbers or the loop time was expected", len(p.log.Thermo.Columns))
	}
	row := make([]float64, len(cells))
	for i, cell := range cells {
		var err error
		if row[i], err = parse(cell); err != nil {
			return fmt.Errorf("column %s: %w", p.log.Thermo.Columns[i], err)
		}
	}
	if n := len(p.log.Thermo.Rows); row[0] != math.Trunc(row[0]) || (n > 0 && row[0] <= p.log.Thermo.Rows[n-1][0]) {
		return errors.New("steps that are whole and grow were expected")
	}
	p.log.Thermo.Rows = append(p.log.Thermo.Rows, row)
	return nil
}

func (p *parser) loop(m []string) (err error) {
	l := &p.log
	var atoms int
	if err := errors.Join(positive(m[1], &l.LoopTime), count(m[2], &l.Procs), count(m[3], &l.Steps), count(m[4], &atoms)); err != nil {
		return fmt.Errorf("loop time, procs, steps and atoms, all positive, were expected: %w", err)
	}
	l.Atoms = int64(atoms)
	if len(l.Thermo.Rows) == 0 {
		return errors.New("a row of the thermo table was expected before")
	}
	first, last := l.Thermo.Rows[0][0], l.Thermo.Rows[len(l.Thermo.Rows)-1][0]
	if len(l.Thermo.Rows) < 2 || last-first != float64(l.Steps) {
		return fmt.Errorf("%d steps do not fit the thermo table, which goes from step %v to %v", l.Steps, first, last)
	}
	p.then("Performance in ns/day", (*parser).speed)
	return nil
}

func (p *parser) speed(line string) error {
	m := speedLine.FindStringSubmatch(line)
	switch {
	case line == "":
		return nil
	case m == nil:
		return fmt.Errorf("%s was expected", p.awaits)
	}
	// A slow run on a large problem may print 0.000 here.
	err := errors.Join(natural(m[1], &p.log.NsPerDay), natural(m[2], &p.log.HoursPerNs), natural(m[3], &p.log.StepsPerSecond))
	p.then("CPU use", (*parser).cpu)
	return err
}

func (p *parser) cpu(line string) error {
	m := cpuLine.FindStringSubmatch(line)
	if m == nil {
		return fmt.Errorf("%s was expected", p.awaits)
	}
	l := &p.log
	threads := m[3]
	if threads == "no" {
		threads = "1"
	}
	if err := errors.Join(natural(m[1], &l.CPUUse), count(m[2], &l.Tasks), count(threads, &l.Threads)); err != nil {
		return err
	}
	if l.Threads > l.Procs || l.Tasks != l.Procs/l.Threads || l.Procs%l.Threads != 0 {
		return fmt.Errorf("%d MPI tasks of %d threads are not the %d procs of the loop time", l.Tasks, l.Threads, l.Procs)
	}
	p.then("the MPI task timing breakdown", func(p *parser, line string) error {
		switch line {
		case "", "MPI task timing breakdown:":
			return nil
		case breakdownHeader:
			p.then("the sections of the timing breakdown", (*parser).section)
			return nil
		}
		return fmt.Errorf("%s was expected", p.awaits)
	})
	return nil
}

func (p *parser) section(line string) error {
	switch {
	case strings.Trim(line, "-") == "" && line != "" && len(p.log.Breakdown) == 0:
		return nil
	case line == "":
		last := len(p.log.Breakdown) - 1
		if last < 0 || p.log.Breakdown[last].Name != "Other" {
			return errors.New("the timing breakdown was expected to go on to Other")
		}
		p.then("the total wall time", (*parser).tail)
		return nil
	}
	cells := strings.Split(line, "|")
	if len(cells) != 6 {
		return errors.New("a section with min, avg, max, %varavg and %total was expected")
	}
	s := Section{Name: strings.TrimSpace(cells[0])}
	if s.Name == "" || slices.ContainsFunc(p.log.Breakdown, func(o Section) bool { return o.Name == s.Name || o.Name == "Other" }) {
		return errors.New("a section of another name was expected, Other the last")
	}
	for i, to := range []*float64{&s.Min, &s.Avg, &s.Max, &s.VarAvg, &s.Share} {
		cell := strings.TrimSpace(cells[i+1])
		if cell == "" && s.Name == "Other" && to != &s.Avg && to != &s.Share {
			*to = math.NaN()
			continue
		}
		var err error
		// Other is what is left of the loop time, so rounding can make it negative.
		if *to, err = parse(cell); err != nil || (*to < 0 && s.Name != "Other") {
			return errors.Join(fmt.Errorf("section %s: numbers from 0 on were expected", s.Name), err)
		}
	}
	if s.Min > s.Avg || s.Avg > s.Max {
		return fmt.Errorf("section %s: min ≤ avg ≤ max was expected", s.Name)
	}
	p.log.Breakdown = append(p.log.Breakdown, s)
	return nil
}

// tail skips the statistics of neighbours up to the last line.
func (p *parser) tail(line string) error {
	if !strings.HasPrefix(line, "Total wall time:") {
		return nil
	}
	m := totalLine.FindStringSubmatch(line)
	if m == nil {
		return errors.New("a total wall time of H:MM:SS was expected")
	}
	hours, err := strconv.ParseUint(m[1], 10, 20)
	if err != nil {
		return fmt.Errorf("hours: %w", err)
	}
	wall, err := time.ParseDuration(fmt.Sprintf("%dh%sm%ss", hours, m[2], m[3]))
	if err != nil || m[2] > "59" || m[3] > "59" {
		return errors.New("a total wall time of H:MM:SS was expected")
	}
	// It is cut to whole seconds, so it may be up to one below the loop time.
	if wall.Seconds()+1 < p.log.LoopTime {
		return fmt.Errorf("the total wall time is less than the loop time of %v s", p.log.LoopTime)
	}
	p.log.WallTime = wall
	p.expect = nil
	return nil
}

// parse reads a finite decimal number, as LAMMPS prints it: no hexadecimal, nan or inf.
func parse(s string) (float64, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || !number.MatchString(s) {
		return 0, fmt.Errorf("%q is not a finite number", shorten(s))
	}
	return v, nil
}

func natural(s string, to *float64) (err error) {
	if *to, err = parse(s); err == nil && *to < 0 {
		err = fmt.Errorf("%s is negative", s)
	}
	return err
}

func positive(s string, to *float64) (err error) {
	if *to, err = parse(s); err == nil && *to <= 0 {
		err = fmt.Errorf("%s is not positive", s)
	}
	return err
}

func count(s string, to *int) (err error) {
	if *to, err = strconv.Atoi(s); err != nil || *to <= 0 || !number.MatchString(s) {
		err = fmt.Errorf("%q is not a count", shorten(s))
	}
	return err
}

func shorten(s string) string {
	if len(s) > 120 {
		return strings.ToValidUTF8(s[:120], "") + "…"
	}
	return s
}
