package remote_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/pkg/remote"
)

// fakeNode is an sshd that runs commands on this host: the boundary at which a node is replaced.
type fakeNode struct {
	target  remote.Target
	logins  atomic.Int32  // attempts to log in: what was sent to it beyond the key exchange
	silent  atomic.Bool   // says nothing more to what is asked of it, as a machine that was rebooted
	open    atomic.Int32  // connections
	hangups chan struct{} // one for each command whose session was closed before it ended
}

func newSigner(t *testing.T) ssh.Signer {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	require.NoError(t, err)
	signer, err := ssh.NewSignerFromKey(key)
	require.NoError(t, err)
	return signer
}

func startNode(t *testing.T) *fakeNode {
	host, user := newSigner(t), newSigner(t)
	n := &fakeNode{hangups: make(chan struct{}, 8)}
	config := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		n.logins.Add(1)
		if c.User() != "bed" || !bytes.Equal(key.Marshal(), user.PublicKey().Marshal()) {
			return nil, errors.New("not let in")
		}
		return nil, nil
	}}
	config.AddHostKey(host)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	n.target = remote.Target{
		Name: "node", Address: "127.0.0.1", Port: listener.Addr().(*net.TCPAddr).Port, User: "bed",
		HostKey: strings.TrimSpace(string(ssh.MarshalAuthorizedKey(host.PublicKey()))), Signer: user,
	}
	go func() {
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			go n.serve(raw, config)
		}
	}()
	return n
}

func (n *fakeNode) serve(raw net.Conn, config *ssh.ServerConfig) {
	defer raw.Close()
	n.open.Add(1)
	defer n.open.Add(-1)
	_, channels, requests, err := ssh.NewServerConn(raw, config)
	if err != nil {
		return
	}
	go func() {
		for r := range requests {
			if !n.silent.Load() {
				_ = r.Reply(false, nil) // as to a keep-alive, which sshd does not know either
			}
		}
	}()
	for c := range channels {
		if n.silent.Load() {
			continue
		}
		if c.ChannelType() == "direct-tcpip" {
			go n.forward(c)
			continue
		}
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go n.session(channel, requests)
	}
}

