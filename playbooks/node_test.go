package playbooks_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/playbooks"
)

// node is the script of a node's container, in a directory that stands for the container's root, with fakes of what it calls; package e2e has real
// ones. Each call of a fake is a line of the log, and what it prints and whether it fails is in a file of its name, whose first part is for the
// first call.
type node struct{ dir string }

func newNode(t *testing.T, fakes map[string]string) node {
	n := node{t.TempDir()}
	text, err := fs.ReadFile(playbooks.FS, "roles/usernetes/files/node")
	require.NoError(t, err)
	n.write(t, "script", strings.NewReplacer(" /etc/", " "+n.dir+"/etc/", "=/etc/", "="+n.dir+"/etc/", ">/etc/", ">"+n.dir+"/etc/", `"/etc/`, `"`+n.dir+"/etc/", "/run/", n.dir+"/run/").Replace(string(text)))
	n.write(t, "etc/kubernetes/bundle.env", "repository=r kubernetes=1 coredns=1 etcd=1 flanneld=1\n")
	n.write(t, "etc/bedfellow/node.env", "USERNETES_GO= USERNETES_NODE=u7s-b USERNETES_SUBNET=10.100.1 USERNETES_HOST=10.0.0.2 USERNETES_CONTROL=10.0.0.1\n"+
		"USERNETES_PORT=6443 USERNETES_KUBELET_PORT=10250 USERNETES_VXLAN_PORT=8472\n")
	n.write(t, "etc/bedfellow/join.yaml", "@TOKEN@ @CA@\n")
	n.write(t, "run/log", "")
	fakes["hostname"] = "echo u7s-a"
	for name, body := range fakes {
		n.write(t, "bin/"+name, "#!/bin/sh\n# A fake.\nset -eu\ncd "+n.dir+"/run\n"+body+"\n")
	}
	return n
}

func (n node) write(t *testing.T, name, text string) {
	path := filepath.Join(n.dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), 0o755))
}

// slow has the node be one whose CPUs are emulated.
func (n node) slow(t *testing.T) {
	path := filepath.Join(n.dir, "etc/bedfellow/node.env")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	n.write(t, "etc/bedfellow/node.env", strings.Replace(string(text), "USERNETES_GO=", "USERNETES_GO=GOGC=200", 1))
}

