"""Layers, orders and permuted features beside Captum's: one net, same weights, inputs and counts.

    python -m benchmarks.layers --torch /path/to/site-packages   # those with torch and captum

Prints for each method the difference of the two results (where chance has no part in them),
medians of calls in turn and the ratio. What is compiled is compiled before.
"""

import argparse
import itertools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv

CHANNELS = 1, 24, 48, 64


def weights(rng):
    kernels = [
        (rng.normal(size=(3, 3, a, b)) * np.sqrt(2 / (9 * a))).astype(np.float32)
        for a, b in itertools.pairwise(CHANNELS)
    ]
    return kernels, rng.normal(size=(CHANNELS[-1], 10)).astype(np.float32)


def net(params, x):
    kernels, dense = params
    for kernel in kernels:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        x = jax.nn.relu(x)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.mean((1, 2)) @ dense


def torch_net(params):
    from torch import from_numpy, nn  # pyright: ignore[reportMissingImports]

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    kernels, dense = params
    parts = []
    for kernel in kernels:
        conv = nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1, bias=False)
        conv.weight.data = from_numpy(np.moveaxis(kernel, (2, 3), (1, 0)).copy())
        parts += [conv, nn.ReLU(), nn.MaxPool2d(2)]
    last = nn.Linear(*dense.shape, bias=False)
    last.weight.data = from_numpy(dense.T.copy())
    found = nn.Sequential(*parts, Mean(), last).eval()
    return found, parts[4]  # the second ReLU


def rows(params, x, target, segments, steps, orders):
    """`{title: (ours, theirs, whether they are the same number)}`."""
    import torch  # pyright: ignore[reportMissingImports]
    from captum import attr  # pyright: ignore[reportMissingImports]

    theirs, module = torch_net(params)
    image = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    label = torch.from_numpy(target.astype(np.int64))
    path = {"n_steps": steps, "attribute_to_layer_input": False}
    mask = torch.from_numpy(segments.astype(np.int64))[None, None]
    main, layer = (net, params, x, target), {"layer": "relu_1", "num_steps": steps}
    key = jax.random.key(0)
    groups = {"segments": segments, "key": key}
    permuted = {"feature_mask": mask, "perturbations_per_eval": 1}

    def captum(method, *arguments, grad=True, **options):
        def call():
            with torch.set_grad_enabled(grad):
                return method.attribute(*arguments, target=label, **options)

        return call

    zeros = torch.zeros_like(image)
    return {
        f"layer conductance, {steps} steps": (
            lambda: jv.layer_conductance(*main, **layer),
            captum(attr.LayerConductance(theirs, module), image, zeros, **path),
            True,
        ),
        f"internal influence, {steps} steps": (
            lambda: jv.internal_influence(*main, **layer),
            captum(attr.InternalInfluence(theirs, module), image, zeros, **path),
            True,
        ),
        f"layer integrated gradients, {steps} steps": (
            lambda: jv.at_layer(jv.integrated_gradients, "relu_1")(*main, num_steps=steps),
            captum(attr.LayerIntegratedGradients(theirs, module), image, zeros, **path),
            False,  # Captum's path is straight in the layer from its value at the baseline
        ),
        "feature permutation, 49 cells": (
            lambda: jv.feature_permutation(*main, num_samples=1, **groups),
            captum(attr.FeaturePermutation(theirs), image, grad=False, **permuted),
            False,
        ),
        f"Shapley sampling, {2 * orders} orders of 49 cells": (
            lambda: jv.shapley_sampling(*main, num_samples=orders, **groups).map,
            captum(
                attr.ShapleyValueSampling(theirs),
                image,
                grad=False,
                feature_mask=mask,
                n_samples=2 * orders,
                perturbations_per_eval=8,
            ),
            False,
        ),
    }


def timed(call):
    time.sleep(5e-3)  # until the threads of the other library have ceased to spin
    start = time.perf_counter()
    found = jax.block_until_ready(call())
    return time.perf_counter() - start, found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", help="site-packages with torch and captum")
    parser.add_argument("--tiny", action="store_true", help="whether it runs, not how fast")
    parser.add_argument("--seconds", type=float, default=40, help="for the calls of a row")
    arguments = parser.parse_args()
    if arguments.torch:
        sys.path.append(arguments.torch)
    rng = np.random.default_rng(0)
    count, steps, orders = (2, 3, 2) if arguments.tiny else (16, 50, 5)
    params, x = weights(rng), rng.normal(size=(count, 28, 28, 1)).astype(np.float32)
    target = np.asarray(jax.jit(net)(params, x)).argmax(1)
    segments = jv.grid_segments((28, 28), (7, 7))
    ratios = []
    for title, (ours, theirs, same) in rows(params, x, target, segments, steps, orders).items():
        (first, a), (_, b) = timed(ours), timed(theirs)
        told = ""
        if same:
            a, b = np.asarray(a), np.moveaxis(np.asarray(b.detach()), 1, -1)
            told = f"difference {np.linalg.norm(a - b) / np.linalg.norm(b):.1e}"
        end, times = time.perf_counter() + arguments.seconds, []
        while len(times) < 3 or (len(times) < 15 and time.perf_counter() < end):
            times.append([timed(ours)[0], timed(theirs)[0]])
            if arguments.tiny:
                break
        mine, other = map(statistics.median, zip(*times, strict=True))
        ratios.append(other / mine)
        print(
            f"{title:44} ours {1e3 * mine:8.1f} ms, Captum {1e3 * other:8.1f} ms, "
            f"{ratios[-1]:5.1f} times; first call {first:.1f} s {told}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
