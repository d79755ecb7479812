package stacks

import (
	"embed"
	"strings"
)

//go:embed Pulumi.*.yaml
var presets embed.FS

// Preset is the configuration file that a stack of that name starts from.
func Preset(stack string) ([]byte, bool) {
	data, err := presets.ReadFile("Pulumi." + stack + ".yaml")
	return data, err == nil
}

// Presets lists the stacks that have one.
func Presets() []string {
	entries, _ := presets.ReadDir(".")
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(strings.TrimPrefix(e.Name(), "Pulumi."), ".yaml"))
	}
	return names
}
