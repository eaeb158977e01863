#!/usr/bin/env python3
"""The same three networks in PyTorch, trained data-parallel with DistributedDataParallel over Gloo: what telar is measured
against. Needs PyTorch, which bench/speed.py sets up in target/bench-python.

    target/bench-python/bin/python bench/ddp.py --check                                # the networks are those of telar
    target/bench-python/bin/python bench/ddp.py --arch conv --world-size 4             # images per second, as JSON
    target/bench-python/bin/python bench/ddp.py --arch conv --threads 2                # one process without DDP

Book's learning rates, plain SGD, f32, mean binary cross-entropy from logits, the 55,000 training images in a new order each
epoch, the global batch cut evenly over the processes. Where PyTorch leaves a choice, what was faster was taken: images as
f32 in memory and gathered by index_select, convolutions on channels_last, gradients as views of their buckets, a static
graph, no loader processes, nothing read back within a step. LSTMs are nn.LSTM, whose second bias is 0 and not trained.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

PROJECT = pathlib.Path(__file__).resolve().parent.parent
ARCHITECTURES = ["denoising", "conv", "recurrent"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=ARCHITECTURES, help="network")
    parser.add_argument("--world-size", type=int, default=0, metavar="N",
                        help="processes of DDP (default: one process without DDP)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each process (default: 1)")
    parser.add_argument("--batch-sizes", default="32,128,512", metavar="N,N", help="global batches (default: 32,128,512)")
    parser.add_argument("--warm-up", type=float, default=0.3, metavar="SECONDS", help="before measuring (default: 0.3)")
    parser.add_argument("--seconds", type=float, default=1.2, metavar="SECONDS", help="measured each (default: 1.2)")
    parser.add_argument("--data", type=pathlib.Path, help="folder of Fashion-MNIST (default: $TELAR_DATA, ../shared/"
                        "fashion-mnist or data/)")
    parser.add_argument("--check", action="store_true", help="compare loss and gradients with the golden vectors")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rendezvous", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.batch_sizes = [int(size) for size in options.batch_sizes.split(",")]
    if options.arch is None and not options.check:
        parser.error("expected --arch, found none; write for example `--arch conv`")
    n_processes = max(options.world_size, 1)
    if any(size < n_processes or size % n_processes for size in options.batch_sizes):
        parser.error(f"expected --batch-sizes that {n_processes} processes can share evenly, found {options.batch_sizes}")
    options.data = data_folder(options.data)
    if options.rank is not None:
        work(options)
    else:
        launch(n_processes, options)


def data_folder(folder=None):
    """The folder of the real data set."""
    named = os.environ.get("TELAR_DATA")
    folders = [folder] if folder else [pathlib.Path(named)] if named else []
    folders = folders or [PROJECT.parent / "shared" / "fashion-mnist", PROJECT / "data"]
    for folder in folders:
        if images_file(folder):
            return folder
    looked = " or ".join(str(folder) for folder in folders)
    sys.exit(f"error: expected Fashion-MNIST in {looked}, found no train-images-idx3-ubyte(.gz); fetch it with "
             "`target/release/autoencoder data fetch --dir data`, or name its folder in TELAR_DATA")


def images_file(folder):
    """The training images' file in a folder, if it is there."""
    names = ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def launch(n_processes, options):
    """Starts the processes, as torchrun would, and waits for them. The first that fails ends all."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory(prefix="ddp-") as folder:
        command = [sys.executable, __file__, *sys.argv[1:], "--rendezvous", f"file://{folder}/rendezvous", "--rank"]
        ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(n_processes)]
        try:
            running = list(ranks)
            while running:
                for process in list(running):
                    try:
                        code = process.wait(timeout=0.05 if len(running) > 1 else None)
                    except subprocess.TimeoutExpired:
                        continue
                    running.remove(process)
                    if code != 0:
                        sys.exit(code if code > 0 else 1)
        finally:
            for process in ranks:
                process.kill()
                process.wait()


def work(options):
    """What one process does. The first one prints what came out."""
    # Here, so that who only starts processes does not load it.
    # It asks for NumPy, which nothing here needs.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    try:
        import torch
    except ImportError as error:
        sys.exit(f"error: expected PyTorch in {sys.executable}, found none ({error}); bench/speed.py sets it up in "
                 "target/bench-python")
    import twin

    torch.set_num_threads(options.threads)
    is_parallel = options.world_size > 0
    if is_parallel:
        torch.distributed.init_process_group("gloo", init_method=options.rendezvous, rank=options.rank,
                                             world_size=options.world_size)
    images = images_file(options.data)
    if options.check:
        arches = [options.arch] if options.arch else ARCHITECTURES
        found = {"check": [twin.check(arch, images, golden_file(arch)) for arch in arches]}
    else:
        found = twin.measure(options.arch, options.batch_sizes, options.warm_up, options.seconds, images,
                             golden_file(options.arch))
    if options.rank == 0:
        print(json.dumps({"torch": torch.__version__, **found}))
    if is_parallel:
        torch.distributed.destroy_process_group()


def golden_file(arch):
    """The golden vectors of a network."""
    return PROJECT / "model" / "tests" / "golden" / f"{arch}.safetensors"


if __name__ == "__main__":
    main()
