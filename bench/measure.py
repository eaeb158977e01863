"""One measurement of bench/speed.py: a program is started, watched while it trains, and ended; how fast it was in its steady
state, how much memory each process took, and where the time went. What is measured in which order says bench/speed.py.
"""

import contextlib
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from book import PROJECT

# How long a program may take to begin, or to end when it is asked to.
BEGIN_SECONDS_MAX = 120
END_SECONDS_MAX = 60
# Fewer steps than this are no steady state.
N_STEPS_MIN = 3
# Measuring longer and longer ends here.
SECONDS_MAX = 120
# The first of the steps in which all workers take part that are left out.
WARM_UP_SHARE = 0.2


class Failure(Exception):
    """A sentence that says what went wrong."""


@contextlib.contextmanager
def started(command, **options):
    """A process in a group of its own, of which nothing is left afterwards. Who has ended by itself has seen to its own: local
    workers end with their coordinator, and what bench/ddp.py starts it ends."""
    process = subprocess.Popen([str(part) for part in command], start_new_session=True, cwd=PROJECT, **options)
    try:
        yield process
    finally:
        # Its number is its own until it was waited for.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class PausedRun:
    """A run whose processes stand still unless it is let go, so that another one can take turns with it: whatever else the machine
    does slows both alike."""

    def __init__(self, processes, folder):
        self.processes = processes
        self.folder = folder

    def signal(self, number):
        for process in self.processes:
            os.kill(process, number)

    def n_steps(self):
        """The steps whose lines are written, which is done some at a time."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "steps.jsonl").read_bytes().count(b"\n")
        return 0

    def run(self, seconds):
        """Lets it go for a time."""
        self.signal(signal.SIGCONT)
        time.sleep(seconds)
        self.signal(signal.SIGSTOP)


def take_turns(runs, n_pairs, seconds):
    """Lets two runs go for so many seconds each, in an order that alternates; the steps that each has come to meanwhile."""
    before = [run.n_steps() for run in runs]
    for number in range(n_pairs):
        for run in runs if number % 2 == 0 else reversed(runs):
            run.run(seconds)
    return [run.n_steps() - n for run, n in zip(runs, before)]


def plain_environment():
    """The environment without settings of telar's."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TELAR_")}


def last_words(path, n_lines=5):
    """The end of what a program printed."""
    return " / ".join(path.read_text(errors="replace").strip().splitlines()[-n_lines:]) or "nothing"


class Family:
    """A process and its children, and the most memory that one of each name has taken."""

    def __init__(self, process):
        self.process = process
        self.members = [process.pid]
        self.peak_kib = {}

    def find(self):
        """Looks for children anew."""
        found = [self.process.pid]
        for tasks in pathlib.Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, tasks.read_text().split())
        self.members = found

    def look(self):
        """Takes note of how much memory each has taken so far."""
        for pid in self.members:
            with contextlib.suppress(OSError, StopIteration):
                lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
                name = next(line.split()[1] for line in lines if line.startswith("Name:"))
                peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
                self.peak_kib[name] = max(peak, self.peak_kib.get(name, 0))


def cluster(programs, arch, n_workers, batch_size, data, flags, seconds):
    """A coordinator with its local workers, of one thread each."""
    command = [programs / "coordinator", "--workers", n_workers, "--threads", 1, "--checkpoint-every", 10**9]
    return measured([*command, *flags], arch, batch_size, data, seconds, n_workers)


def alone(programs, arch, n_threads, batch_size, data, flags, seconds):
    """One process without a network, that computes each step in one piece."""
    command = [programs / "autoencoder", "train", "--shards", 1, "--threads", n_threads]
    return measured([*command, *flags], arch, batch_size, data, seconds, None)


def measured(command, arch, batch_size, data, seconds, n_workers):
    """Trains until there are enough steps; what came out."""
    command = [*command, "--arch", arch, "--batch-size", batch_size, "--epochs", 1000, "--data", data]
    while True:
        steps, outside, peak_kib = train(command, seconds, n_workers)
        steady = steady_steps(steps, n_workers)
        if len(steady) >= N_STEPS_MIN:
            break
        if seconds >= SECONDS_MAX:
            raise Failure(f"expected {N_STEPS_MIN} steps of {arch} in {seconds:.0f} seconds, found {len(steady)}")
        seconds *= 2
    taken = sum(step["milliseconds"] for step in steady) / 1e3 * outside
    result = {"images_per_second": sum(step["n_samples"] for step in steady) / taken, "n_steps": len(steady),
              "seconds": taken, "step_milliseconds": statistics.median(step["milliseconds"] for step in steady),
              "peak_kib": peak_kib}
    if n_workers is not None:
        result["costs"] = {part: statistics.median(step["costs"][part] for step in steady) for part in steady[0]["costs"]}
        result["costs"]["own"] = statistics.median(
            sum(step["costs"].get(part, 0.0) for part in ("decode", "reduce", "update", "encode")) for step in steady)
    return result


