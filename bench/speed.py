#!/usr/bin/env python3
"""Measures training beside PyTorch's, in one run on this machine, and writes a table of ratios.

    python3 bench/speed.py                      # five alternations, about 20 minutes on two quiet cores
    python3 bench/speed.py --quick              # one short alternation, to see that everything works
    python3 bench/speed.py --render bench/RESULTS.json    # the table anew, from the numbers of an earlier run

Sets up PyTorch in target/bench-python, builds the programs, and checks that bench/ddp.py trains the same networks. Then, in
turns: a coordinator with 1, 2 and 4 local workers of one thread each; PyTorch's DistributedDataParallel over Gloo with as
many processes; the same cluster with Burn's plain operations; one process of each on all cores; each with global batches
of 32, 128 and 512 images. Who goes first changes with every alternation, and ratios are taken within one. At last, what a
step costs the coordinator with more workers and more parameters. Writes bench/RESULTS.md, whose end, below a line that says
so, is kept; and the numbers themselves beside it. Nothing else should run on the machine meanwhile.
"""

import argparse
import contextlib
import datetime
import gzip
import importlib.util
import json
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

import measure
import results
from book import PROJECT
from ddp import ARCHITECTURES, data_folder

TORCH = "2.9.1"
WORKERS = [1, 2, 4]
BATCH_SIZES = [32, 128, 512]
DATA_FILES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
ENVIRONMENT = PROJECT / "target" / "bench-python"
TWIN_SECONDS_MAX = 600


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alternations", type=int, metavar="N", help="how often everything is measured (default: 5)")
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="only these networks")
    parser.add_argument("--quick", action="store_true", help="one short alternation, into target/speed/")
    parser.add_argument("--no-build", action="store_true", help="take the programs in target/release as they are")
    parser.add_argument("--data", type=pathlib.Path, help="folder of Fashion-MNIST (default: $TELAR_DATA, ../shared/"
                        "fashion-mnist or data/)")
    parser.add_argument("--out", type=pathlib.Path, help="table to write (default: bench/RESULTS.md)")
    parser.add_argument("--json", type=pathlib.Path, help="numbers to write (default: beside the table, as .json)")
    parser.add_argument("--render", type=pathlib.Path, metavar="JSON", help="write the table from these numbers, and nothing else")
    options = parser.parse_args()
    if options.alternations is not None and options.alternations < 1:
        parser.error(f"expected --alternations above 0, found {options.alternations}")
    out = options.out or PROJECT / ("target/speed" if options.quick else "bench") / "RESULTS.md"
    # So that whatever was started is ended, as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    json_path = options.json or out.with_suffix(".json")
    try:
        numbers = read(options.render) if options.render else Comparison(options, json_path).run()
        results.write(numbers, out)
    except measure.Failure as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        tell(f"interrupted; alternations that were whole are kept: see them with --render {json_path}")
        sys.exit(130)
    tell(f"written: {out}")


def tell(words):
    print(words, file=sys.stderr, flush=True)


