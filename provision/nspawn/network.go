package nspawn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bedfellow/bedfellow/provision"
)

// A bed's network is a bridge in a network namespace of the bed's own, to which each node's namespace has one link, and the
// host one. Nothing else of the host changes, so it works beside Docker and goes away whole.

const (
	netnsDir   = "/run/netns"
	prefixBits = 22 // room for 1000 nodes
	hostOffset = 1  // the host's address in the bed's network
	nodeOffset = 11 // the first node's
	maxNodes   = 1000
)

// Link is the host's end of the bed's network: a name that fits into the 15 characters of a network device.
func Link(bedName string) string {
	h := fnv.New32a()
	_, _ = h.Write([]byte(bedName))
	return fmt.Sprintf("bf%08x", h.Sum32())
}

// port is the bed's end of a node's link.
func port(index int) string { return fmt.Sprintf("n%d", index) }

func bedNS(bedName string) string { return "bedfellow-" + bedName }
func nodeNS(node string) string   { return "bedfellow-" + node + ".node" } // no bed's name has a dot

func address(subnet netip.Prefix, offset int) netip.Addr {
	a := subnet.Addr().As4()
	n := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	n += uint32(offset)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// freeSubnet finds a subnet that overlaps no route or address of the host and no other bed's. The search starts where the bed's
// name says, so that a bed made twice mostly gets the same.
func freeSubnet(ctx context.Context, bedName string, taken []netip.Prefix) (netip.Prefix, error) {
	hosts, err := hostPrefixes(ctx)
	if err != nil {
		return netip.Prefix{}, err
	}
	taken = append(taken, hosts...)
	for _, private := range spaces() {
		space := netip.MustParsePrefix(private)
		blocks := 1 << (prefixBits - space.Bits())
		h := fnv.New32a()
		_, _ = h.Write([]byte(bedName))
		first := int(h.Sum32() % uint32(blocks))
		for i := range blocks {
			candidate := netip.PrefixFrom(address(space, (first+i)%blocks<<(32-prefixBits)), prefixBits)
			if !slices.ContainsFunc(taken, candidate.Overlaps) {
				return candidate, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("no subnet in %v is free: routes or other beds use all of them; look at `ip route show table all`", spaces())
}

// spaces are the private address spaces that subnets come from, in order of preference: a route of a VPN may cover a whole one.
func spaces() []string {
	return []string{"10.128.0.0/9", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"}
}

// hostPrefixes are the networks the host has addresses in or routes to, the default routes aside.
func hostPrefixes(ctx context.Context) ([]netip.Prefix, error) {
	out, err := run(ctx, "ip", "-j", "-4", "route", "show", "table", "all")
	if err != nil {
		return nil, err
	}
	var routes []struct{ Dst string }
	if err := json.Unmarshal([]byte(out), &routes); err != nil {
		return nil, fmt.Errorf("read `ip -j route`: %w", err)
	}
	var prefixes []netip.Prefix
	for _, r := range routes {
		if p, err := netip.ParsePrefix(r.Dst); err == nil && p.Bits() > 1 {
			prefixes = append(prefixes, p)
		} else if a, err := netip.ParseAddr(r.Dst); err == nil {
			prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return prefixes, nil
}

// makeBedNetwork makes the bed's bridge and its link to the host, or mends what is half there.
func makeBedNetwork(ctx context.Context, r bedRecord) error {
	ns, link := bedNS(r.Owner.Bed), Link(r.Owner.Bed)
	if _, err := run(ctx, "ip", "-n", ns, "link", "show", "up", "br0"); err == nil {
		if _, err := run(ctx, "ip", "link", "show", "up", link); err == nil {
			return nil
		}
	}
	if err := removeBedNetwork(ctx, r.Owner.Bed); err != nil {
		return err
	}
	if _, err := run(ctx, "ip", "netns", "add", ns); err != nil {
		return err
	}
	subnet := r.Subnet
	lines := []string{
		fmt.Sprintf("link add %s type veth peer name host netns %s", link, ns),
		fmt.Sprintf("addr add %s/%d dev %s", address(subnet, hostOffset), subnet.Bits(), link),
		fmt.Sprintf("link set %s up", link),
	}
	if err := ipBatch(ctx, nil, lines); err != nil {
		return err
	}
	if r.Network == "outbound" {
		if err := openRoute(ctx, r); err != nil {
			return err
		}
	}
	// Last of all br0 goes up: that it is up says that all is there.
	return inNS(ctx, ns, "link set lo up", "link add br0 type bridge", "link set host master br0", "link set host up", "link set br0 up")
}

// inNS runs `ip` commands inside a named network namespace.
func inNS(ctx context.Context, ns string, lines ...string) error {
	return ipBatch(ctx, []string{"-n", ns}, lines)
}

func removeBedNetwork(ctx context.Context, bedName string) error {
	var errs []error
	closeRoute(ctx, bedName)
	link := Link(bedName)
	if _, err := os.Stat(filepath.Join("/sys/class/net", link)); err == nil {
		_, err := run(ctx, "ip", "link", "del", link)
		errs = append(errs, err)
	}
	return errors.Join(append(errs, removeNS(ctx, bedNS(bedName)))...)
}

// removeNS removes a named namespace; the kernel takes the links inside with it. Also the file that a killed `ip netns add` leaves.
func removeNS(ctx context.Context, ns string) error {
	path := filepath.Join(netnsDir, ns)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if _, err := run(ctx, "ip", "netns", "del", ns); err != nil {
		if errRemove := os.Remove(path); errRemove != nil && !errors.Is(errRemove, os.ErrNotExist) {
			return errors.Join(err, errRemove)
		}
	}
	return nil
}

// makeNodeNetwork makes the node's namespace with eth0 on the bed's bridge, its address set before the node boots.
func makeNodeNetwork(ctx context.Context, r bedRecord, node string, index int) error {
	ns := nodeNS(node)
	if _, err := run(ctx, "ip", "netns", "add", ns); err != nil {
		return err
	}
	port, ip := port(index), address(r.Subnet, nodeOffset+index).As4()
	// A node made anew keeps its link address, or its neighbours would talk to the old one until their caches forget it.
	mac := fmt.Sprintf("02:bf:%02x:%02x:%02x:%02x", ip[0], ip[1], ip[2], ip[3])
	if err := inNS(ctx, bedNS(r.Owner.Bed),
		fmt.Sprintf("link add %s type veth peer name eth0 address %s netns %s", port, mac, ns),
		fmt.Sprintf("link set %s master br0", port),
		fmt.Sprintf("link set %s up", port)); err != nil {
		return err
	}
	lines := []string{
		"link set lo up",
		fmt.Sprintf("addr add %s/%d dev eth0", address(r.Subnet, nodeOffset+index), r.Subnet.Bits()),
		"link set eth0 up",
	}
	if r.Network == "outbound" {
		lines = append(lines, fmt.Sprintf("route add default via %s", address(r.Subnet, hostOffset)))
	}
	return inNS(ctx, ns, lines...)
}

// openRoute lets the bed's nodes out through the host, by a table of nftables' that is the bed's own.
func openRoute(ctx context.Context, r bedRecord) error {
	table := "bedfellow_" + Link(r.Owner.Bed)
	_, err := run(ctx, "nft", fmt.Sprintf(
		"add table ip %[1]s; add chain ip %[1]s post { type nat hook postrouting priority srcnat; }; add rule ip %[1]s post ip saddr %[2]s ip daddr != %[2]s masquerade",
		table, r.Subnet))
	return err
}

func closeRoute(ctx context.Context, bedName string) {
	_, _ = run(ctx, "nft", "delete table ip bedfellow_"+Link(bedName)) // mostly there is none, or no nft
}

// canRoute says what keeps the host from letting a bed out. The host's own settings are its administrator's to change.
func canRoute() (reason, remedy string) {
	if on, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); strings.TrimSpace(string(on)) != "1" {
		return "this host forwards no packets, so nodes get no route out", "run `sysctl -w net.ipv4.ip_forward=1`, or leave network at isolated"
	}
	return missing("nft", "nftables")
}

// taken lists the subnets of all beds on this host but the named one.
func (d *Driver) taken(bedName string) []netip.Prefix {
	var subnets []netip.Prefix
	for _, other := range d.beds() {
		if r, err := d.readBed(other); err == nil && other != bedName {
			subnets = append(subnets, r.Subnet)
		}
	}
	return subnets
}

var _ provision.Sweeper = (*Driver)(nil)
