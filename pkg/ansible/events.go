package ansible

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// event is a line of the callback plugin.
type event struct {
	Event  string `json:"event"`  // task, result, stats
	Status string `json:"status"` // of a result: ok, changed, failed, ignored, unreachable, retry
	Task   string `json:"task"`   // with the role before it: "slurm : Write slurm.conf"
	Path   string `json:"path"`
	Host   string `json:"host"`
	RC     *int   `json:"rc"`

	Attempts int `json:"attempts"`
	Retries  int `json:"retries"`

	Msg          string `json:"msg"`
	Stdout       string `json:"stdout"`
	Stderr       string `json:"stderr"`
	ModuleStdout string `json:"module_stdout"`
	ModuleStderr string `json:"module_stderr"`
	Censored     string `json:"censored"`
	Item         string `json:"item"`

	Hosts map[string]Counts `json:"hosts"`
}

// eventLog follows a run.
type eventLog struct {
	step   *progress.Step
	note   func(text string) // called with what a task that went well has to say: its lines that begin with "note: "
	failed []event
	hosts  map[string]Counts
}

// read follows the events until the run is over. A line that is no event is skipped: it can only be a newer plugin's.
func (l *eventLog) read(r io.Reader) {
	l.hosts = map[string]Counts{}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if json.Unmarshal(line, &e) == nil {
			l.add(e)
		}
		if err != nil {
			return
		}
	}
}

func (l *eventLog) add(e event) {
	switch e.Event {
	case "task":
		l.step.Update("%s", e.Task)
	case "stats":
		l.hosts = e.Hosts // exact; the counts so far were for a run that is cut short
	case "result":
		for line := range strings.Lines(e.Stdout) {
			if text, ok := strings.CutPrefix(line, "note: "); ok && (e.Status == "ok" || e.Status == "changed") {
				l.note(strings.TrimSpace(text))
			}
		}
		c := l.hosts[e.Host]
		switch e.Status {
		case "ok", "ignored":
			c.OK++
		case "changed":
			c.OK++
			c.Changed++
		case "retry":
			l.step.Update("%s on %s: try %d of %d", e.Task, e.Host, e.Attempts+1, e.Retries)
		case "failed":
			c.Failed++
			l.failed = append(l.failed, e)
		case "unreachable":
			c.Unreachable++
			l.failed = append(l.failed, e)
		}
		l.hosts[e.Host] = c
	}
}

func (l *eventLog) result() Result {
	res := Result{Hosts: l.hosts}
	for _, c := range l.hosts {
		res.Changed += c.Changed
	}
	return res
}

// TaskError says which task failed, on which hosts, and what it said there.
type TaskError struct {
	Task     string // with its role: "slurm : Run the services"
	Path     string // file and line of the task within the playbooks
	Failures []Failure
}

// Failure is what one host said.
type Failure struct {
	Host        string
	Unreachable bool
	Output      string // message, standard error and output, trimmed; no secrets
	Enter       string // the command that enters the host
}

// maxTold is how many hosts' outputs an error tells; the others, which most often say the same, are only named.
const maxTold = 3

func (e *TaskError) Error() string {
	var b strings.Builder
	names := make([]string, len(e.Failures))
	for i, f := range e.Failures {
		names[i] = f.Host
	}
	fmt.Fprintf(&b, "task %q (%s) failed on %s", e.Task, e.Path, strings.Join(names, ", "))
	for i, f := range e.Failures {
		if i == maxTold {
			fmt.Fprintf(&b, "\n… and %d more", len(e.Failures)-maxTold)
			break
		}
		fmt.Fprintf(&b, "\n%s: %s", f.Host, strings.ReplaceAll(f.Output, "\n", "\n  "))
		if f.Enter != "" {
			fmt.Fprintf(&b, "\n  to look around: %s", f.Enter)
		}
	}
	return b.String()
}

// taskError tells of the first task that failed; under any_errors_fatal there is one.
func (r Run) taskError(failed []event) error {
	first := failed[0]
	_, path, _ := strings.Cut(first.Path, "/playbooks/")
	err := &TaskError{Task: first.Task, Path: path}
	enter := r.Enter
	if enter == "" {
		enter = "bed ssh %s"
	}
	for _, e := range failed {
		if e.Task != first.Task {
			continue
		}
		f := Failure{Host: e.Host, Unreachable: e.Status == "unreachable", Output: r.scrub(e.output())}
		if strings.Contains(enter, "%s") {
			f.Enter = fmt.Sprintf(enter, e.Host)
		}
		err.Failures = append(err.Failures, f)
	}
	return err
}

// output is what a failed task said, the most telling first.
func (e event) output() string {
	var parts []string
	if e.Status == "unreachable" {
		parts = append(parts, "unreachable")
	}
	if e.Item != "" {
		parts = append(parts, "item "+e.Item)
	}
	for _, s := range []string{e.Censored, e.Msg, e.Stderr, e.ModuleStderr, e.Stdout, e.ModuleStdout} {
		if s = lastLines(strings.TrimSpace(s), 25); s != "" {
			parts = append(parts, s)
		}
	}
	if e.RC != nil && *e.RC != 0 {
		parts = append(parts, fmt.Sprintf("exit status %d", *e.RC))
	}
	return strings.Join(parts, "\n")
}

func lastLines(s string, n int) string {
	lines := strings.Split(s, "\n")
	if len(lines) > n {
		lines = append([]string{"…"}, lines[len(lines)-n:]...)
	}
	return strings.Join(lines, "\n")
}
