#!/usr/bin/env python3
"""Measures what it costs a step that a run is watched: `denoising` at batch 32 with two workers, without a page and with the page,
TensorBoard's files, a trace and up to 50 open pages, in turn.

    python3 bench/watching.py

Prints the median milliseconds per step over seven alternations, and the median, lowest and highest ratio to the run without a page
within an alternation. TELAR_DATA names the data [default: fashion-mnist].
"""

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COORDINATOR = ROOT / "target/release/coordinator"
DATA = os.environ.get("TELAR_DATA", "fashion-mnist")
N_ALTERNATIONS = 7
N_STEPS = 2500
ALL = ["--tensorboard", "--trace", "100..200"]
# Flags, and pages that are open.
VARIANTS = {"no page": (["--http", "off"], 0), "page": ([], 0), "all, 1 page open": (ALL, 1), "all, 50 pages open": (ALL, 50)}


def milliseconds_per_step(flags, n_pages):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [COORDINATOR, "--workers", "2", "--arch", "denoising", "--max-steps", str(N_STEPS), "--data", DATA,
                   "--run-dir", run, "--json", *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as coordinator:
            begin = json.loads(coordinator.stdout.readline())
            pages = [subprocess.Popen(["curl", "--silent", "--no-buffer", begin["http"] + "runs/run/events"],
                                      stdout=subprocess.DEVNULL) for _ in range(n_pages)]
            coordinator.stdout.read()
        for page in pages:
            page.kill()
            page.wait()
        lines = (run / "steps.jsonl").read_text().splitlines()
        # The first fifth is left out.
        return statistics.median(json.loads(line)["milliseconds"] for line in lines[len(lines) // 5:])


def main():
    found = {variant: [] for variant in VARIANTS}
    for _ in range(N_ALTERNATIONS):
        for variant, (flags, n_pages) in VARIANTS.items():
            found[variant].append(milliseconds_per_step(flags, n_pages))
    print("| | ms per step | ratio | lowest–highest |\n|---|---|---|---|")
    for variant, times in found.items():
        ratios = sorted(time / base for time, base in zip(times, found["no page"]))
        print(f"| {variant} | {statistics.median(times):.3f} | {statistics.median(ratios):.3f} | {ratios[0]:.2f}–{ratios[-1]:.2f} |")


if __name__ == "__main__":
    main()
