#!/usr/bin/env python3
"""What TLS and a token cost: the same run with them and without, in pairs, over TCP on this machine.

    cargo build --release && python3 bench/tls.py                    # batch 512, two workers, denoising and conv: 5 minutes
    python3 bench/tls.py --pairs 9 --batch-size 32 --only denoising

Each pair is two runs of an external coordinator and two workers with --wire grpc, so that every gradient goes through the
connection, one after the other, in an order that alternates. Prints a line for each pair, and the median of the pairs' ratios:
1.00 means that TLS costs nothing. A pair's two runs are minutes old at most, so that a machine that is slower for a while
slows both.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

from book import PROJECT
from measure import plain_environment, started

PROGRAMS = PROJECT / "target/release"
N_WORKERS = 2
# How long a run may take.
RUN_SECONDS_MAX = 600
# The first of the steps, which are left out.
WARM_UP_SHARE = 0.2
# Steps of a run of ten seconds, more or less, at a batch of 512.
N_STEPS = {"denoising": 250, "conv": 60, "recurrent": 40}


def certificates(folder):
    command = [PROGRAMS / "coordinator", "certificates", "--out", folder, "--host", "127.0.0.1", "--workers", str(N_WORKERS)]
    subprocess.run(command, check=True, env=plain_environment(), stdout=subprocess.DEVNULL)


def access(folder):
    """The flags of a program with the files of a folder."""
    files = {"--tls-cert": "tls.crt", "--tls-key": "tls.key", "--tls-ca": "ca.crt", "--token-file": "token"}
    return [f"{flag}={folder / name}" for flag, name in files.items()]


def images_per_second(arguments, architecture, credentials, folder):
    """One run, with TLS and a token if there are credentials; the rate of its steady state."""
    data = ["--data", arguments.data]
    command = [
        PROGRAMS / "coordinator", "--launch", "external", "--listen", "127.0.0.1:0", "--json", "--wire", "grpc",
        "--arch", architecture, "--workers", str(N_WORKERS), "--shards", str(N_WORKERS), *data, "--run-dir", folder,
        "--batch-size", str(arguments.batch_size), "--max-steps", str(arguments.steps or N_STEPS[architecture]),
    ]
    quiet = {"env": plain_environment() | {"RUST_LOG": "warn"}}
    if credentials:
        command += access(credentials / "coordinator")
    with started(command, stdout=subprocess.PIPE, text=True, **quiet) as coordinator:
        address = json.loads(coordinator.stdout.readline())["address"]
        with contextlib.ExitStack() as workers:
            for number in range(1, N_WORKERS + 1):
                flags = access(credentials / f"worker-{number}") if credentials else []
                worker = [PROGRAMS / "worker", "--coordinator", address, "--threads", "1", *data, *flags]
                workers.enter_context(started(worker, **quiet))
            coordinator.communicate(timeout=RUN_SECONDS_MAX)
        if coordinator.returncode != 0:
            sys.exit(f"expected a run to its end, found the exit code {coordinator.returncode}")
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    steps = [step for step in steps if len(set(step["workers"])) == N_WORKERS]
    steady = steps[int(WARM_UP_SHARE * len(steps)):]
    return 1000 * sum(step["n_samples"] for step in steady) / sum(step["milliseconds"] for step in steady)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=N_STEPS, action="append")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--data", default="fashion-mnist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        certificates(folder / "tls")
        for architecture in arguments.only or ("denoising", "conv"):
            ratios = []
            for pair in range(arguments.pairs):
                rates = {}
                for kind in ("plain", "tls") if pair % 2 == 0 else ("tls", "plain"):
                    credentials = folder / "tls" if kind == "tls" else None
                    run = folder / f"{architecture}-{pair}-{kind}"
                    rates[kind] = images_per_second(arguments, architecture, credentials, run)
                ratios.append(rates["tls"] / rates["plain"])
                print(f"{architecture}, pair {pair + 1}: {rates['plain']:.0f} images/s without, {rates['tls']:.0f} with, "
                      f"ratio {ratios[-1]:.3f}", flush=True)
            print(f"{architecture}, batch {arguments.batch_size}, {N_WORKERS} workers: median ratio "
                  f"{statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f})", flush=True)


if __name__ == "__main__":
    main()
