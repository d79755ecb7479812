// Package fakebed is a bed for tests: every node is an SSH server in this process, whose commands run here, by sh, with fakes of
// Slurm's commands in front of the real PATH. A node's /tmp/bedfellow-… and /opt/lammps are directories of its own below Dir.
package fakebed

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"embed"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

//go:embed bin
var bin embed.FS

// Bed is a running fake. Its directory steers the fakes, which see it as $FAKE:
//
//	sinfo           what sinfo prints
//	refuse          sbatch fails and prints this
//	say             sbatch runs nothing; scontrol takes a line "STATE Reason code:signal" of it at a time, the last again and again
//	fail            LAMMPS fails in jobs whose name this is
//	nopmix          srun has no PMIx, and mpirun is to start ranks
//	jobs/<id>/      what was submitted: args and script; and cancelled
type Bed struct {
	Dir       string
	Inventory bed.Inventory
	Key       []byte // the user's private key, PEM
}

// Start makes a bed of a control node and a number of compute nodes of one CPU each. It ends with the test.
func Start(t testing.TB, compute int) *Bed {
	t.Helper()
	b := &Bed{Dir: t.TempDir(), Inventory: bed.Inventory{Bed: "fake", Driver: "fake", WorkloadManager: "slurm", User: "bed",
		Image: "debian-12", ImageDigest: "sha256:feed", SharedKernel: true}}
	for _, dir := range []string{"bin", "jobs"} {
		require.NoError(t, os.Mkdir(filepath.Join(b.Dir, dir), 0o755))
	}
	fakes, err := bin.ReadDir("bin")
	require.NoError(t, err)
	for _, f := range fakes {
		data, err := bin.ReadFile("bin/" + f.Name())
		require.NoError(t, err)
		b.Write(t, "bin/"+f.Name(), string(data))
	}
	user, key := newKey(t)
	b.Key = key
	var sinfo strings.Builder
	for i := range compute + 1 {
		n := bed.InventoryNode{Name: bed.NodeName("fake", i), Address: "127.0.0.1", BedAddress: "127.0.0.1", Role: bed.Compute, CPUs: 1, MemoryMiB: 512, HostCPUs: fmt.Sprint(i)}
		if i == 0 {
			n.Role = bed.Control
		} else {
			fmt.Fprintf(&sinfo, "%s|idle|0/1/0/1|none\n", n.Name)
		}
		require.NoError(t, os.MkdirAll(filepath.Join(b.Dir, "nodes", n.Name, "tmp"), 0o755))
		b.serve(t, &n, user.PublicKey())
		b.Inventory.Nodes = append(b.Inventory.Nodes, n)
	}
	b.Write(t, "sinfo", sinfo.String())
	return b
}

// Write puts a file below Dir, with the directories it needs. It can be run at once: no process is started meanwhile, which would have it open to
// be written until it runs a program of its own.
func (b *Bed) Write(t testing.TB, name, text string) {
	t.Helper()
	file := filepath.Join(b.Dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	require.NoError(t, os.WriteFile(file, []byte(text), 0o755))
}

// Read returns a file below Dir, empty when there is none.
func (b *Bed) Read(name string) string {
	data, _ := os.ReadFile(filepath.Join(b.Dir, name))
	return string(data)
}

// Dial connects to a node as the user.
func (b *Bed) Dial(ctx context.Context, n bed.InventoryNode) (*remote.Client, error) {
	signer, err := ssh.ParsePrivateKey(b.Key)
	if err != nil {
		return nil, err
	}
	return remote.Dial(ctx, remote.Node(b.Inventory, n, signer))
}

func newKey(t testing.TB) (ssh.Signer, []byte) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	require.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(private)
	require.NoError(t, err)
	return signer, pem.EncodeToMemory(block)
}

// serve listens as node n, and fills in its port and host key.
func (b *Bed) serve(t testing.TB, n *bed.InventoryNode, user ssh.PublicKey) {
	host, _ := newKey(t)
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(user.Marshal()) {
			return nil, fmt.Errorf("not the bed's user")
		}
		return nil, nil
	}}
	config.AddHostKey(host)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	n.Port, n.HostKey = l.Addr().(*net.TCPAddr).Port, string(ssh.MarshalAuthorizedKey(host.PublicKey()))
	node := n.Name
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go b.connection(raw, config, node)
		}
	}()
}

func (b *Bed) connection(raw net.Conn, config *ssh.ServerConfig, node string) {
	_, channels, requests, err := ssh.NewServerConn(raw, config)
	if err != nil {
		return
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go func() {
			for r := range requests {
				var exec struct{ Command string }
				if r.Type == "exec" && ssh.Unmarshal(r.Payload, &exec) == nil {
					_ = r.Reply(true, nil)
					go b.exec(channel, exec.Command, node)
				}
			}
		}()
	}
}

func (b *Bed) exec(channel ssh.Channel, command, node string) {
	defer channel.Close()
	at := filepath.Join(b.Dir, "nodes", node)
	command = strings.NewReplacer("/tmp/bedfellow-", at+"/tmp/bedfellow-", "/opt/lammps", at+"/opt/lammps").Replace(command)
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = []string{"PATH=" + b.Dir + "/bin:/usr/bin:/bin", "FAKE=" + b.Dir, "FAKE_NODE=" + node}
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(channel.Stderr(), err)
		return
	}
	go func() { // not by exec.Cmd, whose Wait would wait for the client's end of input
		_, _ = io.Copy(stdin, channel)
		_ = stdin.Close()
	}()
	_ = cmd.Wait()
	if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signaled() { // as sshd, and never as a success
		name := strings.TrimPrefix(unix.SignalName(status.Signal()), "SIG")
		_, _ = channel.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name     string
			Core     bool
			Why, Tag string
		}{name, false, "", ""}))
		return
	}
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{uint32(cmd.ProcessState.ExitCode())}))
}
