package playbooks_test

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gopkg.in/yaml.v3"

	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/playbooks"
)

// Where the nodes of a job's cluster are, on a host with networks of its own: job 3's would be where the machines of Lima have the bed's. The
// routes are a kernel's, in a network namespace of the test's.
func TestAJobsSubnetsAreWhereTheHostIsNot(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root, who makes network namespaces")
	}
	script, err := fs.ReadFile(playbooks.FS, "roles/usernetes/files/usernetes")
	require.NoError(t, err)
	text := string(script)
	from, to := strings.Index(text, "busy() {"), strings.Index(text, "# The guard waits")
	require.True(t, 0 < from && from < to)
	functions := "die() { echo \"$*\" >&2; exit 1; }\n" + text[from:to]
	at := func(networks []string, slots ...int) (string, error) {
		setup := "set -eu\nip link add d0 type veth peer name d1\nip link set d1 up\nip link set d0 up\nip route add default dev d0\n"
		for _, n := range networks {
			setup += "ip route add " + n + " dev d0\n"
		}
		for _, slot := range slots {
			setup += fmt.Sprintf("at=$(octet %d)\necho \"$at\"\n", slot)
		}
		out, err := exec.Command("unshare", "-n", "sh", "-c", functions+setup).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	for _, c := range []struct {
		networks []string
		slots    []int
		want     string
	}{
		{nil, []int{0, 3, 99}, "101\n104\n200"},
		{[]string{"192.168.104.0/24", "10.104.0.0/16"}, []int{2, 3, 4}, "103\n201\n105"},
		{[]string{"10.104.7.0/24", "10.112.0.0/14"}, []int{3, 10, 11, 12, 13, 14, 15}, "201\n111\n202\n203\n204\n205\n116"},
	} {
		got, err := at(c.networks, c.slots...)
		require.NoError(t, err, got)
		assert.Equal(t, c.want, got, "%v", c.networks)
	}
	got, err := at([]string{"10.0.0.0/8"}, 0)
	assert.Error(t, err)
	assert.Contains(t, got, "this host's networks leave none of")
}

