package bed

// ImageFormat is a form of a baked image, which drivers boot machines from.
type ImageFormat string

// A Tree is a directory that is a root file system. A VM image is a directory with the files named below; KernelFile, InitrdFile
// and CmdlineFile are for starting the kernel directly, and the disk boots by itself too, with BIOS and with UEFI. A raw image is a directory
// with the same disk as RawFile, for clouds that import nothing else.
const (
	Tree ImageFormat = "tree"
	VM   ImageFormat = "vm"
	Raw  ImageFormat = "raw"

	RawFile     = "disk.raw"
	DiskFile    = "disk.qcow2"
	KernelFile  = "vmlinuz"
	InitrdFile  = "initrd.img"
	CmdlineFile = "cmdline" // of the kernel, one line without the newline
)

// ImageFormats lists them.
func ImageFormats() []ImageFormat { return []ImageFormat{Tree, VM, Raw} }
