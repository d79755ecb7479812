package lima_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The fake is this test's own binary under the names of the commands that the driver runs, with real processes for Lima's: a hostagent,
// a network, a "QEMU" that is an sshd, an ssh that overwrote its environment. TestContract holds it to what the real limactl did.

// fakes are the commands, by the names under which the binary is linked.
func fakes() map[string]func([]string) error {
	return map[string]func([]string) error{
		"maker": maker, "limactl": fakeLimactl, "qemu-system-x86_64": fakeQEMU, "qemu-img": fakeQEMUImg, "ssh": fakeSSH, "ssh-keygen": fakeKeygen,
	}
}

// faults are what the fake does wrong, by node; they lie beside it.
type faults map[string]fault

type fault struct {
	Start string `json:"start"` // hang, fail, timeout, waits, degraded, deaf, stuck, stolen
	Times int    `json:"times"` // 0: always
}

func faultsFile() string {
	self, _ := os.Executable()
	return filepath.Join(filepath.Dir(self), "faults.json")
}

// takeFault tells what a start of the node is to do wrong, and counts it.
func takeFault(node string) string {
	data, err := os.ReadFile(faultsFile())
	if err != nil {
		return ""
	}
	var all faults
	if json.Unmarshal(data, &all) != nil {
		return ""
	}
	f, ok := all[node]
	if !ok || f.Times < 0 {
		return ""
	}
	if f.Times > 0 {
		if f.Times--; f.Times == 0 {
			f.Times = -1
		}
		all[node] = f
		data, _ = json.Marshal(all)
		_ = os.WriteFile(faultsFile(), data, 0o666)
	}
	return f.Start
}

func say(level, format string, args ...any) {
	fmt.Fprintf(os.Stderr, "time=%q level=%s msg=%q\n", time.Now().Format(time.RFC3339), level, fmt.Sprintf(format, args...))
}

func fakeLimactl(args []string) error {
	switch home := os.Getenv("LIMA_HOME"); {
	case os.Geteuid() == 0:
		return errors.New("limactl: must not run as the root user")
	case args[0] == "--version":
		version, err := os.ReadFile(filepath.Join(filepath.Dir(faultsFile()), "version"))
		if err != nil {
			version = []byte("2.2.0")
		}
		fmt.Println("limactl version " + strings.TrimSpace(string(version)))
		return nil
	case args[0] == "start":
		return fakeStart(home, args[1:])
	case args[0] == "usernet":
		return fakeUsernet(args[1:])
	case args[0] == "hostagent":
		return fakeAgent(home, args[1:])
	case args[0] == "list":
		return fakeList(home)
	case args[0] == "delete":
		return fakeDelete(home, args[len(args)-1])
	}
	return fmt.Errorf("unknown command %q", args)
}

