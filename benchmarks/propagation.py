"""Claim: guided backpropagation and the deconvnet cost what saliency costs (1.1 times at most),
epsilon-LRP and DeepLIFT no more than 2.5 times that.

Run: `python -m benchmarks.propagation [--examples 64] [--repeats 9]`. One JSON line: milliseconds a
batch (median), and ratios to `jaxviz.saliency` on the same net, inputs and threads. Runs are
interleaved, so that what else the machine does falls on all alike.
"""

import argparse
import functools
import json
import platform
import statistics
import time

import jax
import jax.numpy as jnp

import jaxviz as jv
from benchmarks.nets import ready
from jaxviz import models

METHODS = {
    "saliency": jv.saliency,
    "guided_backprop": jv.guided_backprop,
    "deconvnet": jv.deconvnet,
    "lrp_epsilon": functools.partial(jv.lrp, rules="epsilon"),
    "lrp_epsilon_plus": functools.partial(jv.lrp, rules="epsilon_plus"),
    "deep_lift": jv.deep_lift,
}
# Network, image, and which part of the examples are one batch of it.
NETS = {
    "mnist_a": (models.MNISTNetA, (28, 28, 1), 1),
    "cifar": (models.CIFARNet, (32, 32, 3), 1),
    "resnet20": (models.ResNet20, (32, 32, 3), 1),
    "squeezenet": (models.SqueezeNet, (224, 224, 3), 16),
}


def measure(net, shape, examples, repeats):
    """Milliseconds of each method, compiled and warmed up before."""
    apply_fn, params, x = ready(net(), (examples, *shape))
    target = jnp.zeros(examples, jnp.int32)
    run = lambda method: jax.block_until_ready(method(apply_fn, params, x, target))
    compile_seconds = {}
    for label, method in METHODS.items():
        start = time.perf_counter()
        run(method)
        compile_seconds[label] = round(time.perf_counter() - start, 2)
    times = {label: [] for label in METHODS}
    for _ in range(repeats):
        for label, method in METHODS.items():
            start = time.perf_counter()
            run(method)
            times[label].append(1e3 * (time.perf_counter() - start))
    median = {label: statistics.median(values) for label, values in times.items()}
    return {
        "milliseconds": {label: round(value, 2) for label, value in median.items()},
        "ratio": {label: round(value / median["saliency"], 2) for label, value in median.items()},
        "first_call_seconds": compile_seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    options = parser.parse_args()
    jv.keep_memory()
    found = {}
    for name in options.nets:
        net, shape, part = NETS[name]
        found[name] = measure(net, shape, max(options.examples // part, 1), options.repeats)
    device = jax.devices()[0]
    where = {"jax": jax.__version__, "device": device.device_kind, "machine": platform.machine()}
    print(json.dumps({**where, "examples": options.examples, "nets": found}))


if __name__ == "__main__":
    main()
