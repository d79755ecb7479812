// Command prepare gets a host ready for bedfellow: distribution packages, the commands in bin/, what a driver needs, and an image if
// one is named. What can go side by side does. The Makefile runs it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/bedfellow/bedfellow/images"
	"github.com/bedfellow/bedfellow/pkg/bed"
	"github.com/bedfellow/bedfellow/pkg/progress"
	"github.com/bedfellow/bedfellow/provision/clouds"
	"github.com/bedfellow/bedfellow/provision/drivers"
	"github.com/bedfellow/bedfellow/provision/lima"
)

// packages lists the commands that a driver and the images of its machines need beside Go, git and make, with the Debian packages they
// come from. On macOS the packages are Homebrew's, and virtual machines do what needs Linux.
func packages(driver string) []images.Tool {
	if runtime.GOOS != "linux" {
		return []images.Tool{{Program: "ansible-playbook", Package: "ansible"}, {Program: "limactl", Package: "lima"}}
	}
	ssh := images.Tool{Program: "ssh", Package: "openssh-client"}
	if driver == "lima" {
		tools := []images.Tool{ssh, {Program: "qemu-system-x86_64", Package: "qemu-system-x86"}, {Program: "qemu-img", Package: "qemu-utils"}}
		if os.Geteuid() != 0 { // whose images root has baked, or a virtual machine bakes
			return append(tools, images.Tool{Program: "ansible-playbook", Package: "ansible"})
		}
		if os.Getenv("CI") == "true" { // what tests alone want: a UEFI for images to boot with, and to see the rules that a node's script makes
			tools = append(tools, images.Tool{Program: "/usr/share/OVMF/OVMF_CODE_4M.fd", Package: "ovmf"}, images.Tool{Program: "nft", Package: "nftables"})
		}
		return append(images.Tools(bed.VM), tools...)
	}
	if driver == "ovirt" || clouds.Is(driver) {
		return append(images.Tools(bed.VM), ssh)
	}
	return append(images.Tools(bed.Tree), ssh, images.Tool{Program: "systemd-nspawn", Package: "systemd-container"})
}

// limaVersion is of hack/lima/go.mod.
const limaVersion = "2.2.0"

func main() {
	image := flag.String("image", "", "image to bake, such as debian-12; none by default")
	driver := flag.String("driver", "nspawn", "the driver or cloud to prepare for: nspawn, lima, ovirt, aws or openstack")
	pulumi := flag.String("pulumi", "", "the Pulumi version to want")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *driver, *image, *pulumi); err != nil {
		fmt.Fprintln(os.Stderr, "prepare:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, driver, image, pulumi string) error {
	if known := slices.Concat([]string{"nspawn", "lima", "ovirt"}, clouds.Names()); !slices.Contains(known, driver) {
		return fmt.Errorf("there is nothing to prepare for a driver %q; there is %s", driver, strings.Join(known, ", "))
	}
	lacking := lacking(driver)
	if len(lacking) > 0 {
		if err := mayInstall(lacking); err != nil {
			return err
		}
	}
	sink, done := progress.Display(os.Stderr)
	defer done()
	ctx, cancel := context.WithCancel(progress.With(ctx, sink))
	defer cancel()

	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	begin := func(task func() error) {
		wg.Go(func() {
			if err := task(); err != nil {
				mu.Lock()
				if ctx.Err() == nil || len(errs) == 0 { // what follows from the first failure says nothing new
					errs = append(errs, err)
				}
				mu.Unlock()
				cancel()
			}
		})
	}
	begin(func() error {
		if err := install(ctx, lacking); err != nil {
			return err
		}
		if driver == "lima" {
			return account(ctx)
		}
		if image == "" {
			return nil
		}
		store, err := drivers.Images("")
		if err != nil {
			return err
		}
		_, err = store.Build(ctx, images.Request{Definition: image})
		return err
	})
	begin(func() error {
		what, flags := "build bin/bed and the provider", []string{"build"}
		if clouds.Is(driver) || withClouds("bin/bed") { // a bed that is rented meanwhile wants them until it is gone
			what, flags = what+" with the clouds, which takes minutes", []string{"build", "-tags", "clouds"}
		}
		if err := command(ctx, what, nil, "go", append(flags, "-o", "bin/", "./cmd/...")...); err != nil {
			return err
		}
		if runtime.GOOS != "linux" { // for the virtual machine that bakes
			if err := command(ctx, "build bed for Linux", []string{"GOOS=linux"}, "go", "build", "-o", "bin/bed-linux-"+runtime.GOARCH, "./cmd/bed"); err != nil {
				return err
			}
		} else if driver == "lima" {
			if err := command(ctx, "build bin/limactl "+limaVersion, nil, "go", "build", "-C", "hack/lima",
				"-ldflags", "-X github.com/lima-vm/lima/v2/pkg/version.Version="+limaVersion, "-o", "../../bin/limactl", "github.com/lima-vm/lima/v2/cmd/limactl"); err != nil {
				return err
			}
			if err := forAccount(); err != nil {
				return err
			}
		}
		if have := installed(ctx); newEnough(have, pulumi) {
			progress.Note(ctx, "Pulumi %s is installed", have)
			return nil
		}
		stamp := "-X github.com/pulumi/pulumi/sdk/v3/go/common/version.Version=" + pulumi
		return command(ctx, "build bin/pulumi "+pulumi, nil, "go", "build", "-ldflags", stamp, "-o", "bin/pulumi", "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi")
	})
	wg.Wait()
	if len(errs) == 0 && driver == "lima" && image != "" { // last, for the machine that may have to bake runs what was built
		errs = append(errs, command(ctx, "bake "+image, nil, "bin/bed", "image", "build", image, "--format", string(bed.VM)))
	}
	return errors.Join(errs...)
}

// withClouds tells whether a command was built with the clouds.
func withClouds(command string) bool {
	info, err := buildinfo.ReadFile(command)
	return err == nil && slices.Contains(info.Settings, debug.BuildSetting{Key: "-tags", Value: "clouds"})
}

// lacking lists the packages whose commands are not there.
func lacking(driver string) []string {
	var missing []string
	for _, p := range packages(driver) {
		_, err := exec.LookPath(p.Program)
		if filepath.IsAbs(p.Program) { // a file, and no command
			_, err = os.Stat(p.Program)
		}
		if err != nil && !slices.Contains(missing, p.Package) {
			missing = append(missing, p.Package)
		}
	}
	return missing
}

// account makes the user that Lima runs as where we are root, which it refuses to be.
func account(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return nil
	}
	if _, err := user.Lookup(lima.Account); err == nil {
		return nil
	}
	if err := os.MkdirAll("/var/lib/bedfellow", 0o755); err != nil {
		return err
	}
	args := []string{"--system", "--user-group", "--create-home", "--home-dir", "/var/lib/bedfellow/lima", "--shell", "/usr/sbin/nologin"}
	if _, err := user.LookupGroup("kvm"); err == nil {
		args = append(args, "--groups", "kvm")
	}
	return command(ctx, "make the user "+lima.Account, nil, "useradd", append(args, lima.Account)...)
}

