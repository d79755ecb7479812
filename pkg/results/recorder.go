package results

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"
)

// Recorder writes one run's directory. Its methods are safe for concurrent use.
type Recorder struct {
	dir  string
	root *os.Root // nothing is written outside, whatever a name or link says

	mu      sync.Mutex
	run     Run
	samples *os.File
	all     []Sample
	checker checker
	torn    error // why samples.jsonl can no longer be appended to
	closed  bool
}

// element is what a stack or scenario may be called, as it names a directory.
var element = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)

// Create makes root/stack/scenario/<id>/ for a run that starts now and writes its run.json with status running. Of two that
// start at once each gets a directory of its own. The caller must Close the recorder.
func Create(root, stack, scenario string, run Run) (*Recorder, error) {
	for what, name := range map[string]string{"stack": stack, "scenario": scenario} {
		if !element.MatchString(name) {
			return nil, fmt.Errorf("results: %s name %q cannot name a directory: letters, digits, '.', '_' and '-' can, the first a letter or digit",
				what, name)
		}
	}
	parent := filepath.Join(root, stack, scenario)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("results: cannot make the run's place: %w", err)
	}
	run.Format, run.Stack, run.Scenario, run.Status = Format, stack, scenario, Running
	run.Started, run.Ended = time.Now().UTC(), nil
	r := &Recorder{run: run}
	for r.dir == "" {
		var random [4]byte
		rand.Read(random[:]) // never fails
		r.run.ID = run.Started.Format("20060102T150405Z") + "-" + hex.EncodeToString(random[:])
		dir := filepath.Join(parent, r.run.ID)
		switch err := os.Mkdir(dir, 0o755); {
		case err == nil:
			r.dir = dir
		case !errors.Is(err, fs.ErrExist):
			return nil, fmt.Errorf("results: cannot make the run directory: %w", err)
		}
	}
	if err := r.open(parent); err != nil {
		return nil, errors.Join(fmt.Errorf("results: cannot begin %s: %w", r.dir, err), r.release())
	}
	return r, nil
}

func (r *Recorder) open(parent string) (err error) {
	if r.root, err = os.OpenRoot(r.dir); err != nil {
		return err
	}
	if err := r.root.Mkdir(logDir, 0o755); err != nil {
		return err
	}
	r.samples, err = r.root.OpenFile(samplesFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if err := r.writeJSON(runFile, r.run); err != nil {
		return err
	}
	p, err := os.Open(parent)
	if err != nil {
		return err
	}
	return errors.Join(p.Sync(), p.Close())
}

// Dir is the run directory's path, below the root that Create was given.
func (r *Recorder) Dir() string { return r.dir }

// Add appends samples to samples.jsonl and syncs them before it returns. Either all of them are kept, or none and an error
// says which one is wrong: a value that is not finite, a repetition recorded twice, a metric that changed its unit.
func (r *Recorder) Add(samples ...Sample) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable(); err != nil {
		return err
	}
	lines, kept, err := r.encode(samples)
	if err != nil {
		r.checker = checker{}
		for _, s := range r.all {
			r.checker.add(s) // as it was; it accepted these before
		}
		return err
	}
	_, err = r.samples.Write(lines)
	if err == nil {
		err = r.samples.Sync()
	}
	if err != nil {
		r.torn = fmt.Errorf("results: cannot append to %s: %w", filepath.Join(r.dir, samplesFile), err)
		return r.torn
	}
	r.all = append(r.all, kept...)
	return nil
}

// encode checks samples against all that came before and returns them, completed, and as lines.
func (r *Recorder) encode(samples []Sample) ([]byte, []Sample, error) {
	var lines bytes.Buffer
	kept := slices.Clone(samples)
	for i := range kept {
		s := &kept[i]
		if s.Time.IsZero() {
			s.Time = time.Now().UTC()
		}
		if s.Status != OK {
			s.Value = 0
		}
		err := r.checker.add(*s)
		var line []byte
		if err == nil {
			line, err = json.Marshal(s)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("results: sample %d of %d not recorded: %w", i+1, len(samples), err)
		}
		lines.Write(append(line, '\n'))
	}
	return lines.Bytes(), kept, nil
}

// Log writes logs/<name> atomically and returns its path relative to the run directory, for Sample.Log. A name may have
// folders; a second log of the same name replaces the first.
func (r *Recorder) Log(name string, data []byte) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable(); err != nil {
		return "", err
	}
	if !filepath.IsLocal(name) || path.Clean(name) != name || name == "." {
		return "", fmt.Errorf("results: log name %q is not a clean relative path", name)
	}
	rel := path.Join(logDir, name)
	err := r.root.MkdirAll(path.Dir(rel), 0o755)
	if err == nil {
		err = r.replace(rel, data)
	}
	if err != nil {
		return "", fmt.Errorf("results: cannot keep log %s: %w", filepath.Join(r.dir, rel), err)
	}
	return rel, nil
}

// Update changes the run through f and rewrites run.json atomically. What Create set stays as it is.
func (r *Recorder) Update(f func(*Run)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.usable(); err != nil {
		return err
	}
	was := r.run
	f(&r.run)
	r.run.Format, r.run.ID, r.run.Stack, r.run.Scenario = was.Format, was.ID, was.Stack, was.Scenario
	r.run.Status, r.run.Started, r.run.Ended = was.Status, was.Started, was.Ended
	if err := r.writeJSON(runFile, r.run); err != nil {
		r.run = was
		return err
	}
	return nil
}

// Close writes summary.json and then the status and end time to run.json. Calls after the first do nothing. It closes the
// recorder even when it fails.
func (r *Recorder) Close(status Status) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	ended := time.Now().UTC()
	r.run.Status, r.run.Ended = status, &ended
	return errors.Join(
		r.writeJSON(summaryFile, Summarize(r.run, r.all)),
		r.writeJSON(runFile, r.run),
		r.release())
}

// Summary is the summary of what has been recorded so far.
func (r *Recorder) Summary() Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Summarize(r.run, r.all)
}

func (r *Recorder) usable() error {
	if r.closed {
		return fmt.Errorf("results: %s is closed", r.dir)
	}
	return r.torn
}

func (r *Recorder) release() error {
	var errs []error
	if r.samples != nil {
		errs = append(errs, r.samples.Close())
	}
	if r.root != nil {
		errs = append(errs, r.root.Close())
	}
	return errors.Join(errs...)
}

func (r *Recorder) writeJSON(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = r.replace(name, append(data, '\n'))
	}
	if err != nil {
		return fmt.Errorf("results: cannot write %s: %w", filepath.Join(r.dir, name), err)
	}
	return nil
}

// replace writes a file so that after a crash either the old or the new content is there, whole.
func (r *Recorder) replace(name string, data []byte) error {
	tmp := name + ".tmp"
	f, err := r.root.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = r.root.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, r.root.Remove(tmp))
	}
	d, err := r.root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
