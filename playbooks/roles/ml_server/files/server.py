#!/usr/bin/python3
"""Online learning as a service: regressions that learn one point at a time, and are asked for predictions meanwhile.

    GET  /api/              {"status": "running", "features": [NAME…], "models": [NAME…], "points": N, "versions": {…}}
    POST /api/learn         {"id": TEXT, "features": {NAME: NUMBER…}, "target": NUMBER}
                            -> {"id": TEXT, "new": BOOL, "points": N}; an id that is known already is not learned once more
    POST /api/predict       {"features": {NAME: NUMBER…}} -> {"points": N, "predictions": {MODEL: NUMBER…}}
    GET  /api/metrics       {MODEL: {"n": N, "mae": …, "rmse": …, "r2": …}…} of each point's prediction before it was learned
    GET  /api/models/MODEL  its parameters: {"model": …, "points": N, "features": [NAME…], "parameters": {…}}

Errors are {"error": TEXT}: 400 for what is no such request, 404, 405, 409 for a prediction before anything was learned, 413, and 507 when
the volume is full; none of them changes a model.

The models are those of the talk's workflow, with the parameters that it has published and river's defaults for all others: a linear regression
by stochastic gradient on standardized features, a Bayesian one by its conjugate update, and a passive-aggressive one; each once more with the
product of all features as another feature. A point is answered for once it is on disk, in DIRECTORY/points.jsonl, from which a server that
starts learns again what was learned before.
"""

import argparse
import fcntl
import json
import math
import os
import platform
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy
import sklearn
from sklearn.linear_model import PassiveAggressiveRegressor
from sklearn.preprocessing import StandardScaler

MAX_BODY = 1 << 16
LARGEST = 1e9  # a gradient that overflows would spoil a model for good


class Linear:
    """Least squares by one step of stochastic gradient descent for each point, on features standardized by what was seen so far. A step is
    against the gradient of the squared error, which is twice the error times the features."""

    RATE, INTERCEPT_RATE = 0.01, 0.1

    def __init__(self):
        self.scaler = StandardScaler()
        self.coefficients, self.intercept = None, 0.0

    def learn(self, x, y):
        scaled = self.scaler.partial_fit(x).transform(x)[0]
        if self.coefficients is None:
            self.coefficients = numpy.zeros(scaled.size)
        gradient = 2 * (scaled @ self.coefficients + self.intercept - y[0])
        self.coefficients -= self.RATE * gradient * scaled
        self.intercept -= self.INTERCEPT_RATE * gradient

    def predict(self, x):
        return self.scaler.transform(x)[0] @ self.coefficients + self.intercept

    def parameters(self):
        return {
            "coefficients": self.coefficients.tolist(), "intercept": float(self.intercept),
            "means": self.scaler.mean_.tolist(), "scales": self.scaler.scale_.tolist(),
        }


class Bayesian:
    """Linear regression with a normal prior of precision ALPHA on its weights and noise of precision BETA: the posterior is normal too, and
    each point's update of it exact."""

    ALPHA, BETA = 1.0, 1.0

    def __init__(self):
        self.precision = self.moment = None

    def learn(self, x, y):
        if self.precision is None:
            self.precision, self.moment = self.ALPHA * numpy.eye(x.shape[1]), numpy.zeros(x.shape[1])
        self.precision += self.BETA * x.T @ x
        self.moment += self.BETA * x.T @ y

    def weights(self):
        return numpy.linalg.lstsq(self.precision, self.moment, rcond=None)[0]  # large features drown the prior, and then solve finds no solution

    def predict(self, x):
        return (x @ self.weights())[0]

    def parameters(self):
        return {"alpha": self.ALPHA, "beta": self.BETA, "weights": self.weights().tolist(), "precision": self.precision.tolist()}


