package progress_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/progress"
)

// fakeScreen shows what a terminal of that width would after all that was written: lines that are too long wrap.
type fakeScreen struct {
	mu    sync.Mutex
	width int
	lines []string // the last one is where the cursor is
}

var control = regexp.MustCompile(`^\x1b\[([0-9]*)([A-Za-z])`)

func (s *fakeScreen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lines == nil {
		s.lines = []string{""}
	}
	for text := string(p); text != ""; {
		if m := control.FindStringSubmatch(text); m != nil {
			n, _ := strconv.Atoi(m[1])
			if m[2] == "A" { // the only user of it erases all below at once
				s.lines = append(s.lines[:max(0, len(s.lines)-1-n)], "")
			}
			text = text[len(m[0]):]
			continue
		}
		r, size := utf8.DecodeRuneInString(text)
		text = text[size:]
		at := len(s.lines) - 1
		switch {
		case r == '\n':
			s.lines = append(s.lines, "")
		case r == '\r':
		case utf8.RuneCountInString(s.lines[at]) == s.width:
			s.lines = append(s.lines, string(r))
		default:
			s.lines[at] += string(r)
		}
	}
	return len(p), nil
}

func (s *fakeScreen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

func (s *fakeScreen) columns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.width
}

// Whatever the width, the live part is redrawn in place, and what is over stays, once, in order.
func TestTerminal(t *testing.T) {
	for _, width := range []int{20, 40, 200} {
		screen := &fakeScreen{width: width}
		term := progress.NewTerminal(screen, screen.columns)
		ctx := progress.With(t.Context(), term.Sink)
		var steps []*progress.Step
		for i := range 15 {
			steps = append(steps, progress.Start(ctx, "boot a-node-with-a-rather-long-name-%02d", i))
			steps[i].Update("its newest fact, which is long too\nand has a second line")
		}
		assert.Contains(t, screen.text(), "and 3 more", "width %d", width)
		assert.Len(t, strings.Split(screen.text(), "\n"), 14, "12 steps, how many more, and the cursor; width %d", width)
		progress.Note(ctx, "a note")
		for i, s := range steps {
			_ = s.End(map[bool]error{true: errors.New("it burned\ndetails")}[i == 14])
		}
		_ = steps[0].End(nil) // once only
		term.Close()
		left := strings.Split(strings.TrimSuffix(screen.text(), "\n"), "\n")
		require.Len(t, left, 16, "a note and 15 steps; width %d:\n%s", width, screen.text())
		assert.Equal(t, "• a note", left[0])
		for i, line := range left[1:] {
			assert.True(t, strings.HasPrefix(line, map[bool]string{true: "✗ boot", false: "✓ boot"}[i == 14]), line)
			if width == 200 {
				assert.Contains(t, line, "name-"+strconv.Itoa(100 + i)[1:])
			}
		}
		if width == 200 {
			assert.Contains(t, left[15], "it burned")
			assert.NotContains(t, left[15], "details")
		}
	}
}

// A log gets a line when a step begins and ends, and no more than one in ten seconds between.
func TestLines(t *testing.T) {
	var out bytes.Buffer
	sink := progress.Lines(&out)
	at := time.Now()
	event := func(after time.Duration, e progress.Event) { e.Time = at.Add(after); sink(e) }
	event(0, progress.Event{Step: "bake", Kind: progress.Started})
	for i := range 250 {
		event(time.Duration(i)*100*time.Millisecond, progress.Event{Step: "bake", Kind: progress.Updated, Detail: strconv.Itoa(i)})
	}
	event(90*time.Second, progress.Event{Step: "bake", Kind: progress.Done, Detail: "ready", Seconds: 90})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 4, out.String())
	assert.Contains(t, lines[0], "… bake")
	assert.Contains(t, lines[1], "bake: 100")
	assert.Contains(t, lines[2], "bake: 200")
	assert.Contains(t, lines[3], "✓ bake  1m30s  ready")
}

// Events survive their wire form, and lines of many writers do not mix.
func TestJSON(t *testing.T) {
	var out bytes.Buffer
	sink := progress.JSON(&out)
	var seen []progress.Event
	ctx := progress.With(context.Background(), progress.Tee(sink, func(e progress.Event) { seen = append(seen, e) }))
	_ = progress.Start(ctx, "boot").End(errors.New("two\nlines"))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { progress.Note(progress.With(context.Background(), sink), "x") })
	}
	wg.Wait()
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 52)
	for i, line := range lines {
		var e progress.Event
		require.NoError(t, json.Unmarshal([]byte(line), &e))
		if i < 2 {
			assert.True(t, seen[i].Time.Equal(e.Time))
			e.Time = seen[i].Time
			assert.Equal(t, seen[i], e)
		}
	}
	progress.Note(context.Background(), "nobody listens")
}
