// Package proc is about child processes, as far as systems differ.
package proc
