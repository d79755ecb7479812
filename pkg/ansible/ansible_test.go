package ansible_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/bedfellow/bedfellow/pkg/ansible"
	"github.com/bedfellow/bedfellow/pkg/progress"
)

const secret = "s3cret-s3cret-s3cret"

// play wraps tasks in a playbook that runs on this machine.
func play(t *testing.T, tasks string) ansible.Run {
	t.Helper()
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		t.Skip("ansible-playbook is not installed")
	}
	book := "- hosts: all\n  gather_facts: false\n  any_errors_fatal: true\n  tasks:\n" + tasks
	host := map[string]any{"ansible_connection": "local"}
	return ansible.Run{
		Playbooks: fstest.MapFS{"site.yml": {Data: []byte(book)}},
		Playbook:  "site.yml",
		Inventory: map[string]any{"all": map[string]any{"hosts": map[string]any{"n-01": host, "n-02": host}}},
		ExtraVars: map[string]any{"secret": secret, "dir": t.TempDir()},
		WorkDir:   shortDir(t),
	}
}

// shortDir is a directory whose path leaves room for sockets.
func shortDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "a")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// empty asserts that a run left nothing.
func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestRunCountsAndReports(t *testing.T) {
	run := play(t, `
    - name: Write
      ansible.builtin.copy: {content: "{{ secret }}", dest: "{{ dir }}/{{ inventory_hostname }}", mode: "0600"}
      no_log: true
`)
	var mu sync.Mutex
	var details []string
	ctx := progress.With(t.Context(), func(e progress.Event) {
		mu.Lock()
		defer mu.Unlock()
		details = append(details, e.Detail)
	})
	res, err := run.Do(ctx)
	require.NoError(t, err)
	assert.Equal(t, 2, res.Changed)
	assert.Equal(t, ansible.Counts{OK: 1, Changed: 1}, res.Hosts["n-01"])
	assert.Contains(t, details, "Write")

	res, err = run.Do(ctx)
	require.NoError(t, err)
	assert.Zero(t, res.Changed, "the second run changes nothing")
	empty(t, run.WorkDir)
}

// What a task that went well wants people to know is shown, whatever it changed.
func TestNotesOfTasksAreShown(t *testing.T) {
	run := play(t, `
    - name: Look
      ansible.builtin.shell:
        cmd: |
          echo nothing to say
          echo "note: one is not there, {{ secret }}"
      changed_when: false
      when: inventory_hostname == 'n-01'
`)
	var mu sync.Mutex
	var notes []string
	ctx := progress.With(t.Context(), func(e progress.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Kind == progress.Noted {
			notes = append(notes, e.Detail)
		}
	})
	_, err := run.Do(ctx)
	require.NoError(t, err)
	assert.Equal(t, []string{"one is not there, [hidden]"}, notes)
}

func TestFailedTaskSaysWhereAndWhat(t *testing.T) {
	run := play(t, `
    - name: Break
      ansible.builtin.command: sh -c 'echo out-{{ secret }}; echo the reason >&2; exit 7'
      when: inventory_hostname == 'n-02'
`)
	_, err := run.Do(t.Context())
	var task *ansible.TaskError
	require.ErrorAs(t, err, &task)
	assert.Equal(t, "Break", task.Task)
	assert.Equal(t, "site.yml:6", task.Path)
	require.Len(t, task.Failures, 1)
	assert.Equal(t, "n-02", task.Failures[0].Host)
	for _, want := range []string{"n-02", "the reason", "exit status 7", "bed ssh n-02"} {
		assert.ErrorContains(t, err, want)
	}
	assert.NotContains(t, err.Error(), secret)
}

func TestFailedTaskWithNoLogHidesItsOutput(t *testing.T) {
	run := play(t, `
    - name: Break
      ansible.builtin.command: sh -c 'echo {{ secret | b64encode }} >&2; exit 7'
      no_log: true
`)
	_, err := run.Do(t.Context())
	require.ErrorContains(t, err, "Break")
	assert.NotContains(t, err.Error(), "czNjcmV0")
}

