// Package remote reaches a bed's nodes over SSH. Every connection checks the node's host key against the one made for it before
// it first booted; there is no way to connect without.
package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// Target is a node to reach.
type Target struct {
	Name    string // for messages
	Address string
	Port    int
	User    string
	HostKey string // public, in authorized_keys form
	Signer  ssh.Signer
	Via     *Target // the node that is logged in to first, and from which Address and Port are reached; nil for none
}

func (t Target) addr() string { return net.JoinHostPort(t.Address, strconv.Itoa(t.Port)) }

// HostKeyError says that a machine showed another host key than the one made for the node. Nothing was sent to it.
type HostKeyError struct {
	Node, Address, Got, Want string
}

func (e *HostKeyError) Error() string {
	return fmt.Sprintf("node %s at %s shows the host key %s, not %s which was made for it: another machine answers there, or its key was changed; "+
		"nothing was sent. Look at what listens on that address; `bed up` makes the node anew", e.Node, e.Address, e.Got, e.Want)
}

func (t Target) hostKeyCallback() (ssh.HostKeyCallback, error) {
	want, _, _, _, err := ssh.ParseAuthorizedKey([]byte(t.HostKey))
	if err != nil {
		return nil, fmt.Errorf("host key of node %s: %w", t.Name, err)
	}
	return func(_ string, _ net.Addr, got ssh.PublicKey) error {
		if !bytes.Equal(got.Marshal(), want.Marshal()) {
			at := t.addr()
			if t.Via != nil {
				at += " as node " + t.Via.Name + " sees it"
			}
			return &HostKeyError{Node: t.Name, Address: at, Got: ssh.FingerprintSHA256(got), Want: ssh.FingerprintSHA256(want)}
		}
		return nil
	}, nil
}

// Client is a connection to a node; several commands may run on it at once.
type Client struct {
	Target Target
	conn   *ssh.Client
	lost   atomic.Bool // it was silent for too long
}

// Within connectTimeout somebody listens; within loginTimeout an emulated machine too has done its part of the key exchange.
const (
	connectTimeout = 5 * time.Second
	loginTimeout   = 40 * time.Second
)

// A machine whose kernel has stopped says nothing, nor does whatever carries its connections: it is asked every so often, and may take as
// long to answer as an emulated one under load does.
var (
	askEvery = 20 * time.Second
	silence  = 3 * time.Minute
)

// Dial connects and logs in. A node that falls silent ends its connection, and with it what runs there, after some minutes.
func Dial(ctx context.Context, t Target) (*Client, error) {
	conn, err := dial(ctx, t)
	if err != nil {
		return nil, err
	}
	c := &Client{Target: t, conn: conn}
	go c.watch()
	return c, nil
}

// watch closes the connection once the node is silent.
func (c *Client) watch() {
	ended := make(chan struct{})
	go func() { _ = c.conn.Wait(); close(ended) }()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-ended:
			return
		case <-tick.C:
		}
		answered := make(chan struct{})
		go func() {
			_, _, _ = c.conn.SendRequest("keepalive@openssh.com", true, nil)
			close(answered)
		}()
		select {
		case <-ended:
			return
		case <-answered:
		case <-time.After(silence):
			c.lost.Store(true)
			_ = c.conn.Close()
			return
		}
	}
}

// why is the error with what the connection's end was due to.
func (c *Client) why(err error) error {
	if err == nil || !c.lost.Load() {
		return err
	}
	return fmt.Errorf("it has not answered for %v: the machine hangs or is off; `bed up` makes it one that works (%w)", silence, err)
}

func dial(ctx context.Context, t Target) (*ssh.Client, error) {
	raw, err := open(ctx, t)
	if err != nil {
		return nil, err
	}
	return login(ctx, t, raw, ssh.PublicKeys(t.Signer))
}

// login does the handshake on a connection, which it closes when that fails.
func login(ctx context.Context, t Target, raw net.Conn, auth ...ssh.AuthMethod) (*ssh.Client, error) {
	callback, err := t.hostKeyCallback()
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	// The handshake knows no context, and a carried connection no deadline: the end of the context closes it.
	ctx, cancel := context.WithTimeoutCause(ctx, loginTimeout, fmt.Errorf("it took longer than %v", loginTimeout))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	c, channels, requests, err := ssh.NewClientConn(raw, t.addr(), &ssh.ClientConfig{
		User: t.User, Auth: auth, HostKeyCallback: callback, HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
	})
	ended := !stop()
	var wrong *HostKeyError
	switch {
	case errors.As(err, &wrong):
		err = wrong
	case ended:
		err = fmt.Errorf("log in to %s: %w", t.path(), context.Cause(ctx))
	case err != nil:
		err = fmt.Errorf("log in to %s: %w", t.path(), err)
	default:
		return ssh.NewClient(c, channels, requests), nil
	}
	_ = raw.Close()
	return nil, err
}

