package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

// reachable names the drivers and clouds that can be asked here what they have made: the environment must name an engine or a cloud for that.
func reachable() []string {
	names := drivers.Reachable(drivers.Settings{})
	if clouds.Built {
		names = slices.Concat(names, clouds.Named())
	}
	return names
}

// reached opens each of them. One that cannot be asked, or not rid of something, keeps nobody from the others.
func reached(ask func(name string, d provision.Beds) error) error {
	var errs []error
	for _, name := range reachable() {
		d, err := engine.OpenBeds(name, drivers.Settings{})
		if err == nil {
			err = ask(name, d)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// sweepImages lists what engines and clouds keep of images and no machine uses, and removes it if it is to.
func (a *app) sweepImages(ctx context.Context, remove bool) error {
	type line struct {
		Driver string `json:"driver"`
		provision.KeptImage
		Removed bool `json:"removed"`
	}
	lines := []line{}
	err := reached(func(name string, d provision.Beds) error {
		keeper, ok := d.(provision.ImageKeeper)
		if !ok {
			return nil
		}
		kept, err := keeper.KeptImages(ctx)
		if err != nil {
			return err
		}
		for _, image := range kept {
			if image.Used > 0 {
				continue
			}
			if remove {
				if err := keeper.RemoveImage(ctx, image.ID); err != nil {
					return err
				}
			}
			lines = append(lines, line{name, image, remove})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return a.print(lines, func() {
		for _, l := range lines {
			verb := ""
			if l.Removed {
				verb = "removed: "
			}
			fmt.Printf("%s%s (%s) of image %s\n", verb, l.Name, l.Driver, l.Digest)
		}
		if len(lines) == 0 {
			fmt.Println("nothing: asked are " + asked() + ", and every image there is used, or there is none")
		}
	})
}

// asked says whom reached asks, beside this host.
func asked() string {
	text := "the engine of OVIRT_URL"
	if clouds.Built && len(clouds.Named()) > 0 {
		text += " and the clouds that the environment names"
	}
	return text
}

// swept is a bed that a sweep has found.
type swept struct {
	Driver   string          `json:"driver"`
	Owner    provision.Owner `json:"owner"`
	Machines int             `json:"machines"`
	Expires  time.Time       `json:"expires,omitzero"`
	Removed  bool            `json:"removed"`
}

// lookAt finds how many machines a bed has, and when its time is over.
func lookAt(ctx context.Context, name string, d provision.Beds, owner provision.Owner) (swept, error) {
	found, err := d.List(ctx, owner.Bed)
	if err != nil {
		return swept{}, err
	}
	s := swept{Driver: name, Owner: owner}
	for _, st := range found {
		if st.Owner.Same(owner) {
			s.Machines++
			if st.Expires.After(s.Expires) {
				s.Expires = st.Expires
			}
		}
	}
	if e, ok := d.(provision.Expirer); ok {
		s.Expires, err = e.Expires(ctx, owner)
	}
	return s, err
}

func (a *app) sweep() *cobra.Command {
	var remove, ofImages, expired bool
	var owner string
	c := &cobra.Command{
		Use: "sweep", Short: "List beds on this host that no state here knows; remove what is named or past its time",
		Long: "Lists the beds on this host, on the engine that OVIRT_URL names, and in the clouds that AWS_REGION, OS_CLOUD and the like name, that this\n" +
			"folder's stacks do not know, with the state each belongs to. --delete --owner BED removes the named bed, whoever's it is: the way to be rid of\n" +
			"a bed whose state is lost. --expired removes every bed whose ttl is over, known here or not: for a cron job or a step of CI. Images are not touched.\n" +
			"--images lists what engines and clouds keep of images and no machine uses; --images --delete removes that.",
		RunE: func(c *cobra.Command, _ []string) error {
			if ofImages {
				return a.sweepImages(c.Context(), remove)
			}
			if remove && owner == "" {
				return bed.Problems{{Key: "--delete", Reason: "removes only what is named", Remedy: "add --owner BED"}}
			}
			root, err := engine.Find(a.dir)
			if err != nil {
				return err
			}
			now, lines := time.Now(), []swept{}
			err = reached(func(name string, d provision.Beds) error {
				owners, err := provider.Owners(c.Context(), d)
				if err != nil {
					return err
				}
				var errs []error
				for _, o := range owners {
					if !expired && owner == "" && engine.Knows(root, o.State) || owner != "" && o.Bed != owner {
						continue
					}
					l, err := lookAt(c.Context(), name, d, o)
					if err != nil {
						errs = append(errs, err)
						continue
					}
					if expired && (l.Expires.IsZero() || now.Before(l.Expires)) {
						continue
					}
					if l.Removed = remove || expired; l.Removed {
						if err := provider.Clear(c.Context(), d, o); err != nil {
							errs = append(errs, fmt.Errorf("remove bed %s: %w", o.Bed, err))
							continue
						}
					}
					lines = append(lines, l)
				}
				return errors.Join(errs...)
			})
			if named := clouds.Named(); !clouds.Built && len(named) > 0 {
				unasked := bed.Problems{{Key: "driver", Value: strings.Join(named, ", "), Reason: clouds.ErrNotBuilt.Error() + ", so nobody was asked there", Remedy: "`make tools DRIVER=" + named[0] + "` builds it with them", Host: true}}
				if remove || expired {
					err = errors.Join(err, unasked)
				} else {
					progress.Note(c.Context(), "%v", unasked)
				}
			}
			if err != nil {
				return errors.Join(a.print(lines, func() { printSwept(lines, expired, now) }), err)
			}
			if owner != "" && len(lines) == 0 && !expired {
				return bed.Problems{{Key: "--owner", Value: owner, Reason: "there is no bed of that name on this host", Remedy: "`bed sweep` lists those that no state here knows", Host: true}}
			}
			return a.print(lines, func() { printSwept(lines, expired, now) })
		},
	}
	c.Flags().BoolVar(&ofImages, "images", false, "images that engines and clouds keep, not beds")
	c.Flags().BoolVar(&remove, "delete", false, "remove the bed that --owner names, or the images that no machine uses")
	c.Flags().BoolVar(&expired, "expired", false, "remove beds whose time to live is over")
	c.Flags().StringVar(&owner, "owner", "", "name of a bed")
	return c
}

func printSwept(lines []swept, expired bool, now time.Time) {
	for _, l := range lines {
		verb, expires := "", ""
		if l.Removed {
			verb = "removed: "
		}
		if !l.Expires.IsZero() && now.After(l.Expires) {
			expires = ", meant to live until " + l.Expires.Local().Format(time.DateTime)
		}
		fmt.Printf("%sbed %s (%s): %d machines, of state %s%s\n", verb, l.Owner.Bed, l.Driver, l.Machines, l.Owner.State, expires)
	}
	switch {
	case len(lines) > 0:
	case expired:
		fmt.Println("nothing: of those that could be asked (" + strings.Join(reachable(), ", ") + ") none has a bed past its time")
	default:
		fmt.Println("nothing: every bed on this host is known here, or there is none")
	}
}
