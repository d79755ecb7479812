package playbooks_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/ansible"
	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/playbooks"
)

// usernetesFile writes a file of the role's, for a shell to run.
func usernetesFile(t *testing.T, dir, name string) {
	t.Helper()
	data, err := fs.ReadFile(playbooks.FS, "roles/usernetes/files/"+name)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o755))
}

// A host, its bridge, and a namespace for RootlessKit's with a link as lxc-user-nic makes it. Each command's words are what is looked at.
const onTheBridge = `
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add other type veth peer name another # a network that nothing goes out by
ip addr add 10.98.0.1/24 dev other
ip link set another up
ip link set other up
ip netns add wire
ip link add eth0 type veth peer name eth0 netns wire
ip addr add 10.99.0.1/24 dev eth0
ip link set eth0 up
ip -n wire addr add 10.99.0.2/24 dev eth0
ip -n wire link set eth0 up
echo 0 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore # as where two interfaces are on one wire
settings() { echo "forwards: $(cat /proc/sys/net/ipv4/ip_forward), asks iptables of bridges: $(cat /proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || echo "$1")"; }
"$1/bridge" up
"$1/bridge" up # as after a kill
settings 0
unshare --user --map-root-user --net sleep infinity &
kit=$!
trap 'kill "$kit"' EXIT
until [ "$(readlink "/proc/$kit/ns/net")" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.1; done
ip netns attach kit "$kit"
ip netns exec kit sh -c 'echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/default/rp_filter'
mount -t tmpfs tmpfs /usr/libexec
mkdir /usr/libexec/lxc
cat >/usr/libexec/lxc/lxc-user-nic <<'FAKE'
#!/bin/sh -eu
# Stands for the set-uid root program of that name: create PATH NAME PID veth BRIDGE INTERFACE
ip link add veth5000_abcd master "$6" type veth peer name "$7" netns "$4"
ip link set veth5000_abcd up
FAKE
chmod 755 /usr/libexec/lxc/lxc-user-nic
"$1/bridge" create dummy dummy "$kit" veth usernetes-br eth0
"$1/lease" &
lease=$!
until ss -lnu | grep -q :67; do sleep 0.1; done
ip netns exec kit python3 - <<'PYTHON'
import socket

s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
s.bind(("", 68))
s.settimeout(5)
for kind in (1, 3):
    head = b"\x01\x01\x06\x00" + b"xidx" + bytes(20) + bytes.fromhex("0200c6120002") + bytes(202) + bytes.fromhex("63825363")
    s.sendto(head + bytes([53, 1, kind, 255]), ("255.255.255.255", 67))
    a = s.recv(4096)
    print("answered:", a[242], socket.inet_ntoa(a[16:20]), a[4:8] == b"xidx", a[28:34].hex(), a[240:].hex().find("3304ffffffff") > 0)
PYTHON
echo "of the port: $(cat /proc/sys/net/ipv6/conf/veth5000_abcd/disable_ipv6)"
kill "$lease"
wait "$lease" 2>/dev/null || true
ip -n kit addr add 198.18.0.2/24 dev eth0
ip -n kit route add default via 198.18.0.1
receive='
import os, select, socket, sys
sockets = {}
for port in sys.argv[2:]:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("", int(port)))
    sockets[s] = port
open("/run/%s-listens" % sys.argv[1], "w")
said, over = [], False
while not over:
    over = os.path.exists("/run/all-sent")
    ready = select.select(sockets, [], [], 1)[0]
    over = over and not ready
    said += ["%s at %s: %s from %s" % (sys.argv[1], sockets[s], data.decode(), by[0]) for s in ready for data, by in [s.recvfrom(100)]]
print("\n".join(sorted(said)))'
send='
import socket, sys
for port in sys.argv[2:]:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"it", (sys.argv[1], int(port)))'
ports="8472 20001 20002 20003 31998 32002"
ip netns exec kit python3 -c "$receive" kit $ports >/run/kit &
receivers=$!
python3 -c "$receive" host $ports >/run/host &
receivers="$receivers $!"
ip netns exec wire python3 -c "$receive" wire 7000 >/run/wire &
receivers="$receivers $!"
for receiver in kit host wire; do until [ -e "/run/$receiver-listens" ]; do sleep 0.1; done; done
ip netns exec wire python3 -c "$send" 10.99.0.1 $ports
ip netns exec kit python3 -c "$send" 10.99.0.2 7000
touch /run/all-sent
wait $receivers
cat /run/kit /run/host /run/wire
echo "interfaces: $(ip -4 -o addr | awk '{ print $2 }' | sort -u | tr '\n' ' ')"
"$1/bridge" down
"$1/bridge" down # of nothing
echo "left: $(nft list ruleset)$(ip -o link | grep usernetes)$(ip addr | grep 198.18)$(ip route | grep 198.18)$(ls -A /run | grep usernetes)"
settings 1
`

