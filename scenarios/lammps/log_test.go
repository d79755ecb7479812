package lammps

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// synthetic is a log in LAMMPS' format with round figures; the real ones are in testdata.
const synthetic = `LAMMPS (6 Jan 2022)
  using 1 OpenMP thread(s) per MPI task
run 20
Per MPI rank memory allocation (min/avg/max) = 103.8 | 103.8 | 103.8 Mbytes
   Step          Temp          PotEng
         0   300           -113.27833
        10   299.38517     -113.27631
WARNING: Fix qeq/reax CG convergence failed (0) after 200 iterations (../fix_qeq_reax.cpp:770)
        20   300.27106     -113.27884
Loop time of 6.63333 on 4 procs for 20 steps with 2432 atoms

Performance: 0.130 ns/day, 184.259 hours/ns, 15.075 timesteps/s, 36.663 katom-step/s
99.3% CPU use with 2 MPI tasks x 2 OpenMP threads

MPI task timing breakdown:
Section |  min time  |  avg time  |  max time  |%varavg| %total
---------------------------------------------------------------
Pair    | 4.1006     | 4.5745     | 5.0624     |  17.4 | 68.96
Other   |            | 0.0004201  |            |       |  0.01

Nlocal:            608 ave         612 max         604 min
Total wall time: 1:02:07
`

func TestParseLog(t *testing.T) {
	log, err := ParseLog(strings.NewReader(synthetic))
	require.NoError(t, err)
	require.True(t, math.IsNaN(log.Breakdown[1].Min) && math.IsNaN(log.Breakdown[1].Max) && math.IsNaN(log.Breakdown[1].VarAvg))
	log.Breakdown[1] = Section{Name: "Other", Avg: 0.0004201, Share: 0.01}
	require.Equal(t, Log{
		Version: "6 Jan 2022", LoopTime: 6.63333, Procs: 4, Tasks: 2, Threads: 2, Steps: 20, Atoms: 2432, CPUUse: 99.3,
		NsPerDay: 0.130, HoursPerNs: 184.259, StepsPerSecond: 15.075, WallTime: time.Hour + 2*time.Minute + 7*time.Second,
		Thermo: Thermo{Columns: []string{"Step", "Temp", "PotEng"},
			Rows: [][]float64{{0, 300, -113.27833}, {10, 299.38517, -113.27631}, {20, 300.27106, -113.27884}}},
		Breakdown: []Section{{"Pair", 4.1006, 4.5745, 5.0624, 17.4, 68.96}, {Name: "Other", Avg: 0.0004201, Share: 0.01}},
		Warnings:  []string{"WARNING: Fix qeq/reax CG convergence failed (0) after 200 iterations (../fix_qeq_reax.cpp:770)"},
	}, log)
	energy, column, err := log.Energy()
	require.NoError(t, err)
	require.Equal(t, "PotEng", column)
	require.Equal(t, -113.27884, energy)
}

// Logs of LAMMPS as Debian 12's source package builds it, with REAXFF and MPI: log files, and what a terminal shows.
func TestParseRealLogs(t *testing.T) {
	read := func(name string) (Log, string) {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		log, err := ParseLog(strings.NewReader(string(data)))
		require.NoError(t, err, name)
		return log, string(data)
	}
	one, _ := read("hns-2x2x1-1-rank.log")
	two, text := read("hns-2x2x1-2-ranks.log")
	screen, _ := read("hns-2x2x1-2-ranks.screen.log")
	require.Equal(t, "29 Sep 2021 - Update 2", two.Version)
	require.Equal(t, []int{2, 2, 1, 100, 1216}, []int{two.Procs, two.Tasks, two.Threads, two.Steps, int(two.Atoms)})
	require.Equal(t, []float64{18.1907, 57.0, 0.047, 505.298, 5.497}, []float64{two.LoopTime, two.CPUUse, two.NsPerDay, two.HoursPerNs, two.StepsPerSecond})
	require.Equal(t, 18*time.Second, two.WallTime)
	require.Len(t, two.Thermo.Rows, 11)
	require.Equal(t, []float64{100, 309.14596, -113.30477, 12099.755, -111.60642, -1.6983453, 13709.434}, two.Thermo.Rows[10])
	require.Equal(t, Section{"Pair", 8.7259, 8.7844, 8.8429, 2.0, 48.29}, two.Breakdown[0])
	var names []string
	sum := 0.0
	for _, s := range two.Breakdown {
		names = append(names, s.Name)
		sum += s.Avg
	}
	require.Equal(t, []string{"Pair", "Neigh", "Comm", "Output", "Modify", "Other"}, names)
	require.InEpsilon(t, two.LoopTime, sum, 1e-4)
	require.Equal(t, two.Thermo, screen.Thermo, "log file and screen tell the same")
	want := Want{X: 2, Y: 2, Z: 1, Steps: 100, Ranks: 2, First: &two, Tolerance: 0}
	require.NoError(t, Check(screen, want))
	want.Ranks, want.Tolerance = 1, 1e-6
	require.NoError(t, Check(one, want), "another number of ranks sums in another order, which shows in later digits only")
	require.NotEqual(t, two.Thermo, one.Thermo)

	lines := strings.SplitAfter(text, "\n")
	for n := range len(lines) - 2 {
		_, err := ParseLog(strings.NewReader(strings.Join(lines[:n], "")))
		require.Error(t, err, "only %d lines", n)
	}
	for name, says := range map[string]string{
		"replicate-0.failed.log": `in "ERROR: Illegal replicate command (src/replicate.cpp:66)"`,
		"no-data.failed.log":     `line 6: LAMMPS or its launcher reports an error, in "ERROR: Cannot open file data.hns-equil`,
	} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		require.NoError(t, err)
		_, err = ParseLog(strings.NewReader(string(data)))
		require.ErrorContains(t, err, says)
	}
}

