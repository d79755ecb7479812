// Package drivers knows every driver by name.
package drivers

import (
	"fmt"

	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/lima"
	"github.com/bedfellow/bedfellow/provision/nspawn"
	"github.com/bedfellow/bedfellow/provision/sim"
)

// Names lists the drivers there are.
func Names() []string { return []string{"nspawn", "lima", "sim"} }

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
		root := s.Root
		if root == "" {
			root = nspawn.DefaultRoot
		}
		return nspawn.New(root), nil
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