// Answers reports whether the target's sshd answers with the pinned host key. It needs no key of the user's and logs nobody in:
// a driver, which knows only the host key, waits with it for a boot to finish. A node on the way must be logged in to all the same.
func Answers(ctx context.Context, t Target) error {
	raw, err := open(ctx, t)
	if err != nil {
		return err
	}
	t.User = "bedfellow-probe"
	conn, err := login(ctx, t, raw)
	if err == nil {
		_ = conn.Close()
		return nil
	}
	if strings.Contains(err.Error(), "unable to authenticate") { // the host key was checked before that
		return nil
	}
	return err
}

// Await calls Answers until it succeeds, the context ends, or the host key is wrong. The last error is part of the result.
func Await(ctx context.Context, t Target) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := Answers(ctx, t)
		var wrong *HostKeyError
		if err == nil || errors.As(err, &wrong) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Result is what a command left.
type Result struct {
	Stdout, Stderr []byte
	Code           int // exit status; 128 + signal when a signal ended it
}

// ExitError says that a command ended with a status other than 0.
type ExitError struct {
	Node, Command string
	Result        Result
}

func (e *ExitError) Error() string {
	tail := strings.TrimSpace(string(e.Result.Stderr))
	if tail == "" {
		tail = strings.TrimSpace(string(e.Result.Stdout))
	}
	if len(tail) > 2000 {
		tail = "…" + tail[len(tail)-2000:]
	}
	return fmt.Sprintf("on node %s: `%s` ended with status %d: %s", e.Node, e.Command, e.Result.Code, tail)
}

// Run runs a shell command and waits for it. The error is an *ExitError, with the same Result, when the command ran and failed.
// When the context ends, the connection to that command is closed and the node's sshd ends it by SIGHUP.
func (c *Client) Run(ctx context.Context, command string) (Result, error) {
	return c.Feed(ctx, command, nil)
}

// Feed is Run with standard input.
func (c *Client) Feed(ctx context.Context, command string, stdin io.Reader) (Result, error) {
	var out, errOut bytes.Buffer
	r, err := c.stream(ctx, command, stdin, &out, &errOut)
	if ctx.Err() != nil && err != nil {
		return r, err // somebody may still write to the buffers
	}
	r.Stdout, r.Stderr = out.Bytes(), errOut.Bytes()
	var exit *ExitError
	if errors.As(err, &exit) {
		exit.Result = r
	}
	return r, err
}

// Stream is Run with what the command writes handed on as it comes; the end of its standard error is in an *ExitError all the same.
func (c *Client) Stream(ctx context.Context, command string, stdout, stderr io.Writer) error {
	end := &ending{w: stderr}
	r, err := c.stream(ctx, command, nil, stdout, end)
	var exit *ExitError
	if errors.As(err, &exit) {
		r.Stderr = end.last
		exit.Result = r
	}
	return err
}

// ending hands on what is written and keeps the last of it.
type ending struct {
	w    io.Writer
	last []byte
}

func (e *ending) Write(p []byte) (int, error) {
	e.last = append(e.last, p...)
	e.last = e.last[max(0, len(e.last)-4096):]
	return e.w.Write(p)
}

// patience is how long a machine that is there may take to say that something ended.
const patience = 3 * time.Second

// session opens a session. A machine that was rebooted since it logged us in says nothing to that, ever: once the context has ended, the
// connection goes.
func (c *Client) session(ctx context.Context) (*ssh.Session, error) {
	type opened struct {
		session *ssh.Session
		err     error
	}
	done := make(chan opened, 1)
	go func() {
		s, err := c.conn.NewSession()
		done <- opened{s, err}
	}()
	select {
	case o := <-done:
		return o.session, o.err
	case <-ctx.Done():
	}
	select {
	case o := <-done:
		if o.err == nil {
			_ = o.session.Close()
		}
	case <-time.After(patience):
		_ = c.conn.Close()
	}
	return nil, context.Cause(ctx)
}

