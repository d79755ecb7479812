package bed

import (
	"fmt"
	"regexp"
	"strconv"
)

// Size is an amount of memory or disk in bytes.
type Size int64

// The units a Size may be written in.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

var sizePattern = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)$`)

// ParseSize reads a positive size in whole MiB such as "8GiB", "1.5GiB" or "512 MiB". Decimal units (GB) and bare numbers are refused: a
// virtual machine of "8" has been 8 MB, 8 GB and 8 GiB in different tools.
func ParseSize(s string) (Size, error) {
	m := sizePattern.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("is not a size; write a number and KiB, MiB or GiB, such as 2GiB")
	}
	var unit Size
	switch m[2] {
	case "KiB":
		unit = KiB
	case "MiB":
		unit = MiB
	case "GiB":
		unit = GiB
	case "":
		return 0, fmt.Errorf("has no unit; write KiB, MiB or GiB after the number, such as %sGiB", m[1])
	default:
		return 0, fmt.Errorf("has the unit %q; write KiB, MiB or GiB, such as %sGiB", m[2], m[1])
	}
	v, err := strconv.ParseFloat(m[1], 64)
	if err != nil || v*float64(unit) > 1<<60 {
		return 0, fmt.Errorf("is too large")
	}
	size := Size(v * float64(unit))
	if size <= 0 {
		return 0, fmt.Errorf("must be more than nothing")
	}
	if size%MiB != 0 {
		return 0, fmt.Errorf("does not come to whole MiB")
	}
	return size, nil
}

// String writes the size in the largest unit that divides it.
func (s Size) String() string {
	switch {
	case s%GiB == 0:
		return fmt.Sprintf("%dGiB", s/GiB)
	case s%MiB == 0:
		return fmt.Sprintf("%dMiB", s/MiB)
	default:
		return fmt.Sprintf("%dKiB", s/KiB)
	}
}
