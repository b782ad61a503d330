"""Claim: a sweep costs no more than a few percent above the bare loop over the same methods.

Five methods, as they come, over MNIST-sized images by net A: a plain loop that calls them on device
arrays and fetches the maps, `sweep` into memory, and `sweep` into a store. Prints one JSON line:
images a second, the overhead of each over the loop in wall and in processor time (which wavers
less), and the memory's growth over the run.

    python -m benchmarks.sweep_overhead --images 1024
"""

import argparse
import functools
import resource
import statistics
import tempfile
import time

import jax
import numpy as np

import jaxviz as jv
from benchmarks import nets
from benchmarks.timing import json_line
from jaxviz import models

METHODS = {
    "saliency": jv.saliency,
    "integrated_gradients": jv.integrated_gradients,
    "smooth_grad": jv.smooth_grad(jv.gradient),
    "grad_cam": functools.partial(jv.grad_cam, layer="relu_2"),
    "guided_backprop": jv.guided_backprop,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    apply_fn, variables, _ = nets.ready(models.MNISTNetA(), (1, 28, 28, 1))
    x = np.random.default_rng(0).random((options.images, 28, 28, 1)).astype(np.float32)
    size, key = options.batch_size, jax.random.key(0)

    def loop():
        for number, start in enumerate(range(0, len(x), size)):
            batch = jax.device_put(x[start : start + size])
            maps = [forward(variables, batch)]
            for name, method in METHODS.items():
                extra = {"key": jax.random.fold_in(key, number)} if name == "smooth_grad" else {}
                maps.append(method(apply_fn, variables, batch, None, **extra))
            jax.device_get(maps)

    forward = jax.jit(apply_fn)
    run = functools.partial(
        jv.sweep, METHODS, apply_fn, variables, x, batch_size=size, key=key, progress=False
    )

    def stored():
        with tempfile.TemporaryDirectory() as folder:
            run(out=folder + "/store")

    ways = {"loop": loop, "memory": run, "store": stored}
    seconds, processor = {name: [] for name in ways}, {name: [] for name in ways}
    grown = 0
    for repeat in range(options.repeats + 1):
        for name, way in ways.items():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            started, spent = time.perf_counter(), time.process_time()
            way()
            if repeat:
                seconds[name].append(time.perf_counter() - started)
                processor[name].append(time.process_time() - spent)
                if name == "store":
                    grown = max(grown, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    spent = {name: statistics.median(values) for name, values in processor.items()}
    over = lambda found: {
        k: round(v / found["loop"] - 1, 4) for k, v in found.items() if k != "loop"
    }
    json_line(
        benchmark="sweep_overhead",
        images=options.images,
        images_per_second={k: round(options.images / v, 1) for k, v in medians.items()},
        overhead=over(medians),
        processor_overhead=over(spent),
        peak_memory_growth_mb=grown / 1024,
    )


if __name__ == "__main__":
    main()
