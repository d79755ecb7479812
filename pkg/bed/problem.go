package bed

import (
	"fmt"
	"strings"
)

// Problem is one thing that keeps a bed from being made: which key, the value found, why it will not do and what to do next.
type Problem struct {
	Key    string `json:"key"`   // configuration key without its namespace; empty for a problem of the host
	Value  string `json:"value"` // as given; empty when nothing was
	Reason string `json:"reason"`
	Remedy string `json:"remedy"`
	// Host is true when the value is fine in itself but this host, engine or bed cannot give it (exit code 3), false when it is
	// wrong everywhere (exit code 2).
	Host bool `json:"host"`
}

func (p Problem) String() string {
	var b strings.Builder
	switch {
	case p.Key == "":
	case p.Value == "":
		fmt.Fprintf(&b, "%s: ", p.Key)
	default:
		fmt.Fprintf(&b, "%s: %q: ", p.Key, p.Value)
	}
	b.WriteString(p.Reason)
	if p.Remedy != "" {
		fmt.Fprintf(&b, "\n    → %s", p.Remedy)
	}
	return b.String()
}

// Problems is an error that holds every problem found, so that a person mends them in one go.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Err returns nil when there is no problem.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// ExitCode is 2 when some value is wrong whatever the host, else 3.
func (ps Problems) ExitCode() int {
	for _, p := range ps {
		if !p.Host {
			return 2
		}
	}
	return 3
}
