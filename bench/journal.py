#!/usr/bin/env python3
"""What `--journal` costs: milliseconds a step of runs with and without it, in turns, so that whatever else the machine does
meets both.

    python3 bench/journal.py                           # three networks, two workers, batch 32, in /dev/shm: two minutes
    python3 bench/journal.py --folder . --pairs 9      # on the disk that the runs would be on

In memory (/dev/shm) it is what telar itself adds; a disk that is slower than a step adds the wait for it.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile

from book import PROJECT

# Steps of a run: some seconds on one core.
N_STEPS = {"denoising": 1500, "conv": 500, "recurrent": 600}
# The first steps of a run that are left out.
N_WARM_UP = 50


def milliseconds_per_step(programs, arch, flags):
    """The median of a run's steps but for the first, from update to update."""
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        run = pathlib.Path(folder) / "run"
        command = [programs / "coordinator", "--arch", arch, "--workers", str(flags.workers), "--data", "synthetic"]
        command += ["--batch-size", str(flags.batch_size), "--max-steps", str(N_STEPS[arch]), "--run-dir", run]
        command += ["--journal"] if flags.journal else []
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
        steps = [json.loads(line)["milliseconds"] for line in (run / "steps.jsonl").read_text().splitlines()]
    return statistics.median(steps[N_WARM_UP:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="/dev/shm", help="where the runs are written [default: /dev/shm]")
    parser.add_argument("--programs", type=pathlib.Path, default=PROJECT / "target/release", help="folder of the programs")
    parser.add_argument("--pairs", type=int, default=5, help="runs with and without, of each network [default: 5]")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--only", choices=N_STEPS, help="one network")
    flags = parser.parse_args()
    print("network     without   with      adds")
    for arch in [flags.only] if flags.only else N_STEPS:
        pairs = []
        for _ in range(flags.pairs):
            pair = []
            for flags.journal in (False, True):
                pair.append(milliseconds_per_step(flags.programs, arch, flags))
            pairs.append(pair)
        without, with_journal = (statistics.median(values) for values in zip(*pairs, strict=True))
        shares = [100 * (pair[1] / pair[0] - 1) for pair in pairs]
        spread = f"{min(shares):+.0f} to {max(shares):+.0f} %"
        print(f"{arch:10}  {without:5.2f} ms  {with_journal:5.2f} ms  {statistics.median(shares):+.0f} % ({spread})", flush=True)


if __name__ == "__main__":
    main()
