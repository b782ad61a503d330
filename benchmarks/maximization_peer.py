"""The other side of maximization.py: the same climb as a PyTorch loop, timed one run at a time.

Started by that script with the Python that has torch. Reads one JSON command a line, answers in one
line: `{"net": ..., "layer": ...}` loads, `{"climb": true}` runs and gives milliseconds a step.
"""

import contextlib
import json
import math
import random
import sys
import time

import numpy as np
import torch
from gradient_peers import build

ROOT = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
MATRIX = torch.tensor(ROOT / np.linalg.norm(ROOT, axis=0).max(), dtype=torch.float32)


def strengths(size):
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    return torch.tensor(size / np.maximum(f, 1 / size), dtype=torch.float32)[..., None]


def turned(images, angle, factor):
    cosine, sine = math.cos(angle) / factor, math.sin(angle) / factor
    matrix = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
    grid = torch.nn.functional.affine_grid(matrix[None], [1, *images.shape[1:]], False)
    grid = grid.expand(len(images), -1, -1, -1)
    return torch.nn.functional.grid_sample(
        images, grid, padding_mode="reflection", align_corners=False
    )


def transformed(images):
    size = images.shape[2]

    def jitter(images, most):
        shifts = (random.randint(-most, most), random.randint(-most, most))
        return torch.roll(images, shifts, (2, 3))

    images = jitter(images, size // 16)
    images = turned(images, 0.0, math.exp(random.uniform(math.log(0.9), math.log(1.1))))
    images = turned(images, math.radians(random.uniform(-10, 10)), 1.0)
    return jitter(images, size // 32)


def climb(head, command):
    count, size = command["images"], command["size"]
    variables = torch.randn(count, 3, size, size // 2 + 1, 2) * 0.01
    variables.requires_grad_(True)
    optimizer = torch.optim.Adam([variables], lr=0.05)
    scale, units = strengths(size), torch.arange(count) % 64
    start = time.perf_counter()
    for _ in range(command["steps"]):
        optimizer.zero_grad()
        waves = torch.view_as_complex(variables * scale)
        flat = torch.fft.irfft2(waves, s=(size, size)) / 4
        images = torch.sigmoid(torch.einsum("mchw,dc->mdhw", flat, MATRIX))
        if not command["cut"]:
            images = transformed(images)
        if command["channels_last"]:
            images = images.to(memory_format=torch.channels_last)
        values = head(images)[torch.arange(count), units].mean((1, 2))
        (-values.sum()).backward()
        optimizer.step()
    return 1e3 * (time.perf_counter() - start) / command["steps"]


def main():
    torch.set_num_threads(2)
    out, head, loaded = sys.stdout, None, {}
    for line in sys.stdin:
        command, reply = json.loads(line), {}
        with contextlib.redirect_stdout(sys.stderr):
            if "net" in command:
                with np.load(command["weights"]) as file:
                    net = build(command["net"], dict(file))
                head, loaded = net[: command["layer"] + 1].requires_grad_(False), command
                if command["channels_last"]:
                    head = head.to(memory_format=torch.channels_last)
            else:
                reply["ms"] = climb(head, loaded)
        print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    main()
