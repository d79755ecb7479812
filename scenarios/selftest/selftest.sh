# selftest.sh NAME USER SIBLING...: prints a line for each property of the node: name, ok or no, what was seen; tabs between.
# Run by bash as the bed's user, with that user's runtime directory.
name=$1 user=$2
shift 2
export XDG_RUNTIME_DIR=/run/user/$(id -u)

tell() { printf '%s\t%s\t%s\n' "$1" "$2" "$(printf %s "$3" | tr '\n\t' '  ' | cut -c1-300)"; }
check() { # PROPERTY SEEN WANTED
	if [ "$2" = "$3" ]; then tell "$1" ok "$2"; else tell "$1" no "$2, not $3"; fi
}

check "host name" "$(uname -n)" "$name"

lost=
for sibling; do timeout 5 bash -c "</dev/tcp/$sibling/22" 2>/dev/null || lost="$lost $sibling"; done
check "siblings reached by name" "$# of $#${lost:+, lost:$lost}" "$# of $#"

tell clock ok "$(date +%s)"

if [ -f /sys/fs/cgroup/cgroup.controllers ]; then tell "cgroup v2" ok "$(cat /sys/fs/cgroup/cgroup.controllers)"; else tell "cgroup v2" no "cgroup v1"; fi

# A user's service that sets all five, and reads back what its group has.
seen=$(timeout 60 systemd-run --user --quiet --wait --pipe --collect -p CPUQuota=50% -p AllowedCPUs=0 -p IOWeight=50 -p MemoryMax=64M -p TasksMax=50 \
	sh -c 'cd "/sys/fs/cgroup$(cut -d: -f3- /proc/self/cgroup)" && echo "$(cat cgroup.controllers), $(cat cpu.max), CPU $(cat cpuset.cpus), $(cat memory.max) B, $(cat pids.max) tasks"' 2>&1)
check "a user's service has limits" "$seen" "cpuset cpu io memory pids, 50000 100000, CPU 0, 67108864 B, 50 tasks"

for module in br_netfilter vxlan; do
	if ! [ -d /sys/module/$module ]; then
		tell "module $module" no "not loaded"
	elif [ -e "/lib/modules/$(uname -r)/modules.builtin" ] && grep -q "/$module.ko" "/lib/modules/$(uname -r)/modules.builtin"; then
		tell "module $module" ok built-in
	elif grep -qsx $module /etc/modules-load.d/*.conf; then
		tell "module $module" ok "loaded, and after a reboot"
	else
		tell "module $module" no "loaded, but not after a reboot"
	fi
done

check "replies by any interface" "rp_filter $(cat /proc/sys/net/ipv4/conf/default/rp_filter)" "rp_filter 2"
check "low ports for users" "from $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)" "from 0"
check "room for datagrams" "$(cat /proc/sys/net/core/rmem_default) B" "4194304 B"

if [ -e "/var/lib/systemd/linger/$user" ]; then tell lingering ok "$user's services outlive logins"; else tell lingering no "$user's services end with the last login"; fi

for file in subuid subgid; do
	ids=$(awk -F: -v user="$user" '$1 == user { n += $3 } END { print n + 0 }' /etc/$file)
	if [ "$ids" -ge 65536 ]; then tell "subordinate ids ($file)" ok "$ids"; else tell "subordinate ids ($file)" no "$ids, not 65536 or more"; fi
done

docker=$(command -v docker) busybox=$(command -v busybox)
if [ -z "$docker" ]; then
	tell "rootless Docker" no "no docker"
else
	for _ in $(seq 60); do timeout 20 docker info >/dev/null 2>&1 && break; sleep 1; done
	info=$(timeout 60 docker info --format '{{.SecurityOptions}} cgroup v{{.CgroupVersion}} {{.ServerVersion}}' 2>&1)
	case $info in *rootless*) tell "rootless Docker" ok "$info" ;; *) tell "rootless Docker" no "$info" ;; esac
	tar -C "$(dirname "$busybox")" -c busybox | timeout 120 docker import - bedfellow-selftest >/dev/null 2>&1
	seen=$(timeout 120 docker run --rm --network none --cpus 0.5 --memory 64m bedfellow-selftest /busybox cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max 2>&1)
	timeout 60 docker rmi bedfellow-selftest >/dev/null 2>&1
	check "a container has limits" "$(echo $seen)" "50000 100000 67108864"
fi
