"""Claim: guided backpropagation and the deconvnet cost what saliency costs (1.1 times at most),
epsilon-LRP and DeepLIFT no more than 2.5 times that.

Run: `python benchmarks/propagation.py [--examples 64] [--repeats 9]`. One JSON line: milliseconds a
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
from jaxviz import models

METHODS = {
    "saliency": jv.saliency,
    "guided_backprop": jv.guided_backprop,
    "deconvnet": jv.deconvnet,
    "lrp_epsilon": functools.partial(jv.lrp, rules="epsilon"),
    "lrp_epsilon_plus": functools.partial(jv.lrp, rules="epsilon_plus"),
    "deep_lift": jv.deep_lift,
}
NETS = {"mnist_a": (28, 28, 1), "cifar": (32, 32, 3), "resnet20": (32, 32, 3)}


def measure(name, shape, examples, repeats):
    """Milliseconds of each method, compiled and warmed up before."""
    net = models.nets[name]()
    x = jax.random.normal(jax.random.key(1), (examples, *shape))
    params = net.init(jax.random.key(0), x[:1])
    target = jnp.zeros(examples, jnp.int32)
    run = lambda method: jax.block_until_ready(method(net.apply, params, x, target))
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
    found = {
        name: measure(name, NETS[name], options.examples, options.repeats) for name in options.nets
    }
    device = jax.devices()[0]
    where = {"jax": jax.__version__, "device": device.device_kind, "machine": platform.machine()}
    print(json.dumps({**where, "examples": options.examples, "nets": found}))


if __name__ == "__main__":
    main()
