"""How time and memory grow with batch, image side, steps, patches and devices: a figure, a JSON.

    python -m benchmarks.growth --out growth.json --picture growth.png

Saliency of SqueezeNet 1.1 for the batch, the side and the devices, integrated gradients for the
steps, occlusion for the patches; medians of `--repeats` calls, compilation apart. On a CPU the
devices are simulated on the same cores, so there is nothing to gain but what sharding costs shows.
Memory is by how much a call raises the process's resident memory, or the GPU's.
"""

import argparse
import json
import pathlib
import statistics

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

import jaxviz as jv
from benchmarks.memory import give_back, peak_mb
from benchmarks.run import processor, timed
from jaxviz import models

DEVICES = 8
BATCHES, SIDES = (1, 2, 4, 8, 16, 32), (64, 96, 128, 192, 256, 384)
STEPS, STRIDES = (8, 16, 32, 64, 128), (32, 24, 16, 12, 8)
WINDOW = 32


def measures(apply_fn, params):
    """For each axis of growth: its title, and pairs of a number and a call."""
    images = lambda count, side: jax.random.normal(jax.random.key(1), (count, side, side, 3))

    def saliency(count, side):
        x = images(count, side)
        return lambda: jv.saliency(apply_fn, params, x, 0)

    def on_devices(count):
        mesh = Mesh(np.array(jax.devices()[:count]), ("batch",))
        x = jax.device_put(images(8, 128), NamedSharding(mesh, PartitionSpec("batch")))
        copied = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        return lambda: jv.saliency(apply_fn, copied, x, jnp.zeros(8, int))

    def over(values, make):
        return [(value, make(value)) for value in values]

    one = images(1, 128)
    patches = lambda stride: (-(-(128 - WINDOW) // stride) + 1) ** 2
    path = lambda n: lambda: jv.integrated_gradients(apply_fn, params, one, 0, num_steps=n)
    hide = lambda s: (
        lambda: jv.occlusion(apply_fn, params, one, 0, window=(WINDOW,) * 2, stride=(s, s))
    )
    return {
        "images of 128x128\nsaliency": over(BATCHES, lambda n: saliency(n, 128)),
        "side of one image, pixels\nsaliency": over(SIDES, lambda n: saliency(1, n)),
        "steps, 128x128\nintegrated gradients": over(STEPS, path),
        "patches, 128x128\nocclusion": [(patches(s), hide(s)) for s in STRIDES],
        "devices, 8 images of 128x128\nsaliency": [
            (n, on_devices(n)) for n in (1, 2, 4, 8) if n <= len(jax.devices())
        ],
    }


def figure(found):
    """Time above, memory below; the dotted line grows in proportion from the first point."""
    names = list(found["axes"])
    picture = Figure(figsize=(2.6 * len(names), 5), layout="constrained")
    grid = picture.subplots(2, len(names), sharex="col", squeeze=False)
    for column, name in enumerate(names):
        numbers, *rows = zip(*found["axes"][name], strict=True)
        for axes, values in zip(grid[:, column], rows, strict=True):
            power = 2 if "side" in name else 1
            if "devices" not in name:
                linear = [values[0] * (n / numbers[0]) ** power for n in numbers]
                axes.plot(numbers, linear, color="0.6", linestyle=":", linewidth=1)
            axes.plot(numbers, values, marker="o", markersize=4, color="#1b6ca8")
            axes.set_xscale("log", base=2)
            if "devices" in name:
                axes.set_ylim(0, 1.2 * max(values))
            else:
                axes.set_yscale("log")
            axes.set_xticks(numbers, [str(n) for n in numbers], fontsize=8)
            axes.minorticks_off()
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
        grid[1, column].set_xlabel(name, fontsize=9)
    grid[0, 0].set_ylabel("milliseconds a call")
    grid[1, 0].set_ylabel("megabytes")
    picture.suptitle(
        f"Growth on SqueezeNet 1.1, {found['device']}, jax {found['jax']} "
        "(dotted: in proportion to the number, for the side to its square)",
        fontsize=10,
    )
    return picture


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("growth.json"))
    parser.add_argument("--picture", type=pathlib.Path, default=pathlib.Path("growth.png"))
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # as `keep_memory` does, but early
    module = models.nets["squeezenet1_1"]()
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    found = {"device": processor(), "jax": jax.__version__, "axes": {}}
    points = measures(models.apply_fn(module), params)
    # Memory first: what a process keeps does not count as risen.
    give_back()
    used = {}
    for name, row in points.items():
        for number, call in row:
            timed(call)
            used[name, number] = max(peak_mb(call), 1.0)
    jv.keep_memory()
    for name, row in points.items():
        rows = found["axes"][name] = []
        for number, call in row:
            timed(call)
            ms = statistics.median(timed(call)[0] for _ in range(options.repeats))
            rows.append((number, ms, used[name, number]))
            print(name.replace("\n", ", "), *(f"{v:.4g}" for v in rows[-1]), flush=True)
    options.out.write_text(json.dumps(found, indent=1))
    matplotlib.use("agg")
    figure(found).savefig(options.picture, dpi=120)


if __name__ == "__main__":
    main()
