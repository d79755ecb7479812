package e2e_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/pkg/remote"
)

// TestInside: a host of the usual kind, where PID 1 is systemd and there is cgroup v2 alone, serves the nspawn driver. One virtual machine
// is that host. The quickstart's image is copied there, the driver's conformance suite passes, and a quickstart of two nodes comes up, runs
// LAMMPS and goes away.
func TestInside(t *testing.T) {
	if !*fullFlag {
		t.Skip("boots a dozen containers inside an emulated machine, and installs Ansible there; `make e2e-full` does")
	}
	p := newPlace(t, "inside", *stackFlag, "e2e-in")
	before := census(t)
	t.Cleanup(func() {
		p.ok(t, "destroy", "-s", p.stack)
		same(t, before)
	})
	inv, _ := p.up(t, "nodes=1", "cpus=2", "memory=3GiB", "disk=12GiB", "network=outbound")
	if inv.SharedKernel {
		t.Skip("its nodes are no hosts: they run on this one's kernel, on which `make test` runs the suite")
	}
	in := enter(t, p, inv, 0)
	in.run("stat -fc %T /sys/fs/cgroup | grep -qx cgroup2fs && [ $(cat /proc/1/comm) = systemd ]")
	in.run("sudo env DEBIAN_FRONTEND=noninteractive sh -c 'apt-get -qq update && apt-get -qq install -y --no-install-recommends " +
		"ansible mmdebstrap systemd-container iproute2 >/dev/null'")

	store, err := images.Open("")
	require.NoError(t, err)
	img, kept, err := store.Get(t.Context(), images.Request{Definition: "debian-12"})
	require.NoError(t, err)
	if !kept {
		hosttest.Lacks(t, "the quickstart's image: bed image build debian-12")
	}
	const whole = " --numeric-owner --acls --xattrs --xattrs-include=* " // ping has capabilities, the journal's directory an access list
	in.send(exec.CommandContext(t.Context(), "tar", append(strings.Fields(whole), "-C", store.Dir(), "-czf", "-", img.Key)...),
		"sudo sh -c 'mkdir -p "+store.Dir()+" && tar -C "+store.Dir()+whole+"-xzpf -'")

	t.Run("conformance", func(t *testing.T) {
		in := inside{t, in.client}
		suite := work(t, "nspawn.test")
		build := exec.Command("go", "test", "-c", "-o", suite, "../provision/nspawn")
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // nothing of this host's libraries is there
		out, err := build.CombinedOutput()
		require.NoError(t, err, "%s", out)
		in.send(exec.CommandContext(t.Context(), "gzip", "-1c", suite), "zcat >nspawn.test && chmod 755 nspawn.test")
		said := in.run("sudo env BEDFELLOW_SLOW=1 BEDFELLOW_E2E_REQUIRE=1 BEDFELLOW_NSPAWN_IMAGE=" + img.Path +
			" TMPDIR=/var/tmp ./nspawn.test -test.v -test.timeout 25m -test.run 'TestConformance/killed_supervisor'")
		t.Log(said)
		require.Contains(t, said, "--- PASS: TestConformance/killed_supervisor/ManyAtOnce")
	})
	t.Run("quickstart", func(t *testing.T) {
		in := inside{t, in.client}
		in.send(exec.CommandContext(t.Context(), "tar", "-C", p.dir, "-chzf", "-", "Pulumi.yaml", "bin/bed", "bin/pulumi", "bin/pulumi-resource-bedfellow"),
			"sudo sh -c 'mkdir -p /root/clone && tar -C /root/clone -xzf -'")
		bed := func(args string) string {
			return in.run("sudo sh -c 'cd /root/clone && exec bin/bed " + args + " 2>&1'")
		}
		t.Log(bed("up -s quickstart -c nodes=2 -c profile=slow"))
		require.Contains(t, bed("run selftest -s quickstart"), "it ran on quickstart-02")
		require.Contains(t, bed("run lammps -s quickstart -n 1 --param x=1 --param y=1 --param z=1 --param steps=10"), "loop time")
		bed("destroy -s quickstart")
		require.Empty(t, strings.TrimSpace(in.run("pgrep -x systemd-nspawn || true; ls -d /run/bedfellow/* /sys/fs/cgroup/*/*bedfellow* 2>/dev/null || true")))
	})
}

// inside is a machine to work on by SSH.
type inside struct {
	t      *testing.T
	client *remote.Client
}

func enter(t *testing.T, p place, inv bed.Inventory, node int) inside {
	key, err := os.ReadFile(p.keyFile())
	require.NoError(t, err)
	signer, err := ssh.ParsePrivateKey(key)
	require.NoError(t, err)
	client, err := remote.Dial(t.Context(), remote.Node(inv, inv.Nodes[node], signer))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return inside{t, client}
}

// run runs a command that must go well, and says what it printed and how long it took.
func (in inside) run(command string) string {
	in.t.Helper()
	begin := time.Now()
	r, err := in.client.Run(in.t.Context(), command)
	in.t.Logf("%s: %.120s", time.Since(begin).Round(time.Second), command)
	require.NoError(in.t, err, "%s", r.Stdout)
	return string(r.Stdout)
}

// send gives a command's output to one on the machine.
func (in inside) send(cmd *exec.Cmd, command string) {
	in.t.Helper()
	out, err := cmd.StdoutPipe()
	require.NoError(in.t, err)
	require.NoError(in.t, cmd.Start())
	_, err = in.client.Feed(in.t.Context(), command, out)
	require.NoError(in.t, err)
	require.NoError(in.t, cmd.Wait())
}
