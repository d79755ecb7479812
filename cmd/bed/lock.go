package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

func (a *app) lock() *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use: "lock", Short: "Pin by digest what goes into images unsigned; show what would change first",
		Long: "Asks where they come from which digests the unsigned inputs of images have now, shows what would change, and writes\n" +
			images.LockFile + " beside Pulumi.yaml once that is agreed to: by an answer on a terminal, elsewhere by --yes.",
		RunE: func(c *cobra.Command, _ []string) error {
			root, err := engine.Find(a.dir)
			if err != nil {
				return err
			}
			file := os.Getenv(images.LockEnv) // named by the user, or found beside Pulumi.yaml
			if file == "" {
				file = filepath.Join(root, images.LockFile)
			}
			lock, err := images.OpenLock()
			if err != nil {
				return err
			}
			changes, err := lock.Resolve(c.Context())
			if err != nil && c.Context().Err() != nil {
				return err
			}
			a.close()
			changed := 0
			for i, change := range changes {
				lock[i] = change.Pin
				if change.Changed() {
					changed++
				}
				if a.output == "text" {
					fmt.Println(changeLine(change))
				}
			}
			if a.output == "text" {
				fmt.Printf("%d of %d would change\n", changed, len(changes))
			}
			write := changed > 0 && (yes || a.output == "text" && agreed())
			if write {
				if err := lock.Write(file); err != nil {
					return err
				}
			}
			printed := a.print(map[string]any{"pins": changes, "written": write}, func() {
				switch {
				case write:
					fmt.Println("written: " + file)
				case changed > 0:
					fmt.Println("nothing was written; `bed lock --yes` does it")
				}
			})
			if err != nil {
				return fmt.Errorf("%w; what it says of these stays", err)
			}
			return printed
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "write it without being asked")
	return c
}

func changeLine(c images.PinChange) string {
	short := func(digest string) string {
		if digest == "" {
			return "no digest"
		}
		return fmt.Sprintf("%.19s…", digest)
	}
	switch {
	case c.Error != "":
		return fmt.Sprintf("✗ %s  stays %s", c.Name, short(c.Was))
	case c.Changed():
		return fmt.Sprintf("~ %s  %s → %s  %s", c.Name, short(c.Was), short(c.Digest), c.Source)
	default:
		return fmt.Sprintf("  %s  %s", c.Name, short(c.Digest))
	}
}

// agreed asks on a terminal; where there is none nobody agrees.
func agreed() bool {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return false
	}
	fmt.Printf("Write %s? [y/N] ", images.LockFile)
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes"
}
