package sidebyside

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// nodesUsernetes is a fake of a node's command, which does nothing but write down what it was asked.
const nodesUsernetes = `#!/bin/sh
echo "$1" >>"$dir/asked"
case $1 in
hold) echo held ;;
port) echo "$fake_port" ;;
kubectl) [ "$2" != apply ] || cat >/dev/null ;;
esac
`

// fakeLAMMPS does as LAMMPS does with an input of x cells: 2 are an error, and with 3 it ends well without having run.
const fakeLAMMPS = `#!/bin/sh
while [ $# -gt 0 ]; do
	case $1 in
	-log) log=$2 ;;
	-v) [ "$2" != x ] || x=$3 ;;
	esac
	shift
done
case $x in
2) echo 'ERROR: Lost atoms: original 304 current 303' && exit 1 ;;
3) echo 'Total wall time: 0:00:00' >"$log" ;;
*) echo "Loop time of 0.$x on 1 procs for 4 steps with 304 atoms" >"$log" ;;
esac
`

// fakeService answers as the service does, and has no models. It has room for that many points.
func fakeService(t *testing.T, room int) *url.URL {
	t.Helper()
	points := 0
	answer := func(w http.ResponseWriter, body map[string]any) { assert.NoError(t, json.NewEncoder(w).Encode(body)) }
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"points": points, "models": []string{}, "versions": map[string]string{}})
	})
	mux.HandleFunc("GET /api/metrics", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{}) })
	mux.HandleFunc("POST /api/learn", func(w http.ResponseWriter, _ *http.Request) {
		if points == room {
			http.Error(w, "the volume is full", http.StatusInsufficientStorage)
			return
		}
		points++
		answer(w, map[string]any{"points": points})
	})
	mux.HandleFunc("POST /api/predict", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"points": points, "predictions": map[string]float64{"a": 0.5}})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	at, err := url.Parse(server.URL)
	require.NoError(t, err)
	return at
}

// script is the job's, on one node that is this host, with fakes of what a node has. Package e2e has real nodes run it.
type script struct {
	*exec.Cmd
	dir string // has what it prints in out and err
}

// begin starts it with points.
func begin(t *testing.T, service *url.URL, points string, env ...string) *script {
	t.Helper()
	s := &script{dir: t.TempDir()}
	for name, text := range map[string]string{
		"usernetes": nodesUsernetes, "lmp": fakeLAMMPS, "client.py": string(client), "service.yaml": "node: @node@\n", "points": points,
		"node.env": "USERNETES_HOST=" + service.Hostname() + "\n",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o755))
	}
	text := strings.Replace(jobScript, "/etc/bedfellow/usernetes/node.env", filepath.Join(s.dir, "node.env"), 1)
	require.NotEqual(t, jobScript, text)
	s.Cmd = exec.Command("sh", "-c", "each() { \"$@\"; }\nranks() { shift; \"$@\"; }\n"+text)
	s.Env = append([]string{
		"PATH=" + s.dir + ":" + os.Getenv("PATH"), "fake_port=" + service.Port(), "dir=" + s.dir, "lmp=lmp", "input=in", "ranks=1", "ending=completed",
		"stop_at=", "limit=60", "requests=0", "busy_cells=1", "USERNETES_PATIENCE=60", "job_number=12", "job_hosts=here",
	}, env...)
	for name, to := range map[string]*io.Writer{"out": &s.Stdout, "err": &s.Stderr} {
		file, err := os.Create(filepath.Join(s.dir, name))
		require.NoError(t, err)
		t.Cleanup(func() { _ = file.Close() })
		*to = file
	}
	s.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, s.Start())
	t.Cleanup(func() { _ = syscall.Kill(-s.Process.Pid, syscall.SIGKILL) }) // as its manager does with what a job leaves
	return s
}

func (s *script) read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, name))
	require.NoError(t, err)
	return string(data)
}

// ended is what the script has printed, once it is over with that status and its node was told to take everything down.
func (s *script) ended(t *testing.T, status int) *reader {
	t.Helper()
	_ = s.Wait()
	assert.Equal(t, status, s.ProcessState.ExitCode(), "%s", s.read(t, "err"))
	r := &reader{told: func(Said) error { return nil }, phase: func(Phase, int) {}}
	_, err := r.Write([]byte(s.read(t, "out")))
	require.NoError(t, err)
	require.NoError(t, r.err)
	require.NotEmpty(t, r.phases, "%s", s.read(t, "err"))
	assert.Equal(t, "gone", r.phases[len(r.phases)-1].Name, "%s", s.read(t, "err"))
	assert.True(t, strings.HasSuffix(s.read(t, "asked"), "release\n"), "%s", s.read(t, "asked"))
	return r
}

func TestASimulationThatFailsEndsNoJob(t *testing.T) {
	s := begin(t, fakeService(t, 9), "a train 1 1 1\nb train 2 1 1\nc train 3 1 1\nd train 4 1 1\ne test 2 2 2\nf test 5 1 1\n")
	r := s.ended(t, 0)
	seconds := map[string]float64{}
	for _, p := range r.said {
		if seconds[p.ID] = -1; p.Seconds != nil {
			seconds[p.ID] = *p.Seconds
		}
	}
	assert.Equal(t, map[string]float64{"a": 0.1, "b": -1, "c": -1, "d": 0.4, "e": -1, "f": 0.5}, seconds)
	require.NotNil(t, r.models)
	assert.Equal(t, 2, r.models.Service.Points, "what failed is not learned")
	assert.Equal(t, map[string]float64{"a": 0.5}, r.said[5].Predictions)
	assert.Contains(t, s.read(t, "err"), "simulation b of 2 x 1 x 1 cells:\nERROR: Lost atoms")
	assert.Contains(t, s.read(t, "err"), "simulation c of 3 x 1 x 1 cells:")
	left, err := filepath.Glob(filepath.Join(s.dir, "*.log"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestTheScriptTakesDownWhateverEndsIt(t *testing.T) {
	const points = "a train 1 1 1\nb train 1 1 1\n"
	t.Run("a service that is full", func(t *testing.T) {
		s := begin(t, fakeService(t, 1), points)
		r := s.ended(t, 1)
		assert.Len(t, r.said, 1)
		assert.Contains(t, s.read(t, "err"), "507: the volume is full")
	})
	t.Run("its own failure", func(t *testing.T) {
		s := begin(t, fakeService(t, 9), points, "ending=failed", "stop_at=service")
		s.ended(t, failsWith)
	})
	t.Run("a signal", func(t *testing.T) {
		s := begin(t, fakeService(t, 9), points, "stop_at=readiness")
		require.Eventually(t, func() bool {
			return strings.Contains(s.read(t, "out"), " readiness\n")
		}, time.Minute, 10*time.Millisecond)
		require.NoError(t, s.Process.Signal(syscall.SIGTERM))
		s.ended(t, 143)
	})
}