// Jobs that begin on a host at once do not take each other for what an ended one has left, however long one is between its folder and its lock; what
// an ended one of the same number has left is gone before.
// Docker and systemd are fakes; all else is the script's.
func TestJobsBeginAtOnce(t *testing.T) {
	script, err := fs.ReadFile(playbooks.FS, "roles/usernetes/files/usernetes")
	require.NoError(t, err)
	dir := t.TempDir()
	bed, bin, usernetes := filepath.Join(dir, "bed"), filepath.Join(dir, "bin"), filepath.Join(dir, "usernetes")
	require.NoError(t, os.MkdirAll(bed, 0o755))
	require.NoError(t, os.MkdirAll(bin, 0o755))
	flock, err := exec.LookPath("flock")
	require.NoError(t, err)
	for path, text := range map[string]string{
		usernetes:                      strings.ReplaceAll(string(script), "/etc/bedfellow/usernetes", bed),
		filepath.Join(bed, "node.env"): "USERNETES_DEADLINE=60\nUSERNETES_INDEX=0\n",
		filepath.Join(bin, "docker"):   "#!/bin/sh\necho \"$*\" >>" + dir + "/docker.log\n",
		filepath.Join(dir, ".local/state/usernetes/job-0/node.env"): "USERNETES_DEADLINE=60\n",
		filepath.Join(bin, "systemctl"):                             "#!/bin/sh\nexit 3\n",
		filepath.Join(bin, "systemd-run"):                           "#!/bin/sh\nuntil [ \"$1\" = -- ]; do shift; done\nshift\nsetsid \"$@\" 7>&- 9>&- </dev/null >/dev/null 2>&1 &\n",
		filepath.Join(bin, "flock"):                                 "#!/bin/sh\n[ \"$*\" != '-n 9' ] || sleep 0.3\nexec " + flock + " \"$@\"\n",
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o755))
	}
	command := func(instance string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), usernetes, args...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "PATH="+bin+":"+os.Getenv("PATH"), "USERNETES_INSTANCE="+instance)
		return cmd
	}
	const jobs = 4
	var all sync.WaitGroup
	said := make([]string, jobs)
	for i := range jobs {
		all.Go(func() {
			hold := command(fmt.Sprintf("job-%d", i), "hold", fmt.Sprint(i), "192.0.2.1", "60")
			out, err := hold.StdoutPipe()
			if !assert.NoError(t, err) {
				return
			}
			var wrong strings.Builder
			hold.Stderr = &wrong
			if !assert.NoError(t, hold.Start()) {
				return
			}
			t.Cleanup(func() { _ = hold.Wait() })
			time.AfterFunc(20*time.Second, func() { _ = hold.Process.Kill() })
			line, _ := bufio.NewReader(out).ReadString('\n')
			said[i] = line + wrong.String()
		})
	}
	all.Wait()
	for i := range jobs {
		assert.Equal(t, "held\n", said[i], "job %d", i)
		assert.FileExists(t, filepath.Join(dir, fmt.Sprintf(".local/state/usernetes/job-%d/node.env", i)))
	}
	removed, err := os.ReadFile(filepath.Join(dir, "docker.log"))
	require.NoError(t, err)
	assert.Contains(t, string(removed), "rm -f -v usernetes-job-0\n")
	assert.NotContains(t, string(removed), "usernetes-job-1\n")
	for i := range jobs {
		all.Go(func() {
			out, err := command(fmt.Sprintf("job-%d", i), "release").CombinedOutput()
			assert.NoError(t, err, "%s", out)
		})
	}
	all.Wait()
	left, err := filepath.Glob(filepath.Join(dir, ".local/state/usernetes/*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

// Docker is asked for the stop before the API server is ended: whoever is killed in between leaves no half of a node. How the stop went is told.
func TestDown(t *testing.T) {
	script, err := fs.ReadFile(playbooks.FS, "roles/usernetes/files/usernetes")
	require.NoError(t, err)
	dir := t.TempDir()
	for path, text := range map[string]string{
		"usernetes":    strings.ReplaceAll(string(script), "/etc/bedfellow/usernetes", dir+"/bed"),
		"bed/node.env": "USERNETES_DEADLINE=60\n",
		"bin/docker": `#!/bin/sh
# A fake, whose container stops when what runs in it ends the API server, and not before.
cd ` + dir + `
case $1 in
stop) echo "$*" >log; until [ -e ended ]; do sleep 0.01; done; rm ended; [ ! -e fails ] ;;
exec) until [ -s log ]; do sleep 0.01; done; shift; echo "$*" >>log; touch ended ;;
esac
`,
	} {
		path = filepath.Join(dir, path)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o755))
	}
	down := func() error {
		cmd := exec.Command("timeout", "20", filepath.Join(dir, "usernetes"), "down")
		cmd.Env = append(os.Environ(), "HOME="+dir, "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), "USERNETES_INSTANCE=")
		return cmd.Run()
	}
	require.NoError(t, down())
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	require.NoError(t, err)
	assert.Regexp(t, `^stop -t 60 usernetes-node\nusernetes-node sh -c .*pgrep -x kubelet.*pkill -KILL -x kube-apiserver\n$`, string(log))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "fails"), nil, 0o600))
	require.Error(t, down())
}

