# The script of a batch job that has a Kubernetes of its own beside its simulations, on the same nodes: it brings the cluster up, runs a service in
# it, runs simulations on the bare nodes that talk to it, and takes everything down at the end. If it cannot, because it was killed, the nodes do:
# see `usernetes hold`. What it prints are lines of a time and a phase; a phase that begins is over when the next begins.
#
# $dir is a directory of the run's on every node, with the points to run, the client and the service's manifest; $lmp and $input are LAMMPS and its
# input, $ranks how many to run it on, $limit how many seconds nodes hold what they have for it at most. With $requests, a number, the service is asked so many at the end, and $busy_cells³ cells are simulated with
# it idle and busy in turn. With $stop_at, a phase, the job fails there ($ending is failed) or stays there until it is ended.
set -eu
export USERNETES_INSTANCE=job-$job_number
# shellcheck disable=SC2086
set -- $job_hosts
for last; do :; done
phase() {
	printf '%s %s\n' "$(date +%s.%N)" "$*"
	[ "$1" = "$stop_at" ] || return 0
	[ "$ending" != failed ] || exit 7
	sleep infinity &
	wait $!
}
leave() {
	status=$?
	trap - EXIT
	trap '' TERM
	phase leaving
	each usernetes release >&2 || [ $status != 0 ] || status=1
	phase gone
	exit "$status"
}
trap leave EXIT
trap 'exit 143' TERM

phase holding "$USERNETES_INSTANCE"
control=$(. /etc/bedfellow/usernetes/node.env && echo "$USERNETES_HOST")
mkfifo "$dir/held"
# One that cannot must say so: those that can stay, and with them what each is.
each sh -c 'usernetes hold "$@" || echo failed' sh "$job_number" "$control" "$limit" >"$dir/held" 2>"$dir/held.err" &
exec 3<"$dir/held"
for host; do
	read -r said <&3 && [ "$said" = held ] || {
		cat "$dir/held.err" >&2
		exit 1
	}
done

phase containers
each usernetes up >&2
phase control-plane
usernetes init </dev/null >&2
if [ $# -gt 1 ]; then
	phase joining
	token=$(usernetes token </dev/null)
	export token # that of a process is its user's alone to see
	each sh -c 'echo "$token" | usernetes join' >&2
	unset token
fi
phase readiness
# shellcheck disable=SC2046
usernetes ready $(printf 'u7s-%s ' "$@") </dev/null >&2
each usernetes dns >&2

phase service
# A request takes half a minute at most, in which an emulated machine may not have done it.
attempt=1
until sed "s/@node@/u7s-$last/" "$dir/service.yaml" | usernetes kubectl apply -f - >&2; do
	[ "$attempt" -lt 5 ] || exit 1
	attempt=$((attempt + 1))
done
usernetes kubectl rollout status deployment/ml-server --timeout="${USERNETES_PATIENCE}s" </dev/null >&2
url=http://$control:$(usernetes port service)
python3 "$dir/client.py" "$url" wait </dev/null >&2

# simulate ID X Y Z has the time that it took in $seconds, which is empty when it failed.
simulate() {
	log=$dir/$1.log
	seconds=
	if ranks "$ranks" "$lmp" -in "$input" -log "$log" -nocite -screen none -v x "$2" -v y "$3" -v z "$4" </dev/null >"$dir/$1.out" 2>&1; then
		seconds=$(sed -n 's/^Loop time of \([0-9.e+-]*\) .*/\1/p' "$log" || true)
	fi
	[ -n "$seconds" ] || {
		echo "simulation $1 of $2 x $3 x $4 cells:"
		cat "$dir/$1.out"
	} >&2
	rm -f "$log" "$dir/$1.out"
}

phase points
while read -r id use x y z; do
	simulate "$id" "$x" "$y" "$z"
	python3 "$dir/client.py" "$url" "$use" "$id" "$x" "$y" "$z" "$seconds" </dev/null
done <"$dir/points"

phase models
python3 "$dir/client.py" "$url" models </dev/null

[ "$requests" -gt 0 ] || exit 0
phase requests
for use in learn predict; do
	python3 "$dir/client.py" "$url" load "$use" "$requests" </dev/null
done
phase busy
for round in 1 2 3; do
	simulate "idle-$round" "$busy_cells" "$busy_cells" "$busy_cells"
	printf '{"beside": "idle", "seconds": %s}\n' "${seconds:-null}"
	# The service is asked until the simulation is over.
	python3 "$dir/client.py" "$url" load predict 1000000000 "$dir/asking" </dev/null >/dev/null &
	load=$!
	until [ -e "$dir/asking" ] || ! kill -0 "$load"; do sleep 0.1; done
	simulate "busy-$round" "$busy_cells" "$busy_cells" "$busy_cells"
	kill "$load" || seconds= # it was idle then
	wait "$load" || true
	rm -f "$dir/asking"
	printf '{"beside": "busy", "seconds": %s}\n' "${seconds:-null}"
done