// forAccount copies limactl to where the user that Lima runs as can enter, which the checkout may be not.
func forAccount() error {
	if os.Geteuid() != 0 {
		return nil
	}
	data, err := os.ReadFile("bin/limactl")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(lima.SystemLimactl), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(lima.SystemLimactl+".part", data, 0o755); err != nil {
		return err
	}
	return os.Rename(lima.SystemLimactl+".part", lima.SystemLimactl)
}

// mayInstall asks, unless CI=true or YES=1 answers. Only Debian's packages are known to us.
func mayInstall(missing []string) error {
	list := strings.Join(missing, " ")
	if runtime.GOOS == "darwin" {
		return fmt.Errorf("these commands are missing; install them: brew install %s", list)
	}
	release, _ := os.ReadFile("/etc/os-release")
	if !regexp.MustCompile(`(?m)^ID=debian$`).Match(release) {
		return fmt.Errorf("these packages (by their Debian names) are missing: %s. This is not Debian: install them your distribution's way, then run this again", list)
	}
	fmt.Fprintf(os.Stderr, "To be installed with apt-get: %s\n", list)
	if os.Getenv("CI") == "true" || os.Getenv("YES") == "1" {
		return nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return errors.New("nobody to ask: set YES=1 to go ahead, or install them yourself")
	}
	fmt.Fprint(os.Stderr, "Go ahead? [y/N] ")
	answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing was installed")
	}
	return nil
}

func install(ctx context.Context, missing []string) error {
	if len(missing) == 0 {
		return nil
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("installing packages needs root: run `sudo apt-get install %s`, or this as root", strings.Join(missing, " "))
	}
	env := []string{"DEBIAN_FRONTEND=noninteractive"}
	if err := command(ctx, "apt-get update", env, "apt-get", "update"); err != nil {
		return err
	}
	return command(ctx, "apt-get install", env, "apt-get", append([]string{"install", "-y", "--no-install-recommends"}, missing...)...)
}

// command runs a command as a step that shows the newest line of its output.
func command(ctx context.Context, name string, env []string, argv0 string, args ...string) error {
	step := progress.Start(ctx, "%s", name)
	cmd := exec.CommandContext(ctx, argv0, args...)
	cmd.Env = append(os.Environ(), env...)
	out := &newest{step: step}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		err = fmt.Errorf("`%s %s`: %w\n%s", argv0, strings.Join(args, " "), err, out.tail())
		step.EndWith("", err)
		return err
	}
	return step.End(nil)
}

// newest keeps the end of a command's output and reports each line.
type newest struct {
	step *progress.Step
	buf  bytes.Buffer
}

func (n *newest) Write(p []byte) (int, error) {
	n.buf.Write(p)
	if lines := strings.Split(strings.TrimSpace(string(p)), "\n"); lines[len(lines)-1] != "" {
		n.step.Update("%s", lines[len(lines)-1])
	}
	return len(p), nil
}

func (n *newest) tail() string {
	lines := strings.Split(strings.TrimSpace(n.buf.String()), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

// installed is the version of the Pulumi on PATH, other than the one we build.
func installed(ctx context.Context) string {
	path, err := exec.LookPath("pulumi")
	if err != nil {
		return ""
	}
	if own, err := filepath.Abs("bin/pulumi"); err == nil && own == path {
		return ""
	}
	out, _ := exec.CommandContext(ctx, path, "version").Output()
	return strings.TrimPrefix(strings.TrimSpace(string(out)), "v")
}

// newEnough compares versions such as 3.259.0.
func newEnough(have, want string) bool {
	if have == "" {
		return false
	}
	h, w := strings.SplitN(have, ".", 3), strings.SplitN(want, ".", 3)
	for i := range min(len(h), len(w)) {
		a, _ := strconv.Atoi(strings.SplitN(h[i], "-", 2)[0])
		b, _ := strconv.Atoi(w[i])
		if a != b {
			return a > b
		}
	}
	return true
}