func TestBrokenPlaybookSaysWhatAnsibleSaid(t *testing.T) {
	run := play(t, "    - no.such.module: {}\n")
	_, err := run.Do(t.Context())
	require.ErrorContains(t, err, "no.such.module")
}

func TestCancelEndsEverything(t *testing.T) {
	run := play(t, `
    - name: Sleep
      ansible.builtin.command: sleep 4713
`)
	ctx, cancel := context.WithCancelCause(t.Context())
	ctx = progress.With(ctx, func(e progress.Event) {
		if e.Detail == "Sleep" {
			time.AfterFunc(500*time.Millisecond, func() { cancel(errors.New("told to")) })
		}
	})
	start := time.Now()
	_, err := run.Do(ctx)
	require.ErrorContains(t, err, "told to")
	assert.Less(t, time.Since(start), 15*time.Second)
	empty(t, run.WorkDir)
	assert.Empty(t, processesWith(t, "sleep\x004713"))
}

func TestSecretIsNeitherInArgumentsNorEnvironment(t *testing.T) {
	run := play(t, `
    - name: Sleep
      ansible.builtin.command: sleep 1
      environment: {UNUSED: "x"}
`)
	t.Setenv("SSH_AUTH_SOCK", "/agent")
	seen := make(chan []string, 1)
	ctx := progress.With(t.Context(), func(e progress.Event) {
		if e.Detail == "Sleep" {
			go func() {
				seen <- append(processesWith(t, secret), processesWith(t, "SSH_AUTH_SOCK=/agent\x00ANSIBLE")...)
			}()
		}
	})
	_, err := run.Do(ctx)
	require.NoError(t, err)
	assert.Empty(t, <-seen)
}

// processesWith lists processes with text in their arguments or environment.
func processesWith(t *testing.T, text string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{"/proc/[0-9]*/cmdline", "/proc/[0-9]*/environ"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, f := range files {
			if data, err := os.ReadFile(f); err == nil && bytes.Contains(data, []byte(text)) {
				found = append(found, f)
			}
		}
	}
	return found
}

func TestOtherHostKeyIsRefused(t *testing.T) {
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Skip("ssh is not installed")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(newSigner(t))
	var entered atomic.Bool
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				if _, _, _, err := ssh.NewServerConn(conn, config); err == nil {
					entered.Store(true)
				}
			}()
		}
	}()
	port := listener.Addr().(*net.TCPAddr).Port

	run := play(t, "    - ansible.builtin.command: id\n")
	run.KnownHosts = []byte(knownhosts.Line([]string{listener.Addr().String()}, newSigner(t).PublicKey()) + "\n")
	run.Inventory = map[string]any{"all": map[string]any{"hosts": map[string]any{"n-01": map[string]any{
		"ansible_host": "127.0.0.1", "ansible_port": port, "ansible_user": "bed",
	}}}}
	_, err = run.Do(t.Context())
	for _, want := range []string{"unreachable", "Host key verification failed", "bed ssh n-01"} {
		assert.ErrorContains(t, err, want)
	}
	assert.False(t, entered.Load(), "whoever has another key was logged in to")
}

// A fake ssh that is gone before it was given the task, as one that was refused may be: its reason is told all the same.
func TestAnSSHThatEndsFirstIsHeard(t *testing.T) {
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "ssh"), []byte("#!/bin/sh\nexec 0<&-\nsleep 0.3\necho 'Host key verification failed.' >&2\nexit 255\n"), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	run := play(t, "    - ansible.builtin.command: id\n")
	run.Inventory = map[string]any{"all": map[string]any{"hosts": map[string]any{"n-01": map[string]any{"ansible_host": "127.0.0.1", "ansible_user": "bed"}}}}
	_, err := run.Do(t.Context())
	assert.ErrorContains(t, err, "Host key verification failed")
}

