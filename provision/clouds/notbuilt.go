//go:build !clouds

package clouds

// Open is an ErrNotBuilt in this build.
func Open(string, map[string]string) (Cloud, error) { return nil, ErrNotBuilt }

// Reachable are the clouds that can be asked: none in this build.
func Reachable() []string { return nil }
