"""Holds the service of the workflow against batch references, and against clients that speak nonsense. Run in its container's tree."""

import ctypes
import http.client
import importlib.machinery
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

import numpy
from sklearn.linear_model import LinearRegression, Ridge

PROGRAM = "/usr/local/bin/ml-server"
loader = importlib.machinery.SourceFileLoader("ml_server", PROGRAM)
server = importlib.util.module_from_spec(importlib.util.spec_from_loader("ml_server", loader))
loader.exec_module(server)


def points(n, noise=0.0):
    random = numpy.random.default_rng(7)
    x = random.uniform(1, 8, size=(n, 3))
    return x, 3 * x[:, 0] - 2 * x[:, 1] + 5 * x[:, 2] + noise * random.standard_normal(n)


class Models(unittest.TestCase):
    def learned(self, model, x, y):
        for row, target in zip(x, y):
            model.learn(row.reshape(1, -1), numpy.array([target]))
        return model

    def test_bayesian_is_the_posterior_of_all_at_once(self):
        x, y = points(200, noise=2)
        weights = self.learned(server.Bayesian(), x, y).weights()
        numpy.testing.assert_allclose(weights, numpy.linalg.inv(numpy.eye(3) + x.T @ x) @ x.T @ y, rtol=1e-9)
        numpy.testing.assert_allclose(weights, Ridge(alpha=1.0, fit_intercept=False, solver="cholesky").fit(x, y).coef_, rtol=1e-9)

    def test_linear_comes_to_least_squares(self):
        x, y = points(5000)
        model = self.learned(server.Linear(), x, y + 7)
        reference = LinearRegression().fit(x, y + 7)
        for row in x[:50]:
            self.assertAlmostEqual(model.predict(row.reshape(1, -1)), reference.predict(row.reshape(1, -1))[0], delta=0.05)

    def test_linear_takes_the_published_steps(self):
        x, y = points(300, noise=1)
        weights, intercept = numpy.zeros(3), 0.0
        for n, target in enumerate(y, 1):  # the rates of LinearRegression(intercept_lr=0.1) after StandardScaler(), in river 0.21
            spread = x[:n].std(axis=0)
            scaled = (x[n - 1] - x[:n].mean(axis=0)) / numpy.where(spread > 0, spread, 1)
            error = weights @ scaled + intercept - target
            weights, intercept = weights - 0.02 * error * scaled, intercept - 0.2 * error
        model = self.learned(server.Linear(), x, y)
        numpy.testing.assert_allclose([*model.coefficients, model.intercept], [*weights, intercept], rtol=1e-9)

    def test_passive_aggressive_is_as_published(self):
        x, y = points(300, noise=1)
        weights = numpy.zeros(3)
        for row, target in zip(x, y):  # PA-II of Crammer et al. 2006
            error = target - weights @ row
            step = max(0.0, abs(error) - 0.1) / (row @ row + 1 / (2 * 0.01))
            weights += numpy.sign(error) * step * row
        numpy.testing.assert_allclose(self.learned(server.PassiveAggressive(), x, y).model.coef_, weights, rtol=1e-9)

    def test_scores(self):
        score = server.Score()
        truth, said = [1.0, 2.0, 4.0], [1.5, 2.0, 3.0]
        for pair in zip(truth, said):
            score.add(*pair)
        m = score.metrics()
        self.assertEqual((m["n"], m["mae"]), (3, 0.5))
        self.assertAlmostEqual(m["rmse"], (1.25 / 3) ** 0.5)
        self.assertAlmostEqual(m["r2"], 1 - 1.25 / (14 / 3))


