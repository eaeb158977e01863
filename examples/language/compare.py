#!/usr/bin/env python3
"""Trains the language model in one process, on four workers, and on four workers of which one is killed, and compares.

    python3 examples/language/compare.py                # about four minutes of processor time
    python3 examples/language/compare.py --data docs    # another text

Builds the program, checks that the three runs end with the same parameters in every bit, and writes RESULTS.md and loss.png
beside this file. Runs that are already in the folder --runs are used again. Needs matplotlib, and Debian's
package fortunes for the default text.
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
N_WORKERS = 4
SIZE = ["--layers", "2", "--width", "64", "--heads", "2"]
FLAGS = [*SIZE, "--shards", "4", "--epochs", "5", "--batch-size", "16", "--learning-rate", "0.004", "--lr-schedule", "cosine",
         "--warmup-steps", "50", "--clip-norm", "1"]
RUNS = {
    "one process": ["train"],
    "four workers": ["coordinator", "--workers", str(N_WORKERS)],
    "four workers, one killed": ["coordinator", "--workers", str(N_WORKERS)],
}
# Colour, width and dashes: lines that lie on each other all stay visible.
STYLES = {
    "one process": ("#a9c7e8", 5.0, "-"),
    "four workers": ("#e08214", 2.2, "-"),
    "four workers, one killed": ("#1b1b1b", 0.9, (0, (5, 4))),
}
WORKER_COLOURS = ["#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb"]
# Steps before and after the kill that the lower plot shows.
STEPS_SHOWN = 20


def read_lines(path):
    """The JSON of each line of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def folder_of(name, options):
    """The run folder of a run."""
    return options.runs / name.replace(", ", "-").replace(" ", "-")


def command_of(name, program, options):
    """The command of a run."""
    return [program, *RUNS[name], *FLAGS, "--data", options.data]


def is_finished(folder):
    """Whether a run has ended well."""
    path = folder / "run.json"
    return path.exists() and "params_blake3" in json.loads(path.read_text()).get("result", {})


def kill_worker(coordinator, folder, step):
    """Kills one worker of a coordinator with SIGKILL after a step. Returns the step after which it was killed."""
    steps = folder / "steps.jsonl"
    while coordinator.poll() is None:
        n_steps = steps.read_bytes().count(b"\n") if steps.exists() else 0
        if n_steps >= step:
            children = subprocess.check_output(["pgrep", "-P", str(coordinator.pid), "-f", " worker "], text=True)
            os.kill(int(children.split()[-1]), signal.SIGKILL)
            return n_steps
        time.sleep(0.005)
    sys.exit(f"expected a run of more than {step} steps, found that it has ended; see {folder}")


def train(name, program, n_steps, options):
    """Trains one run, unless its folder has it already. A run with a kill is killed in the middle of `n_steps`."""
    folder = folder_of(name, options)
    if not is_finished(folder):
        shutil.rmtree(folder, ignore_errors=True)
        begun = time.monotonic()
        with open(os.devnull, "w") as null:
            command = [*command_of(name, program, options), "--run-dir", str(folder)]
            process = subprocess.Popen(command, cwd=PROJECT, stdout=null)
        facts = {"killed_after": kill_worker(process, folder, n_steps // 2) if "killed" in name else None}
        if process.wait() != 0:
            sys.exit(f"expected the run `{name}` to end well, found exit code {process.returncode}")
        facts["seconds"] = time.monotonic() - begun
        (folder / "compare.json").write_text(json.dumps(facts))
    print(f"{name}: done", file=sys.stderr, flush=True)
    return {
        **json.loads((folder / "compare.json").read_text()),
        "description": json.loads((folder / "run.json").read_text()),
        "steps": read_lines(folder / "steps.jsonl"),
        "epochs": read_lines(folder / "history.jsonl"),
    }


def draw_losses(axes, runs, killed_after):
    """Training loss of each step and validation loss of each epoch, the runs on top of each other."""
    for order, (name, run) in enumerate(runs.items()):
        colour, width, dashes = STYLES[name]
        steps, epochs = run["steps"], run["epochs"]
        axes.plot([step["step"] for step in steps], [step["loss"] for step in steps], color=colour, linewidth=width,
                  linestyle=dashes, label=name, zorder=2 + order)
        axes.plot([epoch["step"] for epoch in epochs], [epoch["val_loss"] for epoch in epochs], "o", color=colour,
                  markersize=12 - 4 * order, zorder=6 + order, clip_on=False)
    last = runs["one process"]["epochs"][-1]
    axes.annotate("dots: validation loss after each epoch", (last["step"], last["val_loss"]), (0, 40), ha="right",
                  textcoords="offset points", fontsize=9, color="#444444",
                  arrowprops={"arrowstyle": "-", "color": "#888888", "shrinkB": 8})
    axes.axvline(killed_after + 0.5, color="#cc3311", linewidth=1, zorder=1)
    axes.annotate(f"kill -9 of one worker\nafter step {killed_after}", (killed_after, 1), (6, -6), va="top", fontsize=9,
                  xycoords=("data", "axes fraction"), textcoords="offset points", color="#cc3311")
    axes.set_xlim(0, 1.01 * last["step"])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (bits per token)")
    axes.legend(loc="center right", bbox_to_anchor=(1.0, 0.62), frameon=False, title="training loss of each step")


def draw_workers(axes, steps, killed_after):
    """Which worker computed each shard, around the kill."""
    shown = [step for step in steps if abs(step["step"] - killed_after - 0.5) < STEPS_SHOWN]
    worker_ids = sorted({worker for step in shown for worker in step["workers"]})
    colours = dict(zip(worker_ids, WORKER_COLOURS))
    for step in shown:
        for shard, worker in enumerate(step["workers"]):
            axes.barh(shard, 1, left=step["step"] - 0.5, height=0.86, color=colours[worker], edgecolor="white", linewidth=0.6)
    axes.axvline(killed_after + 0.5, color="#cc3311", linewidth=1.5)
    axes.set_xlim(shown[0]["step"] - 0.5, shown[-1]["step"] + 0.5)
    axes.set_yticks(range(N_WORKERS))
    axes.set_ylabel("shard")
    axes.set_xlabel(f"optimizer step, the {2 * STEPS_SHOWN} steps around the kill")
    axes.legend(handles=[Patch(color=colours[worker], label=f"worker {worker}") for worker in worker_ids], frameon=False,
                loc="center left", bbox_to_anchor=(1.0, 0.5), title="computed by")


def draw(runs, path):
    """The figure."""
    killed = runs["four workers, one killed"]
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 6.4), height_ratios=[3, 1], layout="constrained")
    draw_losses(above, runs, killed["killed_after"])
    draw_workers(below, killed["steps"], killed["killed_after"])
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    above.set_title("Three runs, one curve: the parameters are equal in every bit", loc="left")
    figure.savefig(path, dpi=130)


