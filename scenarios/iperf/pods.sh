# pods.sh MARK SECONDS HOST...: runs a pod on the node of each host, in place of those of an earlier run that was killed, and prints a line for
# each: host, address. Run by sh within the control plane's container.
set -eu
mark=$1 seconds=$2
shift 2
. /etc/kubernetes/bundle.env
k="kubectl -n bedfellow-iperf"
kubectl delete namespace bedfellow-iperf --ignore-not-found --timeout="${seconds}s" >&2
kubectl create namespace bedfellow-iperf >&2
for host; do
	cat <<POD
apiVersion: v1
kind: Pod
metadata: {name: on-$host}
spec:
  nodeName: u7s-$host
  terminationGracePeriodSeconds: 0
  containers:
    - {name: end, image: "$repository/tools:1", imagePullPolicy: Never, command: [busybox, sh, -c, "busybox sleep 604800; : $mark"]}
---
POD
done | $k apply -f - >&2
if ! $k wait --for=condition=Ready pods --all --timeout="${seconds}s" >&2; then
	$k get pods -o wide >&2
	exit 1
fi
for host; do echo "$host $($k get pod "on-$host" -o jsonpath='{.status.podIP}')"; done
