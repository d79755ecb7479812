package drivers

import (
	"errors"

	"github.com/bedfellow/bedfellow/provision"
)

func openNspawn(string) (provision.Driver, error) {
	return nil, errors.New("containers by systemd-nspawn need Linux; on macOS use -c driver=lima, as the stacks lima and lima-ci do")
}