def read(path):
    """The numbers of an earlier run."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise measure.Failure(f"expected the numbers of an earlier run in {path}, found: {error}") from None


class Comparison:
    """All measurements of a run, in their order."""

    def __init__(self, options, json_path):
        self.arches = [arch for arch in ARCHITECTURES if not options.arch or arch in options.arch]
        self.n_alternations = options.alternations or (1 if options.quick else 5)
        self.warm_up, self.seconds = (0.1, 0.4) if options.quick else (0.25, 1.0)
        self.data = data_folder(options.data).resolve()
        self.plain_data = PROJECT / "target" / "bench-data"
        self.programs = PROJECT / "target" / "release"
        self.is_to_build = not options.no_build
        self.json_path = json_path
        self.n_cores = len(os.sched_getaffinity(0))
        self.measurements = []
        self.step_seconds = {}
        self.alternation = 0

    def run(self):
        """Measures; gives all numbers."""
        self.python = self.prepare()
        self.has_operations = measure.has_operations(self.programs)
        if not self.has_operations:
            tell("the programs have no --operations: they are measured as they are, and nothing is compared with the plain ones")
        checks = []
        for world_size in (0, 2):
            tell(f"checking bench/ddp.py against the golden vectors, {describe_twin(world_size)}")
            checks.append(self.twin("--check", "--world-size", world_size))
        numbers = {
            "command": " ".join(["python3", "bench/speed.py", *sys.argv[1:]]),
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "machine": machine(self.n_cores),
            "versions": versions(self.programs, checks[0]["torch"], self.python),
            "has_operations": self.has_operations,
            "n_cores": self.n_cores,
            "warm_up": self.warm_up,
            "seconds": self.seconds,
            "checks": checks,
            "measurements": self.measurements,
            "scaling": [],
        }
        self.begun, self.n_done = time.monotonic(), 0
        for self.alternation in range(self.n_alternations):
            begun = time.monotonic()
            self.alternate()
            tell(f"alternation {self.alternation + 1} of {self.n_alternations} took {time.monotonic() - begun:.0f} s")
            self.keep(numbers)
        tell("what a step costs the coordinator with more workers and more parameters")
        numbers["scaling"] = measure.scaling()
        numbers["minutes"] = (time.monotonic() - self.begun) / 60
        self.keep(numbers)
        return numbers

    def prepare(self):
        """Builds, and sets PyTorch up; gives the Python that has it."""
        if self.is_to_build:
            if shutil.which("cargo") is None:
                raise measure.Failure("expected cargo on the path, found none; install Rust, or take what is built with --no-build")
            tell("building the programs")
            succeed(["cargo", "build", "--release", "--workspace"])
        for name in ("coordinator", "worker", "autoencoder"):
            if not (self.programs / name).is_file():
                raise measure.Failure(f"expected {self.programs / name}, found no such program; leave --no-build out")
        unpack(self.data, self.plain_data)
        return python_with_torch()

    def keep(self, numbers):
        """Writes the numbers so far, whole or not at all."""
        self.json_path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.json_path.with_name(self.json_path.name + ".unfinished")
        unfinished.write_text(json.dumps(numbers, indent=1) + "\n")
        unfinished.replace(self.json_path)

    def alternate(self):
        """Measures everything once: each pair that is compared right after each other."""
        is_twin_first = self.alternation % 2 == 1
        for arch in self.arches:
            for n_workers in WORKERS:
                pair = [lambda n=n_workers: self.measure_cluster(arch, n), lambda n=n_workers: self.measure_twin(arch, n)]
                for measure_one in reversed(pair) if is_twin_first else pair:
                    measure_one()
                if self.has_operations:
                    self.measure_cluster(arch, n_workers, "plain")
            pair = [lambda: self.measure_alone(arch), lambda: self.measure_twin(arch, 0)]
            for measure_one in reversed(pair) if is_twin_first else pair:
                measure_one()

    def measure_cluster(self, arch, n_workers, operations="fused"):
        flags = ["--operations", operations] if self.has_operations else []
        for batch_size in BATCH_SIZES:
            cell = {"side": "cluster" if operations == "fused" else "plain", "arch": arch, "workers": n_workers,
                    "batch_size": batch_size}
            self.add(cell, lambda seconds: measure.cluster(self.programs, arch, n_workers, batch_size, self.plain_data,
                                                           flags, seconds))

    def measure_alone(self, arch):
        flags = ["--operations", "fused"] if self.has_operations else []
        for batch_size in BATCH_SIZES:
            cell = {"side": "alone", "arch": arch, "workers": 0, "batch_size": batch_size}
            self.add(cell, lambda seconds: measure.alone(self.programs, arch, self.n_cores, batch_size, self.plain_data,
                                                         flags, seconds))

    def add(self, cell, measure_one):
        """Takes one of our measurements, long enough for its steps as they were before."""
        key = tuple(cell.values())
        seconds = max(self.warm_up + self.seconds, 1.5 * measure.N_STEPS_MIN * self.step_seconds.get(key, 0.0))
        found = measure_one(seconds)
        self.step_seconds[key] = found["step_milliseconds"] / 1e3
        self.note({**cell, **found})

    def measure_twin(self, arch, world_size):
        """All batch sizes in one start: PyTorch takes seconds to load."""
        found = self.twin("--arch", arch, "--world-size", world_size, "--threads", 1 if world_size else self.n_cores,
                          "--batch-sizes", ",".join(map(str, BATCH_SIZES)), "--warm-up", self.warm_up, "--seconds",
                          self.seconds)
        for cell in found["cells"]:
            peak_kib = {"twin": cell.pop("peak_kib"), "twin, PyTorch loaded": found["loaded_kib"],
                        "twin, images": found["images_kib"]}
            self.note({"side": "ddp" if world_size else "torch", "arch": arch, "workers": world_size, **cell,
                       "peak_kib": peak_kib})

    def twin(self, *flags):
        flags = [*flags, "--data", self.plain_data]
        return measure.twin(self.python, flags, TWIN_SECONDS_MAX)

    def note(self, measurement):
        """Keeps a measurement, and says how far this is."""
        measurement = {"alternation": self.alternation, **measurement}
        self.measurements.append(measurement)
        self.n_done += 1
        n_sides = 3 if self.has_operations else 2
        n_all = self.n_alternations * len(self.arches) * len(BATCH_SIZES) * (n_sides * len(WORKERS) + 2)
        minutes_left = (time.monotonic() - self.begun) / self.n_done * (n_all - self.n_done) / 60
        tell(f"{self.alternation + 1}/{self.n_alternations} {measurement['arch']}, batch {measurement['batch_size']}, "
             f"{results.side_words(measurement['side'], measurement['workers'], self.n_cores)}: "
             f"{measurement['images_per_second']:,.0f} images/s; about {minutes_left:.0f} min left")


def unpack(data, plain):
    """Lays the data set's files into a folder as they are when they are not compressed, so that no start waits for that."""
    plain.mkdir(parents=True, exist_ok=True)
    for name in DATA_FILES:
        packed = data / f"{name}.gz"
        unfinished = plain / f"{name}.unfinished"
        try:
            with (gzip.open(packed) if packed.is_file() else open(data / name, "rb")) as file, open(unfinished, "wb") as out:
                shutil.copyfileobj(file, out)
        except (OSError, EOFError) as error:
            raise measure.Failure(f"expected {name} or {name}.gz whole in {data}, found: {error}") from None
        unfinished.replace(plain / name)