// What kubeadm is told where CPUs are emulated, and not told elsewhere, where it is as upstream has it.
func TestASlowNodesKubernetesDoesLess(t *testing.T) {
	type argument struct{ Name, Value string }
	type component struct {
		ExtraEnvs []argument `yaml:"extraEnvs"`
		ExtraArgs []argument `yaml:"extraArgs"`
	}
	for _, slow := range []bool{false, true} {
		t.Run(fmt.Sprint(slow), func(t *testing.T) {
			kept := configured(t, "disabled inactive", map[string]any{"bed_name": "k", "bed_kubernetes_network": "slirp4netns", "bed_kubernetes_mtu": 1500, "bed_slow": slow})
			var cluster *struct {
				APIServer         component `yaml:"apiServer"`
				ControllerManager component `yaml:"controllerManager"`
				Scheduler         component
				Etcd              struct{ Local component }
			}
			for _, document := range strings.Split(kept("kept/init.yaml"), "\n---\n") {
				if strings.Contains(document, "kind: ClusterConfiguration") {
					require.NoError(t, yaml.Unmarshal([]byte(strings.ReplaceAll(document, "@", "")), &cluster), document)
				}
			}
			require.NotNil(t, cluster)
			var environment []argument
			said := `USERNETES_GO=""`
			if slow {
				environment = []argument{{"GOMAXPROCS", "1"}, {"GOGC", "200"}}
				said = `USERNETES_GO="GOGC=200 GOMAXPROCS=1"`
			}
			for name, c := range map[string]component{"API server": cluster.APIServer, "controller manager": cluster.ControllerManager, "scheduler": cluster.Scheduler, "etcd": cluster.Etcd.Local} {
				assert.Equal(t, environment, c.ExtraEnvs, name)
			}
			for _, component := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
				probe, none := patched(t, kept, component).Containers[0]["livenessProbe"]
				assert.Equal(t, slow, none, component)
				assert.Nil(t, probe, component)
			}
			assert.Equal(t, slow, slices.Contains(cluster.Etcd.Local.ExtraArgs, argument{"watch-progress-notify-interval", "1m"}))
			assert.Equal(t, slow, strings.Contains(kept("kept/flannel.yaml"), "--iptables-resync=60']"))
			assert.Contains(t, kept("kept/node.env"), said)
		})
	}
}

// The controller manager's pod has it wait for the API server, whenever the node's container starts: until that listens, and answers then.
func TestTheControllerManagerWaitsForTheAPIServer(t *testing.T) {
	kept := configured(t, "disabled inactive", map[string]any{"bed_name": "k", "bed_kubernetes_network": "slirp4netns", "bed_kubernetes_mtu": 1500})
	pod := patched(t, kept, "kube-controller-manager")
	require.Len(t, pod.InitContainers, 1)
	waiter := pod.InitContainers[0]
	assert.Equal(t, "@repository@/tools:1", waiter.Image)
	require.Equal(t, []string{"busybox", "sh", "-c"}, waiter.Command[:3])
	dir := t.TempDir()
	for name, fake := range map[string]string{
		"busybox": `echo "$*" >>log; [ "$(grep -c ^nc log)" -gt 1 ]`,
		"kubectl": `echo "$*" >>log; [ "$(grep -c readyz log)" -gt 1 ]`,
		"sleep":   ":",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n# A fake.\ncd "+dir+"; "+fake+"\n"), 0o755))
	}
	cmd := exec.Command("sh", "-c", waiter.Command[3])
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	log, err := os.ReadFile(filepath.Join(dir, "log"))
	require.NoError(t, err)
	const listens, answers = "nc -w 5 @subnet@.100 @port@\n", "--kubeconfig /etc/kubernetes/controller-manager.conf get --raw /readyz\n"
	assert.Equal(t, listens+listens+answers+listens+answers, string(log))
}

// podPatch is what kubeadm changes of a pod of the control plane.
type podPatch struct {
	InitContainers []struct {
		Image   string
		Command []string
	} `yaml:"initContainers"`
	Containers []map[string]any
}

func patched(t *testing.T, kept func(string) string, component string) podPatch {
	t.Helper()
	var patch struct{ Spec podPatch }
	require.NoError(t, yaml.Unmarshal([]byte(kept("kept/"+component+".yaml")), &patch))
	require.Len(t, patch.Spec.Containers, 1)
	assert.Equal(t, component, patch.Spec.Containers[0]["name"])
	return patch.Spec
}
