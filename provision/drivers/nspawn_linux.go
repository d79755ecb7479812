package drivers

import (
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/nspawn"
)

func openNspawn(root string) (provision.Driver, error) {
	if root == "" {
		root = nspawn.DefaultRoot
	}
	return nspawn.New(root), nil
}
