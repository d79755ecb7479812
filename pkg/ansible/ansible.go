// Package ansible runs ansible-playbook on playbooks that are part of this program.
//
// What a run reports comes as structured events from a callback plugin of ours, never from text made for people. Secrets reach
// Ansible in a file of mode 0600 in a private directory that is gone when the run is; never in arguments or the environment.
package ansible

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/bedfellow/bedfellow/pkg/proc"
	"github.com/bedfellow/bedfellow/pkg/progress"
)

// ErrMissing says that ansible-playbook is not installed.
var ErrMissing = errors.New("ansible-playbook is not installed")

// grace is how long a cancelled run may take to end by itself before it is killed.
const grace = 3 * time.Second

// Run is one run of ansible-playbook. Playbooks, Playbook and Inventory are required.
type Run struct {
	Playbooks fs.FS          // playbooks, with their roles in roles/
	Playbook  string         // the file in Playbooks to run, such as site.yml
	Inventory any            // written as a JSON inventory; must hold no secret
	ExtraVars map[string]any // may hold secrets; a task that uses one hides it by no_log, its own or its module's

	PrivateKey []byte // OpenSSH format; for connections over ssh
	KnownHosts []byte // the only host keys that are accepted; without it no ssh connection is
	SSHHosts   []byte // ssh's configuration of single hosts, such as through which other one is reached; what holds for all follows it

	Tags    []string
	Slow    bool       // emulated nodes: they take longer to answer
	Forks   int        // nodes worked on side by side; 0 is one per CPU, at least 5
	WorkDir string     // where the private directory is made; empty for the system's
	Prefix  []string   // put before ansible-playbook, such as an unshare command
	Env     []string   // added to the few variables Ansible gets, as KEY=value
	Files   []*os.File // kept open by the run and all it starts, such as a lock

	Step  string // what progress calls the run; empty for "configure"
	Enter string // how a person enters a host, with %s for its name; empty for "bed ssh %s"
}

// Counts are the tasks of one host by outcome. Changed ones are also OK.
type Counts struct {
	OK          int `json:"ok"`
	Changed     int `json:"changed"`
	Failed      int `json:"failures"`
	Unreachable int `json:"unreachable"`
}

// Result tells what a run did. It is filled as far as the run got even when there is an error.
type Result struct {
	Hosts   map[string]Counts
	Changed int // over all hosts
}

// Do runs the playbook and returns when Ansible and all it started have ended. When ctx ends, so does the run. An error of a
// task is a *TaskError.
func (r Run) Do(ctx context.Context) (Result, error) {
	name := r.Step
	if name == "" {
		name = "configure"
	}
	step := progress.Start(ctx, "%s", name)
	res, err := r.do(ctx, step)
	step.EndWith(fmt.Sprintf("%d changed on %d hosts", res.Changed, len(res.Hosts)), err)
	return res, err
}

func (r Run) do(ctx context.Context, step *progress.Step) (Result, error) {
	bin, err := exec.LookPath("ansible-playbook")
	if err != nil {
		return Result{}, fmt.Errorf("%w: install the package ansible (apt-get install ansible)", ErrMissing)
	}
	dir, err := newPrivate(r.WorkDir)
	if err != nil {
		return Result{}, err
	}
	defer dir.remove()
	if err := r.write(dir); err != nil {
		return Result{}, fmt.Errorf("preparing Ansible in %s: %w", dir.path, err)
	}

	eventsR, eventsW, err := os.Pipe()
	if err != nil {
		return Result{}, fmt.Errorf("preparing Ansible: %w", err)
	}
	defer eventsR.Close()
	argv := slices.Concat(r.Prefix, []string{bin, "-i", dir.file("inventory.json"), "-e", "@" + dir.file("vars.json")})
	if len(r.Tags) > 0 {
		argv = append(argv, "--tags", strings.Join(r.Tags, ","))
	}
	argv = append(argv, filepath.Join(dir.file("playbooks"), r.Playbook))

	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir.path
	cmd.ExtraFiles = append([]*os.File{eventsW}, r.Files...)
	cmd.Env = r.env(dir)
	said := &tail{limit: 16 << 10}
	cmd.Stdout, cmd.Stderr = said, said
	// A group of its own, so that ending the run ends Ansible's workers too; and none of it outlives this process.
	cmd.SysProcAttr = proc.DieWithParent(&syscall.SysProcAttr{Setpgid: true})
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace

	log := &eventLog{step: step, note: func(text string) { progress.Note(ctx, "%s", r.scrub(text)) }}
	runErr := run(cmd, func() {
		eventsW.Close()
		log.read(eventsR)
	}, func() {
		// What is left of the group may still hold the pipe open.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = eventsR.SetReadDeadline(time.Now().Add(time.Second))
	})
	dir.closeMasters()

	res := log.result()
	switch {
	case ctx.Err() != nil:
		return res, fmt.Errorf("running %s: interrupted: %w", r.Playbook, context.Cause(ctx))
	case len(log.failed) > 0:
		return res, r.taskError(log.failed)
	case runErr != nil:
		return res, fmt.Errorf("running %s: ansible-playbook: %w; it said:\n%s", r.Playbook, runErr, r.scrub(said.String()))
	}
	return res, nil
}

