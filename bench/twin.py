"""What a process of bench/ddp.py does: the three networks in PyTorch, a step of training, how fast steps are, and that the
networks are those of telar. Where images and golden vectors come from, and who starts the processes, says bench/ddp.py.
"""

import gzip
import itertools
import json
import math
import re
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

LEARNING_RATES = {"denoising": 1.0, "conv": 1.0, "recurrent": 0.1}
N_TRAIN = 55_000
IMAGES_HEADER = bytes.fromhex("00000803 0000ea60 0000001c 0000001c")  # 60,000 images of 28 x 28
# Of a tensor relative to its largest value, as in model/tests/golden.rs.
GOLDEN_DIFFERENCE_MAX = 1e-5


class Denoising(nn.Module):
    """Dense layers, 784 → 100 → 30 → 100 → 784, with Gaussian noise on the input in training."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"dense1": nn.Linear(784, 100), "dense2": nn.Linear(100, 30)})
        self.decoder = nn.ModuleDict({"dense1": nn.Linear(30, 100), "dense2": nn.Linear(100, 784)})

    def forward(self, images):  # [batch, 28, 28]
        x = images.flatten(1)  # [batch, 784]
        if self.training:
            x = torch.empty_like(x).normal_(0.0, 0.2).add_(x)
        x = functional.selu(self.encoder["dense1"](x))  # [batch, 100]
        x = functional.selu(self.encoder["dense2"](x))  # [batch, 30]
        x = functional.selu(self.decoder["dense1"](x))  # [batch, 100]
        return self.decoder["dense2"](x).view_as(images)


class Conv(nn.Module):
    """Three convolutions with pooling, three transposed convolutions whose outputs keep their first 2n rows and columns."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({
            "conv1": nn.Conv2d(1, 16, 3, padding=1),
            "conv2": nn.Conv2d(16, 32, 3, padding=1),
            "conv3": nn.Conv2d(32, 64, 3, padding=1),
        })
        self.decoder = nn.ModuleDict({
            "deconv1": nn.ConvTranspose2d(64, 32, 3, stride=2),
            "deconv2": nn.ConvTranspose2d(32, 16, 3, stride=2),
            "deconv3": nn.ConvTranspose2d(16, 1, 3, stride=2),
        })
        self.to(memory_format=torch.channels_last)

    def forward(self, images):  # [batch, 28, 28]
        x = images.unsqueeze(1).contiguous(memory_format=torch.channels_last)
        for layer in self.encoder.values():
            # SELU rises, so it may as well come after the pooling, which is less work.
            x = functional.selu(functional.max_pool2d(layer(x), 2))
        x = functional.selu(self.decoder["deconv1"](x))  # [batch, 32, 7, 7]
        x = functional.selu(self.decoder["deconv2"](x)[:, :, :14, :14])  # [batch, 16, 14, 14]
        return self.decoder["deconv3"](x)[:, 0, :28, :28]


class Lstm(nn.LSTM):
    """With one bias a gate: the second one is 0 and not trained."""

    def __init__(self, n_in, n_hidden):
        super().__init__(n_in, n_hidden)
        nn.init.zeros_(self.bias_ih_l0).requires_grad_(False)


class Recurrent(nn.Module):
    """Two LSTMs that read an image row by row, one that writes."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"lstm1": Lstm(28, 100), "lstm2": Lstm(100, 30)})
        self.decoder = nn.ModuleDict({"lstm1": Lstm(30, 100), "dense": nn.Linear(100, 28)})

    def forward(self, images):  # [batch, rows, 28]
        rows = images.transpose(0, 1)
        x, _ = self.encoder["lstm1"](rows)  # [rows, batch, 100]
        _, (code, _) = self.encoder["lstm2"](x)  # [1, batch, 30]
        x, _ = self.decoder["lstm1"](code.expand(len(rows), -1, -1))  # [rows, batch, 100]
        return self.decoder["dense"](x).transpose(0, 1)


NETWORKS = {"denoising": Denoising, "conv": Conv, "recurrent": Recurrent}


class Trainer:
    """One process's share of a training run: a network, in DDP if there are several processes or one that is to be so."""

    def __init__(self, arch, golden):
        network = NETWORKS[arch]()
        with torch.no_grad():
            for name, parameter in trained_parameters(network):
                parameter.copy_(golden[f"weights.{name}"])
        self.network = network
        self.model = network
        if dist.is_initialized():
            self.model = DistributedDataParallel(network, gradient_as_bucket_view=True, static_graph=True,
                                                 broadcast_buffers=False)
        trained = [parameter for _, parameter in trained_parameters(network)]
        self.optimizer = torch.optim.SGD(trained, lr=LEARNING_RATES[arch])

    def backward(self, images):
        """The loss of images, and its gradient in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = functional.binary_cross_entropy_with_logits(self.model(images), images)
        loss.backward()
        return loss.detach()

    def step(self, images):
        """One update; its loss, before it."""
        loss = self.backward(images)
        self.optimizer.step()
        return loss


def trained_parameters(network):
    """The parameters under telar's published names."""
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            yield re.sub(r"bias_hh_l0$", "bias", name).removesuffix("_l0"), parameter


def place():
    """This process's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def agreed(value):
    """The first process's value, in all of them."""
    if not dist.is_initialized():
        return value
    value = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(value, 0)
    return value.item()


