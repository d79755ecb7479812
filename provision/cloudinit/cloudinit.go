// Package cloudinit makes a machine that cloud-init finds data for the node it is.
package cloudinit

import (
	_ "embed"
	"encoding/json"
	"strings"
	"text/template"
)

//go:embed boot.sh
var script string

// userID is that of the bed's user in every image.
const userID = 1000

// Node is what a machine becomes.
type Node struct {
	Name string
	User string // the bed's, which the image has
	// HostKey is private, OpenSSH PEM; AuthorizedKey may log in as User.
	HostKey, HostPublicKey, AuthorizedKey string
	// Address is static, with its prefix's length, and Gateway its network's way out; empty leaves both to DHCP.
	Address, Gateway string
	// Metadata is true where any process of the machine could ask for its data, private key included: only root may, then.
	Metadata bool
}

// Config is a cloud-config without its first line. It holds the private host key.
func Config(n Node) (string, error) {
	t, err := template.New("boot.sh").Parse(script)
	if err != nil {
		return "", err
	}
	n.HostKey, n.HostPublicKey, n.AuthorizedKey = strings.TrimSpace(n.HostKey), strings.TrimSpace(n.HostPublicKey), strings.TrimSpace(n.AuthorizedKey)
	var text strings.Builder
	if err := t.Execute(&text, struct {
		Node
		UserID int
	}{n, userID}); err != nil {
		return "", err
	}
	command, err := json.Marshal([]string{"sh", "-c", text.String()}) // which is YAML too
	return "ssh_deletekeys: false\nbootcmd:\n- " + string(command) + "\n", err
}

// UserData is Config as a cloud takes it.
func UserData(n Node) (string, error) {
	config, err := Config(n)
	return "#cloud-config\n" + config, err
}
