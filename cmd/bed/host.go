package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/provision"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/stacks"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

func (a *app) doctor() *cobra.Command {
	var driver string
	c := &cobra.Command{
		Use: "doctor", Short: "Say what this host can serve, each problem with its remedy",
		RunE: func(c *cobra.Command, _ []string) error {
			names := reachable()
			if driver != "" {
				names = []string{driver}
			}
			var problems bed.Problems
			found, advice := map[string][]bed.Problem{}, map[string][]string{}
			for _, name := range names {
				if known := stacks.Known().Drivers; !slices.Contains(known, name) {
					return bed.Problems{{Key: "--driver", Value: name, Reason: "is not known here; there is " + strings.Join(known, ", "), Remedy: "name one of them"}}
				}
				d, err := engine.OpenBeds(name, drivers.Settings{})
				if err != nil {
					return err
				}
				found[name] = engine.CheckHost(c.Context(), d)
				problems = append(problems, found[name]...)
				if adviser, ok := d.(provision.Adviser); ok && a.output == "text" {
					advice[name] = adviser.Advise(c.Context())
				}
			}
			if err := a.print(found, func() {
				for _, name := range names {
					if len(found[name]) == 0 {
						fmt.Printf("✓ %s: this host can serve it\n", name)
					}
					for _, p := range found[name] {
						fmt.Printf("✗ %s: %s\n", name, p)
					}
					for _, line := range advice[name] {
						fmt.Printf("· %s: %s\n", name, line)
					}
				}
			}); err != nil {
				return err
			}
			if len(problems) > 0 {
				return bed.Problems{{Reason: fmt.Sprintf("problems, see above: %d", len(problems)), Host: true}}
			}
			return nil
		},
	}
	c.Flags().StringVar(&driver, "driver", "", "look at one driver only")
	return c
}

