# Makes this machine the node it is: name and keys. cloud-init runs it at every boot before sshd.
set -eu
umask 077
cat >/etc/ssh/ssh_host_ed25519_key <<'BEDFELLOW'
{{.HostKey}}
BEDFELLOW
echo '{{.HostPublicKey}}' >/etc/ssh/ssh_host_ed25519_key.pub
chmod 644 /etc/ssh/ssh_host_ed25519_key.pub
umask 022
echo '{{.Name}}' >/etc/hostname
echo '{{.Name}}' >/proc/sys/kernel/hostname
keys='/home/{{.User}}/.ssh/authorized_keys'
mkdir -p "${keys%/*}"
touch "$keys"
grep -qxF '{{.AuthorizedKey}}' "$keys" || echo '{{.AuthorizedKey}}' >>"$keys"
chown {{.UserID}}:{{.UserID}} '/home/{{.User}}' "${keys%/*}" "$keys"
chmod 700 "${keys%/*}"
chmod 600 "$keys"
{{- if .Address}}

# Whatever the interface is called.
mkdir -p /etc/systemd/network
cat >/etc/systemd/network/05-bedfellow.network <<'BEDFELLOW'
[Match]
Driver=virtio_net

[Network]
Address={{.Address}}
{{- if .Gateway}}
Gateway={{.Gateway}}
{{- end}}
BEDFELLOW
systemctl --job-mode=ignore-dependencies restart systemd-networkd
{{- end}}
{{- if .Metadata}}

# The service that gave us this script and the key in it gives them to whoever asks on this machine: nobody but root needs to.
iptables -w -C OUTPUT -d 169.254.169.254 -m owner ! --uid-owner 0 -j REJECT 2>/dev/null ||
	iptables -w -I OUTPUT -d 169.254.169.254 -m owner ! --uid-owner 0 -j REJECT
{{- end}}
