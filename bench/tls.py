#!/usr/bin/env python3
"""What TLS and a token cost: the same run with them and without, in pairs, over TCP on this machine.

    cargo build --release && python3 bench/tls.py                    # batch 512, two workers, denoising and conv: 2 minutes
    python3 bench/tls.py --pairs 30 --batch-size 32 --only denoising

Two clusters, each an external coordinator and two workers with --wire grpc, so that every gradient goes through the connection.
All processes of one stand still (SIGSTOP) while those of the other compute, for half a second each, in an order that alternates: so
whatever else the machine does slows both alike. Prints the ratio of all steps, and that of each block of pairs: 1.00 means that TLS
costs nothing.
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
from measure import PausedRun, plain_environment, started, take_turns

PROGRAMS = PROJECT / "target/release"
N_WORKERS = 2
SLICE_SECONDS = 0.5
# Lines of steps are written some at a time; a block of pairs has many.
N_BLOCKS = 5
# Seconds for each cluster that are not counted.
WARM_UP_SECONDS = 3.0


def certificates(folder):
    command = [PROGRAMS / "coordinator", "certificates", "--out", folder, "--host", "127.0.0.1", "--workers", str(N_WORKERS)]
    subprocess.run(command, check=True, env=plain_environment(), stdout=subprocess.DEVNULL)


def access(folder):
    """The flags of a program with the files of a folder."""
    files = {"--tls-cert": "tls.crt", "--tls-key": "tls.key", "--tls-ca": "ca.crt", "--token-file": "token"}
    return [f"{flag}={folder / name}" for flag, name in files.items()]


def cluster(stack, arguments, architecture, credentials, folder):
    """A run that goes on until it is ended."""
    data = ["--data", arguments.data]
    quiet = {"env": plain_environment() | {"RUST_LOG": "error"}}
    command = [
        PROGRAMS / "coordinator", "--launch=external", "--listen=127.0.0.1:0", "--json", "--wire=grpc",
        f"--arch={architecture}", f"--workers={N_WORKERS}", f"--shards={N_WORKERS}", *data, f"--run-dir={folder}",
        f"--batch-size={arguments.batch_size}", "--epochs=100000", "--heartbeat-timeout=60",
        *(access(credentials / "coordinator") if credentials else []),
    ]
    coordinator = stack.enter_context(started(command, stdout=subprocess.PIPE, text=True, **quiet))
    address = json.loads(coordinator.stdout.readline())["address"]
    processes = [coordinator]
    for number in range(1, N_WORKERS + 1):
        flags = access(credentials / f"worker-{number}") if credentials else []
        worker = [PROGRAMS / "worker", "--coordinator", address, "--threads", "1", *data, *flags]
        processes.append(stack.enter_context(started(worker, **quiet)))
    run = PausedRun([process.pid for process in processes], folder)
    run.run(WARM_UP_SECONDS)
    return run


def measure(arguments, architecture, folder):
    with contextlib.ExitStack() as stack:
        plain = cluster(stack, arguments, architecture, None, folder / f"{architecture}-plain")
        tls = cluster(stack, arguments, architecture, folder / "tls", folder / f"{architecture}-tls")
        rates = []
        for _ in range(N_BLOCKS):
            n_steps = take_turns((plain, tls), arguments.pairs, SLICE_SECONDS)
            if 0 in n_steps:
                sys.exit(f"expected steps of {architecture} in each block, found none written in one; give more than --pairs {arguments.pairs}")
            rates.append([arguments.batch_size * n / (arguments.pairs * SLICE_SECONDS) for n in n_steps])
    without, with_tls = (statistics.mean(rate) for rate in zip(*rates))
    ratios = ", ".join(f"{tls / plain:.3f}" for plain, tls in sorted(rates, key=lambda rate: rate[1] / rate[0]))
    print(f"{architecture}, batch {arguments.batch_size}, {N_WORKERS} workers: {without:.0f} images/s without, {with_tls:.0f} with; "
          f"ratio {with_tls / without:.3f} (of the blocks: {ratios})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["denoising", "conv", "recurrent"], action="append")
    parser.add_argument("--pairs", type=int, default=16, help="in each of five blocks")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--data", default="fashion-mnist")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        certificates(folder / "tls")
        for architecture in arguments.only or ("denoising", "conv"):
            measure(arguments, architecture, folder)


if __name__ == "__main__":
    main()
