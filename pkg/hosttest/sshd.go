package hosttest

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
)

// SSHD is the host's own sshd, with a host key of its own.
type SSHD struct {
	Port        int // of 127.0.0.1
	HostKey     string
	Connections atomic.Int32 // made so far
}

// StartSSHD serves until the test ends. It lets the user of this process in by a key, in authorized_keys form.
func StartSSHD(t *testing.T, authorized string) *SSHD {
	t.Helper()
	sshd := "/usr/sbin/sshd" // not in every user's PATH, and told apart from others only by its whole path
	if _, err := os.Stat(sshd); err != nil {
		t.Skipf("this host has no %s, which no host is asked to install for a test; e2e does the same on the quickstart's nodes", sshd)
	}
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	key, private := NewKey(t)
	config := file("config", fmt.Sprintf("HostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nPasswordAuthentication no\nUsePAM no\n",
		file("key", string(private)), file("authorized", authorized)))
	command := []string{sshd, "-i", "-e", "-f", config} // one process for each connection
	if os.Geteuid() == 0 {
		// As root it wants a directory that is made when it is started as a service.
		command = append([]string{"unshare", "-m", "sh", "-c", `mount -t tmpfs none /run && mkdir /run/sshd && exec "$@"`, "sh"}, command...)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := &SSHD{Port: listener.Addr().(*net.TCPAddr).Port, HostKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))}
	log, err := os.Create(filepath.Join(dir, "log"))
	require.NoError(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait()
		_ = log.Close()
		if said, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("sshd at port %d said:\n%s", s.Port, said)
		}
	})
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.Connections.Add(1)
			socket, err := conn.(*net.TCPConn).File()
			_ = conn.Close()
			if err != nil {
				continue
			}
			cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = socket, socket, log
			wg.Go(func() { _ = cmd.Run(); _ = socket.Close() })
		}
	})
	return s
}

// NewKey makes a key, and what a file of it holds.
func NewKey(t *testing.T) (ssh.Signer, []byte) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	require.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(private)
	require.NoError(t, err)
	return signer, pem.EncodeToMemory(block)
}
