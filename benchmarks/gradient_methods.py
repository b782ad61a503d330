"""Claim: gradient, path and CAM methods are faster than Captum's and pytorch-grad-cam's on a CPU.

`python benchmarks/gradient_methods.py --peer-python PYTHON` (one with torch, captum and grad-cam;
by default this one). Same weights, images and threads (2), calls interleaved, torch in the better
of its two layouts; one JSON line for each net and method, with the largest difference of the maps
relative to their largest number where both compute the same thing.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from timing import json_line

from jaxviz.attribution.cam import grad_cam
from jaxviz.attribution.cam_perturb import ablation_cam, score_cam
from jaxviz.attribution.gradient import gradient
from jaxviz.attribution.path import expected_gradients, integrated_gradients
from jaxviz.attribution.smooth import smooth_grad

# What to run, as data for both sides: (kind, options). A conv's are its name, stride and padding.
MNIST_A = (
    *(("conv", "conv1", 1, 1), ("relu",), ("pool", 2, 2)),
    *(("conv", "conv2", 1, 1), ("relu",), ("pool", 2, 2)),
    *(("conv", "conv3", 1, 1), ("relu",), ("pool", 2, 2), ("flatten",)),
    *(("dense", "fc1"), ("relu",), ("dense", "fc2")),
)
SQUEEZENET = (
    *(("conv", "features.0", 2, 0), ("relu",), ("pool", 3, 2)),
    *(("fire", "features.3"), ("fire", "features.4"), ("pool", 3, 2)),
    *(("fire", "features.6"), ("fire", "features.7"), ("pool", 3, 2)),
    *(("fire", f"features.{i}") for i in (9, 10, 11, 12)),
    *(("conv", "classifier.1", 1, 0), ("relu",), ("mean",)),
)
SHAPES = {
    "conv1": (3, 3, 1, 24),
    "conv2": (3, 3, 24, 48),
    "conv3": (3, 3, 48, 64),
    "fc1": (576, 128),
    "fc2": (128, 10),
    "features.0": (3, 3, 3, 64),
    "classifier.1": (1, 1, 512, 1000),
}
FIRES = ((3, 64, 16), (4, 128, 16), (6, 128, 32), (7, 256, 32))
FIRES += ((9, 256, 48), (10, 384, 48), (11, 384, 64), (12, 512, 64))
for number, width, squeeze in FIRES:
    SHAPES[f"features.{number}/squeeze"] = (1, 1, width, squeeze)
    SHAPES[f"features.{number}/expand1"] = (1, 1, squeeze, 4 * squeeze)
    SHAPES[f"features.{number}/expand3"] = (3, 3, squeeze, 4 * squeeze)


def weights(spec, seed=0):
    """He-initialised arrays for every layer of a net."""
    rng = np.random.default_rng(seed)
    names = {options[0] for _, *options in spec if options and isinstance(options[0], str)}
    out = {}
    for name, shape in SHAPES.items():
        if name.split("/")[0] in names:
            scale = np.sqrt(2 / np.prod(shape[:-1]))
            out[f"{name}/kernel"] = np.float32(rng.normal(size=shape) * scale)
            out[f"{name}/bias"] = np.float32(0.1 * rng.normal(size=shape[-1]))
    return out


def _convolve(params, name, x, stride, pad):
    x = jax.lax.conv_general_dilated(
        x,
        params[f"{name}/kernel"],
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return x + params[f"{name}/bias"][None, None, None, :]


def run(spec, params, x):
    """The net that `spec` describes; the value after operation i is named `at_i`."""
    for i, (kind, *options) in enumerate(spec):
        if kind == "conv":
            x = _convolve(params, options[0], x, *options[1:])
        elif kind == "fire":
            name = options[0]
            x = jax.nn.relu(_convolve(params, f"{name}/squeeze", x, 1, 0))
            parts = [_convolve(params, f"{name}/expand{k}", x, 1, k // 2) for k in (1, 3)]
            x = jnp.concatenate([jax.nn.relu(part) for part in parts], -1)
        elif kind == "dense":
            x = x @ params[f"{options[0]}/kernel"] + params[f"{options[0]}/bias"][None, :]
        elif kind == "pool":
            size, stride = (1, options[0], options[0], 1), (1, options[1], options[1], 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, stride, "VALID")
        elif kind == "relu":
            x = jax.nn.relu(x)
        else:
            x = x.reshape(x.shape[0], -1) if kind == "flatten" else x.mean((1, 2))
        x = checkpoint_name(x, f"at_{i}")
    return x


def ours(net, params, x, target, layer):
    key = jax.random.key(0)
    raw = {"layer": f"at_{layer}", "relu": False, "resize": False}
    draw = {"baselines": jnp.zeros_like(x[:1]), "key": key, "num_samples": 25}
    smooth = smooth_grad(gradient, num_samples=25, noise_scale=0.15)
    return {
        "integrated_gradients": lambda: integrated_gradients(net, params, x, target),
        "smooth_grad": lambda: smooth(net, params, x, target, key=key),
        "expected_gradients": lambda: expected_gradients(net, params, x, target, **draw),
        "grad_cam": lambda: grad_cam(net, params, x, target, **raw),
        "score_cam": lambda: score_cam(net, params, x, target, **raw),
        "ablation_cam": lambda: ablation_cam(net, params, x, target, **raw),
    }


class Peer:
    """The process that has torch."""

    def __init__(self, python):
        script = pathlib.Path(__file__).with_name("gradient_peers.py")
        self.process = subprocess.Popen(
            [python, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **command):
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


SAME = ("integrated_gradients", "grad_cam", "ablation_cam")  # no draws, no other resizing
NETS = {
    "mnist_a": (MNIST_A, (32, 28, 28, 1), 7),
    "squeezenet": (SQUEEZENET, (4, 224, 224, 3), 12),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--examples", type=int, help="in place of each net's own number")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20, help="for each net and method")
    arguments = parser.parse_args()
    peer = Peer(arguments.peer_python)
    folder = pathlib.Path(tempfile.mkdtemp())
    for name in arguments.nets:
        spec, shape, layer = NETS[name]
        shape = (arguments.examples or shape[0], *shape[1:])
        arrays = weights(spec)
        x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        net = functools.partial(run, spec)
        params = {k: jnp.asarray(a) for k, a in arrays.items()}
        target = np.asarray(jax.jit(net)(params, x).argmax(1))
        np.savez(folder / "weights.npz", **arrays)
        np.savez(folder / "x.npz", x=x, target=target)
        load = {"net": spec, "layer": layer}
        load |= {k: str(folder / f"{k}.npz") for k in ("weights", "x")}
        mine = ours(net, params, jnp.asarray(x), jnp.asarray(target), layer)
        for method in arguments.methods or mine:
            start = time.perf_counter()
            out = np.asarray(jax.block_until_ready(mine[method]()))
            compile_ms = 1e3 * (time.perf_counter() - start)
            best = {}
            for channels_last in (False, True):
                peer.ask(**load, channels_last=channels_last)
                peer.ask(method=method, save=str(folder / "peer.npy"))
                best[channels_last] = peer.ask(method=method)["ms"]
            last = best[True] < best[False]
            peer.ask(**load, channels_last=last)
            peer.ask(method=method)
            times, theirs, begin = [], [], time.perf_counter()
            for _ in range(arguments.repeats):
                start = time.perf_counter()
                jax.block_until_ready(mine[method]())
                times.append(1e3 * (time.perf_counter() - start))
                theirs.append(peer.ask(method=method)["ms"])
                if time.perf_counter() - begin > arguments.seconds and len(times) >= 2:
                    break
            off = None
            if method in SAME:
                saved = np.load(folder / "peer.npy").reshape(out.shape)
                off = float(np.abs(out - saved).max() / np.abs(saved).max())
            ms, peer_ms = statistics.median(times), statistics.median(theirs)
            json_line(
                net=name,
                method=method,
                examples=shape[0],
                ms=ms,
                peer_ms=peer_ms,
                ratio=peer_ms / ms,
                peer_layout="channels_last" if last else "default",
                compile_ms=compile_ms,
                largest_difference=off and f"{off:.1e}",
            )
    assert peer.process.stdin is not None
    peer.process.stdin.close()
    peer.process.wait()


if __name__ == "__main__":
    main()