def write_results(runs, program, options):
    """The table, the commands and generated text."""
    weights = folder_of("four workers, one killed", options) / "model.safetensors"
    evaluated = subprocess.check_output(
        [program, "evaluate", *SIZE, "--data", options.data, "--weights", str(weights), "--json"], cwd=PROJECT, text=True)
    test = json.loads(evaluated)
    text = subprocess.check_output(
        [program, "sample", "--weights", str(weights), "--prompt", "The ", "--length", "500"], cwd=PROJECT,
        text=True, errors="replace")
    description = runs["one process"]["description"]
    n_train = sum(step["n_samples"] for step in runs["one process"]["steps"] if step["epoch"] == 1)
    rows = [
        f"| {name} | {run['description']['result']['params_blake3'][:16]}… | {run['epochs'][-1]['loss']:.4f} "
        f"| {run['epochs'][-1]['val_loss']:.4f} | {run['epochs'][-1]['val_token_accuracy']:.4f} | {run['seconds']:.0f} s |"
        for name, run in runs.items()
    ]
    lines = [
        "# Results",
        "",
        "`python3 examples/language/compare.py` wrote this page. "
        f"{description['n_params']:,} parameters; {n_train:,} training paragraphs of {description['data']['name']}; "
        f"compute class `{description['compute_class']}`; {platform.system()} {platform.machine()}, {os.cpu_count()} cores.",
        "",
        "| run | blake3 of the parameters | training loss | validation loss | validation accuracy | time |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        "Losses are means over paragraphs, in bits per token; a token is a byte or the end of a paragraph. The test loss is "
        f"{test['loss']:.4f}, and {100 * test['token_accuracy']:.1f} % of the tokens of the test paragraphs are predicted "
        f"correctly. In the third run one worker was killed with SIGKILL after step "
        f"{runs['four workers, one killed']['killed_after']} of {len(runs['one process']['steps'])}. All steps of the three runs "
        "have equal losses. The times were measured beside other jobs, on two cores.",
        "",
        "![Training loss of each step and validation loss of each epoch: the curves of the three runs lie on each other](loss.png)",
        "",
        "The commands of the three runs:",
        "",
        "```sh",
        *(shlex.join(["language", *command_of(name, "language", options)[1:]]) + ("     # and kill -9 of one worker" if "killed" in name else "")
          for name in runs),
        "```",
        "",
        "Text that the trained network generates after the prompt `The `, with the temperature 0.8:",
        "",
        "```text",
        text.rstrip(),
        "```",
        "",
    ]
    options.out.write_text("\n".join(lines))
    print("\n".join(lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/games/fortunes/computers",
                        help="as the program's --data (default: one file of Debian's package fortunes)")
    parser.add_argument("--runs", type=pathlib.Path, default=PROJECT / "runs" / "language-compare", help="folder for the runs")
    parser.add_argument("--program", help="the program, if it is built already")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "RESULTS.md", help="page to write, beside loss.png")
    options = parser.parse_args()

    program = options.program
    if program is None:
        subprocess.run(["cargo", "build", "--release", "--workspace", "--bins"], check=True, cwd=PROJECT)
        program = str(PROJECT / "target" / "release" / "language")
    runs, n_steps = {}, 0
    for name in RUNS:
        runs[name] = train(name, program, n_steps, options)
        n_steps = len(runs[name]["steps"])
    hashes = {name: run["description"]["result"]["params_blake3"] for name, run in runs.items()}
    losses = {name: [step["loss"] for step in run["steps"]] for name, run in runs.items()}
    if len(set(hashes.values())) != 1 or any(other != losses["one process"] for other in losses.values()):
        sys.exit(f"expected equal parameters and losses, found the blake3 hashes {hashes}; see {options.runs}")
    draw(runs, options.out.with_name("loss.png"))
    write_results(runs, program, options)


if __name__ == "__main__":
    main()
