package lammps

import (
	"errors"
	"fmt"
	"math"
)

// AtomsPerCell is how many atoms the HNS example's cell has, which the input replicates x × y × z times.
const AtomsPerCell = 304

// Want is what a repetition's log has to agree with.
type Want struct {
	X, Y, Z int // replications of the cell
	Steps   int
	Ranks   int // MPI tasks; 0: any
	// First is the log of the series' first good repetition; nil for that one itself. The same problem on the same number of
	// ranks follows the same path, but for the order in which parallel sums are made.
	First *Log
	// Tolerance bounds |energy − first energy| / |first energy|. 0 asks for equality.
	Tolerance float64
}

// Check says all that is physically or otherwise wrong with a repetition, nil when nothing is.
func Check(log Log, want Want) error {
	var errs []error
	complain := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if atoms := AtomsPerCell * float64(want.X) * float64(want.Y) * float64(want.Z); float64(log.Atoms) != atoms {
		complain("%d atoms, but %d·%d·%d cells of %d have %.0f", log.Atoms, want.X, want.Y, want.Z, AtomsPerCell, atoms)
	}
	if log.Steps != want.Steps {
		complain("%d steps, but %d were asked for", log.Steps, want.Steps)
	}
	if want.Ranks != 0 && log.Tasks != want.Ranks {
		complain("%d MPI tasks, but %d were asked for: were they started one by one, by another MPI's launcher?", log.Tasks, want.Ranks)
	}
	energy, column, err := log.Energy()
	if err != nil {
		complain("%w", err)
	} else if want.First != nil {
		first, firstColumn, err := want.First.Energy()
		switch {
		case err != nil:
			complain("the first repetition: %w", err)
		case column != firstColumn:
			complain("the final energy is %s, but %s in the first repetition", column, firstColumn)
		case !(math.Abs(energy-first) <= want.Tolerance*math.Abs(first)):
			complain("final %s is %v, but %v in the first repetition: off by %.3g of it, more than %g",
				column, energy, first, math.Abs(energy-first)/math.Abs(first), want.Tolerance)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lammps: the log is not that of the run asked for: %w", err)
	}
	return nil
}