def measure(arch, batch_sizes, warm_up, seconds, images_path, golden_path):
    """Measures one global batch after the other."""
    loaded_kib = largest_peak_kib()
    images = read_images(images_path, N_TRAIN)
    golden = read_safetensors(golden_path)
    cells = [measure_batch_size(arch, batch_size, warm_up, seconds, images, golden) for batch_size in batch_sizes]
    return {"loaded_kib": loaded_kib, "images_kib": images.nbytes // 1024, "cells": cells}


def measure_batch_size(arch, batch_size, warm_up, seconds, images, golden):
    """Images per second with one global batch, and the most memory that a process has had so far."""
    trainer = Trainer(arch, golden)
    indices = shares(batch_size)

    def run(n_steps):
        """How long so many steps take, and the last one's loss. The clock stops for all when all are there."""
        agreed(0)
        begun = time.perf_counter()
        for _ in range(n_steps):
            loss = trainer.step(images.index_select(0, next(indices)))
        agreed(0)
        return agreed(time.perf_counter() - begun), loss

    spent, n_steps = 0.0, 1
    # Ends: each round takes longer.
    while True:
        taken, _ = run(n_steps)
        spent += taken
        if spent >= warm_up and n_steps > 1:
            break
        n_steps *= 2
    n_steps = max(3, math.ceil(seconds * n_steps / taken))
    taken, loss = run(n_steps)
    loss = loss.item()
    if not math.isfinite(loss):
        raise SystemExit(f"error: expected a finite loss after {n_steps} steps of {arch}, found {loss}")
    return {"batch_size": batch_size, "images_per_second": batch_size * n_steps / taken, "n_steps": n_steps,
            "seconds": taken, "loss": loss, "peak_kib": largest_peak_kib()}


def shares(batch_size):
    """Without end the places of this process's images in each step: each epoch has an order of its own, and goes without the
    images that are left over."""
    rank, world_size = place()
    share = batch_size // world_size
    generator = torch.Generator().manual_seed(42)
    for _ in itertools.count():
        order = torch.randperm(N_TRAIN, generator=generator)
        for start in range(0, N_TRAIN - batch_size + 1, batch_size):
            yield order[start + rank * share:start + (rank + 1) * share]


def largest_peak_kib():
    """The most memory that any of the processes has had at once."""
    with open("/proc/self/status") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    if dist.is_initialized():
        peak = torch.tensor([peak])
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        peak = peak.item()
    return peak


def check(arch, images_path, golden_path):
    """How far the loss and each gradient over the golden batch, cut over the processes, are from the golden ones; in which of
    them the largest difference is."""
    golden = read_safetensors(golden_path)
    rank, world_size = place()
    share = len(golden["output"]) // world_size
    images = read_images(images_path, len(golden["output"]))[rank * share:(rank + 1) * share]
    trainer = Trainer(arch, golden)
    trainer.model.eval()  # the golden vectors are without noise
    loss = trainer.backward(images)
    if dist.is_initialized():
        dist.all_reduce(loss)
        loss /= world_size
    differences = {"loss": difference(loss, golden["loss"])}
    for name, parameter in trained_parameters(trainer.network):
        differences[f"gradient of {name}"] = difference(parameter.grad, golden[f"grads.{name}"])
    if len(differences) - 1 != sum(name.startswith("grads.") for name in golden):
        raise SystemExit(f"error: expected the tensors of {golden_path}, found {sorted(differences)}")
    worst = max(differences, key=differences.get)
    if not differences[worst] <= GOLDEN_DIFFERENCE_MAX:
        raise SystemExit(f"error: expected the {worst} of {arch} at most {GOLDEN_DIFFERENCE_MAX:.0e} from the golden one, "
                         f"found it {differences[worst]:.1e} apart")
    return {"arch": arch, "largest_difference": differences[worst], "of": worst}


def difference(found, expected):
    """The largest difference of two tensors, relative to the largest value of the expected one."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def read_images(path, n_images):
    """The first training images as values from 0 to 1: [images, 28, 28]. Piece by piece, so that the most memory that is
    needed is that of the result."""
    images = torch.empty(n_images, 28, 28)
    with (gzip.open(path) if path.suffix == ".gz" else open(path, "rb")) as file:
        header = file.read(len(IMAGES_HEADER))
        if header != IMAGES_HEADER:
            raise SystemExit(f"error: expected the header {IMAGES_HEADER.hex()} of Fashion-MNIST's training images in {path}, "
                             f"found {header.hex()}")
        for piece in images.split(1000):
            pixels = bytearray(file.read(piece.numel()))
            if len(pixels) != piece.numel():
                raise SystemExit(f"error: expected {n_images} images in {path}, found fewer")
            piece.copy_(torch.frombuffer(pixels, dtype=torch.uint8).view_as(piece)).div_(255)
    return images


def read_safetensors(path):
    """All tensors of a file, by name."""
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)

    def tensor(entry):
        begin, end = entry["data_offsets"]
        assert entry["dtype"] == "F32", "golden vectors are f32"
        return torch.frombuffer(content, dtype=torch.float32, offset=start + begin, count=(end - begin) // 4).view(entry["shape"])

    return {name: tensor(entry) for name, entry in header.items()}
