# Makes this machine the node it is: name, keys, addresses. Runs at every boot before sshd, and changes only what is not right yet.
(
set -eu
changed=no
# put FILE MODE: standard input becomes the file.
put() {
	( umask 077; cat > "$1.new"; chmod "$2" "$1.new" )
	if cmp -s "$1.new" "$1"; then
		rm "$1.new"
	else
		mv "$1.new" "$1"
		changed=yes
	fi
}

{{if .HostKey -}}
put /etc/ssh/ssh_host_ed25519_key 600 << 'BEDFELLOW'
{{.HostKey}}
BEDFELLOW
put /etc/ssh/ssh_host_ed25519_key.pub 644 << 'BEDFELLOW'
{{.HostPublicKey}}
BEDFELLOW
# A distribution's own image has cloud-init make host keys in place of what it finds.
if [ ! -e /etc/cloud/cloud.cfg.d/90-bed.cfg ]; then
	cp -p /etc/ssh/ssh_host_ed25519_key /etc/ssh/bedfellow_host_key
	mkdir -p /etc/ssh/sshd_config.d
	echo 'HostKey /etc/ssh/bedfellow_host_key' | put /etc/ssh/sshd_config.d/00-bedfellow.conf 644
fi
{{- end}}

echo '{{.Name}}' | put /etc/hostname 644
echo '{{.Name}}' > /proc/sys/kernel/hostname

# Lima would add its own key once, and a kernel that panics soon after would take it away. It leaves what it finds.
keys='/home/{{.User}}/.ssh/authorized_keys'
mkdir -p "${keys%/*}"
touch "$keys"
{{range .AuthorizedKeys -}}
grep -qxF '{{.}}' "$keys" || echo '{{.}}' >> "$keys"
{{end -}}
chown {{.UserID}}:{{.UserID}} '/home/{{.User}}' "${keys%/*}" "$keys"
chmod 700 "${keys%/*}"
chmod 600 "$keys"

# The address among the siblings has an interface of its own: MPI libraries advertise one address of an interface and call from
# the other. The file of Lima's interface is cloud-init's or netplan's, and written anew at every boot.
changed=no
mkdir -p /etc/systemd/network
put /etc/systemd/network/20-bed0.netdev 644 << 'BEDFELLOW'
[NetDev]
Name=bed0
Kind=macvlan
MACAddress={{.LinkAddress}}

[MACVLAN]
Mode=bridge
BEDFELLOW
put /etc/systemd/network/20-bed0.network 644 << 'BEDFELLOW'
[Match]
Name=bed0

[Network]
Address={{.Address}}/16
LinkLocalAddressing=no
IPv6AcceptRA=no
BEDFELLOW
for file in 10-cloud-init-eth0 10-netplan-eth0; do
	mkdir -p "/etc/systemd/network/$file.network.d"
	put "/etc/systemd/network/$file.network.d/bedfellow.conf" 644 << 'BEDFELLOW'
[Network]
MACVLAN=bed0
{{- if .Isolated}}
DNS=

[DHCPv4]
UseGateway=no
UseRoutes=no
UseDNS=no
{{- end}}
BEDFELLOW
done
# Each interface answers for its own address.
echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore
echo 2 > /proc/sys/net/ipv4/conf/all/arp_announce
if [ "$changed" = yes ]; then
	# Not by networkctl, which needs the message bus and so a later stage of the boot; and without what else would wait for it.
	systemctl --job-mode=ignore-dependencies restart systemd-networkd
	tries=0
	until ip -4 addr show dev bed0 2>/dev/null | grep -qF ' {{.Address}}/16 ' || [ "$tries" -ge 30 ]; do
		tries=$((tries + 1))
		sleep 1
	done
fi
{{- if not .Isolated}}
[ -e /run/systemd/resolve ] || echo 'nameserver {{.Resolver}}' | put /etc/resolv.conf 644
{{- end}}
) || echo 'bedfellow: this machine could not be made node {{.Name}}, see above' >&2
