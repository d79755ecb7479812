package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/report"
	"github.com/bedfellow/bedfellow/pkg/results"
	"github.com/bedfellow/bedfellow/provision/provider"
	"github.com/bedfellow/bedfellow/scenarios"
	"github.com/bedfellow/bedfellow/scenarios/scenario"
	"github.com/bedfellow/bedfellow/stacks/engine"
)

// resultsDir is where runs are kept, under the clone.
const resultsDir = "results"

func (a *app) run() *cobra.Command {
	var repeats int
	var seed uint64
	var params []string
	c := &cobra.Command{
		Use: "run SCENARIO", Short: "Run a scenario on the bed and keep every repetition", Long: scenarioHelp(), Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			w, err := a.workspace()
			if err != nil {
				return err
			}
			given := map[string]string{}
			for _, p := range params {
				key, value, ok := strings.Cut(p, "=")
				if !ok || key == "" {
					return bed.Problems{{Key: "--param", Value: p, Reason: "is not a key and a value", Remedy: "write --param key=value"}}
				}
				given[key] = value
			}
			if !c.Flags().Changed("seed") {
				seed = rand.Uint64()
			}
			which, _ := scenarios.Find(args[0]) // an unknown one is refused with the other problems
			if !c.Flags().Changed("repeats") && which.Repeats > 0 {
				repeats = which.Repeats
			}
			s, err := w.Standing(c.Context())
			if err != nil {
				return err
			}
			if s.Inventory.WorkloadManager == "" {
				return bed.Problems{{Key: "stack", Value: w.Stack, Host: true, Reason: "its last `bed up` ended before the nodes were configured", Remedy: "`bed up -s " + w.Stack + "` finishes the bed"}}
			}
			dir, summary, err := scenarios.Run(c.Context(), scenarios.Options{
				Inventory: s.Inventory, PrivateKey: s.PrivateKey, Stack: a.stack, Scenario: args[0], Repeats: repeats, Seed: seed,
				Params: given, ResultsRoot: filepath.Join(w.Root, resultsDir),
				Versions: map[string]string{"bedfellow": provider.Version, "pulumi": engine.PulumiVersion},
			})
			if dir == "" {
				return err
			}
			return errors.Join(err, a.print(map[string]any{"dir": dir, "summary": summary}, func() {
				_ = printRun(which, dir, summary)
				fmt.Printf("\nkept in %s\n", relative(dir))
			}))
		},
	}
	c.Flags().IntVarP(&repeats, "repeats", "n", scenario.DefaultRepeats, "measured repetitions; selftests, sidebyside and workflow make one unless told otherwise")
	c.Flags().Uint64Var(&seed, "seed", 0, "of everything that is chosen at random; a random one by default")
	c.Flags().StringArrayVar(&params, "param", nil, "a parameter of the scenario, key=value")
	a.stackFlag(c)
	return c
}

// printRun writes what a run measured.
func printRun(s scenario.Scenario, dir string, summary results.Summary) error {
	if s.Table == nil {
		return summary.Table(os.Stdout)
	}
	r, err := results.Load(dir)
	if err != nil {
		return err
	}
	return s.Table(os.Stdout, r.Samples)
}

// scenarioHelp lists the scenarios and their parameters.
func scenarioHelp() string {
	var b strings.Builder
	b.WriteString("Runs a scenario on the bed, keeps every repetition under results/ and prints the summary.\n")
	for _, s := range scenarios.All() {
		fmt.Fprintf(&b, "\n%s: %s\n", s.Name, s.Summary)
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, p := range s.Parameters {
			fmt.Fprintf(w, "  --param %s=…\t%s (default: %s)\n", p.Name, p.Doc, p.Default)
		}
		_ = w.Flush()
	}
	return b.String()
}

func (a *app) report() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "report [DIR...]", Short: "Draw runs side by side on one self-contained page",
		Long: "Draws runs of one scenario side by side on one HTML page that needs no network. Without DIR it draws the newest run of\nthe stack; `-s` chooses the stack.",
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				root, err := engine.Find(a.dir)
				if err != nil {
					return err
				}
				if args, err = newest(filepath.Join(root, resultsDir, a.stack)); err != nil {
					return err
				}
			}
			var runs []*results.Result
			for _, dir := range args {
				r, err := results.Load(dir)
				if err != nil {
					return err
				}
				runs = append(runs, r)
			}
			f, err := os.CreateTemp(filepath.Dir(out), ".report-*")
			if err != nil {
				return err
			}
			defer os.Remove(f.Name())
			err = errors.Join(report.Write(f, runs, report.Options{Now: time.Now()}), f.Chmod(0o644), f.Close())
			if err == nil {
				err = os.Rename(f.Name(), out)
			}
			if err != nil {
				return fmt.Errorf("write %s: %w", out, err)
			}
			return a.print(map[string]any{"report": out, "runs": args}, func() { fmt.Printf("%s draws %s\n", out, strings.Join(args, ", ")) })
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "report.html", "the file to write") // here -o is the page, not the form of output
	a.stackFlag(c)
	return c
}

// newest finds the last run of a stack; runs are named by their time.
func newest(dir string) ([]string, error) {
	all, err := filepath.Glob(filepath.Join(dir, "*", "*", "run.json"))
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, bed.Problems{{Key: "DIR", Reason: "there are no runs under " + relative(dir), Remedy: "`bed run lammps` makes one", Host: true}}
	}
	last := slices.MaxFunc(all, func(a, b string) int {
		return strings.Compare(filepath.Base(filepath.Dir(a)), filepath.Base(filepath.Dir(b)))
	})
	return []string{filepath.Dir(last)}, nil
}

func relative(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}