// ssh is told how to reach a host through another, and trusts what the run was given and nothing else on both.
func TestAHostIsReachedThroughAnother(t *testing.T) {
	real, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("ssh is not installed")
	}
	run := play(t, "    - ansible.builtin.command: id\n")
	bin := t.TempDir()
	script := "#!/bin/sh\n" + real + ` -G "$@" >` + bin + "/n-02\n" + `while [ "$1" != -F ]; do shift; done` + "\n" + real + ` -G -F "$2" n-01 >` + bin + "/n-01\nexit 255\n"
	require.NoError(t, os.WriteFile(filepath.Join(bin, "ssh"), []byte(script), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	run.SSHHosts = []byte("Host n-01\n  HostName 192.0.2.1\n  User bed\nHost n-02\n  HostName 10.0.0.2\n  HostKeyAlias n-02\n  ProxyJump n-01\n")
	run.Inventory = map[string]any{"all": map[string]any{"hosts": map[string]any{"n-02": map[string]any{"ansible_user": "bed"}}}}
	_, err = run.Do(t.Context())
	require.ErrorContains(t, err, "unreachable")
	var dir string
	for host, want := range map[string][]string{
		"n-01": {"hostname 192.0.2.1"},
		"n-02": {"hostname 10.0.0.2", "hostkeyalias n-02", "proxyjump n-01", "controlmaster auto"},
	} {
		said, err := os.ReadFile(filepath.Join(bin, host))
		require.NoError(t, err)
		options := strings.Split(string(said), "\n")
		for _, o := range append(want, "user bed", "connecttimeout 10", "stricthostkeychecking true", "identitiesonly yes", "identityagent none",
			"globalknownhostsfile /dev/null", "preferredauthentications publickey", "updatehostkeys false") {
			assert.Contains(t, options, o, host)
		}
		for _, o := range options {
			if path, ok := strings.CutPrefix(o, "identityfile "); ok {
				assert.Contains(t, []string{"", filepath.Dir(path)}, dir, "both have the same key, and one only")
				dir = filepath.Dir(path)
			}
		}
		assert.Equal(t, run.WorkDir, filepath.Dir(dir))
		assert.Contains(t, options, "userknownhostsfile "+dir+"/known_hosts")
	}
}

func newSigner(t *testing.T) ssh.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	require.NoError(t, err)
	return signer
}

// An ssh that Ansible's workers start bears the mark, and so all between does.
func TestChildrenBearTheMark(t *testing.T) {
	run := play(t, "    - ansible.builtin.command: id\n")
	bin := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "ssh"), []byte("#!/bin/sh\ncat /proc/$$/environ >"+bin+"/environ\nexit 255\n"), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	run.Inventory = map[string]any{"all": map[string]any{"hosts": map[string]any{"n-01": map[string]any{"ansible_host": "127.0.0.1"}}}}
	for _, mark := range []string{"0123abcd", ""} {
		t.Setenv("BEDFELLOW_MARK", mark)
		_, err := run.Do(t.Context())
		require.ErrorContains(t, err, "unreachable")
		environ, err := os.ReadFile(filepath.Join(bin, "environ"))
		require.NoError(t, err)
		environ = slices.Insert(environ, 0, 0) // the first has no end of another before it
		assert.Equal(t, mark != "", bytes.Contains(environ, []byte("\x00BEDFELLOW_MARK="+mark+"\x00")))
		assert.Equal(t, mark != "", bytes.Contains(environ, []byte("BEDFELLOW_MARK")))
	}
}

func TestMissingAnsibleNamesThePackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := ansible.Run{Playbooks: fstest.MapFS{}, Playbook: "site.yml"}.Do(t.Context())
	require.ErrorIs(t, err, ansible.ErrMissing)
	assert.True(t, strings.Contains(err.Error(), "apt-get install ansible"))
}
