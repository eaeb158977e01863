#!/usr/bin/env python3
"""Looks at what a coordinator prints, as people do, in terminals of several widths: the link to the page, a line per worker that
joins or leaves, the bar, the epochs, and the table at the end. Also in a terminal that changes its width, without colours, in a
file, as JSON, and after Ctrl-C.

    python3 tests/screen.py

Needs tmux, of Debian's package `tmux`. TELAR_COORDINATOR names the program `coordinator`, with `worker` beside it [default:
target/release/coordinator]. TELAR_SCREENS names a folder for pictures of the terminals as text [default: none are kept].
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COORDINATOR = Path(os.environ.get("TELAR_COORDINATOR", ROOT / "target/release/coordinator")).resolve()
SCREENS = os.environ.get("TELAR_SCREENS")
if shutil.which("tmux") is None:
    sys.exit("expected the program tmux, found none: it is in Debian's package tmux")
# Generous: a machine may be busy, and nothing here waits for the end of it.
DEADLINE_SECONDS = 180
ROWS = 50

# Some hundred steps an epoch, of which each takes long enough to be seen.
TRAINING = "--arch denoising --data synthetic --batch-size 512 --workers 2 --threads 1"
SHORT = f"{TRAINING} --epochs 2"
LONG = f"{TRAINING} --epochs 500"

BAR = re.compile(r"^epoch (\d+)/\d+ [█░]+ (?:step )?(\d+)/\d+, .*left$")
BAR_PART = re.compile(r"[█░]|(?<!worker )(?<!workers )left$")
EPOCH = re.compile(r"^epoch 1/\d+: [\d.]+ s, loss 0\.\d{4}, rounded accuracy 0\.\d{4}, val loss 0\.\d{4}, "
                   r"val rounded accuracy 0\.\d{4}, \d+ images/s$")
JOINED = re.compile(r"^worker (\d+) joined: \S+, process (\d+), flex on cpu, 1 thread; \d workers? takes? part$")
LEFT = re.compile(r"^worker (\d+) left: .+; .+ takes? part$")
PAGE = re.compile(r"^page: http://127\.0\.0\.1:\d+/$")
# The rows of the table, in their order.
ROW_NAMES = ["trained", "loss", "speed", "time", "recovered from", "weights", "params blake3", "run folder", "files there", "page"]
# A word that is longer than a line, and what is to be copied.
UNBROKEN = re.compile(r"^(params blake3|page|go on with):? ")
CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]")
COLOUR = re.compile(r"\x1b\[[\d;]+m")


def environment(**changes):
    """Without the caller's own settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TELAR_")}
    for name in ("NO_COLOR", "RUST_LOG", "COLUMNS", "LINES"):
        kept.pop(name, None)
    return {**kept, "LC_ALL": "C.UTF-8", **changes}