// Every way a log can be wrong that we know of, each with the line and what was expected there.
func TestParseLogRefuses(t *testing.T) {
	for name, c := range map[string]struct{ was, is, says string }{
		"empty":                {synthetic, "", "ends after line 0"},
		"not a log":            {synthetic, "srun: job 3 queued\n", "where LAMMPS (version) was expected"},
		"error":                {"run 20", "ERROR: Unknown pair style reax/c (src/force.cpp:275)", "line 3: LAMMPS or its launcher reports an error"},
		"error on a rank":      {"run 20", "ERROR on proc 1: Cannot open file", "line 3: LAMMPS or its launcher"},
		"launcher":             {"run 20", "srun: error: q-2: task 1: Killed", "line 3: LAMMPS or its launcher"},
		"no thermo header":     {"   Step          Temp          PotEng\n", "", "line 5: a thermo table"},
		"multi style":          {"   Step          Temp          PotEng", "---------------- Step        0 ----- CPU =  0 (sec)", "line 5: a thermo table"},
		"column twice":         {"Temp          PotEng", "Temp Temp", "line 5: column Temp is there twice"},
		"cut row":              {"299.38517     -113.27631", "299.38", "line 7: a row of 3 numbers or the loop time"},
		"nan":                  {"299.38517", "-nan", `line 7: column Temp: "-nan" is not a finite number`},
		"inf":                  {"299.38517", "inf", "line 7: column Temp"},
		"hex":                  {"299.38517", "0x1p3", "line 7: column Temp"},
		"overflow":             {"299.38517", "1e999", "line 7: column Temp"},
		"stars":                {"299.38517", "*********", "line 7: column Temp"},
		"steps go back":        {"        10   ", "        0   ", "line 7: steps that are whole"},
		"no rows at the end":   {"        20   300.27106     -113.27884\n", "", "line 9: 20 steps do not fit the thermo table"},
		"no loop time":         {"Loop time of 6.63333 on 4 procs for 20 steps with 2432 atoms\n", "", "line 10: a row of 3 numbers or the loop time"},
		"loop time nan":        {"6.63333", "nan", "line 10: loop time, procs, steps"},
		"loop time zero":       {"6.63333", "0", "line 10: loop time, procs, steps"},
		"loop time negative":   {"6.63333", "-6.63", "line 10: loop time, procs, steps"},
		"no atoms":             {"2432 atoms", "0 atoms", "line 10: loop time, procs, steps"},
		"broken atoms":         {"2432 atoms", "24a32 atoms", `"24a32" is not a count`},
		"other units":          {"ns/day", "tau/day", "line 12: Performance in ns/day was expected"},
		"no performance":       {"Performance", "Prfrmance", "line 12: Performance in ns/day was expected"},
		"no cpu use":           {"99.3% CPU use", "CPU use", "line 13: CPU use was expected"},
		"procs differ":         {"with 2 MPI", "with 3 MPI", "line 13: 3 MPI tasks of 2 threads are not the 4 procs"},
		"no breakdown":         {"Section |", "Part |", "line 16: the MPI task timing breakdown was expected"},
		"thread breakdown":     {"MPI task timing", "Thread timing", "line 15: the MPI task timing breakdown was expected"},
		"section short":        {"| 5.0624     |  17.4 ", "|", "line 18: a section with min, avg, max"},
		"section empty":        {"4.1006", "      ", "line 18: section Pair: numbers from 0 on"},
		"section disorder":     {"4.1006", "4.9", "line 18: section Pair: min ≤ avg ≤ max"},
		"section twice":        {"Other   |", "Pair    |", "line 19: a section of another name"},
		"no other":             {"Other   |            | 0.0004201  |            |       |  0.01\n", "", "line 19: the timing breakdown was expected to go on to Other"},
		"second version":       {"Nlocal:", "LAMMPS (6 Jan 2022)\nNlocal:", "line 21: a second LAMMPS starts"},
		"second run":           {"Nlocal:", "Per MPI rank memory allocation (min/avg/max) = 1\nNlocal:", "line 21: a second run begins"},
		"second loop":          {"Nlocal:", "Loop time of 6.6 on 4 procs for 20 steps with 2432 atoms\nNlocal:", "line 21: a second run ends"},
		"two logs":             {"1:02:07\n", "1:02:07\n" + synthetic, "line 23: nothing was expected after"},
		"ranks on their own":   {"LAMMPS (6 Jan 2022)\n", "LAMMPS (6 Jan 2022)\nLAMMPS (6 Jan 2022)\n", "line 2: a second LAMMPS starts"},
		"no wall time":         {"Total wall time: 1:02:07\n", "", "ends after line 21, where the total wall time was expected"},
		"broken wall time":     {"1:02:07", "1:2", "line 22: a total wall time of H:MM:SS"},
		"impossible wall time": {"1:02:07", "1:72:07", "line 22: a total wall time of H:MM:SS"},
		"wall below loop":      {"1:02:07", "0:00:05", "line 22: the total wall time is less than the loop time"},
		"no run":               {synthetic, "LAMMPS (6 Jan 2022)\nTotal wall time: 0:00:00\n", "line 2: the run's start"},
		"line without end":     {"run 20", strings.Repeat("x", 2<<20), "line 3: bufio.Scanner: token too long"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, synthetic, c.was)
			_, err := ParseLog(strings.NewReader(strings.Replace(synthetic, c.was, c.is, 1)))
			require.ErrorContains(t, err, c.says)
		})
	}
}

