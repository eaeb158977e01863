#!/usr/bin/env python3
"""Checks the metrics with Prometheus itself. `promtool check metrics` has no complaint; a server that scrapes both text formats
finds the values in them, and answers the dashboard's queries.

    python3 tests/prometheus.py

Needs promtool and prometheus, of Debian's package `prometheus`. TELAR_METRICS names the example program `metrics` if it is built
already; otherwise cargo builds it.
"""

import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = [os.environ["TELAR_METRICS"]] if "TELAR_METRICS" in os.environ else [
    "cargo", "run", "--quiet", "--package", "observe", "--example", "metrics", "--"]
for program in ("promtool", "prometheus"):
    if shutil.which(program) is None:
        sys.exit(f"expected the program {program}, found none: it is in Debian's package prometheus")
# Generous: a machine may be busy, and nothing here waits for the end of it.
DEADLINE_SECONDS = 120
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"


def exposition(*arguments):
    done = subprocess.run([*EXAMPLE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a text per path, each with its type: (type, text)."""

    pages = {}

    def do_GET(self):
        content_type, text = self.pages[self.path]
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


CONFIG = """
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
"""
JOB = """
- job_name: NAME
  metrics_path: /NAME
  static_configs: [{targets: ["127.0.0.1:PORT"]}]
"""


def expressions(node):
    if isinstance(node, dict):
        if "expr" in node:
            yield node["expr"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from expressions(item)


class Metrics(unittest.TestCase):
    def test_promtool_has_no_complaint(self):
        done = subprocess.run(["promtool", "check", "metrics"], input=exposition(), capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout + done.stderr), (0, ""))


class Scraped(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        Handler.pages = {"/openmetrics": (OPENMETRICS, exposition("openmetrics")), "/plain": (PLAIN, exposition())}
        cls.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        cls.addClassCleanup(cls.server.server_close)
        threading.Thread(target=cls.server.serve_forever, daemon=True).start()
        cls.addClassCleanup(cls.server.shutdown)
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        target = str(cls.server.server_address[1])
        jobs = [JOB.replace("NAME", page[1:]).replace("PORT", target) for page in Handler.pages]
        Path(folder.name, "prometheus.yml").write_text(CONFIG + "".join(jobs))
        cls.port = free_port()
        cls.log = open(Path(folder.name, "log"), "w+")
        cls.addClassCleanup(cls.log.close)
        cls.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder.name}/prometheus.yml", f"--storage.tsdb.path={folder.name}/data",
             f"--web.listen-address=127.0.0.1:{cls.port}"], stdout=cls.log, stderr=subprocess.STDOUT)
        cls.addClassCleanup(cls.process.wait)
        cls.addClassCleanup(cls.process.kill)

    def get(self, path, **parameters):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def query(self, expression):
        """Values by job."""
        return {row["metric"].get("job"): float(row["value"][1]) for row in self.get("query", query=expression)["result"]}

    def wait_for(self, expression, expected):
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            self.assertIsNone(self.process.poll(), "Prometheus has ended: " + Path(self.log.name).read_text())
            try:
                found = self.query(expression)
            except OSError as error:
                found = error  # it does not listen yet
            if found == expected:
                return
            if time.monotonic() > deadline:
                log = Path(self.log.name).read_text()[-2000:]
                self.fail(f"{expression}: expected {expected}, found {found} after {DEADLINE_SECONDS} s\n{log}")
            time.sleep(0.2)

    def both(self, value):
        return {"openmetrics": value, "plain": value}

    def test_values_are_found_in_both_formats(self):
        for expression, value in (
            ("telar_step", 100), ("telar_steps_total", 100), ("telar_samples_total", 3200), ("telar_loss", 0.01),
            ("telar_val_loss", 0.21), ('telar_metric{name="val_accuracy"}', 0.89), ("telar_workers_expected", 2),
            ('telar_workers{state="active"}', 2), ('telar_worker_silent_seconds{worker="2"}', 0.48),
            ("telar_step_duration_seconds_count", 100), ('telar_step_phase_seconds_count{phase="wait"}', 100),
            ('telar_step_duration_seconds_bucket{le="0.0025"}', 10), ('telar_run_info{task="denoising"}', 1),
            ("process_start_time_seconds", 1_790_000_000),
        ):
            with self.subTest(expression):
                self.wait_for(expression, self.both(value))

    def test_types_and_help_texts_are_found(self):
        self.wait_for("telar_step", self.both(100))
        metadata = self.get("metadata")
        for name, kind in (("telar_step_duration_seconds", "histogram"), ("telar_step", "gauge")):
            self.assertEqual({entry["type"] for entry in metadata[name]}, {kind})
            self.assertTrue(all(entry["help"] for entry in metadata[name]))

    def test_dashboard_queries_are_answered(self):
        self.wait_for("telar_step", self.both(100))
        text = (ROOT / "deploy/grafana/telar.json").read_text()
        found = list(expressions(json.loads(text)))
        self.assertGreater(len(found), 15)
        for expression in found:
            expression = re.sub(r"\$(job|instance)\b", ".*", expression).replace("$__rate_interval", "1h")
            with self.subTest(expression):
                # Rates need two scrapes.
                deadline = time.monotonic() + DEADLINE_SECONDS
                while not self.get("query", query=expression)["result"]:
                    self.assertLess(time.monotonic(), deadline, "no answer")
                    time.sleep(0.2)


if __name__ == "__main__":
    unittest.main()
