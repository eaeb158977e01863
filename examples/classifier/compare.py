#!/usr/bin/env python3
"""Measures what unsupervised pre-training adds when few images have labels.

    cargo build --release --workspace
    python3 examples/classifier/compare.py --data fashion-mnist

Trains the `conv` autoencoder on the 55,000 training images without labels. Then trains the classifier with 100, 500 and
5,000 labels, its encoder trained from scratch, pre-trained and frozen, or pre-trained and fine-tuned, with five seeds
each, and evaluates the best weights of each run on the 10,000 test images. Writes RESULTS.md, accuracy.png (needs
matplotlib) and the tables in README.md beside this script. Runs that are already in the folder --runs are not repeated.
"""

import argparse
import concurrent.futures
import json
import math
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parent.parent

LABELS = [100, 500, 5000]
SEEDS = [1, 2, 3, 4, 5]
# Learning rates are compared with a seed that is not among those. 5,000 labels, whose runs take longest, have the rates
# of 500.
SWEEP_SEED = 0
SWEEP_LABELS = [100, 500]
LEARNING_RATES = [0.0003, 0.001, 0.003, 0.01]
# The same for all: at most so many epochs, and an end after so many without a lower validation loss.
EPOCHS = 60
PATIENCE = 8
VALIDATION_IMAGES = 1000
PRETRAINING_EPOCHS = 5

ENCODERS = ["from scratch", "pre-trained, frozen", "pre-trained, fine-tuned"]
COLORS = {"from scratch": "#555555", "pre-trained, frozen": "#d95f02", "pre-trained, fine-tuned": "#1b6ca8"}
FIGURE = "![Test accuracy by the number of labels](accuracy.png)"
# Student's t for five pairs: a mean difference beyond so many standard errors is significant at 5 %.
T_95 = 2.776


def run(command):
    """Runs a command, and gives the last line that it prints as JSON."""
    output = subprocess.run([*map(str, command), "--json"], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if output.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed: {output.stderr}")
    return json.loads(output.stdout.splitlines()[-1])


def cached(folder, compute):
    """What was computed into this folder, now or before."""
    result = folder / "result.json"
    if not result.exists():
        if folder.exists():
            shutil.rmtree(folder)
        found = compute()
        result.write_text(json.dumps(found))
    return json.loads(result.read_text())


def pretrain(options):
    """Trains the autoencoder on two workers, and gives its last validation loss."""
    folder = options.runs / "autoencoder"
    command = [options.bin / "coordinator", "--arch", "conv", "--workers", "2", "--epochs", PRETRAINING_EPOCHS, "--data",
               options.data, "--run-dir", folder]
    return cached(folder, lambda: run(command))["last_epoch"]["val_loss"]


def train(n_labels, encoder, rate, seed, options):
    """Trains a classifier, and gives validation and test accuracy of the epoch with the lowest validation loss."""
    folder = options.runs / f"{n_labels}-{encoder.replace(', ', '-').replace(' ', '-')}-rate-{rate}-seed-{seed}"

    def compute():
        command = [options.bin / "classifier", "train", "--labels", n_labels, "--subset", seed, "--seed", seed,
                   "--learning-rate", rate, "--epochs", EPOCHS, "--patience", PATIENCE, "--validation", VALIDATION_IMAGES, "--threads", "1",
                   "--data", options.data, "--run-dir", folder]
        if encoder != "from scratch":
            command += ["--init-from", options.runs / "autoencoder" / "model.safetensors", "--init-partial"]
        if encoder == "pre-trained, frozen":
            command += ["--freeze"]
        end = run(command)

        def accuracy(split):
            return run([options.bin / "classifier", "evaluate", "--weights", folder / "best.safetensors", "--split", split,
                        "--validation", VALIDATION_IMAGES, "--threads", "1", "--data", options.data])["accuracy"]

        return {"valid": accuracy("valid"), "test": accuracy("test"), "best_epoch": end["best_epoch"]["epoch"],
                "epochs": end["last_epoch"]["epoch"]}

    found = cached(folder, compute)
    print(f"{n_labels} labels, {encoder}, learning rate {rate}, seed {seed}: epoch {found['best_epoch']} of {found['epochs']}, "
          f"validation {found['valid']:.4f}, test {found['test']:.4f}", file=sys.stderr, flush=True)
    return found


def spread(values):
    """Mean and standard deviation in percent."""
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f}"


def difference(accuracies, n_labels, encoder):
    """What pre-training adds: the runs of a seed have the same labelled images, so that their differences are compared."""
    pairs = zip(accuracies[n_labels, encoder], accuracies[n_labels, "from scratch"])
    differences = [100 * (pretrained - scratch) for pretrained, scratch in pairs]
    mean = statistics.mean(differences)
    is_clear = abs(mean) > T_95 * statistics.stdev(differences) / math.sqrt(len(differences))
    word = "no clear difference" if not is_clear else "better" if mean > 0 else "worse"
    return f"{mean:+.1f} ± {statistics.stdev(differences):.1f} ({word})"


