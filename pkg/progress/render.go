package progress

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// Display returns the sink that suits f: live on a terminal, lines elsewhere; and the function that ends it.
func Display(f *os.File) (Sink, func()) {
	if !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return Lines(f), func() {}
	}
	t := NewTerminal(f, func() int {
		width, _, err := term.GetSize(int(f.Fd()))
		if err != nil {
			return 80
		}
		return width
	})
	return t.Sink, t.Close
}

// quiet is how long Lines is silent about a step that goes on.
const quiet = 10 * time.Second

// Lines returns a sink that writes a line when a step begins or ends, and one now and then while it goes on: for logs and pipes.
func Lines(w io.Writer) Sink {
	var mu sync.Mutex
	start := time.Now()
	told := map[string]time.Time{}
	return func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		at := fmt.Sprintf("%7.1fs  ", e.Time.Sub(start).Seconds())
		switch e.Kind {
		case Started:
			fmt.Fprintf(w, "%s… %s\n", at, e.Step)
			told[e.Step] = e.Time
		case Updated:
			if e.Time.Sub(told[e.Step]) >= quiet {
				fmt.Fprintf(w, "%s  %s: %s\n", at, e.Step, e.Detail)
				told[e.Step] = e.Time
			}
		default:
			fmt.Fprintf(w, "%s%s\n", at, closing(e))
		}
	}
}

// closing is the line that stays when a step is over, or a note.
func closing(e Event) string {
	detail := ""
	if e.Detail != "" {
		detail = "  " + firstLine(e.Detail)
	}
	switch e.Kind {
	case Done:
		return fmt.Sprintf("✓ %s  %s%s", e.Step, seconds(e.Seconds), detail)
	case Failed:
		return fmt.Sprintf("✗ %s  %s%s", e.Step, seconds(e.Seconds), detail)
	default:
		return "• " + e.Detail
	}
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func seconds(s float64) string {
	if s >= 60 {
		return fmt.Sprintf("%dm%02ds", int(s)/60, int(s)%60)
	}
	return fmt.Sprintf("%.1fs", s)
}

// Terminal shows running steps live, each with its time and newest fact, and leaves a line for each that is over.
type Terminal struct {
	w     io.Writer
	width func() int // columns

	mu      sync.Mutex
	running []running
	drawn   int // lines of the live part on the screen
	frame   int
	quit    chan struct{}
	done    chan struct{}
}

type running struct {
	step   string
	detail string
	since  time.Time
}

// NewTerminal starts to show on w, which must be a terminal; width tells its columns. Close ends it.
func NewTerminal(w io.Writer, width func() int) *Terminal {
	t := &Terminal{w: w, width: width, quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(t.done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-t.quit:
				return
			case <-tick.C:
				t.mu.Lock()
				t.frame++
				t.draw("")
				t.mu.Unlock()
			}
		}
	}()
	return t
}

// Sink takes the events to show.
func (t *Terminal) Sink(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch e.Kind {
	case Started:
		t.running = append(t.running, running{step: e.Step, since: e.Time})
		t.draw("")
	case Updated:
		for i := range t.running {
			if t.running[i].step == e.Step {
				t.running[i].detail = firstLine(e.Detail)
			}
		}
	default:
		for i := range t.running {
			if e.Kind != Noted && t.running[i].step == e.Step {
				t.running = append(t.running[:i], t.running[i+1:]...)
				break
			}
		}
		t.draw(closing(e))
	}
}

// Close leaves the screen with the lines of what is over.
func (t *Terminal) Close() {
	close(t.quit)
	<-t.done
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running = nil
	t.draw("")
}

// most is how many running steps are shown at once.
const most = 12

// draw rewrites the live part, in one write, with a line that stays above it if there is one.
func (t *Terminal) draw(stays string) {
	var b bytes.Buffer
	if t.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", t.drawn)
	}
	width := max(t.width(), 20)
	if stays != "" {
		fmt.Fprintf(&b, "%s\n", colour(clip(stays, width)))
	}
	t.drawn = 0
	for i, r := range t.running {
		if i == most {
			fmt.Fprintf(&b, "  … and %d more\n", len(t.running)-most)
			t.drawn++
			break
		}
		spinner := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
		line := fmt.Sprintf("%c %s  %s  %s", spinner[(t.frame+i)%len(spinner)], r.step, seconds(time.Since(r.since).Seconds()), r.detail)
		fmt.Fprintf(&b, "%s\n", clip(line, width))
		t.drawn++
	}
	if b.Len() > 0 {
		_, _ = t.w.Write(b.Bytes())
	}
}

func colour(line string) string {
	switch {
	case strings.HasPrefix(line, "✓"):
		return "\x1b[32m✓\x1b[0m" + strings.TrimPrefix(line, "✓")
	case strings.HasPrefix(line, "✗"):
		return "\x1b[31m✗\x1b[0m" + strings.TrimPrefix(line, "✗")
	}
	return line
}

// clip cuts a line to what fits, so that redrawing stays in step with the screen.
func clip(line string, width int) string {
	line = strings.TrimRight(line, " ")
	if utf8.RuneCountInString(line) < width {
		return line
	}
	return string([]rune(line)[:width-2]) + "…"
}
