package lima

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"gopkg.in/yaml.v3"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
)

const (
	network     = "user-v2"       // Lima's, which joins a LIMA_HOME's machines and needs no root
	resolver    = "192.168.104.2" // in that network, where it is left as Lima makes it
	userID      = 1000            // of the bed's user in every image
	defaultDisk = 20 * bed.GiB
)

// config is a machine's lima.yaml: what differs from Lima's defaults, and those defaults that must not be somebody's
// _config/override.yaml. It is complete: `limactl start` of the file alone makes the same machine, with a copy of the disk.
type config struct {
	MinimumLimaVersion string        `yaml:"minimumLimaVersion"`
	VMType             string        `yaml:"vmType"`
	OS                 string        `yaml:"os"`
	Arch               string        `yaml:"arch"`
	CPUs               int           `yaml:"cpus"`
	Memory             string        `yaml:"memory"`
	Disk               string        `yaml:"disk"`
	Images             []imageConfig `yaml:"images"`
	Firmware           *firmware     `yaml:"firmware,omitempty"`
	Plain              bool          `yaml:"plain"` // no agent of Lima's in the guest, no mounts, no forwarded ports
	Mounts             []string      `yaml:"mounts"`
	Containerd         containerd    `yaml:"containerd"`
	Networks           []nic         `yaml:"networks"`
	SSH                sshConfig     `yaml:"ssh"`
	User               userConfig    `yaml:"user"`
	HostResolver       hostResolver  `yaml:"hostResolver"`
	PropagateProxyEnv  bool          `yaml:"propagateProxyEnv"`
	Video              video         `yaml:"video"`
	Provision          []provisioner `yaml:"provision"`
}

type (
	imageConfig struct {
		Location string        `yaml:"location"`
		Arch     string        `yaml:"arch"`
		Kernel   *kernelConfig `yaml:"kernel,omitempty"`
		Initrd   *fileConfig   `yaml:"initrd,omitempty"`
	}
	kernelConfig struct {
		Location string `yaml:"location"`
		Cmdline  string `yaml:"cmdline,omitempty"`
	}
	fileConfig struct {
		Location string `yaml:"location"`
	}
	firmware struct {
		LegacyBIOS bool `yaml:"legacyBIOS"`
	}
	containerd struct {
		System bool `yaml:"system"`
		User   bool `yaml:"user"`
	}
	nic struct {
		Lima string `yaml:"lima"`
	}
	sshConfig struct {
		LoadDotSSHPubKeys bool `yaml:"loadDotSSHPubKeys"`
		ForwardAgent      bool `yaml:"forwardAgent"`
	}
	userConfig struct {
		Name  string `yaml:"name"`
		UID   int    `yaml:"uid"`
		Home  string `yaml:"home"`
		Shell string `yaml:"shell"`
	}
	hostResolver struct {
		Enabled bool `yaml:"enabled"`
	}
	video struct {
		Display string `yaml:"display"`
	}
	provisioner struct {
		Mode   string `yaml:"mode"`
		Script string `yaml:"script"`
	}
)

//go:embed boot.sh
var bootScript string

// direct tells with which command line a machine's kernel is started, if its image has one; it boots by firmware otherwise.
func direct(m provision.Machine) (cmdline string, ok bool) {
	for _, name := range []string{bed.KernelFile, bed.InitrdFile} {
		if _, err := os.Stat(filepath.Join(m.Image, name)); err != nil {
			return "", false
		}
	}
	data, err := os.ReadFile(filepath.Join(m.Image, bed.CmdlineFile))
	cmdline = strings.TrimSpace(string(data))
	if m.Slow { // an emulated CPU speculates on nothing, and what guards against that is a sixth of a system call
		cmdline += " mitigations=off maxcpus=1" // of role kernel's bed-cpus.service, which has the others taken
	}
	return cmdline, err == nil
}

// render writes the machine's lima.yaml, which holds its private host key. Lima's own key may be given too.
func render(m provision.Machine, disk bed.Size, keys ...string) ([]byte, error) {
	script, err := renderBoot(m, keys...)
	if err != nil {
		return nil, err
	}
	image := imageConfig{Location: filepath.Join(m.Image, bed.DiskFile), Arch: limaArch()}
	if cmdline, ok := direct(m); ok {
		image.Kernel = &kernelConfig{Location: filepath.Join(m.Image, bed.KernelFile), Cmdline: cmdline}
		image.Initrd = &fileConfig{Location: filepath.Join(m.Image, bed.InitrdFile)}
	}
	c := config{
		MinimumLimaVersion: fmt.Sprintf("%d.0.0", minimumMajor), VMType: vmType(), OS: "Linux", Arch: limaArch(),
		CPUs: m.CPUs, Memory: m.Memory.String(), Disk: disk.String(), Images: []imageConfig{image},
		Plain: true, Mounts: []string{}, Networks: []nic{{Lima: network}},
		User:      userConfig{Name: m.User, UID: userID, Home: "/home/" + m.User, Shell: "/bin/bash"},
		Video:     video{Display: "none"},
		Provision: []provisioner{{Mode: "boot", Script: script}},
	}
	if usesQEMU() && limaArch() == "x86_64" {
		c.Firmware = &firmware{LegacyBIOS: true} // seconds quicker than UEFI, minutes when emulated
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# Node %s of bed %s, written by bedfellow.\n", m.Name, m.Owner.Bed)
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	if err := encoder.Encode(c); err != nil {
		return nil, err
	}
	return out.Bytes(), encoder.Close()
}

// Standalone writes a machine's lima.yaml without its private host key, for `limactl start`: the machine makes a key of its own.
func Standalone(m provision.Machine) ([]byte, error) {
	size, err := diskSize(m)
	if err != nil {
		return nil, err
	}
	m.HostKey, m.HostPublicKey = "", ""
	return render(m, size)
}

// renderBoot fills in the script that makes a booting machine the node it is.
func renderBoot(m provision.Machine, keys ...string) (string, error) {
	t, err := template.New("boot.sh").Parse(bootScript)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	err = t.Execute(&out, map[string]any{
		"Name": m.Name, "User": m.User, "UserID": userID, "Isolated": m.Network != "outbound", "Resolver": resolver, "Address": bedAddress(m.Index), "LinkAddress": linkAddress(m.Index),
		"HostKey": strings.TrimSpace(m.HostKey), "HostPublicKey": strings.TrimSpace(m.HostPublicKey), "AuthorizedKeys": slices.DeleteFunc(append([]string{strings.TrimSpace(m.AuthorizedKey)}, keys...), func(key string) bool { return key == "" }),
	})
	return out.String(), err
}

// bedAddress is a node's address among its siblings. Lima's own are leases, and theirs to give.
func bedAddress(index int) string { return fmt.Sprintf("10.104.%d.%d", index/200, 10+index%200) }

// linkAddress is that of the interface with the bed's address. A node made anew has its predecessor's, which its siblings remember.
func linkAddress(index int) string {
	return fmt.Sprintf("02:be:d0:68:%02x:%02x", index/200, 10+index%200)
}

// vmType is Lima's name for what runs the machines, which its pid file has too.
func vmType() string {
	if usesQEMU() {
		return "qemu"
	}
	return "vz"
}
