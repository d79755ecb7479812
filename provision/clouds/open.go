//go:build clouds

package clouds

import (
	"fmt"
	"slices"

	"github.com/bedfellow/bedfellow/pkg/bed"
)

// Built tells whether this build can ask clouds.
const Built = true

// Open returns the named cloud as the settings say, the values of its keys without its name. They need not be of a bed, but must say where.
// Nobody is asked anything yet.
func Open(name string, settings map[string]string) (Cloud, error) {
	switch name {
	case "aws":
		s, problems := ReadAWS(settings)
		problems = slices.DeleteFunc(problems, func(p bed.Problem) bool { return p.Key != "aws.region" })
		if err := problems.Err(); err != nil {
			return nil, err
		}
		return openAWS(s)
	case "openstack":
		s, _ := ReadOpenStack(settings)
		return openOpenStack(s)
	}
	return nil, fmt.Errorf("there is no cloud %q; there is %v", name, Names())
}
