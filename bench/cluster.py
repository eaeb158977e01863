#!/usr/bin/env python3
"""Trains the book's recipes on a cluster of local workers, and again in one process, and compares.

    python3 bench/cluster.py                    # three recipes, four workers, about 25 minutes on two cores
    python3 bench/cluster.py --only denoising

Builds the programs and writes bench/CLUSTER.md: where each recipe ended beside the book's range, whether the parameters
are those of one process that computes all shards itself, and where the time of a step went. Runs that are already in the
folder --runs are taken as they are.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys

from book import PROJECT, RECIPES


def describe(folder):
    """What a run's folder says of it, if the run is complete."""
    try:
        description = json.loads((folder / "run.json").read_text())
        is_complete = description["result"]["last_epoch"]["epoch"] == description["recipe"]["epochs"]
        return description if is_complete else None
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def run(command, folder):
    """Runs a command that trains into a folder, unless it has done so before; gives what the folder says."""
    if describe(folder) is None:
        if folder.exists():
            shutil.rmtree(folder)
        subprocess.run([*map(str, command), "--run-dir", str(folder)], check=True, cwd=PROJECT, stdout=subprocess.DEVNULL)
    print(f"{folder.name}: done", file=sys.stderr, flush=True)
    return describe(folder)


def images_per_second(folder):
    """The median epoch's."""
    epochs = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return sorted(epoch["images_per_second"] for epoch in epochs)[len(epochs) // 2]


def median_costs(folder):
    """The median step's parts in milliseconds, each for itself, and the coordinator's own work in each step."""
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]

    def median(values):
        return sorted(values)[len(steps) // 2]

    costs = {name: median(step["costs"][name] for step in steps) for name in steps[0]["costs"]}
    costs["own"] = median(sum(step["costs"][name] for name in ("decode", "reduce", "update", "encode")) for step in steps)
    costs["step"] = median(step["milliseconds"] for step in steps)
    return costs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4, help="local workers, and shards (default: 4)")
    parser.add_argument("--seed", type=int, default=42, help="seed (default: 42)")
    parser.add_argument("--only", action="append", metavar="NAME", help="only recipes whose name contains this")
    parser.add_argument("--data", default="fashion-mnist", help="as the programs' --data (default: fashion-mnist)")
    parser.add_argument("--runs", type=pathlib.Path, default=PROJECT / "runs" / "cluster", help="folder for the runs")
    parser.add_argument("--programs", type=pathlib.Path, help="folder of the programs, if they are built already")
    parser.add_argument("--out", type=pathlib.Path, default=PROJECT / "bench" / "CLUSTER.md", help="table to write")
    options = parser.parse_args()

    programs = options.programs
    if programs is None:
        subprocess.run(["cargo", "build", "--release"], check=True, cwd=PROJECT)
        programs = PROJECT / "target" / "release"
    ends, costs = [], []
    for name, (flags, losses, accuracies, loss_margin, accuracy_margin) in RECIPES.items():
        if "dropout" in name or options.only and not any(part in name for part in options.only):
            continue
        common = [*flags, "--seed", options.seed, "--data", options.data]
        folder = options.runs / f"{flags[1]}-{options.workers}-workers"
        cluster = run([programs / "coordinator", "--workers", options.workers, *common], folder)
        one = options.runs / f"{flags[1]}-one-process"
        alone = run([programs / "autoencoder", "train", "--shards", options.workers, *common], one)

        last = cluster["result"]["last_epoch"]
        is_in = (losses[0] - loss_margin <= last["val_loss"] <= losses[1] + loss_margin
                 and accuracies[0] - accuracy_margin <= last["val_rounded_accuracy"] <= accuracies[1] + accuracy_margin)
        is_same = cluster["result"]["params_blake3"] == alone["result"]["params_blake3"]
        ends.append(
            f"| {name} | {last['epoch']} | {last['val_loss']:.4f} | {losses[0]:.4f}–{losses[1]:.4f} "
            f"| {last['val_rounded_accuracy']:.4f} | {accuracies[0]:.4f}–{accuracies[1]:.4f} | {'yes' if is_in else '**no**'} "
            f"| {'equal' if is_same else '**differ**'}: `{cluster['result']['params_blake3'][:16]}…` |")
        cost = median_costs(folder)
        parts = " | ".join(f"{cost[part]:.3f}" for part in ("step", "compute", "decode", "reduce", "update", "encode", "send", "own"))
        costs.append(f"| {name} | {images_per_second(folder):,.0f} | {images_per_second(one):,.0f} | {parts} |")

    text = "\n".join([
        "# The book's recipes on a cluster of local workers",
        "",
        f"`python3 bench/cluster.py --workers {options.workers} --seed {options.seed}`; telar {cluster['version']}, compute "
        f"class `{', '.join(cluster['compute_classes'])}`, {options.workers} workers of "
        f"{cluster['threads_per_worker']} thread(s) each. In range: at most as far outside the book's range as BOOK.md says.",
        "",
        "| recipe | epochs | final val. loss | book and reruns | final rounded accuracy | book and reruns | in range "
        "| parameters, against one process |",
        "|---|---|---|---|---|---|---|---|",
        *ends,
        "",
        "Images per second (median epoch), and where the median step's milliseconds went, each part for itself. `compute` is "
        "the longest that a worker computed; the coordinator's own work is decode + reduce + update + encode.",
        "",
        "| recipe | images/s, cluster | images/s, one process | step | compute | decode | reduce | update | encode | send "
        "| own work |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *costs,
        "",
    ])
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