// run starts cmd, reads its events while it runs and waits for it. The parent-death signal is tied to the thread that starts
// the process, so that thread is kept until the process has ended.
func run(cmd *exec.Cmd, read, ended func()) error {
	errc := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		err := cmd.Wait()
		ended()
		errc <- err
	}()
	if err := <-started; err != nil {
		return err
	}
	read()
	return <-errc
}

// write fills the private directory.
func (r Run) write(dir *private) error {
	inventory, err := json.Marshal(r.Inventory)
	if err != nil {
		return fmt.Errorf("inventory: %w", err)
	}
	vars := r.ExtraVars
	if vars == nil {
		vars = map[string]any{}
	}
	extra, err := json.Marshal(vars)
	if err != nil {
		return fmt.Errorf("extra variables: %w", err)
	}
	forks := r.Forks
	if forks == 0 {
		forks = max(5, runtime.NumCPU())
	}
	for name, content := range map[string][]byte{
		"inventory.json":        inventory,
		"vars.json":             extra,
		"id":                    r.PrivateKey,
		"known_hosts":           r.KnownHosts,
		"ansible.cfg":           []byte(config(dir.path, forks, r.Slow)),
		"ssh_config":            append(slices.Clip(r.SSHHosts), sshConfig(dir.path, r.Slow)...),
		"callback/bedfellow.py": callback,
		"ssh":                   []byte(sshWrapper),
	} {
		if err := dir.write(name, content); err != nil {
			return err
		}
	}
	if err := os.Chmod(dir.file("ssh"), 0o700); err != nil {
		return err
	}
	for _, name := range []string{"cp", "tmp"} {
		if err := os.Mkdir(dir.file(name), 0o700); err != nil {
			return err
		}
	}
	return os.CopyFS(dir.file("playbooks"), r.Playbooks)
}

// sshWrapper takes what Ansible still sends to an ssh that has failed. Where ssh ends first, Ansible tells of a broken pipe and loses why.
const sshWrapper = `#!/bin/sh
ssh "$@"
code=$?
[ $code != 255 ] || timeout 1 cat >/dev/null
exit $code
`

// waits are how many seconds ssh may take to connect, and between signs of life.
func waits(slow bool) (connect, alive int) {
	if slow {
		return 60, 30
	}
	return 10, 5
}

// sshConfig holds for every host of a run, and for one on the way to another, of which the command line tells ssh nothing. Only the host
// keys that were given are accepted, and no key but the one given, no agent and no configuration of the user's takes part.
func sshConfig(dir string, slow bool) string {
	connect, alive := waits(slow)
	return fmt.Sprintf(`Host *
  IdentityFile %[1]s/id
  IdentitiesOnly yes
  IdentityAgent none
  PreferredAuthentications publickey
  UserKnownHostsFile %[1]s/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  UpdateHostKeys no
  CheckHostIP no
  ConnectTimeout %[2]d
  ServerAliveInterval %[3]d
  ServerAliveCountMax 3
  LogLevel ERROR
`, dir, connect, alive)
}

// config is Ansible's configuration for a run. On ssh's command line is also what Ansible would set there otherwise. Nodes log no tasks, whose standard
// input may be secret.
func config(dir string, forks int, slow bool) string {
	connect, alive := waits(slow)
	return fmt.Sprintf(`[defaults]
forks = %d
gathering = explicit
host_key_checking = True
interpreter_python = /usr/bin/python3
local_tmp = %[2]s/tmp
roles_path = %[2]s/playbooks/roles
callback_plugins = %[2]s/callback
stdout_callback = bedfellow
retry_files_enabled = False
deprecation_warnings = False
no_target_syslog = True
timeout = %[4]d
[ssh_connection]
pipelining = True
transfer_method = piped
retries = 2
control_path_dir = %[2]s/cp
ssh_executable = %[2]s/ssh
ssh_args = -F %[2]s/ssh_config -o ControlMaster=auto -o ControlPersist=30s -o ConnectTimeout=%[3]d -o PreferredAuthentications=publickey
[connection]
pipelining = True
`, forks, dir, connect, 3*alive)
}

// env is all of Ansible's environment: nothing of the caller's leaks into a run but where programs are, how to get out, and the
// mark by which the next command finds what a killed one left. An ssh master writes its title over the mark; it ends by itself.
func (r Run) env(dir *private) []string {
	env := []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir.path, "LANG=C.UTF-8", "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1",
		"ANSIBLE_CONFIG=" + dir.file("ansible.cfg"), "ANSIBLE_HOME=" + dir.path, "TMPDIR=" + dir.file("tmp"), "BEDFELLOW_EVENTS=3",
	}
	for _, key := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "BEDFELLOW_MARK"} {
		if v := os.Getenv(key); v != "" {
			env = append(env, key+"="+v)
		}
	}
	return append(env, r.Env...)
}

// scrub takes the extra variables out of text that a person will see.
func (r Run) scrub(text string) string {
	for _, v := range r.ExtraVars {
		if s, ok := v.(string); ok && len(s) >= 8 {
			text = strings.ReplaceAll(text, s, "[hidden]")
		}
	}
	return strings.TrimSpace(text)
}

// tail keeps the end of what is written to it.
type tail struct {
	mu    sync.Mutex
	limit int
	buf   []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.limit; over > 0 {
		t.buf = bytes.Clone(t.buf[over:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
