package scenario

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// Parameter is something a scenario can be told.
type Parameter struct {
	Name    string
	Doc     string // one line, with the unit
	Default string // a value or, with Derive, what that gives: "all compute nodes"
	// Derive gives the default where it depends on the bed or on parameters listed before.
	Derive func(inv bed.Inventory, v Values) string
	// Check says what is wrong with a value whatever the bed.
	Check func(value string) error
	// Fits says what the bed lacks for a value that Check found good; nil Fits suits any bed. Parameters listed before are in v.
	Fits func(inv bed.Inventory, v Values, value string) error
}

// Values are parameters by name, as Resolve gives them: each with a value that its Check found good.
type Values map[string]string

// Int returns the value of a Whole parameter.
func (v Values) Int(name string) int {
	n, _ := strconv.Atoi(v[name])
	return n
}

// Float returns the value of a Fraction parameter.
func (v Values) Float(name string) float64 {
	f, _ := strconv.ParseFloat(v[name], 64)
	return f
}

// Duration returns the value of a Length parameter.
func (v Values) Duration(name string) time.Duration {
	d, _ := time.ParseDuration(v[name])
	return d
}

// Whole checks for a whole number from least to most.
func Whole(least, most int) func(string) error {
	return func(s string) error {
		if n, err := strconv.Atoi(s); err != nil || n < least || n > most {
			return fmt.Errorf("must be a whole number from %d to %d", least, most)
		}
		return nil
	}
}

// Fraction checks for a number from 0 to 1.
func Fraction(s string) error {
	if f, err := strconv.ParseFloat(s, 64); err != nil || math.IsNaN(f) || f < 0 || f > 1 {
		return fmt.Errorf("must be a number from 0 to 1, such as 1e-6")
	}
	return nil
}

// Length checks for a length of time of a second or more.
func Length(s string) error {
	if d, err := time.ParseDuration(s); err != nil || d < time.Second {
		return fmt.Errorf("must be a length of time of at least 1s, such as 90s or 10m")
	}
	return nil
}

// OneOf checks for one of some words.
func OneOf(words ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("must be one of %s", strings.Join(words, ", "))
		}
		return nil
	}
}

// Resolve checks what is given against a scenario's parameters and fills in the defaults for a bed. All problems are in the
// result at once; the values are of use only when there is none.
func (s Scenario) Resolve(inv bed.Inventory, given map[string]string) (Values, bed.Problems) {
	var problems bed.Problems
	var names []string
	for _, p := range s.Parameters {
		names = append(names, p.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if slices.Contains(names, name) {
			continue
		}
		remedy := fmt.Sprintf("the parameters are %v", names)
		if n := bed.Nearest(name, names); n != "" {
			remedy = "did you mean " + n + "?"
		}
		problems = append(problems, bed.Problem{Key: name, Value: given[name], Reason: "is not a parameter of scenario " + s.Name, Remedy: remedy})
	}
	v := Values{}
	for _, p := range s.Parameters {
		value, set := given[p.Name]
		switch {
		case set && p.Check(value) != nil:
			problems = append(problems, bed.Problem{Key: p.Name, Value: value, Reason: p.Check(value).Error(), Remedy: p.Doc + "; the default is " + p.Default})
			continue
		case !set && p.Derive != nil:
			value = p.Derive(inv, v)
		case !set:
			value = p.Default
		}
		if p.Fits != nil {
			if err := p.Fits(inv, v, value); err != nil {
				problems = append(problems, bed.Problem{Key: p.Name, Value: value, Host: true, Reason: err.Error(),
					Remedy: "ask for what the bed has, or change it with `bed up -c …`"})
				continue
			}
		}
		v[p.Name] = value
	}
	return v, problems
}