class PassiveAggressive:
    """Changes its weights by as little as brings a point's error under epsilon, the less the smaller C."""

    def __init__(self):
        self.model = PassiveAggressiveRegressor(C=0.01, epsilon=0.1, loss="squared_epsilon_insensitive", fit_intercept=False)

    def learn(self, x, y):
        self.model.partial_fit(x, y)

    def predict(self, x):
        return self.model.predict(x)[0]

    def parameters(self):
        return {"C": self.model.C, "epsilon": self.model.epsilon, "coefficients": self.model.coef_.tolist()}


KINDS = {"linear": Linear, "bayesian": Bayesian, "passive-aggressive": PassiveAggressive}


class Score:
    """Errors of predictions, summed up as they come."""

    def __init__(self):
        self.n, self.absolute, self.square, self.total, self.totals = 0, 0.0, 0.0, 0.0, 0.0

    def add(self, truth, prediction):
        self.n += 1
        self.absolute += abs(truth - prediction)
        self.square += (truth - prediction) ** 2
        self.total += truth
        self.totals += truth**2

    def metrics(self):
        if not self.n:
            return {"n": 0, "mae": None, "rmse": None, "r2": None}
        spread = self.totals - self.total**2 / self.n
        return {
            "n": self.n, "mae": self.absolute / self.n, "rmse": math.sqrt(self.square / self.n),
            "r2": 1 - self.square / spread if spread > 0 else None,
        }


