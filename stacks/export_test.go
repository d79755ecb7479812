package stacks

// What tests look at.
var (
	SSHSource = sshSource
	Expiry    = expiry
	Mark      = mark
)
