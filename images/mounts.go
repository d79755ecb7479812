package images

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// mountsOf lists the mount points whose overlay has the tree as a lower layer: the roots of the nodes that run on it.
func mountsOf(tree string) ([]string, error) {
	want, err := os.Stat(tree)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, fmt.Errorf("looking for nodes that run on %s: %w", tree, err)
	}
	var points []string
	for line := range strings.Lines(string(mounts)) {
		point, layers := lowerLayers(line)
		if slices.ContainsFunc(layers, func(layer string) bool {
			have, err := os.Stat(layer) // the store may have been reached by another path
			return err == nil && os.SameFile(have, want)
		}) {
			points = append(points, point)
		}
	}
	return points, nil
}

// lowerLayers reads the mount point and the lower layers of a line of /proc/self/mounts. Of what is no overlay there are none.
func lowerLayers(line string) (point string, layers []string) {
	f := strings.Fields(line)
	if len(f) < 4 || f[2] != "overlay" {
		return "", nil
	}
	for _, option := range strings.Split(f[3], ",") { // a comma in a path is escaped by the kernel
		switch name, value, _ := strings.Cut(option, "="); name {
		case "lowerdir":
			layers = append(layers, splitLayers(unescapeMount(value))...)
		case "lowerdir+", "datadir+": // one each, of kernel 6.8 on
			layers = append(layers, unescapeMount(value))
		}
	}
	return unescapeMount(f[1]), layers
}

// splitLayers splits at colons. A backslash keeps the character after it: whoever mounted wrote it before a colon of a path.
func splitLayers(value string) []string {
	layers := []string{""}
	last := &layers[0]
	for i := 0; i < len(value); i++ {
		switch {
		case value[i] == '\\' && i+1 < len(value):
			i++
			*last += value[i : i+1]
		case value[i] == ':':
			layers = append(layers, "")
			last = &layers[len(layers)-1]
		default:
			*last += value[i : i+1]
		}
	}
	return slices.DeleteFunc(layers, func(l string) bool { return l == "" }) // two colons divide lower from data layers
}

// unescapeMount undoes the kernel's \ooo.
func unescapeMount(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
