"""The numbers of bench/speed.py as the text of bench/RESULTS.md. Nothing is measured here."""

import statistics

# What is to be reached: how many times the images per second of PyTorch, for each network.
TARGETS = [
    ("one worker, one thread, batch 32, against DDP 1x1", "ddp", 1, 32, {"denoising": 2.0, "conv": 1.6, "recurrent": 1.7}),
    ("2 workers, batch 32, against DDP 2x1", "ddp", 2, 32, {"denoising": 4.0, "conv": 1.8, "recurrent": 2.5}),
    ("4 workers, batch 32, against DDP 4x1", "ddp", 4, 32, {"denoising": 6.0, "conv": 3.5, "recurrent": 3.5}),
    ("2 workers, batch 512, against DDP 2x1", "ddp", 2, 512, {"denoising": 1.5, "conv": 1.4, "recurrent": 1.9}),
    ("4 workers, batch 512, against DDP 4x1", "ddp", 4, 512, {"denoising": 1.5, "conv": 1.4, "recurrent": 1.9}),
    ("the best of ours, batch 32, against PyTorch in one process on all cores", "torch", None, 32,
     {"denoising": 1.1, "conv": 1.7, "recurrent": 1.9}),
]
# Peak memory of a worker, as a share of that of a DDP process.
MEMORY_TARGET = 0.3
# What is reckoned with where a network of machines becomes the bound.
LINKS_GBIT = [1, 10, 100]
N_PARAMS = {"denoising": 163_814, "conv": 46_529, "recurrent": 122_548}
BY_HAND = "<!-- What follows is written by hand; bench/speed.py keeps it. -->"


def write(numbers, path):
    """Writes the table; what stands below the line in the old one is kept."""
    kept = ""
    if path.exists() and BY_HAND in (old := path.read_text()):
        kept = old.split(BY_HAND, 1)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(Report(numbers).text() + BY_HAND + (kept or "\n"))


