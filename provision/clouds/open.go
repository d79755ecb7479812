//go:build clouds

package clouds

import (
	"fmt"
	"os"
)

// Open returns the named cloud as the settings say, the values of its keys without its name. Nobody is asked anything yet.
func Open(name string, settings map[string]string) (Cloud, error) {
	switch name {
	case "aws":
		s, problems := ReadAWS(settings)
		if s.Region == "" {
			return nil, problems.Err()
		}
		return openAWS(s)
	case "openstack":
		s, _ := ReadOpenStack(settings)
		return openOpenStack(s)
	}
	return nil, fmt.Errorf("there is no cloud %q; there is %v", name, Names())
}

// Reachable are the clouds that the environment names.
func Reachable() (names []string) {
	for name, variables := range map[string][]string{"aws": {"AWS_REGION", "AWS_DEFAULT_REGION"}, "openstack": {"OS_CLOUD", "OS_AUTH_URL"}} {
		if os.Getenv(variables[0]) != "" || os.Getenv(variables[1]) != "" {
			names = append(names, name)
		}
	}
	return names
}