// However much of a log is missing at its end, it is refused.
func TestParseLogRefusesEveryTruncation(t *testing.T) {
	for n := range len(synthetic) - len("\n") {
		_, err := ParseLog(strings.NewReader(synthetic[:n]))
		require.Error(t, err, "%d bytes", n)
	}
}

func TestCheck(t *testing.T) {
	read := func(was, is string) Log {
		log, err := ParseLog(strings.NewReader(strings.ReplaceAll(synthetic, was, is)))
		require.NoError(t, err)
		return log
	}
	first := read("", "")
	want := Want{X: 2, Y: 2, Z: 2, Steps: 20, Ranks: 2, First: &first, Tolerance: 1e-6}
	require.NoError(t, Check(first, want))
	require.NoError(t, Check(read("-113.27884", "-113.27885"), want))
	for says, log := range map[string]Log{
		"2433 atoms, but 2·2·2 cells of 304 have 2432": read("2432", "2433"),
		"off by 1.06e-05 of it, more than 1e-06":       read("-113.27884", "-113.28004"),
		"has no TotEng, E_total or PotEng":             read("PotEng", "E_pair"),
		"is TotEng, but PotEng in the first":           read("PotEng", "TotEng"),
	} {
		require.ErrorContains(t, Check(log, want), says)
	}
	want.Steps, want.Ranks = 100, 4
	err := Check(first, want)
	require.ErrorContains(t, err, "20 steps, but 100 were asked for")
	require.ErrorContains(t, err, "2 MPI tasks, but 4 were asked for")
}

func FuzzParseLog(f *testing.F) {
	f.Add(synthetic)
	real, err := filepath.Glob(filepath.Join("testdata", "*.log"))
	require.NoError(f, err)
	for _, name := range real {
		data, err := os.ReadFile(name)
		require.NoError(f, err)
		f.Add(string(data))
	}
	f.Fuzz(func(t *testing.T, text string) {
		log, err := ParseLog(strings.NewReader(text))
		if err != nil {
			return
		}
		require.Positive(t, log.LoopTime)
		require.False(t, math.IsInf(log.LoopTime, 0))
		for _, n := range []int{log.Procs, log.Tasks, log.Threads, log.Steps, int(log.Atoms), len(log.Breakdown), len(log.Version)} {
			require.Positive(t, n)
		}
		require.GreaterOrEqual(t, log.WallTime.Seconds()+1, log.LoopTime)
		require.GreaterOrEqual(t, len(log.Thermo.Rows), 2)
		for _, row := range log.Thermo.Rows {
			require.Len(t, row, len(log.Thermo.Columns))
			for _, v := range row {
				require.False(t, math.IsNaN(v) || math.IsInf(v, 0))
			}
		}
	})
}
