#!/usr/bin/env python3
"""Compares the speed of two builds: the same run by each, in turns.

    git worktree add ../before v0.1.0 && (cd ../before && cargo build --release)
    cargo build --release && python3 bench/versions.py ../before/target/release        # 27 cells, a quarter of an hour

Both coordinators have local workers of one thread each. All processes of one stand still (SIGSTOP) while those of the other compute,
for half a second or ten steps each, in an order that alternates: so whatever else the machine does slows both alike. Prints for each
cell how much faster a step of this build is, by the median of all steps, and the lowest and highest of four parts of the measurement:
1.00 means that nothing has changed, 0.97 that a step takes 3 % longer. Ends with code 1 if a ratio is below --at-least.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from book import PROJECT
from measure import Failure, Family, PausedRun, plain_environment, started, take_turns

N_SHARDS = 4
SLICE_SECONDS = 0.5
# Steps of a slice at least, so that those in which a run stood still are few.
STEPS_PER_SLICE = 10
PAIRS_PER_BLOCK = 4
WARM_UP_SECONDS = 2.0
BEGIN_SECONDS_MAX = 60
# A cell is over after so many blocks, or once it has so many steps.
N_BLOCKS_MIN = 4
N_STEPS_MIN = 200
N_BLOCKS_MAX = 8


def begin(stack, programs, cell, data, folder):
    """A run by the programs of a build, which stands still once all its workers are there."""
    architecture, n_workers, batch_size = cell
    command = [
        programs / "coordinator", f"--arch={architecture}", f"--workers={n_workers}", f"--batch-size={batch_size}", "--threads=1",
        f"--shards={N_SHARDS}", f"--data={data}", f"--run-dir={folder}", "--epochs=100000", "--checkpoint-every=1000000000",
        "--heartbeat-timeout=60",
    ]
    log = folder.with_suffix(".log")
    with open(log, "w") as file:
        process = stack.enter_context(started(command, stdout=subprocess.DEVNULL, stderr=file, env=plain_environment()))
    deadline = time.monotonic() + BEGIN_SECONDS_MAX
    # What was printed differs from version to version.
    while not (folder / "steps.jsonl").exists() or not (folder / "steps.jsonl").stat().st_size:
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failure(f"expected steps of {programs / 'coordinator'} within {BEGIN_SECONDS_MAX} s: {log.read_text()[-1000:]}")
        time.sleep(0.05)
    family = Family(process)
    while True:
        family.find()
        if len(family.members) > n_workers:
            break
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failure(f"expected {n_workers} workers within {BEGIN_SECONDS_MAX} s, found {len(family.members) - 1}")
        time.sleep(0.05)
    run = PausedRun(family.members, folder)
    run.run(WARM_UP_SECONDS)
    return run


def milliseconds(run, n_before):
    """How long each step took whose line was written after the first so many."""
    lines = (run.folder / "steps.jsonl").read_text().splitlines()[n_before:]
    return [json.loads(line)["milliseconds"] for line in lines if line.endswith("}")]


def ratios(cell, builds, data, folder):
    """How much faster a step of the second build is than one of the first: by the medians of all steps, and of each part of them."""
    with contextlib.ExitStack() as stack:
        runs = [begin(stack, programs, cell, data, folder / f"run-{number}") for number, programs in enumerate(builds)]
        n_before = [run.n_steps() for run in runs]
        slowest = max(statistics.median(milliseconds(run, 0)) for run in runs) / 1e3
        seconds = max(SLICE_SECONDS, STEPS_PER_SLICE * slowest)
        blocks = []
        while len(blocks) < N_BLOCKS_MIN or (len(blocks) < N_BLOCKS_MAX and min(map(sum, zip(*blocks))) < N_STEPS_MIN):
            blocks.append(take_turns(runs, PAIRS_PER_BLOCK, seconds))
        before, after = (milliseconds(run, n) for run, n in zip(runs, n_before))
    parts = zip(split(before), split(after))
    return statistics.median(before) / statistics.median(after), [statistics.median(a) / statistics.median(b) for a, b in parts]


def split(steps):
    """Steps in parts of about the same length."""
    return [steps[len(steps) * part // N_BLOCKS_MIN:len(steps) * (part + 1) // N_BLOCKS_MIN] for part in range(N_BLOCKS_MIN)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=pathlib.Path, help="folder with the programs of the other build")
    parser.add_argument("--programs", type=pathlib.Path, default=PROJECT / "target/release", help="folder of this build's programs")
    parser.add_argument("--arch", action="append", choices=["conv", "recurrent", "denoising"], help="only these networks")
    parser.add_argument("--workers", action="append", type=int, help="only these numbers (default: 1, 2 and 4)")
    parser.add_argument("--batch-size", action="append", type=int, help="only these (default: 32, 128 and 512)")
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--at-least", type=float, default=0.97, metavar="RATIO")
    arguments = parser.parse_args()
    builds = [folder.resolve() for folder in (arguments.before, arguments.programs)]
    cells = [(architecture, n_workers, batch_size)
             for architecture in arguments.arch or ("denoising", "conv", "recurrent")
             for n_workers in arguments.workers or (1, 2, 4)
             for batch_size in arguments.batch_size or (32, 128, 512)]
    print("| network | workers | batch | ratio | of the parts |\n|---|---|---|---|---|", flush=True)
    slower = []
    for cell in cells:
        # Memory, where there is some: a slow disk would be measured too.
        shared = pathlib.Path("/dev/shm")
        with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
            try:
                ratio, parts = ratios(cell, builds, arguments.data, pathlib.Path(folder))
            except Failure as failure:
                sys.exit(str(failure))
        print(f"| {cell[0]} | {cell[1]} | {cell[2]} | {ratio:.3f} | {min(parts):.2f}–{max(parts):.2f} |", flush=True)
        if ratio < arguments.at_least:
            slower.append(cell)
    if slower:
        sys.exit(f"slower than {arguments.at_least} of the other build: {slower}")


if __name__ == "__main__":
    main()