func (a *app) image() *cobra.Command {
	all := &cobra.Command{Use: "image", Short: "Bake, list, check, remove and prune node images"}
	group(all)
	var roles []string
	var form, flux string
	var kubernetes bool
	build := &cobra.Command{
		Use: "build [DEFINITION]", Short: "Bake an image, unless it is kept already", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			store, err := drivers.Images("")
			if err != nil {
				return err
			}
			request := images.Request{Definition: "debian-12", Format: bed.ImageFormat(form), Roles: roles, Flux: flux}
			if len(args) > 0 {
				request.Definition = args[0]
			}
			if kubernetes {
				request.Kubernetes = stacks.KubernetesSource()
			}
			img, err := store.Build(c.Context(), request)
			if err != nil {
				return err
			}
			return a.print(img, func() { fmt.Printf("%s  %s\n", img.Digest, img.Path) })
		},
	}
	build.Flags().StringVar(&form, "format", string(bed.Tree), fmt.Sprintf("one of %v: a root file system, a disk that boots, or the same as a raw file", bed.ImageFormats()))
	build.Flags().StringVar(&flux, "flux", "", "Flux for it: a path or address, or \"pinned\" for the lock's; none by default")
	build.Flags().BoolVar(&kubernetes, "kubernetes", false, "make its machines nodes of Kubernetes, by the offline bundle")
	build.Flags().StringSliceVar(&roles, "roles", nil, "roles on it; all by default")
	list := &cobra.Command{
		Use: "list", Short: "List the images that are kept",
		RunE: func(c *cobra.Command, _ []string) error {
			store, err := drivers.Images("")
			if err != nil {
				return err
			}
			all, err := store.List(c.Context())
			if err != nil {
				return err
			}
			size, err := store.Size(c.Context())
			if err != nil {
				return err
			}
			return a.print(all, func() {
				w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "IMAGE\tFORMAT\tROLES\tDIGEST\tSIZE\tPACKAGES\tBAKED")
				for _, i := range all {
					fmt.Fprintf(w, "%s\t%s\t%s\t%.19s\t%d MiB\t%d\t%s\n", i.Definition, i.Format, strings.Join(i.Roles, ","), i.Digest,
						i.Manifest.Bytes>>20, len(i.Manifest.Packages), i.Manifest.Baked.Local().Format("2006-01-02 15:04"))
				}
				w.Flush()
				fmt.Printf("%d MiB in %s, with kept packages and artifacts\n", size>>20, store.Dir())
			})
		},
	}
	var quick bool
	verify := &cobra.Command{
		Use: "verify [DIGEST]", Short: "Check that images are what was baked, and bake them again", Args: cobra.MaximumNArgs(1),
		Long: "Reads every byte of the images and holds it against its digest. Then it bakes each once more, from the packages and\n" +
			"sources that the store kept and with the network off, and compares every path: a few minutes for an image.\n" +
			"The images stay as they are, and so do the nodes that run on them.",
		RunE: func(c *cobra.Command, args []string) error {
			store, all, err := selectImages(c, args)
			if err != nil {
				return err
			}
			var errs []error
			for _, i := range all {
				err := store.Verify(c.Context(), i.Digest, false)
				if err == nil && !quick {
					err = store.Rebake(c.Context(), i.Digest)
				}
				errs = append(errs, err)
			}
			if err := errors.Join(errs...); err != nil {
				return err
			}
			said := map[string]int{"verified": len(all), "rebaked": len(all)}
			if quick {
				said["rebaked"] = 0
			}
			return a.print(said, func() {
				fmt.Printf("%d images are whole\n", len(all))
				if !quick {
					fmt.Println("baked again without a network, they are the same")
				}
			})
		},
	}
	verify.Flags().BoolVar(&quick, "quick", false, "check the bytes only")
	remove := &cobra.Command{
		Use: "remove DIGEST", Short: "Remove an image from the store", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			store, all, err := selectImages(c, args)
			if err != nil {
				return err
			}
			for _, i := range all {
				if err := store.Remove(c.Context(), i.Digest); err != nil {
					return err
				}
			}
			return a.print(map[string]int{"removed": len(all)}, func() { fmt.Printf("%d removed\n", len(all)) })
		},
	}
	prune := &cobra.Command{
		Use: "prune", Short: "Remove what no image in the store needs", Args: cobra.NoArgs,
		Long: "Removes half-made bakes of killed runs, damaged images, and the artifacts and packages that no image names.\n" +
			"What is removed is fetched and built again when another image needs it.",
		RunE: func(c *cobra.Command, _ []string) error {
			store, err := drivers.Images("")
			if err != nil {
				return err
			}
			p, err := store.Prune(c.Context())
			if err != nil {
				return err
			}
			return a.print(p, func() {
				fmt.Printf("removed %d half-made bakes, %d damaged images, %d artifact files and %d packages: %d MiB\n",
					len(p.Bakes), len(p.Images), len(p.Artifacts), len(p.Packages), p.Bytes>>20)
			})
		},
	}
	all.AddCommand(build, list, verify, remove, prune)
	return all
}

// selectImages finds the images whose digest begins as the argument says; all without one.
func selectImages(c *cobra.Command, args []string) (*images.Store, []images.Image, error) {
	store, err := drivers.Images("")
	if err != nil {
		return nil, nil, err
	}
	all, err := store.List(c.Context())
	if err != nil || len(args) == 0 {
		return store, all, err
	}
	var chosen []images.Image
	digests := map[string]bool{}
	want := strings.TrimPrefix(args[0], "sha256:")
	for _, i := range all {
		if want != "" && strings.HasPrefix(strings.TrimPrefix(i.Digest, "sha256:"), want) { // an unset variable in a script is no choice
			chosen = append(chosen, i)
			digests[i.Digest] = true
		}
	}
	if len(digests) > 1 {
		return nil, nil, bed.Problems{{Key: "digest", Value: args[0], Reason: fmt.Sprintf("%d images begin like that", len(digests)), Remedy: "give more of it; `bed image list` shows them"}}
	}
	if len(chosen) == 0 {
		return nil, nil, bed.Problems{{Key: "digest", Value: args[0], Reason: "no image in the store has it", Remedy: "`bed image list` shows what there is"}}
	}
	return store, chosen, nil
}
