//go:build !clouds

package clouds

// Built tells whether this build can ask clouds.
const Built = false

// Open is an ErrNotBuilt in this build.
func Open(string, map[string]string) (Cloud, error) { return nil, ErrNotBuilt }