def train(command, seconds, n_workers):
    """Runs a program that trains for so long after it has begun, then ends it as a user would: with a signal. Gives its steps,
    by how much its training took longer than these, and the peaks of its processes' memory."""
    with tempfile.TemporaryDirectory(prefix="telar-speed-") as folder:
        folder = pathlib.Path(folder)
        run, out, err = folder / "run", folder / "out", folder / "err"
        with (open(out, "w") as out_file, open(err, "w") as err_file,
              started([*command, "--run-dir", run], stdout=out_file, stderr=err_file, env=plain_environment()) as process):
            family = Family(process)

            def watch(seconds_max, until):
                """Whether it comes about in time, while the process lives."""
                deadline = time.monotonic() + seconds_max
                while time.monotonic() < deadline and not until():
                    if process.poll() is not None:
                        raise Failure(f"expected `{' '.join(map(str, command))}` to train, found that it ended with code "
                                      f"{process.returncode}: {last_words(err)}")
                    family.look()
                    time.sleep(0.05)
                return until()

            def has_begun():
                if n_workers is None:
                    return (run / "steps.jsonl").exists()
                return err.read_text(errors="replace").count("worker joined") >= n_workers

            if not watch(BEGIN_SECONDS_MAX, has_begun):
                raise Failure(f"expected `{' '.join(map(str, command))}` to train within {BEGIN_SECONDS_MAX} seconds, found "
                              f"{last_words(err)}")
            family.find()
            watch(seconds, lambda: False)
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + END_SECONDS_MAX
            while process.poll() is None and time.monotonic() < deadline:
                family.look()
                time.sleep(0.02)
            if process.poll() != 0:
                found = "it did not" if process.returncode is None else f"code {process.returncode}"
                raise Failure(f"expected `{' '.join(map(str, command))}` to end with code 0 after SIGTERM, found {found}: "
                              f"{last_words(err)}")
        steps = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
        epochs = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    outside = 1.0
    if n_workers is None and epochs and steps:
        # The steps of one process leave out what is between them; those of a cluster follow each other without a gap.
        outside = sum(epoch["seconds"] for epoch in epochs) / (sum(step["milliseconds"] for step in steps) / 1e3)
    return steps, outside, family.peak_kib


def steady_steps(steps, n_workers):
    """The steps after all workers are there and warm."""
    if n_workers is not None:
        first = next((place for place, step in enumerate(steps) if len(set(step["workers"])) == n_workers), len(steps))
        steps = steps[first:]
    return steps[max(1, int(WARM_UP_SHARE * len(steps))):]


def twin(python, flags, seconds_max):
    """What bench/ddp.py prints."""
    command = [python, PROJECT / "bench" / "ddp.py", *flags]
    with tempfile.TemporaryFile("w+") as err, started(command, stdout=subprocess.PIPE, stderr=err, text=True) as process:
        try:
            out, _ = process.communicate(timeout=seconds_max)
        except subprocess.TimeoutExpired:
            raise Failure(f"expected `{' '.join(map(str, command))}` to end within {seconds_max} seconds, found that it did "
                          "not") from None
        if process.returncode != 0:
            err.seek(0)
            words = " / ".join(err.read().strip().splitlines()[-5:])
            raise Failure(f"expected `{' '.join(map(str, command))}` to end with code 0, found {process.returncode}: {words}")
    # Gloo prints there, too.
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def has_operations(programs):
    """Whether the programs have a flag for the operations they compute with."""
    shown = subprocess.run([programs / "coordinator", "--help"], capture_output=True, text=True, check=False)
    return "--operations" in shown.stdout


def scaling():
    """The cells of coordinator/benches/scaling.rs."""
    # The whole workspace, as elsewhere: by itself the package would have Burn compiled with other features.
    command = ["cargo", "bench", "--workspace", "--bench", "scaling"]
    with started(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True) as process:
        out, _ = process.communicate()
        if process.returncode != 0:
            raise Failure(f"expected `{' '.join(command)}` to end with code 0, found {process.returncode}")
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]