class Folder(unittest.TestCase):
    """A test with a folder of its own, in which the coordinator works."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="telar-screen-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def path(self, name):
        return self.folder / name


class Terminal:
    """A terminal in which a command runs once. When it has ended, its exit code stands there, and what is typed is read."""

    n_servers = 0

    def __init__(self, test, command, columns, **variables):
        Terminal.n_servers += 1
        self.test, self.columns = test, columns
        self.server = f"telar-screen-{os.getpid()}-{Terminal.n_servers}"
        self.raw = test.path(f"raw-{Terminal.n_servers}")
        script = test.path(f"script-{Terminal.n_servers}")
        # The shell outlives Ctrl-C. It begins when all that is printed is recorded.
        script.write_text(
            f"trap : INT\nread begin\nstty -a >stty-before\n{command}\necho exit code $?\nstty -a >stty-after\n"
            "read word\necho typed: $word\nexec sleep 1000\n")
        settings = {"history-limit": 5000, "status": "off", "default-terminal": variables.get("TERM", "tmux-256color")}
        settings = [word for name, value in settings.items() for word in ("set", "-g", name, value, ";")]
        self.tmux("-f", "/dev/null", "start-server", ";", *settings, "new-session", "-d", "-x", columns, "-y", ROWS,
                  "-c", test.folder, f"sh {script}", env=environment(**variables))
        test.addCleanup(self.tmux, "kill-server")
        self.tmux("pipe-pane", f"cat >{self.raw}")
        self.tmux("send-keys", "Enter")

    def tmux(self, *arguments, env=None):
        done = subprocess.run(["tmux", "-u", "-L", self.server, *map(str, arguments)], env=env, capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def rows(self):
        """The rows, from the first one ever printed to the last one that is not empty."""
        return [row.rstrip() for row in self.tmux("capture-pane", "-p", "-S", "-").rstrip().split("\n")]

    def lines(self):
        """As rows, but what the terminal has broken in two is whole."""
        return [line.rstrip() for line in self.tmux("capture-pane", "-p", "-J", "-S", "-").rstrip().split("\n")]

    def colours(self):
        return self.tmux("capture-pane", "-p", "-e", "-S", "-")

    def output(self):
        """The lines that the command has printed, with wrapped lines joined at spaces. None begins with a space."""
        lines = []
        for line in self.lines():
            if line.startswith("  ") and lines:
                lines[-1] += " " + line.strip()
            else:
                lines.append(line)
        return lines

    def wait_for(self, what, find):
        """What `find` gives, as soon as that is something."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (found := find()):
            if time.monotonic() > deadline:
                self.test.fail(f"waited in vain for {what}:\n" + "\n".join(self.rows()))
            time.sleep(0.05)
        return found

    def wait_for_line(self, pattern):
        matches = lambda: [match for line in self.output() if (match := pattern.match(line))]
        return self.wait_for(pattern.pattern, matches)

    def wait_for_bar(self, after=-1):
        """Waits for a bar, after a step; its step."""
        def find():
            bar = BAR.match(self.rows()[-1])
            return bar and int(bar[2]) > after and bar
        return int(self.wait_for(f"a bar after step {after}", find)[2])

    def wait_for_end(self):
        """The exit code."""
        return int(self.wait_for_line(re.compile(r"^exit code (\d+)$"))[0][1])

    def kill_worker(self):
        """Kills the first of two workers, and waits until another one has come in its place."""
        self.wait_for("two workers", lambda: len(self.wait_for_line(JOINED)) >= 2)
        joined = {int(match[1]): int(match[2]) for match in self.wait_for_line(JOINED)}
        os.kill(joined[1], signal.SIGKILL)
        self.wait_for("another worker", lambda: len(self.wait_for_line(JOINED)) >= 3)

    def keep(self, name):
        if SCREENS is not None:
            Path(SCREENS).mkdir(parents=True, exist_ok=True)
            text = f"{self.columns} columns\n" + "\n".join(row.ljust(self.columns) + "|" for row in self.rows())
            Path(SCREENS, name + ".txt").write_text(text + "\n")


