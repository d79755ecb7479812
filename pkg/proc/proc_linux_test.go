package proc

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCloseOnExec(t *testing.T) {
	fd, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0) // left open for children, as a shell leaves what it redirects
	require.NoError(t, err)
	defer syscall.Close(fd)
	has := func() bool { return exec.Command("sh", "-c", fmt.Sprintf("[ -e /proc/self/fd/%d ]", fd)).Run() == nil }
	require.True(t, has())
	CloseOnExec()
	require.False(t, has())
}
