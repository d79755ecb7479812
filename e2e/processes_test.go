package e2e_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// processes is what a look at all of the host's processes has found, those of the nodes included.
type processes struct {
	secret map[string][]byte
	seen   map[string]bool // arguments
	held   map[string]bool // "process 7 (sh -c …) holds the user key"
	stop   func()
}

// look reads the arguments and environment of every process there is.
func (p *processes) look() {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		args, _ := os.ReadFile(dir + "/cmdline") // a process may end meanwhile
		environ, _ := os.ReadFile(dir + "/environ")
		line := strings.ReplaceAll(string(args), "\x00", " ")
		p.seen[line] = true
		for _, name := range holds(args, p.secret) {
			p.held[fmt.Sprintf("the arguments of process %s (%.100q) hold the %s", filepath.Base(dir), line, name)] = true
		}
		for _, name := range holds(environ, p.secret) {
			p.held[fmt.Sprintf("the environment of process %s (%.100q) holds the %s", filepath.Base(dir), line, name)] = true
		}
	}
}

// watchProcesses looks again and again until check. Two processes that do hold something show that it would be seen.
func watchProcesses(t *testing.T, secret map[string][]byte) *processes {
	t.Helper()
	secret = maps.Clone(secret)
	secret["decoy argument"], secret["decoy variable"] = []byte("an-argument-that-is-looked-for"), []byte("a-variable-that-is-looked-for")
	p := &processes{secret: secret, seen: map[string]bool{}, held: map[string]bool{}}
	decoy := exec.CommandContext(t.Context(), "/bin/sh", "-c", "read forever", string(secret["decoy argument"]))
	decoy.Env = []string{"DECOY=" + string(secret["decoy variable"])}
	stdin, err := decoy.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, decoy.Start())
	stop, done := make(chan struct{}), sync.WaitGroup{}
	done.Go(func() {
		for {
			p.look()
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond): // what is watched needs the CPUs too
			}
		}
	})
	p.stop = sync.OnceFunc(func() {
		close(stop)
		done.Wait()
		_ = stdin.Close()
		_ = decoy.Wait()
	})
	t.Cleanup(p.stop)
	return p
}

// check ends the watch. It fails the test unless a process with each of the words in its arguments was seen and only the decoys
// hold something.
func (p *processes) check(t *testing.T, words ...string) {
	t.Helper()
	p.stop()
	for _, word := range words {
		found := false
		for line := range p.seen {
			found = found || strings.Contains(line, word)
		}
		assert.True(t, found, "no process was seen with %q in its arguments, among %d", word, len(p.seen))
	}
	decoys := 0
	for what := range p.held {
		if strings.Contains(what, "decoy") {
			decoys++
		} else {
			assert.Fail(t, what)
		}
	}
	assert.Equal(t, 2, decoys, "a key that a process holds would be seen")
}