// run runs a command of the script and returns what it printed, and the log since.
func (n node) run(stdin string, args ...string) (out, log string, err error) {
	file := filepath.Join(n.dir, "run/log")
	_ = os.Truncate(file, 0)
	cmd := exec.Command("sh", append([]string{filepath.Join(n.dir, "script")}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+n.dir+"/bin:"+os.Getenv("PATH"), "DEADLINE=2", "POLL=0.01")
	cmd.Stdin = strings.NewReader(stdin)
	text, err := cmd.CombinedOutput()
	data, _ := os.ReadFile(file)
	return string(text), string(data), err
}

// kubeadm gets what is this node's own, and how pods of the control plane differ from its own; where it fails, what runs in the node is told.
func TestInit(t *testing.T) {
	n := newNode(t, map[string]string{
		"kubeadm":   `echo "kubeadm $*" >>log; [ ! -e fails ]`,
		"kubectl":   `echo "kubectl $*" >>log`,
		"systemctl": ":", "ip": ":",
		"ctr":  "echo containers",
		"tail": "echo logs",
	})
	n.write(t, "etc/bedfellow/init.yaml", "@node@ @port@\n")
	n.write(t, "etc/bedfellow/flannel.yaml", "@flanneld@\n")
	n.write(t, "etc/bedfellow/patches/kube-controller-manager.yaml", "@repository@/tools @subnet@.100\n")
	n.write(t, "run/fails", "")
	out, _, err := n.run("", "init")
	require.Error(t, err)
	assert.Contains(t, out, "containers\nlogs\n")
	assert.NoFileExists(t, filepath.Join(n.dir, "etc/kubernetes/bedfellow-init"))

	require.NoError(t, os.Remove(filepath.Join(n.dir, "run/fails")))
	out, log, err := n.run("", "init", "u7s-b")
	require.NoError(t, err, out)
	assert.Contains(t, out, "changed\n")
	assert.Contains(t, log, "kubeadm init --config "+n.dir+"/run/init.yaml --skip-phases addon,show-join-command\n")
	assert.Contains(t, log, "kubectl delete node u7s-b --ignore-not-found\n")
	for file, want := range map[string]string{"init.yaml": "u7s-b 6443\n", "patches/kube-controller-manager.yaml": "r/tools 10.100.1.100\n"} {
		text, err := os.ReadFile(filepath.Join(n.dir, "run", file))
		require.NoError(t, err)
		assert.Equal(t, want, string(text))
	}

	out, log, err = n.run("", "init")
	require.NoError(t, err, out)
	assert.NotContains(t, out, "changed")
	assert.NotContains(t, log, "kubeadm")

	require.NoError(t, os.Remove(filepath.Join(n.dir, "etc/kubernetes/bedfellow-init")))
	n.slow(t)
	out, log, err = n.run("", "init")
	require.NoError(t, err, out)
	assert.Contains(t, log, "--skip-phases addon,show-join-command,kubelet-finalize\n")
	assert.Contains(t, log, "scale deployment/coredns --replicas 1\n")
}

const told = "abc.def sha256:1234\n"

// A node that belongs to the cluster is left alone; one that the cluster has forgotten, as when somebody has deleted it, and one
// of another cluster join this one.
func TestJoining(t *testing.T) {
	n := newNode(t, map[string]string{
		"kubectl":   `echo "$*" >>log; cat known`,
		"systemctl": `echo "systemctl $*" >>log`,
		"kubeadm":   `echo "kubeadm $*" >>log; [ "$1" != join ] || cat "$3" >>log`,
		"ip":        ":",
	})
	n.write(t, "etc/kubernetes/bedfellow-join", "sha256:1234\n")
	n.write(t, "run/known", "node/u7s-b\n")
	out, log, err := n.run(told, "join")
	require.NoError(t, err, out)
	assert.Empty(t, out)
	assert.NotContains(t, log, "kubeadm")

	const anew = `kubeadm reset -f\n(.*\n)*kubeadm join .*\nabc.def sha256:1234\n`
	n.write(t, "run/known", "")
	n.write(t, "etc/kubernetes/kubelet.conf", "of this cluster")
	out, log, err = n.run(told, "join")
	require.NoError(t, err, out)
	assert.Contains(t, out, "changed\n")
	assert.Regexp(t, anew, log)

	n.write(t, "bin/kubectl", "#!/bin/sh\n# A fake.\necho no answer\nexit 1\n")
	out, log, err = n.run(told, "join")
	require.Error(t, err)
	assert.Contains(t, out, "after 2 s the API server does not answer: no answer")
	assert.NotContains(t, log, "kubeadm", "it may be known")

	n.write(t, "etc/kubernetes/bedfellow-join", "sha256:9999\n")
	n.write(t, "etc/kubernetes/kubelet.conf", "of the other cluster")
	out, log, err = n.run(told, "join")
	require.NoError(t, err, out)
	assert.Contains(t, out, "changed\n")
	assert.Regexp(t, anew, log)
	joined, _ := os.ReadFile(filepath.Join(n.dir, "etc/kubernetes/bedfellow-join"))
	assert.Equal(t, "sha256:1234\n", string(joined))

	n.write(t, "bin/kubeadm", "#!/bin/sh\n# A fake.\necho \"kubeadm $1\" >>"+n.dir+"/run/log\n[ \"$1\" != join ] || { sleep 3; exit 1; }\n")
	n.write(t, "etc/kubernetes/bedfellow-join", "sha256:9999\n")
	_, log, err = n.run(told, "join")
	require.Error(t, err)
	assert.Equal(t, 1, strings.Count(log, "kubeadm join\n"), "one that takes long is not tried once more past the deadline")

	out, _, err = n.run("docker: no such container\n", "join")
	require.Error(t, err)
	assert.Contains(t, out, `on the control node said "docker: no such container"`)
}

// A token is found beside what kubeadm says else, and asked for again when the API server does not answer at first.
func TestToken(t *testing.T) {
	n := newNode(t, map[string]string{"kubeadm": `[ -e asked ] || { touch asked; echo "deadline exceeded"; exit 1; }
echo "W1128 a warning" >&2
echo "kubeadm join 10.100.0.100:6443 --token abc.def --discovery-token-ca-cert-hash sha256:1234 "`})
	out, _, err := n.run("", "token")
	require.NoError(t, err, out)
	assert.Equal(t, told, out)
}

// Nodes are waited for until they have made themselves known, told where they are, and have pods then; nothing that fails is passed over.
func TestReadiness(t *testing.T) {
	n := newNode(t, map[string]string{"busybox": `echo "$*" >>log; [ ! -e down ] || ! grep -qx "$5" down`, "kubectl": `echo "$*" >>log
case $* in
"get nodes -o name") echo node/u7s-a ;;
"get nodes -o jsonpath="*) echo x >>looks; if [ "$(wc -l <looks)" -lt 3 ]; then head -n 1 nodes; else cat nodes; fi ;;
"get node u7s-a -o jsonpath="*) cat taints ;;
"taint node u7s-b"*) [ -e failed ] || { touch failed; echo "time is up"; exit 1; } ;;
esac`})
	n.write(t, "run/nodes", "u7s-a|10.0.0.1|10.100.0.100|10.0.0.1|node-role.kubernetes.io/control-plane\nu7s-b|10.0.0.2|10.100.1.100||node.cloudprovider.kubernetes.io/uninitialized node.kubernetes.io/not-ready\n")
	out, log, err := n.run("", "ready", "u7s-a", "u7s-b")
	require.NoError(t, err, out)
	assert.Contains(t, log, "taint node u7s-a node-role.kubernetes.io/control-plane:NoSchedule --overwrite\n")
	assert.Contains(t, log, `patch node u7s-b --subresource status -p {"status":{"addresses":[{"type":"ExternalIP","address":"10.0.0.2"}]}}`)
	assert.Equal(t, 2, strings.Count(log, "taint node u7s-b node.cloudprovider.kubernetes.io/uninitialized-\n"), "the first failed")
	assert.NotContains(t, log, "patch node u7s-a", "it has been told")
	assert.NotContains(t, log, "taint node u7s-a node.cloudprovider")
	assert.Less(t, strings.LastIndex(log, "taint node u7s-b"), strings.Index(log, "wait --for=condition=Ready node u7s-a u7s-b"))

	out, _, err = n.run("", "ready", "u7s-a", "u7s-b", "u7s-c")
	require.Error(t, err)
	assert.Contains(t, out, "after 2 s not all nodes have said where they are: u7s-c has not made itself known")

	for port, want := range map[string]string{"10257": "the controller manager does not run", "10259": "the scheduler does not run"} {
		n.write(t, "run/down", port+"\n")
		out, log, err = n.run("", "ready", "u7s-a", "u7s-b")
		require.Error(t, err)
		assert.Contains(t, out, "after 2 s "+want)
		assert.NotContains(t, log, "wait --for")
	}
	require.NoError(t, os.Remove(filepath.Join(n.dir, "run/down")))

	for taints, want := range map[string]int{"": 0, "node-role.kubernetes.io/control-plane": 1} {
		n.write(t, "run/taints", taints)
		out, log, err = n.run("", "ready", "u7s-a")
		require.NoError(t, err, out)
		assert.Equal(t, want, strings.Count(log, "taint node u7s-a node-role.kubernetes.io/control-plane-\n"), "alone it runs pods")
	}
}
