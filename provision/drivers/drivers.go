// Package drivers knows every driver by name.
package drivers

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/lima"
	"github.com/bedfellow/bedfellow/provision/sim"
)

// Names lists the drivers that there are on this system.
func Names() []string {
	if runtime.GOOS != "linux" {
		return []string{"lima", "sim"}
	}
	return []string{"nspawn", "lima", "sim"}
}

// Settings are what drivers need to know of the place they run at; the zero value is the usual place.
type Settings struct {
	Root       string // of the nspawn driver's beds
	LimaRoot   string // of the lima driver's beds
	SimJournal string // of the sim driver's machines; empty keeps them in memory
}

// Open returns the named driver.
func Open(name string, s Settings) (provision.Driver, error) {
	switch name {
	case "nspawn":
		return openNspawn(s.Root)
	case "lima":
		root := s.LimaRoot
		if root == "" {
			var err error
			if root, err = lima.DefaultRoot(); err != nil {
				return nil, err
			}
		}
		return lima.New(root), nil
	case "sim":
		return sim.Open(s.SimJournal)
	default:
		return nil, fmt.Errorf("there is no driver %q; there is %v", name, Names())
	}
}

// bakeMemory is what a virtual machine that bakes needs: compilers are at work in it.
const bakeMemory = 4 * bed.GiB

// Images opens the store of images in dir, or the default one when dir is empty. On hosts that cannot bake VM images, virtual machines
// do it.
func Images(dir string) (*images.Store, error) {
	store, err := images.Open(dir)
	if err != nil {
		return nil, err
	}
	root, err := lima.DefaultRoot()
	if err != nil {
		return nil, err
	}
	store.Elsewhere = lima.Baker{Driver: lima.New(root), Store: store, Command: linuxBed(), CPUs: runtime.NumCPU(), Memory: bakeMemory}.Bake
	return store, nil
}

// linuxBed is where `make tools` puts this version's bed for Linux: beside whatever of it runs now.
func linuxBed() string {
	self, err := os.Executable()
	if err != nil {
		return "bed"
	}
	name := "bed"
	if runtime.GOOS != "linux" {
		name = "bed-linux-" + runtime.GOARCH
	}
	return filepath.Join(filepath.Dir(self), name)
}