func (c *Client) stream(ctx context.Context, command string, stdin io.Reader, stdout, stderr io.Writer) (Result, error) {
	session, err := c.session(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("open a session on node %s: %w", c.Target.Name, c.why(err))
	}
	defer session.Close()
	session.Stdin, session.Stdout, session.Stderr = stdin, stdout, stderr
	done := make(chan error, 1)
	go func() { done <- session.Run(command) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		// On a connection whose other end is gone nothing comes back, so nothing is waited for: closing it ends the session's
		// goroutines, and its buffers are left alone.
		go func() { _ = session.Signal(ssh.SIGTERM); _ = session.Close() }()
		select {
		case <-done:
		case <-time.After(patience):
			_ = c.conn.Close()
		}
		return Result{}, fmt.Errorf("on node %s: `%s`: %w", c.Target.Name, command, context.Cause(ctx))
	}
	var r Result
	var exit *ssh.ExitError
	switch {
	case err == nil:
		return r, nil
	case errors.As(err, &exit):
		r.Code = exit.ExitStatus()
		return r, &ExitError{Node: c.Target.Name, Command: command, Result: r}
	default:
		return r, fmt.Errorf("on node %s: `%s`: %w", c.Target.Name, command, c.why(err))
	}
}

// Write puts data into a file on the node, whole or not at all, with the given permission bits.
func (c *Client) Write(ctx context.Context, path string, data []byte, mode uint32) error {
	quoted := Quote(path)
	_, err := c.Feed(ctx, fmt.Sprintf("umask 077 && cat > %[1]s.part && chmod %04[2]o %[1]s.part && mv %[1]s.part %[1]s", quoted, mode), bytes.NewReader(data))
	return err
}

// Quote makes one shell word of s.
func Quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// Each calls fn once per item, at most limit at a time, waits for all and joins the errors.
func Each[T any](ctx context.Context, items []T, limit int, fn func(context.Context, int, T) error) error {
	errs := make([]error, len(items))
	slots := make(chan struct{}, max(limit, 1))
	var wg sync.WaitGroup
	for i, item := range items {
		wg.Add(1)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots; wg.Done() }()
			if err := ctx.Err(); err != nil {
				errs[i] = context.Cause(ctx)
				return
			}
			errs[i] = fn(ctx, i, item)
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Facts are what a machine says of itself.
type Facts struct {
	Hostname  string
	BootID    string
	CPUs      int   // that a process may use there
	MemoryMiB int64 // as the kernel shows it; the host's on a shared kernel
	Kernel    string
	CPUModel  string
}

// factsCommand is two processes: on an emulated machine each costs a tenth of a second. No file tells what nproc does.
const factsCommand = `nproc && awk 'FILENAME ~ "^/proc/sys/" || /^MemTotal:/ {print} /^model name/ {print; exit}' ` +
	`/proc/sys/kernel/hostname /proc/sys/kernel/random/boot_id /proc/sys/kernel/osrelease /proc/meminfo /proc/cpuinfo`

// Ask reads the machine's facts in one command.
func (c *Client) Ask(ctx context.Context) (Facts, error) {
	r, err := c.Run(ctx, factsCommand)
	if err != nil {
		return Facts{}, err
	}
	lines := strings.Split(strings.TrimRight(string(r.Stdout), "\n"), "\n")
	if len(lines) < 5 {
		return Facts{}, fmt.Errorf("node %s answered %q where its facts were expected", c.Target.Name, r.Stdout)
	}
	f := Facts{Hostname: lines[1], BootID: lines[2], Kernel: lines[3]}
	var errCPU, errMem error
	f.CPUs, errCPU = strconv.Atoi(lines[0])
	_, memory, _ := strings.Cut(lines[4], ":")
	f.MemoryMiB, errMem = strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(memory), " kB"), 10, 64)
	f.MemoryMiB /= 1024
	if len(lines) > 5 { // of AMD64, not of every architecture
		_, model, _ := strings.Cut(lines[5], ":")
		f.CPUModel = strings.TrimSpace(model)
	}
	if err := errors.Join(errCPU, errMem); err != nil {
		return Facts{}, fmt.Errorf("node %s answered %q where its facts were expected: %w", c.Target.Name, r.Stdout, err)
	}
	return f, nil
}

// Forward carries connections that the listener accepts to an address as the machine sees it, until the listener is closed or the
// client's own connection ends, which is an error. One whose other end does not answer is closed; the caller's peer sees it end.
func (c *Client) Forward(listener net.Listener, address string) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var lost atomic.Bool
	go func() {
		_ = c.conn.Wait()
		lost.Store(true)
		_ = listener.Close()
	}()
	for {
		near, err := listener.Accept()
		if lost.Load() {
			return c.why(fmt.Errorf("the connection to node %s ended", c.Target.Name))
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer near.Close()
			far, err := c.conn.Dial("tcp", address)
			if err != nil {
				return
			}
			defer far.Close()
			done := make(chan struct{}, 2)
			for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					if half, ok := pair[0].(interface{ CloseWrite() error }); ok {
						_ = half.CloseWrite() // what the other end still has to say must come through
					}
					done <- struct{}{}
				}()
			}
			<-done
			<-done
		})
	}
}