class Screen(Folder):
    def assert_no_part_of_bar(self, lines):
        self.assertEqual([line for line in lines if BAR_PART.search(line)], [])

    def check_table(self, output, columns):
        place = max(number for number, line in enumerate(output) if line.startswith("epoch "))
        names = [re.match(r"[a-z0-9 ]+?(?=:|  |$)", line)[0] for line in output[place + 1:output.index("exit code 0")]]
        self.assertEqual(names, ROW_NAMES)
        rows = {name: line[len(name):].lstrip(": ") for name, line in zip(names, output[place + 1:])}
        self.assertRegex(rows["trained"], r"^2 epochs, \d+ steps$")
        self.assertRegex(rows["loss"], r"^0\.\d{4}, val loss 0\.\d{4}\s+rounded accuracy 0\.\d{4}, val rounded accuracy 0\.\d{4}$")
        self.assertRegex(rows["speed"], r"^\d+ images/s$")
        self.assertRegex(rows["time"], r"ms per step: .* compute, .* wait, .* coordinator \(decode .*\)$")
        self.assertRegex(rows["recovered from"], r"^1 worker left")
        self.assertTrue((self.folder / rows["weights"]).is_file(), rows)
        self.assertEqual(rows["run folder"], "run")
        self.assertEqual(rows["files there"], "curves.svg, run.log, codes/, reconstructions/")
        self.assertEqual(rows["page"], f"{COORDINATOR} --show run")

    def check_wide(self, columns):
        """A whole run in a terminal of so many columns, with a worker that is killed."""
        terminal = Terminal(self, f"{COORDINATOR} {SHORT} --run-dir run", columns)
        terminal.wait_for_line(PAGE)
        terminal.wait_for_bar()
        terminal.kill_worker()
        terminal.wait_for_bar()
        terminal.keep(f"running-{columns}")
        self.assertLessEqual(len(terminal.rows()[-1]), columns)
        self.assertEqual(sum("█" in row for row in terminal.rows()), 1)
        self.assertEqual(terminal.wait_for_end(), 0)
        terminal.keep(f"ended-{columns}")
        output = terminal.output()
        self.assertTrue(any(EPOCH.match(line) for line in output), output)
        self.assertEqual([match[1] for line in output if (match := LEFT.match(line))], ["1"])
        self.assert_no_part_of_bar(output)
        self.check_table(output, columns)
        # No row is longer than the terminal is wide, but for words that are, and what is to be copied.
        broken = [line for line in terminal.lines() if len(line) > columns and not UNBROKEN.match(line)]
        self.assertEqual(broken, [])
        # The log is in run.log. Of it the terminal shows warnings, without the run's name.
        log = self.path("run/run.log").read_text()
        self.assertIn("worker joined", log)
        shown = [line for line in output if re.match(r"^ *(ERROR|WARN|INFO|DEBUG|TRACE) ", line)]
        self.assertTrue(shown and all(line.startswith(" WARN local worker ended") for line in shown), shown)
        self.assertFalse([line for line in output if "run{" in line])
        return terminal

    def test_run_in_120_columns(self):
        terminal = self.check_wide(120)
        self.assertIn("\x1b[33m", terminal.colours(), "a warning has a colour")

    def test_run_in_80_columns(self):
        terminal = self.check_wide(80)
        self.assertFalse([line for line in terminal.lines() if len(line) > 80 and str(COORDINATOR) not in line])

    def test_run_in_40_columns(self):
        self.check_wide(40)

    def test_no_color_leaves_no_colours(self):
        terminal = Terminal(self, f"{COORDINATOR} {LONG} --run-dir run", 80, NO_COLOR="1")
        terminal.wait_for_bar()
        terminal.kill_worker()
        terminal.wait_for_line(re.compile(r"^ WARN local worker ended"))
        self.assertIsNone(COLOUR.search(terminal.colours()))
        self.assertIsNone(COLOUR.search(terminal.raw.read_text()))

    def test_dumb_terminal_gets_no_control_sequence(self):
        terminal = Terminal(self, f"{COORDINATOR} {SHORT} --run-dir run", 80, TERM="dumb")
        terminal.kill_worker()
        self.assertEqual(terminal.wait_for_end(), 0)
        terminal.keep("dumb")
        self.assertTrue(any(EPOCH.match(line) for line in terminal.output()), terminal.rows())
        raw = terminal.raw.read_bytes().replace(b"\r\n", b"\n")
        self.assertIn(b"WARN", raw)
        self.assertIsNone(CONTROL.search(raw), raw)
        self.assertNotIn("█".encode(), raw)

    def test_resized_terminal_has_no_garbage(self):
        terminal = Terminal(self, f"{COORDINATOR} {LONG} --run-dir run", 120)
        step = terminal.wait_for_bar()
        for columns in (100, 80, 79, 40, 60, 36, 120, 50):
            terminal.tmux("resize-window", "-x", columns, "-y", ROWS)
            # Twice, so that one was drawn that knew the width.
            step = terminal.wait_for_bar(terminal.wait_for_bar(step))
            # tmux tells a program of its new width a quarter of a second later.
            terminal.columns = columns
            terminal.keep(f"resized-{columns}")
            self.assertLessEqual(len(terminal.rows()[-1]), columns)
            self.assert_no_part_of_bar(terminal.rows()[:-1])
        # Lines that are printed beside the bar meanwhile.
        terminal.tmux("resize-window", "-x", 90, "-y", ROWS)
        terminal.kill_worker()
        terminal.tmux("resize-window", "-x", 45, "-y", ROWS)
        terminal.wait_for_bar(terminal.wait_for_bar(step))
        self.assert_no_part_of_bar(terminal.rows()[:-1])
        for pattern in (PAGE, JOINED, LEFT):
            self.assertTrue(any(pattern.match(line) for line in terminal.output()), terminal.rows())

    def test_interrupted_run_leaves_sane_terminal_and_command_to_resume(self):
        self.path("my runs").mkdir()
        terminal = Terminal(self, f"{COORDINATOR} {LONG} --run-dir 'my runs/1'", 80)
        terminal.wait_for_bar()
        terminal.tmux("send-keys", "C-c")
        self.assertEqual(terminal.wait_for_end(), 0)
        terminal.tmux("send-keys", "sane", "Enter")
        terminal.wait_for_line(re.compile(r"^typed: sane$"))
        terminal.keep("interrupted")
        output = terminal.output()
        self.assert_no_part_of_bar(output)
        # What is typed is echoed again, below what was printed.
        self.assertEqual(output[-3:], ["exit code 0", "sane", "typed: sane"])
        # All but the first line: the numbers of rows and columns.
        before, after = (self.path(f"stty-{when}").read_text().split("\n", 1) for when in ("before", "after"))
        self.assertEqual(before[1], after[1])
        raw = terminal.raw.read_text()
        self.assertGreaterEqual(raw.rfind("\x1b[?25h"), raw.rfind("\x1b[?25l"), "the cursor is visible")
        step = int(next(match[1] for line in output if (match := re.match(r"^stopped +after step (\d+)$", line))))
        command = next(line for line in output if line.startswith("go on with")).removeprefix("go on with").strip()
        # As it is copied from there.
        self.assertEqual(shlex.split(command)[:5], [str(COORDINATOR), "--workers", "2", "--resume", "my runs/1"])
        resumed = subprocess.run(f"{command} --max-steps {step + 3}", shell=True, cwd=self.folder, env=environment(),
                                 capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)
        self.assertEqual(resumed.returncode, 0, resumed.stderr)
        self.assertIn(f"resumed at step {step} from", resumed.stdout)

    def test_redirected_output_is_plain(self):
        with open(self.path("out"), "wb") as out, open(self.path("err"), "wb") as err:
            command = [COORDINATOR, *SHORT.split(), "--run-dir", "run"]
            subprocess.run(command, cwd=self.folder, env=environment(), stdout=out, stderr=err, check=True,
                           timeout=DEADLINE_SECONDS)
        out, err = self.path("out").read_bytes(), self.path("err").read_bytes()
        self.assertEqual(err, b"")
        self.check_plain(out)

    def check_plain(self, out):
        self.assertIsNone(CONTROL.search(out), out)
        lines = out.decode().splitlines()
        for pattern in (PAGE, JOINED, EPOCH, re.compile(r"^time {12}\d.* ms per step: .*\)$"), re.compile("^page {12}")):
            self.assertTrue(any(pattern.match(line) for line in lines), f"no line like {pattern.pattern} in {out.decode()}")
        self.assertNotIn("█", out.decode())

    def test_bar_stays_on_terminal_where_output_is_redirected(self):
        terminal = Terminal(self, f"{COORDINATOR} {SHORT} --run-dir run >out", 80)
        terminal.wait_for_bar()
        self.assertEqual(terminal.wait_for_end(), 0)
        self.assertEqual(terminal.output(), ["", "exit code 0"])
        self.check_plain(self.path("out").read_bytes())

    def test_json_is_all_that_is_printed_for_programs(self):
        terminal = Terminal(self, f"{COORDINATOR} {SHORT} --run-dir run --json >out", 80)
        out = self.path("out")
        log = self.path("run/run.log")
        process = lambda: log.exists() and re.search(r"process=(\d+)", log.read_text())
        os.kill(int(terminal.wait_for("a worker", process)[1]), signal.SIGKILL)
        self.assertEqual(terminal.wait_for_end(), 0)
        events = [json.loads(line)["event"] for line in out.read_text().splitlines()]
        self.assertEqual((events[0], events[-1], events.count("epoch")), ("begin", "end", 2))
        self.assertIsNone(re.search("[█░]", terminal.raw.read_text()))


if __name__ == "__main__":
    unittest.main()
