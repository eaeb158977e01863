#!/usr/bin/env python3
"""Writes optimizers.json: what PyTorch's optimizers, clipping and learning-rate schedules make of some parameters over a hundred
steps, in double precision.

    pip install torch==2.9.0 && python3 engine/tests/golden/optimizers.py
"""

import json
import pathlib
import random

import torch

N_PARAMS, N_STEPS = 11, 100
SGD = {"name": "sgd", "learning_rate": 0.0625, "weight_decay": 0.0, "momentum": 0.0, "nesterov": False}
ADAM = {"name": "adam", "learning_rate": 0.0078125, "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}


def schedule(decay="constant", warmup_steps=0):
    return {"decay": decay, "warmup_steps": warmup_steps}


# Optimizer, norm to clip to, schedule.
CASES = [
    (SGD, None, schedule()),
    (SGD | {"weight_decay": 0.125}, None, schedule()),
    (SGD, 0.5, schedule("linear")),
    (SGD, None, schedule("step:0.5:3")),
    # PyTorch's velocity has no learning rate in it, as Keras' has: they agree while the rate stays as it is.
    (SGD | {"momentum": 0.875}, None, schedule()),
    (SGD | {"momentum": 0.875, "nesterov": True, "weight_decay": 0.125}, None, schedule()),
    (ADAM, None, schedule()),
    (ADAM | {"weight_decay": 0.125}, None, schedule()),
    (ADAM | {"beta1": 0.5, "beta2": 0.75, "epsilon": 0.125}, 0.5, schedule("cosine")),
    (ADAM | {"name": "adamw", "weight_decay": 0.0625}, None, schedule()),
    (ADAM | {"name": "adamw", "weight_decay": 0.0625}, 1.0, schedule("cosine", 10)),
    (ADAM | {"name": "adamw"}, None, schedule("linear", 25)),
]
STEPS_PER_EPOCH = 10


def optimizer(case, params):
    rates = {"lr": case["learning_rate"], "weight_decay": case["weight_decay"]}
    if case["name"] == "sgd":
        return torch.optim.SGD(params, **rates, momentum=case["momentum"], nesterov=case["nesterov"])
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[case["name"]]
    return kind(params, **rates, betas=(case["beta1"], case["beta2"]), eps=case["epsilon"])


def scheduler(case, optimizer):
    """PyTorch's own schedules, one after the other where there is a warm-up."""
    from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, SequentialLR, StepLR

    warmup_steps = case["warmup_steps"]
    left = N_STEPS - warmup_steps
    name, *numbers = case["decay"].split(":")
    decay = {
        "constant": lambda: ConstantLR(optimizer, factor=1.0, total_iters=0),
        "linear": lambda: LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=left),
        "cosine": lambda: CosineAnnealingLR(optimizer, T_max=left),
        "step": lambda: StepLR(optimizer, step_size=int(numbers[1]) * STEPS_PER_EPOCH, gamma=float(numbers[0])),
    }
    if not warmup_steps:
        return decay[name]()
    warmup = LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)
    return SequentialLR(optimizer, [warmup, decay[name]()], milestones=[warmup_steps])


def main():
    chance = random.Random(1)
    # Numbers that f32 holds exactly.
    number = lambda scale: round(chance.gauss(0, 1) * 1024) / 1024 * scale
    initial = [number(1) for _ in range(N_PARAMS)]
    gradients = [[number(0.5) for _ in range(N_PARAMS)] for _ in range(N_STEPS)]
    cases = []
    for case, clip_norm, rates in CASES:
        params = torch.tensor(initial, dtype=torch.float64, requires_grad=True)
        stepper = optimizer(case, [params])
        rate = scheduler(rates, stepper)
        history = []
        for gradient in gradients:
            params.grad = torch.tensor(gradient, dtype=torch.float64)
            if clip_norm:
                torch.nn.utils.clip_grad_norm_([params], clip_norm)
            stepper.step()
            rate.step()
            history.append(params.detach().tolist())
        cases.append({"optimizer": case, "clip_norm": clip_norm, "schedule": rates, "n_steps": N_STEPS,
                      "steps_per_epoch": STEPS_PER_EPOCH, "params": history})
    golden = {"initial": initial, "gradients": gradients, "cases": cases}
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
