package lima_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/lima"
)

var update = flag.Bool("update", false, "write the golden files")

// goldenMachine is a machine whose image has all files, or the disk alone.
func goldenMachine(t *testing.T, network string, direct bool) provision.Machine {
	dir := t.TempDir()
	if direct {
		for name, text := range map[string]string{bed.KernelFile: "", bed.InitrdFile: "", bed.CmdlineFile: "root=LABEL=bed-root rw console=ttyS0\n"} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
		}
	}
	return provision.Machine{
		Name: "u2204-02", Owner: provision.Owner{Bed: "u2204", ID: "1", State: "file:///state#lima"}, Index: 201, Role: bed.Compute, CPUs: 2, Memory: 1536 * bed.MiB,
		Image: dir, Network: network, User: "bed", AuthorizedKey: "ssh-ed25519 AAAAUSER bed", HostPublicKey: "ssh-ed25519 AAAAHOST",
		HostKey: "-----BEGIN OPENSSH PRIVATE KEY-----\nnot\na key\n-----END OPENSSH PRIVATE KEY-----\n",
	}
}

func TestConfiguration(t *testing.T) {
	if lima.Arch() != "x86_64" {
		hosttest.Lacks(t, "the architecture of the golden files, x86_64")
	}
	emulated := goldenMachine(t, "isolated", true)
	emulated.Slow = true
	for name, m := range map[string]provision.Machine{
		"isolated": goldenMachine(t, "isolated", true), "outbound": goldenMachine(t, "outbound", false), "emulated": emulated,
	} {
		t.Run(name, func(t *testing.T) {
			got, err := lima.Render(m, 20*bed.GiB)
			require.NoError(t, err)
			golden := filepath.Join("testdata", name+".golden.yaml")
			text := strings.ReplaceAll(string(got), m.Image, "/images/example")
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(text), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			assert.Equal(t, string(want), text, "go test -update writes what it is now")
		})
	}
}

// Lima itself accepts what is written.
func TestConfigurationIsValid(t *testing.T) {
	realLima(t)
	for _, network := range []string{"isolated", "outbound"} {
		text, err := lima.Render(goldenMachine(t, network, network == "isolated"), 20*bed.GiB)
		require.NoError(t, err)
		root := shortRoot(t)
		require.NoError(t, os.Chmod(root, 0o777)) // Lima makes its directories there
		file := filepath.Join(root, "node.yaml")
		require.NoError(t, os.WriteFile(file, text, 0o644))
		out, code := lima.New(root).Said(t, root, "validate", file)
		assert.Zero(t, code, out)
		assert.NotContains(t, out, "level=warning")
	}
}

// The script is plain sh, makes what it should, and changes nothing the second time. It runs here on a directory of its own in place of
// the root.
func TestBootScript(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root, whose the files of the script are")
	}
	for network, wants := range map[string][]string{"isolated": {"MACVLAN=bed0", "UseGateway=no"}, "outbound": {"MACVLAN=bed0"}} {
		root := t.TempDir()
		script, err := lima.RenderBoot(goldenMachine(t, network, false))
		require.NoError(t, err)
		for _, dir := range []string{"etc/ssh", "etc/systemd/network", "home/bed", "proc/sys/kernel", "proc/sys/net/ipv4/conf/all", "bin"} {
			require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
		}
		for command, does := range map[string]string{"systemctl": `echo systemctl "$@"`, "ip": "echo '    inet 10.104.1.11/16 brd'"} {
			require.NoError(t, os.WriteFile(filepath.Join(root, "bin", command), []byte("#!/bin/sh\n"+does+"\n"), 0o755))
		}
		script = regexp.MustCompile(`/(etc|home|proc|run)/`).ReplaceAllString(script, root+"/$1/")
		run := func() string {
			cmd := exec.Command("sh", "-s")
			cmd.Stdin, cmd.Env = strings.NewReader(script), []string{"PATH=" + root + "/bin:" + os.Getenv("PATH")}
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, string(out))
			return string(out)
		}
		assert.Equal(t, "systemctl --job-mode=ignore-dependencies restart systemd-networkd\n", run())
		authorized := filepath.Join(root, "home/bed/.ssh/authorized_keys")
		f, err := os.OpenFile(authorized, os.O_APPEND|os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteString("ssh-ed25519 AAAALIMA lima\n") // as cloud-init does
		require.NoError(t, err)
		require.NoError(t, f.Close())
		assert.Empty(t, run(), "the second boot has nothing to do")

		for path, want := range map[string]string{
			"home/bed/.ssh/authorized_keys": "ssh-ed25519 AAAAUSER bed\nssh-ed25519 AAAALIMA lima\n",
			"etc/hostname":                  "u2204-02\n", "proc/sys/kernel/hostname": "u2204-02\n",
			"etc/ssh/ssh_host_ed25519_key.pub":      "ssh-ed25519 AAAAHOST\n",
			"etc/systemd/network/20-bed0.netdev":    "[NetDev]\nName=bed0\nKind=macvlan\nMACAddress=02:be:d0:68:01:0b\n\n[MACVLAN]\nMode=bridge\n",
			"etc/systemd/network/20-bed0.network":   "[Match]\nName=bed0\n\n[Network]\nAddress=10.104.1.11/16\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
			"proc/sys/net/ipv4/conf/all/arp_ignore": "1\n",
		} {
			data, err := os.ReadFile(filepath.Join(root, path))
			require.NoError(t, err)
			assert.Equal(t, want, string(data), path)
		}
		key, err := os.Stat(filepath.Join(root, "etc/ssh/ssh_host_ed25519_key"))
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), key.Mode())
		for _, unit := range []string{"10-cloud-init-eth0", "10-netplan-eth0"} {
			data, err := os.ReadFile(filepath.Join(root, "etc/systemd/network", unit+".network.d/bedfellow.conf"))
			require.NoError(t, err)
			for _, want := range wants {
				assert.Contains(t, string(data), want)
			}
			assert.Equal(t, network == "isolated", strings.Contains(string(data), "UseDNS=no"))
			assert.Equal(t, network == "outbound", exists(filepath.Join(root, "etc/resolv.conf")))
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
