package e2e_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

// insideTimeout is for copying an image into an emulated machine, and for the dozen containers that boot there.
const insideTimeout = 25 * time.Minute

// inside: a host of the usual kind, where PID 1 is systemd and there is cgroup v2 alone, serves the nspawn driver: its conformance suite
// passes on the last node, with the quickstart's image copied there.
func (p place) inside(t *testing.T) {
	inv := p.inventory(t)
	if inv.SharedKernel {
		t.Skip("its nodes are no hosts: they run on this one's kernel, on which `make test` runs the suite")
	}
	if !*fullFlag {
		t.Skip("boots a dozen containers inside an emulated machine; `make e2e-full` does")
	}
	store, err := images.Open("")
	require.NoError(t, err)
	img, kept, err := store.Get(t.Context(), images.Request{Definition: "debian-12"})
	require.NoError(t, err)
	if !kept {
		hosttest.Lacks(t, "the quickstart's image: bed image build debian-12")
	}
	suite := work(t, "nspawn.test")
	build := exec.Command("go", "test", "-c", "-o", suite, "../provision/nspawn")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // nothing of this host's libraries is there
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	ctx, cancel := context.WithTimeout(t.Context(), insideTimeout)
	defer cancel()
	n := inv.Nodes[len(inv.Nodes)-1]
	key, err := os.ReadFile(p.keyFile())
	require.NoError(t, err)
	signer, err := ssh.ParsePrivateKey(key)
	require.NoError(t, err)
	client, err := remote.Dial(ctx, remote.Target{Name: n.Name, Address: n.Address, Port: n.Port, User: inv.User, HostKey: n.HostKey, Signer: signer})
	require.NoError(t, err)
	defer client.Close()
	const dir = "/var/lib/bedfellow-inside"
	defer func() { _, _ = client.Run(context.WithoutCancel(ctx), "sudo rm -rf "+dir) }()
	_, err = client.Run(ctx, "sudo mkdir -p "+dir+"/tree && stat -fc %T /sys/fs/cgroup | grep -qx cgroup2fs && [ $(cat /proc/1/comm) = systemd ]")
	require.NoError(t, err, "the node is such a host")

	begin := time.Now()
	send(ctx, t, client, exec.CommandContext(ctx, "tar", "-C", img.Path, "--numeric-owner", "-czf", "-", "."), "sudo tar -C "+dir+"/tree --numeric-owner -xzpf -")
	send(ctx, t, client, exec.CommandContext(ctx, "cat", suite), fmt.Sprintf("sudo sh -c 'cat >%[1]s/nspawn.test && chmod 755 %[1]s/nspawn.test'", dir))
	t.Logf("copied in %s", time.Since(begin).Round(time.Second))
	r, err := client.Run(ctx, "cd / && sudo env BEDFELLOW_SLOW=1 BEDFELLOW_E2E_REQUIRE=1 BEDFELLOW_NSPAWN_IMAGE="+dir+"/tree TMPDIR=/var/tmp "+
		dir+"/nspawn.test -test.v -test.timeout 20m -test.run 'TestConformance/killed_supervisor'")
	t.Logf("%s", r.Stdout)
	require.NoError(t, err)
	require.Contains(t, string(r.Stdout), "--- PASS: TestConformance/killed_supervisor/ManyAtOnce")
}

// send gives a command's output to one on the node.
func send(ctx context.Context, t *testing.T, client *remote.Client, cmd *exec.Cmd, command string) {
	t.Helper()
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = client.Feed(ctx, command, out)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
}
