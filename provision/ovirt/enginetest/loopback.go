package enginetest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"golang.org/x/crypto/ssh"
)

// Loopback has each guest be an sshd on an address of the loopback interface: it shows its host key, and lets nobody in.
type Loopback struct {
	Port int // the same for all

	mu     sync.Mutex
	next   int
	guests map[string]*listening // by VM
}

type listening struct {
	address string
	l       net.Listener
}

// Start has the guest's sshd run.
func (b *Loopback) Start(_ context.Context, g Guest) (string, error) {
	signer, err := ssh.ParsePrivateKey([]byte(g.HostKey))
	if err != nil {
		return "", err
	}
	config := &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) { return nil, errors.New("nobody") }}
	config.AddHostKey(signer)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.guests == nil {
		b.guests = map[string]*listening{}
	}
	at := b.guests[g.ID]
	if at == nil {
		b.next++
		at = &listening{address: fmt.Sprintf("127.77.%d.%d", b.next/250, 1+b.next%250)}
		if g.Address != "" {
			at.address = g.Address
		}
		b.guests[g.ID] = at
	}
	if at.l, err = net.Listen("tcp", fmt.Sprintf("%s:%d", at.address, b.Port)); err != nil {
		return "", err
	}
	go serve(at.l, config)
	return at.address, nil
}

func serve(l net.Listener, config *ssh.ServerConfig) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _, _, _ = ssh.NewServerConn(c, config)
		}()
	}
}

// Stop ends the guest's sshd.
func (b *Loopback) Stop(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if at := b.guests[id]; at != nil && at.l != nil {
		_ = at.l.Close()
		at.l = nil
	}
}

// Remove forgets the guest.
func (b *Loopback) Remove(id string) {
	b.Stop(id)
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.guests, id)
}
