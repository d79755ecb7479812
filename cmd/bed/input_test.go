package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bedfellow/bedfellow/pkg/hosttest"
	"github.com/bedfellow/bedfellow/provision/drivers"
)

// bed is the command, built once, in a folder that anybody may read.
var bed string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "bed-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bed = filepath.Join(dir, "bed")
	if out, err := exec.Command("go", "build", "-o", bed, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// clone is an empty folder that is to `bed` what a clone is.
func clone(t *testing.T) string {
	dir := t.TempDir()
	project, err := os.ReadFile("../../Pulumi.yaml")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Pulumi.yaml"), project, 0o644))
	return dir
}

// call runs `bed` and returns its exit code and output.
func call(t *testing.T, dir string, change func(*exec.Cmd), args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(bed, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if change != nil {
		change(cmd)
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(t, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// untouched fails the test when the call has made anything in the folder.
func untouched(t *testing.T, dir string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir && path != filepath.Join(dir, "Pulumi.yaml") {
			assert.Fail(t, "a refused call made "+path)
		}
		return err
	}))
}

// TestBadInput: each wrong call ends with its exit code, says what is wrong and what to do, and makes nothing.
func TestBadInput(t *testing.T) {
	const wrong, cannot = 2, 3
	for name, c := range map[string]struct {
		args    string // words
		code    int
		needles []string
	}{
		"misspelt key":        {"up -c node=4", wrong, []string{`node: "4"`, "is not a configuration key", "did you mean nodes?"}},
		"unknown key":         {"up -c zzzzzz=4", wrong, []string{"is not a configuration key", "the keys are name, driver, nodes"}},
		"not a setting":       {"up -c nodes", wrong, []string{`"nodes"`, "-c key=value"}},
		"no nodes":            {"up -c nodes=0", wrong, []string{`nodes: "0"`, "from 1 to 5000"}},
		"fewer than none":     {"up -c nodes=-1", wrong, []string{`nodes: "-1"`, "from 1 to 5000"}},
		"ten thousand":        {"up -c nodes=10000", wrong, []string{`nodes: "10000"`, "from 1 to 5000"}},
		"half a node":         {"up -c nodes=1.5", wrong, []string{`nodes: "1.5"`, "whole number"}},
		"decimal memory":      {"up -c memory=8GB", wrong, []string{`memory: "8GB"`, "8GiB"}},
		"memory with no unit": {"up -c memory=8", wrong, []string{`memory: "8"`, "no unit", "8GiB"}},
		"hardly any memory":   {"up -c memory=1MiB", wrong, []string{`memory: "1MiB"`, "128MiB"}},
		"upper-case name":     {"up -c name=My_Bed", wrong, []string{`name: "My_Bed"`, "lower-case"}},
		"path as name":        {"up -c name=../x", wrong, []string{`name: "../x"`}},
		"endless name":        {"up -c name=" + strings.Repeat("a", 33), wrong, []string{"at most 32"}},
		"unknown image":       {"up -c image=debian-21", wrong, []string{`image: "debian-21"`, "there is debian-12", "did you mean debian-12?"}},
		"unknown driver":      {"up -c driver=nspwan", wrong, []string{`driver: "nspwan"`, strings.Join(drivers.Names(), ", "), "did you mean nspawn?"}},
		"unknown manager":     {"up -c workloadManager=pbs", wrong, []string{`workloadManager: "pbs"`, "there is slurm"}},
		"unknown network":     {"preview -c network=open", wrong, []string{`network: "open"`, "isolated, outbound"}},
		"bad ttl":             {"up -c ttl=tomorrow", wrong, []string{`ttl: "tomorrow"`, "8h"}},
		"a ttl in the past":   {"up -s aws -c ttl=-8h", wrong, []string{`ttl: "-8h"`, "8h"}},
		"no such region":      {"up -s aws -c aws.region=Frankfurt", wrong, []string{`aws.region: "Frankfurt"`, "us-east-1"}},
		"no fabric":           {"up -s aws -c aws.efa=true", wrong, []string{`aws.instanceType: "c7i.2xlarge"`, "Elastic Fabric Adapter", "hpc7g.4xlarge"}},
		"no clouds":           {"up -s openstack", cannot, []string{`driver: "openstack"`, "make tools DRIVER=openstack"}},
		"bad pools":           {`up -c pools=[{"name":"x","cpu":1}]`, wrong, []string{"pools[0].cpu", "cannot stand beside"}},
		"all at once":         {"up -c node=4 -c memory=8 -c image=x -c name=A", wrong, []string{"node:", "memory:", "image:", "name:"}},
		"unknown command":     {"upp", wrong, []string{"upp", "up"}},
		"unknown flag":        {"up --nodes 4", wrong, []string{"--nodes"}},
		"unknown output":      {"status -o yaml", wrong, []string{`"yaml"`, "text, json"}},
		"unknown subcommand":  {"image bild", wrong, []string{"bild", "build"}},
		"argument too many":   {"up now", wrong, []string{"now"}},
		"argument too few":    {"ssh", wrong, []string{"arg"}},
		"unknown stack":       {"up -s quickstrat", wrong, []string{`"quickstrat"`, "quickstart"}},
		"path as stack":       {"up -s ../../etc", wrong, []string{"../../etc"}},
		"doctor's driver":     {"doctor --driver x", wrong, []string{`"x"`, "nspawn"}},
		"delete what":         {"sweep --delete", wrong, []string{"--owner"}},
		"no clone":            {"up --dir /", wrong, []string{"--dir", "Pulumi.yaml"}},
		"no bed to look at":   {"status", cannot, []string{"bed up -s quickstart"}},
		"no bed to enter":     {"ssh 1", cannot, []string{"bed up -s quickstart"}},
		"no bed to refresh":   {"refresh", cannot, []string{"bed up -s quickstart"}},
		"no bed to run on":    {"run lammps", cannot, []string{"bed up -s quickstart"}},
		"no run to report":    {"report", cannot, []string{"bed run"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := clone(t)
			code, stdout, stderr := call(t, dir, nil, strings.Fields(c.args)...)
			assert.Equal(t, c.code, code, "%s%s", stdout, stderr)
			assert.Empty(t, stdout)
			for _, needle := range c.needles {
				assert.Contains(t, stderr, needle)
			}
			untouched(t, dir)
		})
	}
}

// TestEstimate: what a bed in a cloud takes and costs is said before anybody is asked, here in a build that knows no cloud to ask.
func TestEstimate(t *testing.T) {
	dir := clone(t)
	code, stdout, stderr := call(t, dir, nil, "preview", "-s", "aws-hpc7g")
	assert.Equal(t, 3, code, stderr)
	assert.Contains(t, stdout, "33 × hpc7g.4xlarge on aws: in all 528 CPUs, 4224 GiB of memory, 3300 GiB of disk, public addresses: 33; meant to live 14 h\nabout 56.")
	assert.Contains(t, stderr, "make tools DRIVER=aws")
	code, stdout, stderr = call(t, dir, nil, "preview", "-s", "aws-hpc7g", "-o", "json")
	assert.Equal(t, 3, code, stderr)
	var said struct {
		Estimate struct{ Instances int }
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &said))
	assert.Equal(t, 33, said.Estimate.Instances)
	code, stdout, stderr = call(t, dir, nil, "preview", "-s", "aws-hpc7g", "--prices", "none.json")
	assert.Equal(t, 2, code, stderr)
	assert.Empty(t, stdout)
	assert.Contains(t, stderr, `--prices: "none.json": cannot be read`)
	untouched(t, dir)
}

// TestHostCannot: what is right in itself and beyond this host ends with 3, and makes nothing.
func TestHostCannot(t *testing.T) {
	if os.Geteuid() != 0 {
		hosttest.Lacks(t, "root")
	}
	t.Run("no root", func(t *testing.T) {
		dir := clone(t)
		require.NoError(t, os.Chmod(dir, 0o777))
		for at := dir; at != os.TempDir() && at != "/"; at = filepath.Dir(at) {
			require.NoError(t, os.Chmod(at, 0o777))
		}
		code, _, stderr := call(t, dir, func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}, "up")
		assert.Equal(t, 3, code, stderr)
		assert.Contains(t, stderr, "needs root")
		assert.Contains(t, stderr, "sudo")
		untouched(t, dir)
	})
	t.Run("no tools", func(t *testing.T) {
		dir := clone(t)
		code, _, stderr := call(t, dir, func(cmd *exec.Cmd) { cmd.Env[0] = "PATH=/nowhere" }, "up")
		assert.Equal(t, 3, code, stderr)
		for _, needle := range []string{"systemd-nspawn", "systemd-container", "ip", "mmdebstrap", "ansible-playbook", "apt-get install", "make tools"} {
			assert.Contains(t, stderr, needle)
		}
		untouched(t, dir)
	})
	if code, out, _ := call(t, clone(t), nil, "doctor", "--driver", "nspawn"); code != 0 {
		hosttest.Lacks(t, "what the driver nspawn needs:\n"+out)
	}
	for name, c := range map[string]struct {
		args    []string
		needles []string
	}{
		"memory for one": {[]string{"-c", "memory=900000GiB"}, []string{`memory: "900000GiB"`, "of this host", "at most"}},
		"memory for all": {[]string{"-c", "nodes=900", "-c", "memory=100GiB"}, []string{"for 900 nodes", "of this host", "fewer nodes"}},
		"CPUs":           {[]string{"-c", "cpus=1000"}, []string{`cpus: "1000"`, "of this host"}},
		"disk":           {[]string{"-c", "disk=20GiB"}, []string{`disk: "20GiB"`, "leave the key disk out"}},
		"all at once":    {[]string{"-c", "cpus=1000", "-c", "memory=900000GiB", "-c", "disk=20GiB"}, []string{"cpus:", "memory:", "disk:"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := clone(t)
			code, _, stderr := call(t, dir, nil, append([]string{"up"}, c.args...)...)
			assert.Equal(t, 3, code, stderr)
			for _, needle := range c.needles {
				assert.Contains(t, stderr, needle)
			}
			untouched(t, dir)
		})
	}
}
