//go:build clouds

package clouds

import (
	"os"
	"testing"
)

// Trees is where the tree is made that tests share.
var Trees string

func TestMain(m *testing.M) {
	code := func() int {
		dir, err := os.MkdirTemp("", "clouds")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		Trees = dir
		return m.Run()
	}()
	os.Exit(code)
}
