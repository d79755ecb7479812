package engine

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"time"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// follow hands every event that the plugin appends to the file on to sink, until the returned function is called; that one waits
// for the last.
func follow(path string, sink progress.Sink) (stop func()) {
	f, err := os.Open(path)
	if err != nil {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		r := bufio.NewReader(f)
		var line []byte
		for last := false; ; {
			part, err := r.ReadBytes('\n')
			line = append(line, part...)
			if err == nil {
				var e progress.Event
				if json.Unmarshal(line, &e) == nil {
					sink(e)
				}
				line = nil
				continue
			}
			if err != io.EOF || last {
				return
			}
			select {
			case <-quit:
				last = true
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	return func() { close(quit); <-done }
}
