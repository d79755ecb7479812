// Package drivers knows every driver by name.
package drivers

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/lima"
	"github.com/bedfellow/bedfellow/provision/ovirt"
	"github.com/bedfellow/bedfellow/provision/sim"
)

// Names lists the drivers that there are on this system.
func Names() []string {
	if runtime.GOOS != "linux" {
		return []string{"lima", "ovirt", "sim"}
	}
	return []string{"nspawn", "lima", "ovirt", "sim"}
}

// Reachable are those that can be asked what they have made with these settings: an engine must be named for that.
func Reachable(s Settings) []string {
	names := Names()
	if problems := CheckSettings("ovirt", s.Ovirt); len(problems) > 0 {
		names = slices.DeleteFunc(names, func(name string) bool { return name == "ovirt" })
	}
	return names
}

// CheckSettings finds what is wrong with a driver's own keys. Nothing is asked of anybody.
func CheckSettings(name string, settings map[string]string) bed.Problems {
	if name != "ovirt" {
		return nil
	}
	_, problems := ovirt.ReadSettings(settings)
	return problems
}

// Settings are what drivers need to know of the place they run at; the zero value is the usual place.
type Settings struct {
	Root       string            // of the nspawn driver's beds
	LimaRoot   string            // of the lima driver's beds
	SimJournal string            // of the sim driver's machines; empty keeps them in memory
	Ovirt      map[string]string // values of the keys ovirt.…, without that; the variables OVIRT_… are read besides
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
	case "ovirt":
		settings, _ := ovirt.ReadSettings(s.Ovirt) // whoever makes something has looked at the problems
		root, err := lima.DefaultRoot()
		if err != nil {
			return nil, err
		}
		return ovirt.New(settings, filepath.Join(filepath.Dir(root), "ovirt"), debugLog()), nil
	case "sim":
		return sim.Open(s.SimJournal)
	default:
		return nil, fmt.Errorf("there is no driver %q; there is %v", name, Names())
	}
}

// DebugEnv, when it is not empty, has drivers log what they ask of others, without secrets, on standard error.
const DebugEnv = "BEDFELLOW_DEBUG"

func debugLog() *slog.Logger {
	if os.Getenv(DebugEnv) == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// bakeMemory is what a virtual machine that bakes needs: compilers are at work in it.
const bakeMemory = 4 * bed.GiB

// Images opens the store of images in dir, or the default one when dir is empty, which keeps those that virtual machines are on. On hosts that cannot bake VM images, virtual machines
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
	machines := lima.New(root)
	store.Over = machines.Over
	store.Elsewhere = lima.Baker{Driver: machines, Store: store, Command: linuxBed(), CPUs: runtime.NumCPU(), Memory: bakeMemory}.Bake
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
