#!/usr/bin/env python3
"""Looks at the page of a run as people do, in Chromium: the page changes as the run goes on, shows that a worker was killed and
replaced, survives a reload and a restart of the coordinator, and can be used with a keyboard, on a telephone and in the dark.

    python3 tests/page.py

Needs chromium, of Debian's package `chromium`, and playwright from PyPI in the environment of this Python. TELAR_COORDINATOR
names the program `coordinator`, with `worker` beside it [default: target/release/coordinator]; TELAR_DATA the data [default:
synthetic].
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from urllib.parse import urlsplit

try:
    from playwright.sync_api import sync_playwright
except ImportError as error:
    sys.exit(f"expected the module {error.name}, found none in {sys.executable}: install playwright from PyPI")

ROOT = Path(__file__).resolve().parent.parent
COORDINATOR = Path(os.environ.get("TELAR_COORDINATOR", ROOT / "target/release/coordinator")).resolve()
DATA = os.environ.get("TELAR_DATA", "synthetic")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    sys.exit("expected the program chromium, found none: it is in Debian's package chromium")
# Generous: a machine may be busy, and nothing here waits for the end of it.
DEADLINE_SECONDS = 120
# From the death of a worker to the page. On an idle machine it is 2 s.
NEWS_SECONDS = 30
WIDTHS = (400, 1280)
SCHEMES = ("light", "dark")

# Functions for the page. Each gives what a test compares or waits for.
BADGE = "() => document.querySelector('#state .badge')?.textContent"
CONNECTION = "() => document.getElementById('connection').textContent"
STEP = "() => +document.querySelector('#state .progress-text b')?.textContent.replace(/[^0-9]/g, '') || 0"
CURVES = "() => [...document.querySelectorAll('#curves .chart')].map(chart => chart.innerHTML)"
ROSTER = """() => [...document.querySelectorAll('#workers tbody tr')].map(row =>
    ({worker: row.cells[0].textContent, state: row.cells[1].textContent, process: +row.cells[3].textContent,
      shards: +row.cells[7].textContent.replace(/[^0-9]/g, ''), hasLeft: row.classList.contains('is-gone')}))"""
EVENTS = """() => [...document.querySelectorAll('#faults .events li')].map(line =>
    [line.querySelector('.kind').textContent, line.querySelector('.what').textContent])"""
PICTURES = "() => [...document.querySelectorAll('#pictures img')].map(image => [image.getAttribute('src'), image.alt])"
# 0 for one that could not be loaded.
WIDTHS_OF_PICTURES = "() => [...document.images].map(image => image.naturalWidth)"
LANE = """worker => {
    const lanes = [...document.querySelectorAll('#presence .lane')];
    const lane = lanes.find(lane => lane.querySelector('.lane-name')?.textContent === `worker ${worker}`);
    if (!lane) return null;
    const here = lane.querySelector('.f-here').getBoundingClientRect();
    return {end: here.right / lane.querySelector('svg').getBoundingClientRect().right,
            hasMark: lane.querySelector('.mark.is-fault') !== null};
}"""
# Where a chart's first curve begins, as a share of the chart's width.
CURVES_BEGIN = """() => [...document.querySelectorAll('#curves .chart')].map(chart => {
    const area = chart.querySelector('clipPath rect');
    const curve = chart.querySelector('path[stroke="var(--curve-1)"]');
    const begin = curve.getPointAtLength(0).x;
    return (begin - area.x.baseVal.value) / area.width.baseVal.value;
})"""
FOCUSED = """() => {
    const element = document.activeElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
    const all = [...document.querySelectorAll('*')];
    return {place: all.indexOf(element), tag: element.tagName, id: element.id,
            name: element.getAttribute('aria-label') || element.textContent.trim().slice(0, 40),
            hasOutline: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
            isSeen: box.width > 0 && box.height > 0 && box.right > 0 && box.bottom > 0 && box.top < innerHeight};
}"""
IS_OPEN = "() => document.activeElement.parentElement.open"
FOCUSABLE = """() => {
    const all = [...document.querySelectorAll('*')];
    const found = [...document.querySelectorAll('a[href], button, input, summary, [tabindex="0"]')];
    return found.filter(element => element.checkVisibility()).map(element => all.indexOf(element));
}"""


def setUpModule():
    global browser
    playwright = sync_playwright().start()
    unittest.addModuleCleanup(playwright.stop)
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    unittest.addModuleCleanup(browser.close)


def at_end(test, function):
    """Calls a function at the end of a test, or of a class of tests."""
    (test.addClassCleanup if isinstance(test, type) else test.addCleanup)(function)


class Coordinator:
    """A coordinator that prints JSON. It is killed when the test ends."""

    # Those that were started, for the message of a failure.
    all = []

    def __init__(self, test, folder, *arguments):
        self.log = Path(folder, f"log-{len(self.all)}")
        self.all.append(self)
        log = open(self.log, "w")
        self.process = subprocess.Popen([COORDINATOR, "--json", *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=log)
        for end in (log.close, self.process.stdout.close, self.process.wait, self.process.kill):
            at_end(test, end)
        line = self.process.stdout.readline()
        assert line, "expected a line with the address, found none: " + self.log.read_text()
        self.url = json.loads(line)["http"]

    def describe(self):
        log = self.log.read_text()[-1500:] if self.log.exists() else ""
        return f"coordinator at {self.url}, exit code {self.process.poll()}\n{log}"

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def wait(self):
        # What it prints fits into the pipe.
        return self.process.wait(DEADLINE_SECONDS)


def train(test, folder, *arguments):
    """A run that goes on for longer than a test; what `arguments` say counts."""
    given = {"--workers": "4", "--arch": "denoising", "--epochs": "1000", "--data": DATA, "--http": "127.0.0.1:0",
             "--run-dir": "run"}
    given.update(zip(arguments[::2], arguments[1::2]))
    return Coordinator(test, folder, *(part for pair in given.items() if pair[1] is not None for part in pair))


def temporary_folder(test):
    folder = tempfile.TemporaryDirectory()
    at_end(test, folder.cleanup)
    return folder.name


def kill_worker(looked_at):
    """Kills a worker that takes part. Gives its number, and the time."""
    victim = next(row for row in looked_at.get(ROSTER) if not row["hasLeft"])
    os.kill(victim["process"], signal.SIGKILL)
    return victim["worker"], time.monotonic()


class LookedAt:
    """A page that is open, and what went wrong in it."""

    def __init__(self, test, url, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        at_end(test, context.close)
        self.page = context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", lambda message: message.type in ("error", "warning") and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"{request.url}: {request.failure}"))
        self.page.on("response", lambda answer: answer.status >= 400 and self.errors.append(f"{answer.url}: {answer.status}"))
        self.page.on("request", lambda request: self.requests.append((request.resource_type, request.url)))
        self.page.goto(url)

    def get(self, function, argument=None):
        return self.page.evaluate(function, argument)

    def wait_for(self, condition, what, seconds=DEADLINE_SECONDS):
        """Waits until `condition` gives something true, and gives that and the time."""
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            now = time.monotonic()
            if found:
                return found, now
            if now > deadline:
                text = self.page.inner_text("body")[:3000]
                logs = "\n".join(coordinator.describe() for coordinator in Coordinator.all[-2:])
                raise AssertionError(f"expected {what}, found none after {seconds} s\n{logs}{self.errors[:10]}\n{text}")
            self.page.wait_for_timeout(50)

    def wait_for_training(self, n_workers=4):
        """Waits until all workers compute and something is drawn."""
        def does_train():
            roster = self.get(ROSTER)
            return len(roster) >= n_workers and self.get(CURVES) and self.get(STEP)
        return self.wait_for(does_train, f"{n_workers} workers and curves")[0]

    def wait_for_news_of(self, worker):
        """Waits until the page shows that a worker has left and was replaced. Gives the time."""
        def is_shown():
            row = next(row for row in self.get(ROSTER) if row["worker"] == worker)
            lane = self.get(LANE, worker)
            newest_first = self.get(EVENTS)
            places = [place for place, (_, what) in enumerate(newest_first) if what.startswith(f"worker {worker} left")]
            if len(places) != 1 or newest_first[places[0]][0] != "fault":
                return False
            # On a busy machine other faults follow, such as late tasks.
            is_recovered = any(kind == "recovered" for kind, _ in newest_first[:places[0]])
            return (row["hasLeft"] and "left" in row["state"] and lane and lane["hasMark"] and lane["end"] < 1
                    and is_recovered)
        return self.wait_for(is_shown, f"news of the death of worker {worker}", NEWS_SECONDS)[1]

    def hosts(self):
        return {urlsplit(url).netloc for _, url in self.requests if not url.startswith("data:")}

    def fits(self):
        """Whether nothing is wider than the window."""
        return self.get("() => document.documentElement.scrollWidth <= innerWidth")


class Running(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.run_of_all = train(cls, temporary_folder(cls))

    def look(self, **how):
        looked_at = LookedAt(self, self.run_of_all.url, **how)
        looked_at.wait_for_training()
        return looked_at

    def test_page_loads_nothing_from_elsewhere_and_has_no_error(self):
        looked_at = self.look()
        looked_at.page.wait_for_timeout(2000)
        self.assertEqual(looked_at.errors, [])
        self.assertEqual(looked_at.hosts(), {urlsplit(self.run_of_all.url).netloc})

    def test_curves_and_roster_change_without_reload(self):
        looked_at = self.look()
        looked_at.get("() => { window.isSame = true; }")
        before = {worker["worker"]: worker["shards"] for worker in looked_at.get(ROSTER)}
        step, curves = looked_at.get(STEP), looked_at.get(CURVES)

        def has_changed():
            shards = {worker["worker"]: worker["shards"] for worker in looked_at.get(ROSTER)}
            more = sum(shards.values()) > sum(before.values())
            return more and looked_at.get(STEP) > step and looked_at.get(CURVES) != curves
        looked_at.wait_for(has_changed, "more steps, shards and other curves")
        self.assertTrue(looked_at.get("() => window.isSame"))
        kinds = [kind for kind, _ in looked_at.requests]
        self.assertEqual((kinds.count("document"), kinds.count("eventsource")), (1, 1), looked_at.requests)
        self.assertEqual(looked_at.errors, [])

    def test_killed_worker_is_shown_and_a_reload_loses_nothing(self):
        looked_at = self.look()
        worker, killed = kill_worker(looked_at)
        shown = looked_at.wait_for_news_of(worker)
        print(f"from SIGKILL of a worker to the page: {shown - killed:.2f} s", file=sys.stderr)
        events = looked_at.get(EVENTS)
        step = looked_at.get(STEP)
        self.assertEqual(looked_at.errors, [])
        # A reload breaks off the events of the former page, which Chromium reports.
        looked_at.page.reload()
        self.assertEqual([error for error in looked_at.errors if not error.endswith("/events: net::ERR_ABORTED")], [])
        self.assertEqual(looked_at.get(EVENTS)[-len(events):], events)
        self.assertGreaterEqual(looked_at.get(STEP), step)
        self.assertTrue(looked_at.get(LANE, worker)["hasMark"])
        begins = looked_at.get(CURVES_BEGIN)
        self.assertGreaterEqual(len(begins), 2)
        for begin in begins:
            self.assertLess(begin, 0.03)

    def test_focus_and_open_details_survive_updates(self):
        looked_at = self.look()
        looked_at.wait_for(lambda: looked_at.page.query_selector("#epochs summary"), "figures by epoch")
        looked_at.page.focus("#epochs summary")
        looked_at.page.keyboard.press("Enter")
        curves = looked_at.get(CURVES)
        looked_at.wait_for(lambda: looked_at.get(CURVES) != curves, "other curves")
        self.assertTrue(looked_at.get("() => document.getElementById('epochs').open"))
        self.assertEqual(looked_at.get(FOCUSED)["tag"], "SUMMARY")

    def test_widths_and_colours_fit(self):
        for width in WIDTHS:
            for scheme in SCHEMES:
                with self.subTest(width=width, scheme=scheme):
                    check_look(self, self.look(width=width, scheme=scheme), scheme)

    def test_other_host_is_refused(self):
        address = urlsplit(self.run_of_all.url)
        for host, expected in ((address.netloc, b"200"), (f"localhost:{address.port}", b"200"), ("evil.example", b"421"),
                               (f"evil.example:{address.port}", b"421")):
            with self.subTest(host), socket.create_connection((address.hostname, address.port)) as connection:
                connection.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                answer = b""
                while block := connection.recv(1 << 16):
                    answer += block
                self.assertEqual(answer.split()[1], expected)
                self.assertEqual(b"worker" in answer, expected == b"200")


def check_look(test, looked_at, scheme):
    """That a page fits, has the colours of the scheme, and texts for its pictures."""
    test.assertTrue(looked_at.fits(), looked_at.get("""() => [...document.querySelectorAll('*')]
        .filter(element => element.getBoundingClientRect().right > innerWidth).map(element => element.outerHTML.slice(0, 100))"""))
    without = "() => [...document.images].filter(image => !image.alt.trim()).map(image => image.src)"
    test.assertEqual(looked_at.get(without), [])
    unnamed = "() => document.querySelectorAll('svg:not([aria-hidden], [aria-label], svg svg, [aria-hidden] svg)').length"
    test.assertEqual(looked_at.get(unnamed), 0)
    background = looked_at.get("() => getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", background)[:3])) / 3
    test.assertEqual("light" if brightness > 128 else "dark", scheme, background)


class Restarted(unittest.TestCase):
    def test_page_goes_on_by_itself_after_a_resume(self):
        folder = temporary_folder(self)
        first = train(self, folder)
        address = urlsplit(first.url).netloc
        looked_at = LookedAt(self, first.url)
        looked_at.wait_for_training()
        looked_at.get("() => { window.isSame = true; }")
        first.interrupt()
        self.assertEqual(first.wait(), 0)
        looked_at.wait_for(lambda: looked_at.get(CONNECTION), "a word on the connection")
        self.assertEqual(looked_at.get(BADGE), "stopped")
        self.assertEqual(looked_at.get(CONNECTION), "the run has ended, and its program is gone")
        step, curves, n_events = looked_at.get(STEP), looked_at.get(CURVES), len(looked_at.get(EVENTS))
        self.assertTrue(step > 0 and curves)

        arguments = ("--resume", "run", "--http", address, "--run-dir", None)
        second = train(self, folder, *arguments)
        looked_at.wait_for(lambda: looked_at.get(BADGE) == "running" and looked_at.get(STEP) > step, "more steps")
        self.assertEqual(looked_at.get(CONNECTION), "")
        self.assertGreater(len(looked_at.get(EVENTS)), n_events)
        for begin in looked_at.get(CURVES_BEGIN):
            self.assertLess(begin, 0.03)

        second.process.kill()
        second.wait()
        looked_at.wait_for(lambda: looked_at.get(CONNECTION), "a word on the connection")
        self.assertEqual((looked_at.get(BADGE), looked_at.get(CONNECTION)), ("running", "connection lost, trying again"))
        step = looked_at.get(STEP)
        train(self, folder, *arguments)
        looked_at.wait_for(lambda: looked_at.get(CONNECTION) == "" and looked_at.get(STEP) > step, "more steps")
        self.assertTrue(looked_at.get("() => window.isSame"))


class Finished(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = temporary_folder(cls)
        train(cls, cls.folder, "--run-dir", "other", "--max-steps", "200", "--seed", "7").wait()
        run = train(cls, cls.folder, "--epochs", "2")
        looked_at = LookedAt(cls, run.url)
        looked_at.wait_for_training()
        cls.victim, _ = kill_worker(looked_at)
        looked_at.wait_for(lambda: looked_at.get(BADGE) == "completed", "the end of the run")
        run.wait()
        # What the page has at the end, from a program that is gone.
        cls.live = [looked_at.get(function) for function in (CURVES, EVENTS, PICTURES, STEP)]
        looked_at.wait_for(lambda: looked_at.get("() => [...document.images].every(image => image.complete)"), "pictures")
        cls.live_widths = looked_at.get(WIDTHS_OF_PICTURES)

    def show(self, *folders):
        return Coordinator(self, self.folder, "--http", "127.0.0.1:0", "--show", *folders).url

    def test_folder_shows_what_the_live_page_showed(self):
        looked_at = LookedAt(self, self.show("run"))
        shown = [looked_at.get(function) for function in (CURVES, EVENTS, PICTURES, STEP)]
        for name, live, found in zip(("curves", "events", "pictures", "step"), self.live, shown):
            with self.subTest(name):
                self.assertTrue(found)
                self.assertEqual(found, live)
        self.assertEqual(looked_at.get(BADGE), "completed")
        faults = [what for kind, what in looked_at.get(EVENTS) if kind == "fault"]
        self.assertTrue(any(what.startswith(f"worker {self.victim} left") for what in faults), faults)
        self.assertTrue(all(looked_at.get(WIDTHS_OF_PICTURES)))
        self.assertEqual(looked_at.errors, [])

    def test_last_picture_is_still_loaded_by_the_live_page(self):
        self.assertEqual(len(self.live_widths), 4)
        self.assertTrue(all(self.live_widths), self.live_widths)

    def test_two_folders_are_compared(self):
        looked_at = LookedAt(self, self.show("run", "other"))
        self.assertEqual(looked_at.get("() => [...document.querySelectorAll('.compared thead a')].map(link => link.textContent)"),
                         ["run", "other"])
        for chart in looked_at.get("() => [...document.querySelectorAll('.chart')].map(chart => chart.innerHTML)"):
            self.assertIn("var(--curve-1)", chart)
            self.assertIn("var(--curve-2)", chart)
        looked_at.page.click(".compared thead a >> nth=1")
        self.assertEqual(looked_at.get("() => document.querySelector('h1').textContent"), "other")
        self.assertEqual(looked_at.errors, [])

    def test_tab_reaches_everything_in_order_with_an_outline(self):
        url = self.show("run", "other")
        for path in ("runs/run", "compare"):
            with self.subTest(path):
                looked_at = LookedAt(self, url + path)
                expected = looked_at.get(FOCUSABLE)
                reached = []
                while len(reached) <= len(expected):
                    looked_at.page.keyboard.press("Tab")
                    focused = looked_at.get(FOCUSED)
                    if focused["tag"] == "BODY":
                        break
                    self.assertTrue(focused["hasOutline"] and focused["isSeen"], focused)
                    reached.append(focused["place"])
                    if focused["tag"] == "SUMMARY" and not looked_at.get(IS_OPEN):
                        looked_at.page.keyboard.press("Enter")
                        self.assertTrue(looked_at.get(IS_OPEN), focused)
                        # What was folded can be reached now.
                        expected = looked_at.get(FOCUSABLE)
                self.assertEqual(reached, expected)
                self.assertGreater(len(reached), 3)

    def test_widths_and_colours_fit(self):
        url = self.show("run", "other")
        for path in ("runs/run", "compare"):
            for width in WIDTHS:
                for scheme in SCHEMES:
                    with self.subTest(path=path, width=width, scheme=scheme):
                        check_look(self, LookedAt(self, url + path, width=width, scheme=scheme), scheme)


class Off(unittest.TestCase):
    def test_no_port_is_open(self):
        run = train(self, temporary_folder(self), "--http", "off")
        self.assertIsNone(run.url)
        self.assertEqual(listening(run.process.pid), [])

    def test_usual_address_is_listened_at_alone(self):
        run = train(self, temporary_folder(self))
        self.assertEqual(listening(run.process.pid), [urlsplit(run.url).port])


def listening(process):
    """The TCP ports at which a process listens."""
    inodes = set()
    for entry in Path(f"/proc/{process}/fd").iterdir():
        try:
            inodes.add(os.readlink(entry))
        except FileNotFoundError:
            pass
    ports = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                ports.append(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


if __name__ == "__main__":
    unittest.main()
