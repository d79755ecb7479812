package lima

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

const (
	probeTimeout = 10 * time.Second
	// guestExit is the status QEMU ends with when the probe's guest has written guestSign to the debug port: twice that, and one.
	guestSign = 0x10
	guestExit = guestSign<<1 | 1
)

// accel is how guests' instructions are run.
type accel struct {
	KVM    bool   // by the CPU itself; otherwise by QEMU, one by one
	Reason string // why not by the CPU
	qemu   string // path of QEMU; empty where QEMU is not used
}

// accelRecord is what a probe found, and what of: it is asked again after a reboot, with another QEMU, or when the device's mode or the
// user's groups have changed.
type accelRecord struct {
	Of     string `json:"of"`
	KVM    bool   `json:"kvm"`
	Reason string `json:"reason,omitempty"`
	// Until is for an answer that may have been for lack of time.
	Until time.Time `json:"until,omitzero"`
}

// probe finds whether the CPU itself can run guests for the account. /dev/kvm may be there and open, and still no guest run: on
// hosts that are virtual machines themselves. So a guest is run.
func (d *Driver) probe(ctx context.Context, a *account) accel {
	if !usesQEMU() {
		return accel{KVM: true} // Apple's framework, the only one Lima has there
	}
	qemu, err := exec.LookPath(qemuCommand())
	if err != nil {
		return accel{Reason: err.Error()}
	}
	file := filepath.Join(d.root, "accel.json")
	of := probeKey(qemu, a)
	if r, err := readJSON[accelRecord](file); err == nil && r.Of == of && (r.Until.IsZero() || time.Now().Before(r.Until)) {
		return accel{KVM: r.KVM, Reason: r.Reason, qemu: qemu}
	}
	r := accelRecord{Of: of, KVM: true}
	answered := true
	if err := runGuest(ctx, qemu, "kvm", "host", a); err != nil {
		r.KVM, r.Reason = false, err.Error()
		switch {
		case errors.As(err, new(refusal)):
		case errors.Is(err, errSilent):
			r.Until = time.Now().Add(time.Hour)
		default: // for lack of room, say, which passes
			answered = false
		}
	}
	if answered && os.MkdirAll(d.root, 0o755) == nil {
		_ = writeJSON(file, r) // without it the next command probes again
	}
	return accel{KVM: r.KVM, Reason: r.Reason, qemu: qemu}
}

func probeKey(qemu string, a *account) string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var binary int64
	if info, err := os.Stat(qemu); err == nil {
		binary = info.ModTime().UnixNano()
	}
	var device syscall.Stat_t
	_ = syscall.Stat("/dev/kvm", &device)
	user := fmt.Sprint(os.Geteuid())
	if a != nil {
		user = fmt.Sprint(a.uid, a.groups)
	}
	return fmt.Sprintf("boot %s, %s of %d, /dev/kvm %o of %d:%d, user %s", strings.TrimSpace(string(boot)), qemu, binary, device.Mode, device.Uid, device.Gid, user)
}

// runGuest boots a guest of a few instructions with the accelerator. nil says that they ran.
func runGuest(ctx context.Context, qemu, accelerator, cpu string, a *account) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, errSilent)
	defer cancel()
	h := host{account: a, limactl: qemu}
	if runtime.GOARCH != "amd64" { // the guest below is for a PC: elsewhere it must do that QEMU can make the CPUs
		cmd := h.command("/", qemu, "-machine", "virt,accel="+accelerator, "-cpu", cpu, "-nodefaults", "-no-user-config", "-display", "none", "-S", "-monitor", "stdio")
		cmd.Stdin = strings.NewReader("quit\n")
		_, err := run(ctx, cmd)
		return plain(err)
	}
	disk, err := os.CreateTemp("", "bedfellow-probe")
	if err != nil {
		return err
	}
	defer disk.Close()
	defer os.Remove(disk.Name())
	if _, err := disk.Write(bootSector()); err != nil {
		return err
	}
	if err := disk.Chmod(0o644); err != nil {
		return err
	}
	cmd := h.command("/", qemu, "-machine", "pc,accel="+accelerator, "-cpu", cpu, "-m", "32", "-nodefaults", "-no-user-config", "-display", "none",
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=4", debugPort),
		// By descriptor: the account may not enter the directory of temporary files.
		"-drive", "if=floppy,format=raw,readonly=on,file=/dev/fd/3")
	cmd.ExtraFiles = []*os.File{disk}
	_, err = run(ctx, cmd)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == guestExit {
		return nil
	}
	if err == nil {
		return refusal("the guest ended without having run")
	}
	return plain(err)
}

// errSilent is a guest that did nothing, of a KVM that runs none or a host that is busy.
var errSilent = fmt.Errorf("the guest ran nothing within %s", probeTimeout)

// refusal is what QEMU said that ended by itself.
type refusal string

func (r refusal) Error() string { return string(r) }

// plain is the last line of an error, without the command's; a refusal if the command ended by itself.
func plain(err error) error {
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(err.Error())
	text = strings.TrimPrefix(text[strings.LastIndex(text, "\n")+1:], "qemu-system-x86_64: ")
	if _, said, ok := strings.Cut(text, "`: "); ok { // one line only: what follows the command
		text = said
	}
	if errors.Is(err, errSilent) {
		return errSilent
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		return refusal(text)
	}
	return errors.New(text)
}

const debugPort = 0xf4

// bootSector is a disk whose boot record writes guestSign to the debug port, and then stands still.
func bootSector() []byte {
	sector := make([]byte, 512)
	copy(sector, []byte{
		0xb0, guestSign, // mov al, guestSign
		0xe6, debugPort, // out debugPort, al
		0xfa,       // cli
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to the hlt
	})
	sector[510], sector[511] = 0x55, 0xaa
	return sector
}

// environment is what makes Lima use what the probe found. Lima itself takes KVM whenever there is a /dev/kvm, and asks QEMU for what
// it can before it adds the arguments given here, so that they and not its own are in force.
func (a accel) environment() []string {
	if a.qemu == "" {
		return nil
	}
	command := a.qemu
	if !a.KVM {
		switch runtime.GOARCH {
		case "amd64":
			command += " -machine q35,vmport=off -accel tcg,thread=multi,tb-size=512 -cpu max" +
				" -global ICH9-LPC.disable_s3=1 -global ICH9-LPC.disable_s4=1" // no sleep states: nothing here would wake it
		default:
			command += " -machine virt,accel=tcg -cpu max"
		}
	}
	return []string{strings.ToUpper(strings.ReplaceAll(qemuCommand(), "-", "_")) + "=" + command}
}

// note says once that machines will be slow.
func (a accel) note() string {
	if a.KVM {
		return ""
	}
	return fmt.Sprintf("no usable KVM: %s; emulated CPUs, expect 15 to 20 times slower", a.Reason)
}

// grace is how long Lima may take for the rest of a boot when the machine answers already.
func (a accel) grace() time.Duration {
	if a.KVM {
		return time.Minute
	}
	return 5 * time.Minute
}

// bootTimeout is how long a machine may take to be reached: an emulated one alone takes a minute or two, seven on two CPUs ten.
func (a accel) bootTimeout() time.Duration {
	if a.KVM {
		return 3 * time.Minute
	}
	return 20 * time.Minute
}
