package lima_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"gopkg.in/yaml.v3"
)

// fakeQEMU is the machine: an sshd with the host key that lima.yaml has it write. Started otherwise it is a probe's, and has no KVM.
func fakeQEMU(args []string) error {
	i := slices.Index(args, "-pidfile")
	if i < 0 {
		return errors.New("qemu-system-x86_64: failed to initialize kvm: Permission denied")
	}
	pid, wrong := args[i+1], os.Getenv("FAULT")
	dir := filepath.Dir(pid)
	if err := writePID(pid); err != nil {
		return err
	}
	defer os.Remove(pid)
	if err := os.WriteFile(filepath.Join(dir, "serial.log"), []byte("Booting the fake kernel\n"), 0o644); err != nil {
		return err
	}
	if wrong != "timeout" {
		go serve(dir, os.Getenv("PORT"), wrong)
	}
	if wrong == "stuck" {
		signal.Ignore(syscall.SIGTERM)
		time.Sleep(time.Hour)
	}
	ending(syscall.SIGTERM)
	return nil
}

func serve(dir, port, wrong string) {
	var file struct {
		Provision []struct{ Script string }
	}
	data, _ := os.ReadFile(filepath.Join(dir, "lima.yaml"))
	if yaml.Unmarshal(data, &file) != nil || len(file.Provision) == 0 {
		return
	}
	const begin, end = "-----BEGIN OPENSSH PRIVATE KEY-----", "-----END OPENSSH PRIVATE KEY-----"
	script := file.Provision[0].Script
	signer, err := ssh.ParsePrivateKey([]byte(script[strings.Index(script, begin):strings.Index(script, end)+len(end)] + "\n"))
	if err != nil {
		return
	}
	if wrong == "stolen" { // another's sshd was quicker to have the port
		_, private, _ := ed25519.GenerateKey(rand.Reader)
		if signer, err = ssh.NewSignerFromKey(private); err != nil {
			return
		}
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, errors.New("nobody") }}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if wrong != "deaf" {
				_, _, _, _ = ssh.NewServerConn(c, config)
			}
		}()
	}
}

// fakeQEMUImg makes an overlay of which only the header is real.
func fakeQEMUImg(args []string) error {
	i := slices.Index(args, "-b")
	if i < 0 || len(args) != i+4 {
		return fmt.Errorf("qemu-img: unknown arguments %q", args)
	}
	if _, err := os.Stat(args[i+1]); err != nil {
		return fmt.Errorf("qemu-img: %s: Could not open backing file: %w", args[i+2], err)
	}
	size, err := strconv.ParseUint(args[i+3], 10, 64)
	if err != nil {
		return err
	}
	return os.WriteFile(args[i+2], qcow2(size, args[i+1]), 0o644)
}

func qcow2(size uint64, backing string) []byte {
	header := make([]byte, 104)
	copy(header, "QFI\xfb\x00\x00\x00\x03")
	if backing != "" {
		binary.BigEndian.PutUint64(header[8:], uint64(len(header)))
		binary.BigEndian.PutUint32(header[16:], uint32(len(backing)))
	}
	binary.BigEndian.PutUint64(header[24:], size)
	return append(header, backing...)
}

func fakeSSH([]string) error {
	ending(syscall.SIGTERM)
	return nil
}

// fakeKeygen makes a LIMA_HOME's key pair as Lima does: two who do it at once find the other's file there, and fail.
func fakeKeygen(args []string) error {
	dir := filepath.Join(args[0], "_config")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "user.pub")); err == nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(dir, "user"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return errors.New(filepath.Join(dir, "user") + " already exists.\nOverwrite (y/n)?")
	}
	dawdle()
	return errors.Join(f.Close(), os.WriteFile(filepath.Join(dir, "user.pub"), []byte(rand.Text()), 0o644))
}