// forward connects a channel to where it is to go, as sshd does.
func (n *fakeNode) forward(c ssh.NewChannel) {
	var to struct {
		Host string
		Port uint32
		From string
		At   uint32
	}
	_ = ssh.Unmarshal(c.ExtraData(), &to)
	far, err := net.Dial("tcp", net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port))))
	if err != nil {
		_ = c.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer far.Close()
	near, requests, err := c.Accept()
	if err != nil {
		return
	}
	defer near.Close()
	go ssh.DiscardRequests(requests)
	go func() {
		_, _ = io.Copy(far, near)
		_ = far.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(near, far)
}

func (n *fakeNode) session(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	ctx, hangup := context.WithCancel(context.Background())
	defer hangup()
	for r := range requests {
		if r.Type != "exec" {
			_ = r.Reply(false, nil)
			continue
		}
		_ = r.Reply(true, nil)
		var command struct{ Text string }
		_ = ssh.Unmarshal(r.Payload, &command)
		go func() {
			cmd := exec.CommandContext(ctx, "sh", "-c", command.Text)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = io.NopCloser(channel), channel, channel.Stderr()
			cmd.WaitDelay = time.Second
			err := cmd.Run()
			if ctx.Err() != nil {
				n.hangups <- struct{}{}
				return
			}
			var exit *exec.ExitError
			switch code := 0; {
			case errors.As(err, &exit) && !exit.Exited():
				_, _ = channel.SendRequest("exit-signal", false, ssh.Marshal(struct {
					Signal        string
					Core          bool
					Message, Lang string
				}{Signal: "KILL"}))
			default:
				if exit != nil {
					code = exit.ExitCode()
				}
				_, _ = channel.SendRequest("exit-status", false, binary.BigEndian.AppendUint32(nil, uint32(code)))
			}
			_ = channel.Close()
		}()
	}
}

func dial(t *testing.T, target remote.Target) *remote.Client {
	c, err := remote.Dial(t.Context(), target)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestRun(t *testing.T) {
	c := dial(t, startNode(t).target)
	r, err := c.Run(t.Context(), "echo out; echo err >&2")
	require.NoError(t, err)
	assert.Equal(t, remote.Result{Stdout: []byte("out\n"), Stderr: []byte("err\n")}, r)

	for command, code := range map[string]int{"echo why >&2; exit 7": 7, "kill -9 $$": 128 + 9} {
		r, err = c.Run(t.Context(), command)
		var exit *remote.ExitError
		require.ErrorAs(t, err, &exit, command)
		assert.Equal(t, code, exit.Result.Code, command)
		assert.Equal(t, code, r.Code)
		assert.Contains(t, err.Error(), "node")
		assert.Contains(t, err.Error(), command)
	}
	_, err = c.Run(t.Context(), "echo why >&2; exit 7")
	assert.ErrorContains(t, err, "why")

	file := t.TempDir() + "/it's a file"
	require.NoError(t, c.Write(t.Context(), file, []byte("a\x00b"), 0o640))
	r, err = c.Run(t.Context(), "stat -c %a "+remote.Quote(file)+" && cat "+remote.Quote(file))
	require.NoError(t, err)
	assert.Equal(t, "640\na\x00b", string(r.Stdout))
}

func TestAskTellsWhatTheMachineIs(t *testing.T) {
	if _, err := os.Stat("/proc/sys/kernel/osrelease"); err != nil {
		t.Skipf("the fake node runs commands on this host, which tells nothing of itself in /proc: %v", err)
	}
	of := func(command string) string {
		out, err := exec.Command("sh", "-c", command).Output()
		require.NoError(t, err, command)
		return strings.TrimSpace(string(out))
	}
	facts, err := dial(t, startNode(t).target).Ask(t.Context())
	require.NoError(t, err)
	assert.Equal(t, remote.Facts{
		Hostname: of("uname -n"), BootID: of("cat /proc/sys/kernel/random/boot_id"), CPUs: facts.CPUs, Kernel: of("uname -r"), MemoryMiB: facts.MemoryMiB,
		CPUModel: of("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1"),
	}, facts)
	assert.Equal(t, of("nproc"), strconv.Itoa(facts.CPUs))
	assert.Equal(t, of("free -m | awk '/^Mem/{print $2}'"), strconv.FormatInt(facts.MemoryMiB, 10))
}

func TestStreamHandsOnAsItComes(t *testing.T) {
	c := dial(t, startNode(t).target)
	r, w := io.Pipe()
	ended := make(chan error, 1)
	gate := t.TempDir() + "/gate"
	go func() {
		ended <- c.Stream(t.Context(), "echo first; until [ -e "+gate+" ]; do sleep 0.02; done; echo why >&2; exit 7", w, io.Discard)
		w.Close()
	}()
	first := make([]byte, 6)
	_, err := io.ReadFull(r, first)
	require.NoError(t, err, "while the command waits")
	assert.Equal(t, "first\n", string(first))
	require.NoError(t, os.WriteFile(gate, nil, 0o600))
	var exit *remote.ExitError
	require.ErrorAs(t, <-ended, &exit)
	assert.Equal(t, 7, exit.Result.Code)
	assert.ErrorContains(t, exit, "why")
}

// A machine with another host key is refused before anything is sent, at once by those who wait for a boot too.
func TestHostKeyDiffers(t *testing.T) {
	n := startNode(t)
	other := n.target
	other.HostKey = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(newSigner(t).PublicKey())))
	_, dialErr := remote.Dial(t.Context(), other)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for name, err := range map[string]error{"Dial": dialErr, "Answers": remote.Answers(ctx, other), "Await": remote.Await(ctx, other)} {
		var wrong *remote.HostKeyError
		require.ErrorAs(t, err, &wrong, name)
		assert.Equal(t, "node", wrong.Node)
		assert.NotEqual(t, wrong.Got, wrong.Want)
	}
	assert.Zero(t, n.logins.Load(), "somebody tried to log in")

	other.HostKey = ""
	_, err := remote.Dial(t.Context(), other)
	assert.ErrorContains(t, err, "host key of node", "there is no connecting without one")
}

func TestAnswersNeedsNoUserKey(t *testing.T) {
	n := startNode(t)
	n.target.Signer = nil
	require.NoError(t, remote.Answers(t.Context(), n.target))
}

// What never answers is given up when the context ends, with the reason of both.
func TestAwaitGivesUp(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	target := startNode(t).target
	target.Port = silent.Addr().(*net.TCPAddr).Port
	late := errors.New("not within its time")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, late)
	defer cancel()
	began := time.Now()
	err = remote.Await(ctx, target)
	require.ErrorIs(t, err, late)
	assert.Less(t, time.Since(began), 5*time.Second)
}