class Refused(Exception):
    """A request that changes nothing, and the status of its answer."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Learner:
    """All models, and the points that they have learned. Safe for concurrent use."""

    def __init__(self, directory, features):
        self.features = features
        self.lock = threading.Lock()
        self.models = {name + suffix: kind() for suffix in ("", "+product") for name, kind in KINDS.items()}
        self.scores = {name: Score() for name in self.models}
        self.ids = set()
        self.journal = os.open(os.path.join(directory, "points.jsonl"), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.journal, fcntl.LOCK_EX)  # one that is to end, but has not yet, may still be keeping a point
        self.size = 0
        with open(self.journal, "rb", closefd=False) as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break  # cut off as it was written: nobody was told that it is kept
                point = json.loads(line)
                self.size += len(line)
                self.ids.add(point["id"])
                self.update(point["features"], point["target"])
        os.ftruncate(self.journal, self.size)

    def rows(self, features):
        plain = [float(features[name]) for name in self.features]
        return {"": numpy.array([plain]), "+product": numpy.array([[*plain, math.prod(plain)]])}

    def row_of(self, name, rows):
        return rows["+product" if name.endswith("+product") else ""]

    def update(self, features, target):
        rows = self.rows(features)
        for name, model in self.models.items():
            row = self.row_of(name, rows)
            if len(self.ids) > 1:
                self.scores[name].add(target, float(model.predict(row)))
            model.learn(row, numpy.array([target]))

    def learn(self, identity, features, target):
        with self.lock:
            if identity in self.ids:
                return {"id": identity, "new": False, "points": len(self.ids)}
            line = (json.dumps({"id": identity, "features": features, "target": target}) + "\n").encode()
            try:
                if os.write(self.journal, line) != len(line):
                    raise OSError("it takes a part only")
                os.fsync(self.journal)
            except OSError as e:
                os.ftruncate(self.journal, self.size)
                raise Refused(507, f"the point is not learned, for it cannot be kept: {e}") from e
            self.size += len(line)
            self.ids.add(identity)
            self.update(features, target)
            return {"id": identity, "new": True, "points": len(self.ids)}

    def predict(self, features):
        with self.lock:
            if not self.ids:
                raise Refused(409, "nothing was learned yet")
            rows = self.rows(features)
            return {
                "points": len(self.ids),
                "predictions": {name: float(model.predict(self.row_of(name, rows))) for name, model in self.models.items()},
            }

    def metrics(self):
        with self.lock:
            return {name: score.metrics() for name, score in self.scores.items()}

    def model(self, name):
        with self.lock:
            if name not in self.models:
                raise Refused(404, f"there is no model {name}; there are: {', '.join(self.models)}")
            if not self.ids:
                raise Refused(409, "nothing was learned yet")
            features = [*self.features, "product"] if name.endswith("+product") else self.features
            return {"model": name, "points": len(self.ids), "features": features, "parameters": self.models[name].parameters()}

    def about(self):
        with self.lock:
            return {
                "status": "running", "features": self.features, "models": list(self.models), "points": len(self.ids),
                "versions": {"python": platform.python_version(), "numpy": numpy.__version__, "scikit-learn": sklearn.__version__},
            }

    def checked(self, request, *keys):
        """The values of a request that must have these keys and no others."""
        if not isinstance(request, dict) or set(request) != set(keys):
            raise Refused(400, f"the request is to be a JSON object of {', '.join(keys)}")
        features = request["features"]
        if not isinstance(features, dict) or set(features) != set(self.features):
            raise Refused(400, f"features is to be an object of {', '.join(self.features)}")
        for name, value in [*features.items(), *([("target", request["target"])] if "target" in keys else [])]:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= LARGEST:
                raise Refused(400, f"{name} is to be a number of up to {LARGEST:g} either way")
        if "id" in keys and not (isinstance(request["id"], str) and 0 < len(request["id"]) <= 200):
            raise Refused(400, "id is to be a text of up to 200 characters")
        return [request[key] for key in keys]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # for a client that says nothing more
    disable_nagle_algorithm = True
    wbufsize = 1 << 16  # an answer is one packet

    def answer(self, method):
        learner = self.server.learner
        try:
            body = self.body() if method == "POST" else None
            match method, self.path:
                case "GET", "/api/":
                    status, result = 200, learner.about()
                case "GET", "/api/metrics":
                    status, result = 200, learner.metrics()
                case "GET", path if path.startswith("/api/models/"):
                    status, result = 200, learner.model(path.removeprefix("/api/models/"))
                case "POST", "/api/learn":
                    status, result = 200, learner.learn(*learner.checked(body, "id", "features", "target"))
                case "POST", "/api/predict":
                    status, result = 200, learner.predict(*learner.checked(body, "features"))
                case _, "/api/" | "/api/metrics" | "/api/learn" | "/api/predict":
                    raise Refused(405, f"{self.path} is not for {method}")
                case _:
                    raise Refused(404, f"there is nothing at {self.path}; see /api/")
        except Refused as e:
            status, result = e.status, {"error": str(e)}
        if method == "GET" and (self.headers.get("Content-Length", "0") != "0" or self.headers.get("Transfer-Encoding")):
            self.close_connection = True  # its body would be taken for the next request
        self.send(status, result)

    def send(self, status, result):
        data = (json.dumps(result) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    def body(self):
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True  # its rest would be taken for the next request
            raise Refused(413 if length > MAX_BODY else 400, f"the request needs a Content-Length of up to {MAX_BODY}")
        try:
            return json.loads(self.rfile.read(length))
        except (ValueError, RecursionError) as e:
            raise Refused(400, f"the request is no JSON: {e}") from e

    def do_GET(self):
        self.answer("GET")

    def do_POST(self):
        self.answer("POST")

    def send_error(self, code, message=None, explain=None):
        """Is what the library answers by itself: to what is no HTTP, and to methods that there are none of here."""
        self.close_connection = True  # what follows in the request is not read
        self.request_version = self.protocol_version  # that of what is no request is unknown, and gets no head
        if code == 501:
            code, message = 405, f"{self.path} is not for {self.command}"
        self.send(code, {"error": message or self.responses[code][0]})

    def log_message(self, format, *args):
        pass  # one line for each request would be more than what is learned


class Server(ThreadingHTTPServer):
    daemon_threads = True


def main():
    parser = argparse.ArgumentParser(description="Serves regressions that learn one point at a time.")
    parser.add_argument("--directory", required=True, help="where what was learned is kept")
    parser.add_argument("--features", default="x,y,z", help="their names, with commas between them")
    parser.add_argument("--address", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8080)
    args = parser.parse_args()
    with Server((args.address, args.port), Handler) as server:
        server.learner = Learner(args.directory, args.features.split(","))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"listening on {server.server_port}, {len(server.learner.ids)} points learned before", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