func background(name string, args ...string) *exec.Cmd {
	self, _ := os.Executable()
	cmd := exec.Command(filepath.Join(filepath.Dir(self), name), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func fakeStart(home string, args []string) error {
	flags := flag.NewFlagSet("start", flag.ContinueOnError)
	flags.Bool("tty", true, "")
	timeout := flags.Duration("timeout", 10*time.Minute, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	node := flags.Arg(0)
	dir := filepath.Join(home, node)
	i, err := inspect(home, node)
	if err != nil {
		return err
	}
	if i.Status == "Running" {
		say("info", "The instance `%s` is already running.", node)
		return nil
	}
	wrong := takeFault(node)
	say("info", "Using the existing instance `%s`", node)
	if wrong == "fail" {
		return errors.New("no space left on device")
	}
	if wrong == "hang" {
		time.Sleep(time.Hour)
	}
	if err := startUsernet(home); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "ha.pid")); err == nil {
		return fmt.Errorf("instance `%s` seems running (hint: remove `%s/ha.pid` if the instance is not actually running)", node, dir)
	}
	if _, err := os.Stat(filepath.Join(dir, "disk")); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(dir, "ha.stdout.log"))
	if err != nil {
		return err
	}
	errOut, err := os.Create(filepath.Join(dir, "ha.stderr.log"))
	if err != nil {
		return err
	}
	agent := background("limactl", "hostagent", "--pidfile", filepath.Join(dir, "ha.pid"), "--socket", filepath.Join(dir, "ha.sock"), node)
	agent.Env = append(os.Environ(), "FAULT="+wrong)
	agent.Stdout, agent.Stderr = out, errOut
	if err := agent.Start(); err != nil {
		return err
	}
	if wrong == "timeout" || wrong == "stuck" { // Lima's clock, not ours
		*timeout = 300 * time.Millisecond
	}
	deadline := time.Now().Add(*timeout)
	for time.Now().Before(deadline) {
		events, _ := os.ReadFile(out.Name())
		switch {
		case strings.Contains(string(events), "exiting"):
			return fmt.Errorf("exiting, status={Running:false Degraded:false Exiting:true} (hint: see `%s/ha.stderr.log`)", dir)
		case strings.Contains(string(events), "degraded"):
			say("warning", "DEGRADED. The VM seems running, but file sharing and port forwarding may not work. (hint: see `%s/ha.stderr.log`)", dir)
			return errors.New("degraded, status={Running:true Degraded:true}")
		case strings.Contains(string(events), "running"):
			say("info", "READY. Run `ssh -F` to open the shell.")
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("did not receive an event with the `running` status")
}

// startUsernet has the race that Lima has: whether there is a network is asked outside any lock.
func startUsernet(home string) error {
	dir := filepath.Join(home, "_networks/user-v2")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	pid := filepath.Join(dir, "usernet_user-v2.pid")
	if running(pid) != 0 {
		return nil
	}
	socket := func(kind string) string { return filepath.Join(dir, "user-v2_"+kind+".sock") }
	net := background("limactl", "usernet", "-p", pid, "-e", socket("ep"), "--listen-qemu", socket("qemu"), "--listen", socket("fd"), "--subnet", "192.168.104.0/24")
	if err := net.Start(); err != nil {
		return err
	}
	for { // without a deadline, as Lima's
		if _, err := os.Stat(socket("fd")); err == nil {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func fakeUsernet(args []string) error {
	flags := flag.NewFlagSet("usernet", flag.ContinueOnError)
	pid := flags.String("p", "", "")
	var sockets []string
	for _, name := range []string{"e", "listen-qemu", "listen"} {
		flags.Func(name, "", func(path string) error { sockets = append(sockets, path); return nil })
	}
	flags.String("subnet", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	dawdle()
	if err := writePID(*pid); err != nil {
		return err
	}
	defer os.Remove(*pid)
	for _, path := range sockets {
		_ = os.Remove(path)
		l, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		defer l.Close()
	}
	ending(syscall.SIGINT, syscall.SIGTERM)
	return nil
}

// dawdle makes the moments long in which Lima's processes get into each other's way, where a test wants that.
func dawdle() {
	if exists(filepath.Join(filepath.Dir(faultsFile()), "dawdle")) {
		time.Sleep(time.Second)
	}
}

// ending waits for a signal.
func ending(signals ...os.Signal) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, signals...)
	<-ch
}

func writePID(file string) error {
	return os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
}

// running is the process that a pid file names; 0 and no file when it is dead, whoever's it is when it is not.
func running(file string) int {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		_ = os.Remove(file)
		return 0
	}
	return pid
}

func fakeAgent(home string, args []string) error {
	dir := filepath.Join(home, args[4])
	wrong := os.Getenv("FAULT")
	if err := writePID(filepath.Join(dir, "ha.pid")); err != nil {
		return err
	}
	defer os.Remove(filepath.Join(dir, "ha.pid"))
	defer fmt.Println(`{"status":{"exiting":true}}`)
	if err := exec.Command(filepath.Join(filepath.Dir(faultsFile()), "ssh-keygen"), home).Run(); err != nil {
		fmt.Fprintln(os.Stderr, `{"level":"fatal","msg":"failed to run ssh-keygen"}`)
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	if err := os.WriteFile(filepath.Join(dir, "ssh.config"), fmt.Appendf(nil, "Host lima-%s\n  Port %d\n", args[4], port), 0o600); err != nil {
		return err
	}
	machine := background("qemu-system-x86_64", "-chardev", "socket,path="+filepath.Join(dir, "qmp.sock"), "-name", "lima-"+args[4], "-pidfile", filepath.Join(dir, "qemu.pid"))
	machine.Env = append(os.Environ(), fmt.Sprint("PORT=", port))
	if err := machine.Start(); err != nil {
		return err
	}
	died := make(chan error, 1)
	go func() { died <- machine.Wait() }()
	fmt.Printf("{\"status\":{\"sshLocalPort\":%d}}\n", port)
	up := make(chan struct{})
	go func() {
		for wrong != "timeout" && wrong != "stuck" && wrong != "waits" {
			if c, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
				_ = c.Close()
				close(up)
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	for {
		select {
		case <-up:
			master := background("ssh")
			master.Args, master.Env = []string{"ssh: " + filepath.Join(dir, "ssh.sock") + " [mux]"}, []string{}
			if err := master.Start(); err != nil {
				return err
			}
			defer func() { _ = master.Process.Kill(); _ = master.Wait() }()
			fmt.Printf("{\"status\":{\"running\":true,\"%s\":true}}\n", map[bool]string{true: "degraded", false: "plain"}[wrong == "degraded"])
			up = nil
		case <-died:
			return nil
		case <-stop:
			_ = machine.Process.Signal(syscall.SIGTERM) // the power button
			<-died
			return nil
		}
	}
}

// listed is what `limactl list --format json` shows of an instance, as far as the contract goes.
type listed struct {
	Name         string `json:"name"`
	Status       string `json:"status"`
	Dir          string `json:"dir"`
	VMType       string `json:"vmType"`
	SSHLocalPort int    `json:"sshLocalPort"`
	HostAgentPID int    `json:"hostAgentPID"`
	DriverPID    int    `json:"driverPID"`
}

func inspect(home, node string) (listed, error) {
	dir := filepath.Join(home, node)
	if _, err := os.Stat(filepath.Join(dir, "lima.yaml")); err != nil {
		return listed{}, err
	}
	i := listed{Name: node, Dir: dir, VMType: "qemu", HostAgentPID: running(filepath.Join(dir, "ha.pid")), DriverPID: running(filepath.Join(dir, "qemu.pid"))}
	if data, err := os.ReadFile(filepath.Join(dir, "ssh.config")); err == nil {
		_, port, _ := strings.Cut(string(data), "Port ")
		i.SSHLocalPort, _ = strconv.Atoi(strings.TrimSpace(port))
	}
	switch {
	case i.HostAgentPID > 0 && i.DriverPID > 0:
		i.Status = "Running"
	case i.HostAgentPID == 0 && i.DriverPID == 0:
		i.Status = "Stopped"
	default:
		i.Status = "Broken"
	}
	return i, nil
}

func fakeList(home string) error {
	dirs, _ := filepath.Glob(filepath.Join(home, "[^_.]*"))
	for _, dir := range dirs {
		i, err := inspect(home, filepath.Base(dir))
		if err != nil {
			i = listed{Name: filepath.Base(dir), Dir: dir, Status: "Broken"}
		}
		data, _ := json.Marshal(i)
		fmt.Println(string(data))
	}
	return nil
}

// fakeDelete refuses half an instance, as Lima does.
func fakeDelete(home, node string) error {
	dir := filepath.Join(home, node)
	i, err := inspect(home, node)
	if _, errDir := os.Stat(dir); err != nil && errDir == nil {
		return fmt.Errorf("instance `%s` directory `%s` exists but its `lima.yaml` could not be read; it was NOT deleted", node, dir)
	}
	for _, pid := range []int{i.HostAgentPID, i.DriverPID} {
		if pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return os.RemoveAll(dir)
}

// link puts the fakes into a directory.
func link(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	from, err := os.Open(self)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(filepath.Join(dir, "limactl"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	err = errors.Join(err, to.Close())
	for name := range fakes() {
		if name != "limactl" {
			err = errors.Join(err, os.Link(to.Name(), filepath.Join(dir, name)))
		}
	}
	return err
}
