package remote

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/crypto/ssh"
)

// path names the node, and the one on the way.
func (t Target) path() string {
	if t.Via == nil {
		return "node " + t.Name
	}
	return "node " + t.Name + " through " + t.Via.path()
}

// open connects to the target's sshd, after logging in to the node on the way.
func open(ctx context.Context, t Target) (net.Conn, error) {
	if t.Via == nil {
		raw, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", t.addr())
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", t.path(), err)
		}
		return raw, nil
	}
	if t.Via.Signer == nil {
		return nil, fmt.Errorf("connect to %s: there is no key to log in to the latter with", t.path())
	}
	jump, err := dial(ctx, *t.Via)
	if err != nil {
		return nil, fmt.Errorf("on the way to node %s: %w", t.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, loginTimeout) // an emulated machine may be slow to hand it on
	defer cancel()
	raw, err := jump.DialContext(ctx, "tcp", t.addr())
	if err != nil {
		_ = jump.Close()
		return nil, fmt.Errorf("connect to %s: %w", t.path(), err)
	}
	return carried{raw, jump}, nil
}

// carried is a connection that another one carries, and nothing else. They end together: a close that the node on the way does not
// confirm would end nothing.
type carried struct {
	net.Conn
	by *ssh.Client
}

func (c carried) Close() error { return c.by.Close() }
