package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Result is a run read back.
type Result struct {
	Dir     string
	Run     Run
	Samples []Sample
	Summary Summary
	// Problems say what of an interrupted run is not there, such as a torn last line.
	Problems []string
}

// Load reads a run directory. It bears what an interruption leaves: no summary (then it is computed) and a last line that was
// not written whole (then it is left out and Problems says so). Anything else it does not know is an error that names file and
// line.
func Load(dir string) (*Result, error) {
	r := &Result{Dir: dir}
	if err := loadJSON(filepath.Join(dir, runFile), &r.Run); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("results: %s is not a run directory, such as results/<stack>/<scenario>/<run>: %w", dir, err)
		}
		return nil, err
	}
	if r.Run.Format != Format {
		return nil, fmt.Errorf("results: %s: format %d is not known, only %d is: use the bed that wrote it",
			filepath.Join(dir, runFile), r.Run.Format, Format)
	}
	switch r.Run.Status {
	case Running, OK, Failed, Interrupted:
	default:
		return nil, fmt.Errorf("results: %s: status %q is not known", filepath.Join(dir, runFile), r.Run.Status)
	}
	if err := r.loadSamples(filepath.Join(dir, samplesFile)); err != nil {
		return nil, err
	}
	switch err := loadJSON(filepath.Join(dir, summaryFile), &r.Summary); {
	case errors.Is(err, fs.ErrNotExist):
		r.Summary = Summarize(r.Run, r.Samples)
	case err != nil:
		return nil, err
	}
	return r, nil
}

func (r *Result) loadSamples(name string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	var check checker
	for n := 1; len(data) > 0; n++ {
		line, rest, whole := bytes.Cut(data, []byte("\n"))
		data = rest
		if !whole && !json.Valid(line) {
			r.Problems = append(r.Problems, fmt.Sprintf("%s:%d: the last line was not written whole and is left out", samplesFile, n))
			break
		}
		var s Sample
		err := json.Unmarshal(line, &s)
		if err == nil {
			err = check.add(s)
		}
		if err != nil {
			return fmt.Errorf("results: %s:%d: %w", name, n, err)
		}
		r.Samples = append(r.Samples, s)
	}
	return nil
}

// loadJSON reads a file of one JSON value. Its errors name file and line.
func loadJSON(name string, v any) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	if err := decode(data, v); err != nil {
		return fmt.Errorf("results: %s:%d: %w", name, lineOf(data, err), err)
	}
	return nil
}

// lineOf finds the line, from 1, that a JSON error is about; 1 when the error does not tell.
func lineOf(data []byte, err error) int {
	var offset int64
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	default:
		// encoding/json tells an unknown field's name only.
		var field string
		if n, _ := fmt.Sscanf(err.Error(), "json: unknown field %q", &field); n == 1 {
			offset = int64(bytes.Index(data, fmt.Appendf(nil, "%q", field)))
		}
	}
	return 1 + bytes.Count(data[:min(max(offset, 0), int64(len(data)))], []byte("\n"))
}
