"""Region perturbation by what each patch changes, beside whole passes: same weights, one run.

    python benchmarks/incremental.py [--net resnet18] [--window 28] [--images 4] [--repeats 3]

A fill that is a function of what is hidden is not known to be local, so it asks for whole passes.
Both sides are called in turn; compile time is apart. Prints medians, the ratio of wall seconds and
of processor seconds, and the largest difference of the curves, relative to the largest score.
"""

import argparse
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from benchmarks.suite import NETS
from jaxviz import metrics, models


def zeros(x, hidden):
    return jnp.zeros_like(x)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--net", default="resnet18", choices=NETS)
    parser.add_argument("--window", type=int, default=28, help="side of a patch, in pixels")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100, help="patches that go, at most")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    module = models.nets[asked.net]()
    x = jax.random.normal(jax.random.key(1), (asked.images, *NETS[asked.net].shape[1:]))
    params = jax.jit(module.init)(jax.random.key(0), x[:1])
    apply_fn = models.apply_fn(module)
    a = jax.random.normal(jax.random.key(2), x.shape)
    options = {"window": (asked.window, asked.window), "num_steps": asked.steps}
    ways = {
        way: lambda fill=fill: metrics.region_perturbation(
            apply_fn, params, x, a, 0, fill=fill, **options
        )
        for way, fill in (("changes", 0.0), ("whole passes", zeros))
    }
    curves, first = {}, {}
    for way, call in ways.items():
        start = time.perf_counter()
        curves[way] = np.asarray(jax.block_until_ready(call().curve))
        first[way] = time.perf_counter() - start
    clocks = {way: [] for way in ways}
    for _ in range(asked.repeats):
        for way, call in ways.items():
            start = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            clocks[way].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, cpu = (
        {way: statistics.median(pair[i] for pair in clocks[way]) for way in ways} for i in (0, 1)
    )
    for way in ways:
        print(f"{way:12} {wall[way]:8.3f} s (cpu {cpu[way]:8.3f}; first call {first[way]:6.1f})")
    one, other = curves.values()
    off = np.abs(one - other).max() / np.abs(apply_fn(params, x)[:, 0]).max()
    ratio = [clock["whole passes"] / clock["changes"] for clock in (wall, cpu)]
    print(
        f"{asked.net}, {asked.images} images, {curves['changes'].shape[1] - 1} patches of "
        f"{asked.window} pixels: ratio {ratio[0]:.2f}, cpu {ratio[1]:.2f}; difference {off:.1e}; "
        f"jaxviz {jv.__version__}, JAX {jax.__version__}"
    )


if __name__ == "__main__":
    main()
