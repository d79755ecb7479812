# kubernetes.sh NAMESPACE SECONDS HOST...: puts a pod on the node of each host and looks whether they reach each other as they should. Prints a
# line for each property and host: host, property, ok or no, what was seen; tabs between. Run by sh within the control plane's container.
set -u
namespace=$1 seconds=$2
shift 2
k="kubectl -n $namespace"

tell() { printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(printf %s "$4" | tr '\n\t' '  ' | cut -c1-300)"; }
check() { # HOST PROPERTY SEEN WANTED
	if [ "$3" = "$4" ]; then tell "$1" "$2" ok "$3"; else tell "$1" "$2" no "$3, not $4"; fi
}
trap 'kubectl delete namespace "$namespace" --wait=false >/dev/null' EXIT

. /etc/kubernetes/bundle.env
# What an earlier run has left, which may go on in here when who called it is gone.
old=$(cat /run/selftest 2>/dev/null)
[ -z "$old" ] || ! grep -qs "$namespace" "/proc/$old/cmdline" || kill "$old"
echo $$ >/run/selftest
# A job that had the nodes' Kubernetes stopped has it started again, and does not wait for its API server.
end=$(($(date +%s) + seconds))
until kubectl get --raw /readyz --request-timeout 30s >/dev/null 2>&1 || [ "$(date +%s)" -ge "$end" ]; do sleep 1; done
kubectl delete namespace "$namespace" --ignore-not-found --timeout="${seconds}s" >&2 || exit 1
kubectl create namespace "$namespace" >&2 || exit 1
for host; do
	cat <<POD
apiVersion: v1
kind: Pod
metadata: {name: on-$host, labels: {on: $host}}
spec:
  nodeName: u7s-$host
  terminationGracePeriodSeconds: 0
  containers:
    - name: server
      image: $repository/tools:1
      imagePullPolicy: Never
      command: [busybox, sh, -c, "mkdir /www; busybox seq 60000 >/www/body; echo serving; exec busybox httpd -f -p 8080 -h /www"]
      resources: {limits: {cpu: 500m, memory: 64Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: on-$host}
spec:
  selector: {on: $host}
  ports: [{port: 80, targetPort: 8080}]
---
POD
done | $k apply -f - >&2 || exit 1
$k wait --for=condition=Ready pods --all --timeout="${seconds}s" >&2
body=$(busybox seq 60000 | md5sum | cut -d' ' -f1)

for host; do
	ready=$(kubectl get node "u7s-$host" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status} {.status.nodeInfo.kubeletVersion} at {.status.addresses[?(@.type=="ExternalIP")].address}')
	case $ready in True*) tell "$host" "node is Ready" ok "${ready#True }" ;; *) tell "$host" "node is Ready" no "$ready" ;; esac
	check "$host" "runs a pod" "$($k get pod "on-$host" -o jsonpath='{.status.phase}' 2>&1)" Running
	check "$host" "a pod's log is read" "$($k logs "on-$host" 2>&1)" serving
	check "$host" "a pod has limits" "$($k exec "on-$host" -- busybox cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max 2>&1 | tr '\n' ' ')" "50000 100000 67108864 "
done

# By name and the service's address, then by the pod's own; a body larger than any MTU either way.
for from; do
	by_service= by_pod=
	for to; do
		address=$($k get pod "on-$to" -o jsonpath='{.status.podIP}')
		got=$($k exec "on-$from" -- busybox sh -c "
			busybox wget -T 60 -q -O - http://on-$to.$namespace.svc.cluster.local/body | busybox md5sum
			busybox wget -T 60 -q -O - http://$address:8080/body | busybox md5sum" 2>&1 | cut -d' ' -f1 | tr '\n' ' ')
		[ "${got%% *}" = "$body" ] || by_service="$by_service $to"
		[ "${got#* }" = "$body " ] || by_pod="$by_pod $to"
	done
	check "$from" "pods reach services by name" "$# of $#${by_service:+, lost:$by_service}" "$# of $#"
	check "$from" "pods reach pods" "$# of $#${by_pod:+, lost:$by_pod}" "$# of $#"
done

for host; do
	# Half a CPU for three seconds is a second and a half. That the loop was ended is said on the other stream, which may come late.
	used=$($k exec "on-$host" -- busybox sh -c '
		used() { busybox sed -n "s/usage_usec //p" /sys/fs/cgroup/cpu.stat; }
		before=$(used); busybox timeout 3 busybox sh -c "while :; do :; done"; echo $((($(used) - before) / 1000))' 2>/tmp/limited)
	if [ "$used" -gt 0 ] 2>/dev/null && [ "$used" -le 1900 ]; then
		tell "$host" "a pod's CPU is limited" ok "$used ms of 3000 at a limit of half a CPU"
	else
		tell "$host" "a pod's CPU is limited" no "$used ms of 3000 at a limit of half a CPU; $(cat /tmp/limited)"
	fi
	$k port-forward "pod/on-$host" 18080:8080 >/tmp/port-forward 2>&1 &
	forward=$!
	got= end=$(($(date +%s) + seconds)) # kubectl alone takes a minute where an emulated node has other things to do
	while [ "$got" != "$body" ] && [ "$(date +%s)" -lt "$end" ]; do
		sleep 0.5
		got=$(busybox wget -T 30 -q -O - http://127.0.0.1:18080/body 2>/dev/null | md5sum | cut -d' ' -f1)
	done
	kill $forward 2>/dev/null
	wait $forward 2>/dev/null
	if [ "$got" = "$body" ]; then tell "$host" "a pod's port is forwarded" ok "the whole body"; else tell "$host" "a pod's port is forwarded" no "not within $seconds s; kubectl said: $(cat /tmp/port-forward)"; fi
done