def describe_twin(world_size):
    return f"{world_size} processes" if world_size else "one process"


def python_with_torch():
    """The Python of an environment with PyTorch, which is made if it is not there."""
    python = ENVIRONMENT / "bin" / "python"
    asked = "import importlib.metadata; print(importlib.metadata.version('torch'))"
    if python.exists():
        found = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False).stdout.strip()
        if found == TORCH:
            return python
    tell(f"setting PyTorch {TORCH} up in {ENVIRONMENT}: some 3 GB")
    if importlib.util.find_spec("ensurepip") is None:
        raise measure.Failure("expected Python's modules venv and ensurepip, found none; on Debian, install python3-venv")
    for command in ([sys.executable, "-m", "venv", "--clear", ENVIRONMENT],
                    [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"torch=={TORCH}"]):
        succeed(command)
    return python


def succeed(command):
    """Runs a command that has to end well."""
    with measure.started(command) as process:
        if process.wait() != 0:
            raise measure.Failure(f"expected `{' '.join(map(str, command))}` to end with code 0, found {process.returncode}")


def machine(n_cores):
    """What this machine is."""
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*:\s*(.*)$", cpu, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.*)$", cpu, re.MULTILINE)
    flags = flags[1].split() if flags else []
    vectors = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "no AVX2")
    memory_kib = int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text())[1])
    return {"cpu": model[1] if model else platform.processor() or platform.machine(), "vectors": vectors, "n_cores": n_cores,
            "memory_gib": round(memory_kib / 2**20, 1), "kernel": f"{platform.system()} {platform.release()}",
            "load": os.getloadavg()[0]}


def versions(programs, torch, python):
    """What was measured, and with what it was built."""
    def said(*command):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            return subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT).stdout.strip()
        return "unknown"

    burn = re.search(r'name = "burn"\nversion = "([^"]+)"', (PROJECT / "Cargo.lock").read_text())
    return {"telar": said(programs / "coordinator", "--version").removeprefix("coordinator "),
            "commit": said("git", "describe", "--always", "--dirty"), "rustc": said("rustc", "--version"),
            "burn": burn[1] if burn else "unknown", "torch": torch, "python": said(python, "--version")}


if __name__ == "__main__":
    main()
