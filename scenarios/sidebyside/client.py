"""The part of the job that talks to the service, from a bare node. Prints one JSON object with what was said, for each point.

    client.py URL wait                              returns once the service answers
    client.py URL train ID X Y Z SECONDS            has it learn a simulation's time; without SECONDS the simulation failed
    client.py URL test ID X Y Z SECONDS             asks it for a prediction of that
    client.py URL load USE N [FILE]                 asks it to learn or predict (USE) N times, one after the other, and prints what each took;
                                                    makes the file once it has answered
    client.py URL models                            prints all models, and how well they did as they learned

A service that is away, as when its pod is made anew, is waited for; one whose volume is full is not. It learns a point of one ID once, however often it is told.
"""

import http.client
import json
import sys
import time
import urllib.error
import urllib.request

PATIENCE = 900  # seconds; an emulated node needs minutes to make a pod anew


def ask(url, body=None):
    """Returns the answer, its latency in seconds, and how often it was asked. None is the answer of a service that has learned nothing yet."""
    end, pause, tries = time.monotonic() + PATIENCE, 0.1, 0
    while True:
        tries += 1
        begin = time.perf_counter()
        try:
            data = None if body is None else json.dumps(body).encode()
            with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"}), timeout=60) as answer:
                return json.load(answer), time.perf_counter() - begin, tries
        except urllib.error.HTTPError as e:
            if e.code == 409:
                return None, time.perf_counter() - begin, tries
            text = e.read().decode(errors="replace").strip()
            if e.code < 500 or e.code == 507 or time.monotonic() > end:  # with a full volume it would be so again
                sys.exit(f"{url}: {e.code}: {text}")
        except (OSError, ValueError, http.client.HTTPException) as e:
            if time.monotonic() > end:
                sys.exit(f"{url}: no answer in {PATIENCE} s: {e}")
        time.sleep(pause)
        pause = min(pause * 2, 5)


def main(url, what, *args):
    if what == "wait":
        ask(url + "/api/")
        return
    if what == "models":
        about = ask(url + "/api/")[0]
        models = [ask(f"{url}/api/models/{name}")[0] for name in about["models"] if about["points"]]
        print(json.dumps({"service": about, "metrics": ask(url + "/api/metrics")[0], "models": models}))
        return
    if what == "load":
        use, latencies = args[0], []
        features = {"x": 1, "y": 2, "z": 3}
        begin = time.perf_counter()
        for n in range(int(args[1])):
            body = {"id": f"load-{n}", "features": features, "target": 1.0} if use == "learn" else {"features": features}
            latencies.append(ask(f"{url}/api/{use}", body)[1])
            if n == 0 and len(args) > 2:
                open(args[2], "w").close()
        print(json.dumps({"load": use, "seconds": time.perf_counter() - begin, "latencies": latencies}), flush=True)
        return
    identity, x, y, z, seconds = args
    point = {"id": identity, "use": what, "x": int(x), "y": int(y), "z": int(z)}
    if seconds:
        point["seconds"] = float(seconds)
        features = {"x": point["x"], "y": point["y"], "z": point["z"]}
        if what == "train":
            said, point["latency"], point["tries"] = ask(url + "/api/learn", {"id": identity, "features": features, "target": point["seconds"]})
        else:
            said, point["latency"], point["tries"] = ask(url + "/api/predict", {"features": features})
            point["predictions"] = said["predictions"] if said else {}
        point["points"] = said["points"] if said else 0
    print(json.dumps(point), flush=True)


main(*sys.argv[1:])