// A command ends with its context, and the connection still serves others.
func TestCancelClosesTheSession(t *testing.T) {
	n := startNode(t)
	c := dial(t, n.target)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stopped by a person")
	time.AfterFunc(200*time.Millisecond, func() { cancel(stop) })
	_, err := c.Run(ctx, "exec sleep 60")
	require.ErrorIs(t, err, stop)
	select {
	case <-n.hangups:
	case <-time.After(10 * time.Second):
		require.Fail(t, "the node's side of the session stays open")
	}
	_, err = c.Run(t.Context(), "true")
	require.NoError(t, err)
}

func TestEach(t *testing.T) {
	items := make([]int, 20)
	var mu sync.Mutex
	var now, most, done int
	err := remote.Each(t.Context(), items, 3, func(_ context.Context, i int, _ int) error {
		mu.Lock()
		now++
		most = max(most, now)
		mu.Unlock()
		time.Sleep(2 * time.Millisecond) // so that they overlap
		mu.Lock()
		defer mu.Unlock()
		now--
		done++
		if i%10 == 0 {
			return errors.New("item failed")
		}
		return nil
	})
	assert.Equal(t, 3, most)
	assert.Equal(t, 20, done, "a failure stops no other")
	assert.Equal(t, "item failed\nitem failed", err.Error())

	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stopped")
	var ran int
	err = remote.Each(ctx, items, 1, func(context.Context, int, int) error { ran++; cancel(stop); return nil })
	assert.ErrorIs(t, err, stop)
	assert.Equal(t, 1, ran, "nothing begins after the end")
}

func TestQuote(t *testing.T) {
	for _, s := range []string{"", "plain", "it's", `a "b" $HOME \ ` + "\n`id`"} {
		out, err := exec.Command("sh", "-c", "printf %s "+remote.Quote(s)).Output()
		require.NoError(t, err)
		assert.Equal(t, s, string(out))
	}
}

func TestForward(t *testing.T) {
	c := dial(t, startNode(t).target)
	far, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() {
		for {
			conn, err := far.Accept()
			if err != nil {
				return
			}
			data, _ := io.ReadAll(conn) // to the end, then answers: each way ends by itself
			_, _ = conn.Write(bytes.ToUpper(data))
			_ = conn.Close()
		}
	}()
	near, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- c.Forward(near, far.Addr().String()) }()
	say := func() string {
		conn, err := net.Dial("tcp", near.Addr().String())
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Write(bytes.Repeat([]byte("x"), 1<<20))
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		data, err := io.ReadAll(conn)
		require.NoError(t, err)
		return string(data)
	}
	assert.Equal(t, strings.Repeat("X", 1<<20), say())
	assert.Equal(t, strings.Repeat("X", 1<<20), say(), "a second connection")
	require.NoError(t, far.Close())
	conn, err := net.Dial("tcp", near.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = conn.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF, "nobody there")
	require.NoError(t, near.Close())
	require.NoError(t, <-ended)
}

func TestASilentMachineIsNotWaitedForLongerThanTheContext(t *testing.T) {
	n := startNode(t)
	c := dial(t, n.target)
	n.silent.Store(true)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("it took too long"))
	defer cancel()
	start := time.Now()
	_, err := c.Run(ctx, "true")
	assert.ErrorContains(t, err, "it took too long")
	assert.Less(t, time.Since(start), 10*time.Second)
	_, err = c.Run(t.Context(), "true")
	assert.Error(t, err, "the connection is gone, which whoever kept it must see")
}

func TestASilentMachineIsGivenUp(t *testing.T) {
	remote.SetSilence(t, 10*time.Millisecond, 300*time.Millisecond)
	n := startNode(t)
	c := dial(t, n.target)
	_, err := c.Run(t.Context(), "sleep 1")
	require.NoError(t, err, "who answers may take longer over a command")
	near, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	forwarded := make(chan error, 1)
	go func() { forwarded <- c.Forward(near, "127.0.0.1:1") }()
	time.AfterFunc(50*time.Millisecond, func() { n.silent.Store(true) })
	_, err = c.Run(t.Context(), "sleep 60")
	assert.ErrorContains(t, err, "on node node: `sleep 60`: it has not answered for 300ms")
	assert.ErrorContains(t, <-forwarded, "it has not answered for 300ms")
}

func TestForwardSaysWhenTheMachineIsGone(t *testing.T) {
	c := dial(t, startNode(t).target)
	near, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- c.Forward(near, "127.0.0.1:1") }()
	require.NoError(t, c.Close())
	select {
	case err := <-ended:
		assert.ErrorContains(t, err, "node node ended")
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for callers that it cannot serve")
	}
}