class Report:
    """All of the text that is not written by hand."""

    def __init__(self, numbers):
        self.numbers = numbers
        self.cells = {}
        for measurement in numbers["measurements"]:
            key = (measurement["side"], measurement["arch"], measurement["workers"], measurement["batch_size"])
            self.cells.setdefault(key, {})[measurement["alternation"]] = measurement
        self.arches = [arch for arch in N_PARAMS if any(key[1] == arch for key in self.cells)]
        self.workers = sorted({workers for side, _, workers, _ in self.cells if side == "cluster"})
        self.batch_sizes = sorted({batch_size for *_, batch_size in self.cells})
        self.cores = numbers["n_cores"]
        self.shortfalls = []

    def text(self):
        parts = [self.head(), self.targets(), self.speeds(), self.memory(), self.breakdown()]
        if self.numbers["scaling"]:
            parts += [self.scaling(), self.network()]
        return "\n".join(line for part in parts for line in [*part, ""])

    def rate(self, key):
        """Median images per second of a cell, if it was measured."""
        cell = self.cells.get(key)
        return cell and statistics.median(one["images_per_second"] for one in cell.values())

    def ratios(self, ours, theirs):
        """How many times as fast a cell is as another one, in each alternation that has both."""
        ours, theirs = self.cells.get(ours, {}), self.cells.get(theirs, {})
        return [ours[place]["images_per_second"] / theirs[place]["images_per_second"] for place in ours if place in theirs]

    def peak_mib(self, key, name):
        """The most memory of a process of a cell in any alternation."""
        cell = self.cells.get(key)
        peaks = [one["peak_kib"][name] / 1024 for one in cell.values() if name in one["peak_kib"]] if cell else []
        return max(peaks, default=None)

    def head(self):
        numbers, machine, versions = self.numbers, self.numbers["machine"], self.numbers["versions"]
        n_alternations = len({measurement["alternation"] for measurement in numbers["measurements"]})
        check = max((found for check in numbers["checks"] for found in check["check"]), key=lambda found: found["largest_difference"])
        return [
            "# Speed beside PyTorch's",
            "",
            f"`{numbers['command']}`, {numbers['date']}, {counted(n_alternations, 'alternation')}"
            + (f" in {numbers['minutes']:.0f} minutes" if "minutes" in numbers else "") + ".",
            "",
            f"- Machine: {machine['cpu']}, {machine['n_cores']} cores, {machine['vectors']}, {machine['memory_gib']:.0f} GiB of "
            f"memory, {machine['kernel']}; load before it began {machine['load']:.1f}.",
            f"- Versions: telar {versions['telar']} ({versions['commit']}), {versions['rustc']}, Burn {versions['burn']}; PyTorch "
            f"{versions['torch']} from PyPI, {versions['python']}.",
            f"- Ours: `coordinator --workers N --threads 1` with local workers, and `autoencoder train --threads {self.cores} "
            "--shards 1` as one process."
            + ("" if numbers["has_operations"] else " These programs have one kind of operations, Burn's plain ones."),
            "- PyTorch: `bench/ddp.py`, the same networks, global batch, optimiser, data and f32, one thread a process; its loss "
            f"and gradients differ from the golden vectors of Keras by {check['largest_difference']:.1e} at most, in one process "
            "and in DDP. Eager mode, with what was faster wherever it leaves a choice; LSTMs are `nn.LSTM` with one of its two "
            "biases held at 0.",
            f"- Each cell is trained for {numbers['warm_up'] + numbers['seconds']:.1f} s or longer, the first "
            f"{numbers['warm_up']:.1f} s or fifth of the steps left out. Ratios are taken within an alternation: their median, "
            "with the lowest and highest. Batch: the global batch, cut evenly over the workers.",
        ]

    def targets(self):
        lines = ["## Targets", "", "| | network | target | measured | lowest–highest | |", "|---|---|---|---|---|---|"]
        for words, side, workers, batch_size, targets in TARGETS:
            for arch in self.arches:
                target = targets[arch]
                if workers is None:
                    ours, theirs = self.best(arch, batch_size), (side, arch, 0, batch_size)
                    how = f" ({side_words(ours[0], ours[2], self.cores)})" if ours else ""
                else:
                    ours, theirs, how = ("cluster", arch, workers, batch_size), (side, arch, workers, batch_size), ""
                ratios = self.ratios(ours, theirs)
                lines.append(self.target_line(words, arch, f"≥ {target:.1f}x", ratios, how,
                                              bool(ratios) and statistics.median(ratios) >= target))
        for arch in self.arches:
            shares = self.memory_shares(arch)
            worst = max(shares, default=None)
            words = f"peak memory of a worker against a DDP process, the worst of {len(shares)} cells"
            line = self.target_line(words, arch, f"≤ {MEMORY_TARGET:.1f}x", shares, "", worst is not None and worst <= MEMORY_TARGET,
                                    middle=max)
            lines.append(line)
        lines += ["", *(self.shortfalls or ["Every target is met."])]
        return lines

    def target_line(self, words, arch, target, ratios, how, is_met, middle=statistics.median):
        if not ratios:
            return f"| {words} | {arch} | {target} | not measured | | |"
        measured = f"{middle(ratios):.2f}x"
        if not is_met:
            self.shortfalls.append(f"- Not met: {arch}, {words}: {measured}{how}, {target} asked for.")
        return (f"| {words} | {arch} | {target} | {measured}{how} | {min(ratios):.2f}–{max(ratios):.2f} "
                f"| {'met' if is_met else '**not met**'} |")

    def best(self, arch, batch_size):
        """The fastest of our cells, by its median."""
        keys = [key for key in self.cells if key[0] in ("cluster", "alone") and key[1] == arch and key[3] == batch_size]
        return max(keys, key=self.rate, default=None)

    def speeds(self):
        lines = ["## Images per second", "", "Medians. Each ratio is ours by the other; `all cores` is PyTorch in one process of "
                 f"{self.cores} threads."]
        has_plain = any(key[0] == "plain" for key in self.cells)
        for arch in self.arches:
            plain = "plain operations | " if has_plain else ""
            by_plain = "by plain | " if has_plain else ""
            n_columns = 10 if has_plain else 8
            lines += ["", f"### {arch}", "", f"| workers | batch | ours | {plain}DDP | all cores | by DDP | lowest–highest | {by_plain}by all "
                      "cores |", "|---" * n_columns + "|"]
            for workers in [*self.workers, 0]:
                for batch_size in self.batch_sizes:
                    lines.append(self.speed_line(arch, workers, batch_size, has_plain))
        return lines

    def speed_line(self, arch, workers, batch_size, has_plain):
        ours = ("cluster" if workers else "alone", arch, workers, batch_size)
        plain, ddp = ("plain", arch, workers, batch_size), ("ddp", arch, workers, batch_size)
        torch = ("torch", arch, 0, batch_size)
        by_ddp = self.ratios(ours, ddp)
        columns = [f"{workers} x 1 thread" if workers else f"one process, {self.cores} threads", str(batch_size), count(self.rate(ours))]
        if has_plain:
            columns.append(count(self.rate(plain)))
        columns += [count(self.rate(ddp)), count(self.rate(torch)), times(by_ddp), span(by_ddp)]
        if has_plain:
            columns.append(times(self.ratios(ours, plain)))
        columns.append(times(self.ratios(ours, torch)))
        return "| " + " | ".join(columns) + " |"

    def memory_shares(self, arch):
        """Peak memory of a worker by that of a DDP process, for each number of workers and batch. The images of the latter
        count as bytes, as ours are, not as the f32 that were faster."""
        shares = []
        for workers in self.workers:
            for batch_size in self.batch_sizes:
                ours = self.peak_mib(("cluster", arch, workers, batch_size), "worker")
                theirs = self.ddp_mib_with_bytes(arch, workers, batch_size)
                if ours and theirs:
                    shares.append(ours / theirs)
        return shares

    def ddp_mib_with_bytes(self, arch, workers, batch_size):
        key = ("ddp", arch, workers, batch_size)
        peak, images = self.peak_mib(key, "twin"), self.peak_mib(key, "twin, images")
        return peak and peak - 0.75 * images

    def memory(self):
        lines = [
            "## Peak memory of a process, in MiB", "",
            "The largest of its kind (VmHWM). PyTorch's package is the one of PyPI, with its CUDA libraries: `loaded` is a process "
            "that has imported it and done nothing else. DDP's processes hold the images as f32, since that is faster; the ratio is "
            "to what they would take with the images as bytes, as ours hold them.", "",
            "| network | workers | batch | worker | coordinator | DDP process | loaded | with images as bytes | worker by DDP |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for arch in self.arches:
            for workers in self.workers:
                for batch_size in self.batch_sizes:
                    ours, ddp = ("cluster", arch, workers, batch_size), ("ddp", arch, workers, batch_size)
                    worker, with_bytes = self.peak_mib(ours, "worker"), self.ddp_mib_with_bytes(arch, workers, batch_size)
                    share = f"{worker / with_bytes:.2f}x" if worker and with_bytes else "–"
                    columns = [worker, self.peak_mib(ours, "coordinator"), self.peak_mib(ddp, "twin"),
                               self.peak_mib(ddp, "twin, PyTorch loaded"), with_bytes]
                    lines.append(f"| {arch} | {workers} | {batch_size} | " + " | ".join(map(count, columns)) + f" | {share} |")
        return lines

    def breakdown(self):
        workers = self.workers[-1]
        batch_size = self.batch_sizes[0]
        rows = {arch: self.cells.get(("cluster", arch, workers, batch_size)) for arch in self.arches}
        rows = {arch: cell for arch, cell in rows.items() if cell}
        if not rows:
            return []
        names = [name for name in next(iter(next(iter(rows.values())).values()))["costs"] if name != "own"]
        lines = [
            f"## Where a step goes: {workers} workers, batch {batch_size}", "",
            "Medians in milliseconds, each part for itself, as in `steps.jsonl`. `compute` is the longest that a worker computed, "
            "`wait` what the coordinator waited for messages; its own work is decode + reduce + update + encode.", "",
            "| network | step | " + " | ".join(names) + " | own work |", "|---" * (len(names) + 3) + "|",
        ]
        for arch, cell in rows.items():
            step = statistics.median(one["step_milliseconds"] for one in cell.values())
            costs = [statistics.median(one["costs"][name] for one in cell.values()) for name in [*names, "own"]]
            lines.append(f"| {arch} | {step:.3f} | " + " | ".join(f"{cost:.3f}" for cost in costs) + " |")
        return lines

    def scaling(self):
        parts = ["decode", "reduce", "update", "average", "apply", "encode", "own"]
        by_workers, by_params = self.split_scaling()
        lines = [
            "## What a step costs the coordinator", "",
            "`cargo bench --workspace --bench scaling`: synthetic gradients, nothing sent, all on one thread; medians in "
            "milliseconds. `average` and `apply` are the parts of `update`, each measured once more by itself; own "
            "work is decode + reduce + update + encode. In a run, decoding goes on beside the rest.", "",
            "| workers | parameters | " + " | ".join(parts[:-1]) + " | own work |", "|---" * (len(parts) + 2) + "|",
        ]
        for cell in [*by_workers, *by_params]:
            costs = " | ".join(f"{cell['milliseconds'][part]:.3f}" for part in parts)
            lines.append(f"| {cell['workers']} | {cell['params']:,} | {costs} |")
        first, last = by_workers[0], by_workers[-1]
        small, large = by_params[0], by_params[-1]

        def each(cell, per):
            return cell["milliseconds"]["own"] / per

        lines += [
            "",
            f"With {first['params']:,} parameters a step costs {each(first, 1):.2f} ms with {first['workers']} worker and "
            f"{each(last, 1):.2f} ms with {last['workers']}, which is {1e3 * each(last, last['workers']):.0f} µs a worker. With "
            f"{small['workers']} workers a million parameters cost {each(small, small['params'] / 1e6):.1f} ms where there are "
            f"{small['params'] / 1e6:g} million, and {each(large, large['params'] / 1e6):.1f} ms where there are "
            f"{large['params'] / 1e6:g} million.",
        ]
        return lines

    def split_scaling(self):
        """The cells that differ in workers, and the cells that differ in parameters."""
        cells = self.numbers["scaling"]
        n_params = cells[0]["params"]
        return ([cell for cell in cells if cell["params"] == n_params],
                sorted((cell for cell in cells if cell["params"] != n_params), key=lambda cell: cell["params"]))

    def network(self):
        by_workers, _ = self.split_scaling()
        n_params, n_max = by_workers[0]["params"], by_workers[-1]["workers"]
        computes = {arch: self.compute_milliseconds(arch) for arch in self.arches}
        computes = {arch: compute for arch, compute in computes.items() if compute}
        lines = [
            "## Where the star's network becomes the bound", "",
            "Reckoned, not measured. In a step every worker's gradient comes in over the coordinator's one link, as f32, and then "
            "the averaged one goes out to every worker: 4 x workers x parameters bytes each way. With how many workers that takes "
            f"longer than the coordinator's own work (the table above, {n_params:,} parameters), and with how many longer than a "
            "worker computes its 32 images ("
            + ", ".join(f"{arch} {compute:.2f} ms" for arch, compute in computes.items())
            + ": `compute` of one worker, batch 32):", "",
            f"| link | ms a worker, {n_params:,} parameters | than own work | "
            + "".join(f"than computing, {arch} | images/s at most, {arch} | " for arch in computes).rstrip(),
            "|---" * (2 * len(computes) + 3) + "|",
        ]
        bounds = {}
        for gbit in LINKS_GBIT:
            own = next((workers for workers in range(1, n_max + 1)
                        if workers * link_milliseconds(gbit, n_params) > own_milliseconds(by_workers, workers)), None)
            columns = [f"{gbit} Gbit/s", f"{link_milliseconds(gbit, n_params):.3f}", str(own) if own else f"not up to {n_max}"]
            for arch, compute in computes.items():
                each = link_milliseconds(gbit, N_PARAMS[arch])
                bounds[gbit, arch] = int(compute / each) + 1
                columns += [str(bounds[gbit, arch]), count(32 / each * 1e3)]
            lines.append("| " + " | ".join(columns) + " |")
        lines += [
            "", "In words: a step is never shorter than its gradients are on the link, so that images per second stay below 32 / (ms a "
            "worker) however many workers there are; from the number of workers in the table on, most of a step is spent on the "
            "link.",
        ]
        for gbit in LINKS_GBIT:
            words = [f"`{arch}` from {counted(bounds[gbit, arch], 'worker')} on (at most "
                     f"{count(32 / link_milliseconds(gbit, N_PARAMS[arch]) * 1e3)} images/s; one worker computes "
                     f"{count(32 / compute * 1e3)})" for arch, compute in computes.items()]
            if words:
                lines.append(f"- At {gbit} Gbit/s the link is the bound of {', '.join(words)}.")
        lines += [
            "", "More images a worker, which is a larger global batch, move all of this up in proportion, and `--wire grpc-bf16` "
            "halves the bytes. Workers on the coordinator's own machine have no link.",
        ]
        return lines

    def compute_milliseconds(self, arch):
        """How long a worker computes 32 images by itself."""
        cell = self.cells.get(("cluster", arch, 1, 32))
        return cell and statistics.median(one["costs"]["compute"] for one in cell.values())


def side_words(side, workers, cores):
    """Who computes, for people."""
    return {
        "cluster": counted(workers, "worker"),
        "plain": f"{counted(workers, 'worker')}, plain operations",
        "ddp": f"DDP, {workers} process{'' if workers == 1 else 'es'}",
        "alone": f"one process, {counted(cores, 'thread')}",
        "torch": f"PyTorch, one process, {counted(cores, 'thread')}",
    }[side]


def counted(number, noun):
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def link_milliseconds(gbit, n_params):
    """How long a worker's share of a step is on the coordinator's link, both ways."""
    return 2 * 4 * 8 * n_params / (gbit * 1e9) * 1e3


def own_milliseconds(cells, workers):
    """The coordinator's own work, between the numbers of workers that were measured."""
    above = next(cell for cell in cells if cell["workers"] >= workers)
    below = max((cell for cell in cells if cell["workers"] <= workers), key=lambda cell: cell["workers"])
    low, high = below["milliseconds"]["own"], above["milliseconds"]["own"]
    if above is below:
        return low
    return low + (high - low) * (workers - below["workers"]) / (above["workers"] - below["workers"])


def count(value):
    return "–" if value is None else f"{value:,.0f}"


def times(ratios):
    return f"{statistics.median(ratios):.2f}x" if ratios else "–"


def span(ratios):
    return f"{min(ratios):.2f}–{max(ratios):.2f}" if ratios else "–"
