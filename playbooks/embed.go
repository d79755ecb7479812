// Package playbooks holds the Ansible playbooks and roles that say how nodes are made and configured.
//
// A role has up to three entry points, each a file in its tasks directory:
//
//	build.yml      makes what the role installs, in a throw-away tree with compilers, from the source package that
//	               <role>_source names and whose files are in bed_source_dir; what it leaves under bed_artifact_dir is
//	               kept by content and unpacked over the image; what it writes to bed_artifact_dir.progress, up to a
//	               "|" in the last line, is shown meanwhile
//	bake.yml       puts what is the same on every node into an image, over a chroot connection, without starting anything
//	configure.yml  sets what differs by node or bed, over ssh as the bed's user
//
// Role usernetes goes on by cluster.yml where the bed has a Kubernetes of its own, and by jobs.yml where only its jobs have.
//
// What only configure.yml reads is in templates/, vars/ and library/; a change there asks for no new image. What only build.yml reads is
// in vars/build.yml and files/build/.
package playbooks

import "embed"

// FS holds everything: bake.yml, build.yml, site.yml, roles/ and what modules of ours they use, library/.
//
//go:embed *.yml library roles
var FS embed.FS

// Roles lists the roles an image may have, in the order they are baked.
func Roles() []string {
	return []string{"base", "kernel", "mpi", "slurm", "flux", "lammps", "usernetes", "kubernetes", "ml_server"}
}
