# Prints what the instance runs jobs on: excluded nodes, as the control node is, are not part of it.
import json, flux
from flux.resource import resource_list, resource_status
handle = flux.Flux()
listed, status = resource_list(handle), resource_status(handle)
listed, status = listed.get(), status.get()
nodes = []
for rank in listed.all.ranks:
    state, reason = "avail", ""
    if rank in status["offline"]:
        state = "offline"
    drained = status.get_drain_info(rank)
    if drained is not None:
        state, reason = "drained", drained.reason
    nodes.append({"name": str(listed.all.copy_ranks(rank).nodelist), "cpus": listed.all.copy_ranks(rank).ncores,
        "free": listed.free.copy_ranks(rank).ncores, "state": state, "reason": reason})
print(json.dumps(nodes))