class Served(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.prepare()
        self.start()
        self.addCleanup(lambda: self.process.kill() or self.process.wait() or self.process.stdout.close())

    def prepare(self):
        pass

    def start(self):
        self.process = subprocess.Popen(
            [sys.executable, "-B", PROGRAM, "--directory", self.directory, "--address", "127.0.0.1", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline().split()
        self.port, self.before = int(line[2].rstrip(",")), int(line[3])

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def learn(self, i, target=None):
        return self.ask("POST", "/api/learn", {"id": f"p{i}", "features": {"x": i % 7 + 1, "y": i % 3 + 1, "z": i % 5 + 1}, "target": target or i + 1.5})

    def predict(self):
        return self.ask("POST", "/api/predict", {"features": {"x": 2, "y": 2, "z": 2}})


class Service(Served):
    def test_learns_predicts_and_tells(self):
        self.assertEqual(self.predict()[0], 409)
        for i in range(20):
            self.assertEqual(self.learn(i), (200, {"id": f"p{i}", "new": True, "points": i + 1}))
        status, said = self.predict()
        self.assertEqual((status, said["points"], len(said["predictions"])), (200, 20, 6))
        status, about = self.ask("GET", "/api/")
        self.assertEqual((about["status"], about["points"], sorted(about["models"])), ("running", 20, sorted(said["predictions"])))
        metrics = self.ask("GET", "/api/metrics")[1]
        self.assertTrue(all(m["n"] == 19 and m["mae"] > 0 and m["r2"] is not None for m in metrics.values()), metrics)
        model = self.ask("GET", "/api/models/bayesian+product")[1]
        self.assertEqual((model["features"], len(model["parameters"]["weights"])), (["x", "y", "z", "product"], 4))
        self.assertAlmostEqual(numpy.dot(model["parameters"]["weights"], [2, 2, 2, 8]), said["predictions"]["bayesian+product"])

    def test_a_point_is_learned_once_and_none_is_lost_by_a_kill(self):
        for i in range(9):
            self.learn(i)
        before, metrics = self.predict(), self.ask("GET", "/api/metrics")
        self.assertEqual(self.learn(3)[1], {"id": "p3", "new": False, "points": 9})
        self.kill()
        with open(os.path.join(self.directory, "points.jsonl"), "ab") as f:
            f.write(b'{"id": "cut o')  # what a kill in the middle of a write leaves
        self.start()
        self.assertEqual(self.before, 9)
        self.assertEqual((self.predict(), self.ask("GET", "/api/metrics")), (before, metrics))
        self.assertEqual(self.learn(8)[1]["new"], False)
        self.assertEqual(self.learn(9)[1], {"id": "p9", "new": True, "points": 10})
        self.kill()
        self.start()
        self.assertEqual(self.before, 10)

    def test_many_at_once(self):
        threads = [threading.Thread(target=lambda k=k: [self.learn(i) for i in range(k, 40, 4)]) for k in range(4)]
        threads += [threading.Thread(target=lambda: [self.learn(i) for i in range(40)])]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        self.assertEqual(self.ask("GET", "/api/")[1]["points"], 40)
        with open(os.path.join(self.directory, "points.jsonl"), encoding="utf-8") as f:
            self.assertEqual(sorted(json.loads(line)["id"] for line in f), sorted(f"p{i}" for i in range(40)))

    def test_nonsense_is_refused_and_changes_nothing(self):
        self.learn(0)
        before = self.predict()
        good = {"id": "n", "features": {"x": 1, "y": 2, "z": 3}, "target": 4}
        wrong = {"x": [], "nan": float("nan"), "inf": float("inf"), "text": "1", "true": True, "huge": 1e12, "none": None, "integer": 10**400}
        requests = [("POST", "/api/learn", good | {"features": good["features"] | {"x": v}}) for v in wrong.values()]
        requests += [("POST", "/api/learn", good | {"target": v}) for v in wrong.values()]
        requests += [("POST", "/api/learn", good | {"id": v}) for v in ["", "a" * 201, 5, None]]
        requests += [("POST", "/api/learn", v) for v in [[], {}, "x", good | {"more": 1}, {"id": "n"}, good | {"features": {"x": 1}}, good | {"features": [1, 2, 3]}, b"{", b"\xff\xfe", b"[" * 50000]]
        requests += [("POST", "/api/predict", {"features": {"x": 1, "y": 2}}), ("POST", "/api/predict", b"")]
        for method, path, body in requests:
            status, said = self.ask(method, path, body)
            self.assertEqual((status, list(said)), (400, ["error"]), body)
        self.assertEqual(self.ask("GET", "/api/learn")[0], 405)
        self.assertEqual(self.ask("POST", "/api/metrics", {})[0], 405)
        for method in "PUT", "DELETE", "PATCH", "OPTIONS":
            status, said = self.ask(method, "/api/learn", good)
            self.assertEqual((status, list(said)), (405, ["error"]), method)
        inside = b'POST /api/learn HTTP/1.1\r\nContent-Length: 62\r\n\r\n{"id": "n", "features": {"x": 1, "y": 2, "z": 3}, "target": 4}'
        for first, status in [
            (b"GET /api/ HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(inside), b"200"),  # of which it is the body
            (b"GET /api/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(inside), b"200"),
            (b"HEAD /api/ HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(inside), b"405"),
            (b"GET /api/ HTTP/2.0\r\n\r\n", b"505"),
        ]:
            with socket.create_connection(("127.0.0.1", self.port), 10) as raw:
                raw.sendall(first + inside)
                said = b""
                while part := raw.recv(1 << 16):
                    said += part
            self.assertEqual(said.split()[1], status, said)
            self.assertEqual(said.count(b"HTTP/1.1"), 1, said)
        self.assertEqual(self.ask("GET", "/nothing")[0], 404)
        self.assertEqual(self.ask("GET", "/api/models/nobody")[0], 404)
        self.assertEqual(self.ask("POST", "/api/learn", None, {"Content-Length": "99999999"})[0], 413)
        self.assertEqual(self.ask("POST", "/api/learn", None, {"Content-Length": "many"})[0], 400)
        self.assertEqual(self.predict(), before)
        self.kill()
        self.start()
        self.assertEqual((self.before, self.predict()), (1, before))

    def test_the_largest_that_is_allowed_spoils_nothing(self):
        large = {"x": 1e9, "y": 1e9, "z": 1e9}
        for i, sign in enumerate([1, 1, -1, 1]):
            status, said = self.ask("POST", "/api/learn", {"id": f"l{i}", "features": {k: sign * v for k, v in large.items()}, "target": sign * 1e9})
            self.assertEqual((status, said["points"]), (200, i + 1))
        self.learn(5)
        status, said = self.ask("POST", "/api/predict", {"features": large})
        self.assertEqual(status, 200)
        self.assertTrue(all(numpy.isfinite(v) for v in said["predictions"].values()), said)
        self.kill()
        self.start()
        self.assertEqual(self.before, 5)

    def test_a_second_server_waits_for_the_first(self):
        self.learn(0)
        first, port = self.process, self.port
        self.addCleanup(lambda: first.kill() or first.wait() or first.stdout.close())
        started = threading.Thread(target=self.start)
        started.start()
        started.join(5)
        self.assertTrue(started.is_alive(), "it answers while the other still keeps points")
        second, self.port = self.port, port
        self.assertEqual(self.learn(1)[1]["points"], 2)
        self.port = second
        first.terminate()
        started.join(60)
        self.assertEqual(self.before, 2)


class FullVolume(Served):
    def mount(self, flags, pages):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"none", self.directory.encode(), b"tmpfs", flags, b"size=%dk" % (4 * pages)):
            raise OSError(ctypes.get_errno(), "mount")

    def prepare(self):
        self.mount(0, 2)

    def test_a_point_that_cannot_be_kept_is_not_learned(self):
        i = 0
        while (answer := self.learn(i))[0] == 200:
            i += 1
            before = self.predict()
        self.assertGreater(i, 50)
        for _ in range(2):
            self.assertEqual(answer[0], 507)
            self.assertIn("cannot be kept", answer[1]["error"])
            self.assertEqual(self.predict(), before)
            answer = self.learn(i)
        remount = 32
        self.mount(remount, 3)
        self.assertEqual(self.learn(i), (200, {"id": f"p{i}", "new": True, "points": i + 1}))
        self.kill()
        self.start()
        self.assertEqual(self.before, i + 1)


unittest.main(argv=["ml_server_test"], verbosity=2)