def tables_of(accuracies):
    """The accuracies, and what pre-training adds, as lines of Markdown."""
    return [
        "Accuracy on the 10,000 test images in percent: mean ± standard deviation over the seeds "
        f"{SEEDS[0]}–{SEEDS[-1]}, each of which draws other labelled images and other initial values.",
        "",
        f"| labels | {' | '.join(ENCODERS)} |",
        f"|---|{'---|' * len(ENCODERS)}",
        *[f"| {n_labels:,} | {' | '.join(spread(accuracies[n_labels, encoder]) for encoder in ENCODERS)} |" for n_labels in LABELS],
        "",
        "What pre-training adds in percentage points: mean ± standard deviation of the differences between runs of the same "
        "seed. “Better” and “worse” are significant at 5 % (paired t test).",
        "",
        "| labels | frozen − from scratch | fine-tuned − from scratch |",
        "|---|---|---|",
        *[f"| {n_labels:,} | {difference(accuracies, n_labels, ENCODERS[1])} | {difference(accuracies, n_labels, ENCODERS[2])} |"
          for n_labels in LABELS],
    ]


def write_into_readme(tables):
    """Replaces the tables of README.md."""
    path, begin, end = HERE / "README.md", "<!-- results -->", "<!-- end of results -->"
    head, rest = path.read_text().split(begin)
    path.write_text("\n".join([head + begin, *tables, "", FIGURE, end]) + rest.split(end)[1])


def draw(accuracies, path):
    """Draws the accuracies: a dot for each run, a bar and a number for the mean."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), dpi=150)
    for shift, encoder in zip([-0.26, 0.0, 0.26], ENCODERS):
        color = COLORS[encoder]
        for group, n_labels in enumerate(LABELS):
            runs = [100 * accuracy for accuracy in accuracies[n_labels, encoder]]
            place, mean = group + shift, statistics.mean(runs)
            label = f"encoder {encoder}" if group == 0 else None
            axes.plot([place] * len(runs), runs, "o", color=color, markersize=5, alpha=0.6, markeredgewidth=0, label=label)
            axes.plot([place - 0.09, place + 0.09], [mean, mean], "-", color=color, linewidth=2)
            axes.annotate(f"{mean:.1f}", (place, max(runs)), (0, 6), textcoords="offset points", ha="center", color=color, fontsize=9)
    axes.set_xticks(range(len(LABELS)), [f"{n_labels:,} labels" for n_labels in LABELS])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("test accuracy, %")
    axes.set_title("Fashion-MNIST with few labels: five runs each, and their mean", loc="left", fontsize=11)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist", help="folder with the four files (default: fashion-mnist)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, of one thread each (default: 2)")
    parser.add_argument("--runs", type=pathlib.Path, default=PROJECT / "runs" / "classifier-comparison", help="folder for the runs")
    parser.add_argument("--bin", type=pathlib.Path, default=PROJECT / "target" / "release", help="folder with the programs")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)

    autoencoder_loss = pretrain(options)
    print(f"autoencoder: validation loss {autoencoder_loss:.4f}", file=sys.stderr, flush=True)
    cases = [(n_labels, encoder) for n_labels in LABELS for encoder in ENCODERS]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        swept = {(n_labels, encoder): (min(n_labels, max(SWEEP_LABELS)), encoder) for n_labels, encoder in cases}
        sweep = {(case, rate): pool.submit(train, *case, rate, SWEEP_SEED, options)
                 for case in sorted(set(swept.values())) for rate in LEARNING_RATES}
        rates = {case: max(LEARNING_RATES, key=lambda rate: sweep[swept[case], rate].result()["valid"]) for case in cases}
        runs = {(case, seed): pool.submit(train, *case, rates[case], seed, options) for case in cases for seed in SEEDS}
        accuracies = {case: [runs[case, seed].result()["test"] for seed in SEEDS] for case in cases}

    tables = tables_of(accuracies)
    description = json.loads((options.runs / "autoencoder" / "run.json").read_text())
    lines = [
        "# Few labels, with and without pre-training",
        "",
        f"`python3 examples/classifier/compare.py --data fashion-mnist`; telar {description['version']}, "
        f"{platform.system()} {platform.machine()}.",
        "",
        *tables,
        "",
        FIGURE,
        "",
        f"**Pre-training.** The `conv` autoencoder, {PRETRAINING_EPOCHS} epochs on the 55,000 training images without labels: "
        f"validation loss {autoencoder_loss:.4f}.",
        "",
        f"**Budget.** The same for all: Adam, batches of 32, at most {EPOCHS} epochs, end after {PATIENCE} epochs without a lower "
        "validation loss; the weights of the epoch with the lowest validation loss are tested.",
        "",
        f"**Learning rates.** Of {', '.join(map(str, LEARNING_RATES))} the one with the highest validation accuracy with seed "
        f"{SWEEP_SEED}, for each encoder with 100 and with 500 labels; 5,000 labels have the rates of 500:",
        "",
        f"| labels | {' | '.join(ENCODERS)} |",
        f"|---|{'---|' * len(ENCODERS)}",
        *[f"| {n_labels:,} | {' | '.join(str(rates[n_labels, encoder]) for encoder in ENCODERS)} |" for n_labels in LABELS],
        "",
        f"**Limit.** The {VALIDATION_IMAGES:,} validation images have labels too. They choose epoch and learning rate for all "
        "encoders alike; a project with 100 labels would have fewer to choose by.",
        "",
    ]
    text = "\n".join(lines)
    (HERE / "RESULTS.md").write_text(text)
    write_into_readme(tables)
    draw(accuracies, HERE / "accuracy.png")
    print(text)


if __name__ == "__main__":
    main()