// On the network lxc-user-nic the host's kernel hands VXLAN's ports on, and no other; RootlessKit has its address, no interface has one that all
// hosts have but the loopback, and all of it goes.
func TestTheBridgeOfAHost(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root, who makes network namespaces")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		hosttest.Lacks(t, "nftables")
	}
	dir := t.TempDir()
	usernetesFile(t, dir, "bridge")
	usernetesFile(t, dir, "lease")
	out, err := exec.Command("timeout", "240", "unshare", "--net", "--mount", "--propagation", "private", "sh", "-euc", onTheBridge, "sh", dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, []string{
		"forwards: 1, asks iptables of bridges: 0",
		"answered: 2 198.18.0.2 True 0200c6120002 True", "answered: 5 198.18.0.2 True 0200c6120002 True",
		"of the port: 1",
		"kit at 20002: it from 10.99.0.2", "kit at 31998: it from 10.99.0.2", "kit at 8472: it from 10.99.0.2",
		"host at 20001: it from 10.99.0.2", "host at 20003: it from 10.99.0.2", "host at 32002: it from 10.99.0.2",
		"wire at 7000: it from 10.99.0.1",
		"interfaces: eth0 lo other ",
		"left: ",
		"forwards: 0, asks iptables of bridges: 1",
	}, strings.Split(strings.TrimSpace(string(out)), "\n"))
}

// configured runs what configures a node, with a /etc and a systemctl of the test's for which services are as is says, and returns what reads a file
// that it has made.
func configured(t *testing.T, is string, vars map[string]any) func(name string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root, who mounts other files over /etc")
	}
	if _, err := exec.LookPath("ansible-playbook"); err != nil {
		hosttest.Lacks(t, "ansible-playbook")
	}
	files := fstest.MapFS{"configure.yml": {Data: []byte(`
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.import_role: {name: usernetes, tasks_from: configure, vars_from: configure}
`)}}
	require.NoError(t, fs.WalkDir(playbooks.FS, ".", func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && (strings.HasPrefix(p, "roles/usernetes/") || strings.HasPrefix(p, "library/")) {
			data, errRead := fs.ReadFile(playbooks.FS, p)
			files[p], err = &fstest.MapFile{Data: data}, errRead
		}
		return err
	}))
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "systemctl"), []byte(`#!/bin/sh
set -- $* ; was="`+is+`"
case "$1" in
is-enabled) echo "${was% *}"; [ "${was% *}" = enabled ] ;;
is-active) echo "${was#* }"; [ "${was#* }" = active ] ;;
show) printf 'LoadState=loaded\nActiveState=%s\nUnitFileState=%s\n' "${was#* }" "${was% *}" ;;
*) echo "$1 $2" >>"`+dir+`/done" ;;
esac
`), 0o755))
	_, err := ansible.Run{
		Playbooks: files, Playbook: "configure.yml", Env: []string{"PATH=" + dir + ":" + os.Getenv("PATH")},
		Prefix: []string{"unshare", "--mount", "--propagation", "private", "sh", "-euc", `
out=$1; shift
mkdir "$out/kept" "$out/tmp"
mount -t tmpfs tmpfs "$out/tmp"
mkdir "$out/tmp/up" "$out/tmp/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$out/tmp/up,workdir=$out/tmp/work" overlay /etc
mkdir -p /etc/bedfellow/usernetes/patches /etc/systemd/user/docker.service.d
"$@"
cp /etc/bedfellow/usernetes/* /etc/bedfellow/usernetes/patches/* /etc/systemd/user/docker.service.d/usernetes.conf "$out/kept" 2>/dev/null || true`, "sh", dir},
		ExtraVars: vars,
		Inventory: map[string]any{
			"control": map[string]any{"hosts": map[string]any{"k-01": map[string]any{"ansible_connection": "local", "bed_address": "10.0.0.1"}}},
			"compute": map[string]any{"hosts": map[string]any{}},
		},
	}.Do(t.Context())
	require.NoError(t, err)
	return func(name string) string {
		data, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return string(data)
	}
}

// What Docker is started by, and the bridge, follow the network, and what another network asked for is gone.
func TestANodeIsConfiguredForItsNetwork(t *testing.T) {
	for network, want := range map[string]struct {
		has, hasNot []string
		systemctl   []string
		resolver    string
	}{
		"slirp4netns":  {[]string{"NET=slirp4netns"}, []string{"FLAGS", "ExecStartPost", "PORT_DRIVER"}, []string{"disable", "stop"}, "10.0.2.3"},
		"pasta":        {[]string{"NET=pasta", "PORT_DRIVER=implicit"}, []string{"FLAGS", "ExecStartPost"}, []string{"disable", "stop"}, "10.0.2.3"},
		"lxc-user-nic": {[]string{"NET=lxc-user-nic", "--lxc-user-nic-bridge=usernetes-br", "ExecStartPost=-/usr/local/bin/usernetes straight"}, []string{"PORT_DRIVER"}, []string{"enable", "start"}, "198.18.0.1"},
	} {
		t.Run(network, func(t *testing.T) {
			is := map[string]string{"enable": "disabled inactive", "disable": "enabled active"}[want.systemctl[0]]
			kept := configured(t, is, map[string]any{"bed_name": "k", "bed_kubernetes_network": network, "bed_kubernetes_mtu": 1500})
			for _, has := range want.has {
				assert.Contains(t, kept("kept/usernetes.conf"), has)
			}
			for _, hasNot := range want.hasNot {
				assert.NotContains(t, kept("kept/usernetes.conf"), hasNot)
			}
			assert.Equal(t, "nameserver "+want.resolver+"\n", kept("kept/resolv.conf"))
			assert.Contains(t, kept("kept/node.env"), "USERNETES_NETWORK="+network+"\n")
			assert.Equal(t, want.systemctl[0]+" usernetes-bridge.service\n"+want.systemctl[1]+" usernetes-bridge.service\n", kept("done"))
		})
	}
}
