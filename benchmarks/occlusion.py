"""Claim: exact occlusion maps come several times faster than Captum's on a CPU.

`python benchmarks/occlusion.py --peer-python PYTHON` (one with torch and captum; by default this
one). Same weights, images and threads (2), calls interleaved, torch in the better of its layouts
and with the best `perturbations_per_eval` of several; one JSON line for each net, with the largest
difference of the maps relative to their largest number. `--memory` measures in its place how
`chunk_size` bounds the temporaries of the compiled program.
"""

import argparse
import functools
import itertools
import os
import pathlib
import statistics
import sys
import tempfile
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=true")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peer import Peer
from benchmarks.timing import json_line
from jaxviz.attribution.occlusion import occlusion

# What to run, as data for both sides: (kind, options).
#   conv: name, width, size, stride, padding     norm: name          pool: size, stride, padding
#   fire: name, squeeze, expand                  block: name, width, stride (two 3x3, a shortcut)
#   dense: name, width                           relu, flatten, mean
_relu = ("relu",)


def _vgg16():
    spec = []
    for stage, widths in enumerate(((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)):
        for i, width in enumerate(widths):
            spec += [("conv", f"conv{stage}_{i}", width, 3, 1, 1), _relu]
        spec += [("pool", 2, 2, 0)]
    dense = [("dense", "fc1", 4096), _relu, ("dense", "fc2", 4096), _relu, ("dense", "fc3", 1000)]
    return [*spec, ("flatten",), *dense]


def _squeezenet():
    spec = [("conv", "conv1", 64, 3, 2, 0), _relu]
    for stage in (((16, 64),) * 2, ((32, 128),) * 2, ((48, 192),) * 2 + ((64, 256),) * 2):
        spec += [("pool", 3, 2, 0)]
        spec += [("fire", f"fire{len(spec)}_{i}", *sizes) for i, sizes in enumerate(stage)]
    return [*spec, ("conv", "conv10", 1000, 1, 1, 0), _relu, ("mean",)]


def _resnet18():
    spec = [("conv", "conv1", 64, 7, 2, 3), ("norm", "norm1"), _relu, ("pool", 3, 2, 1)]
    for stage, width in enumerate((64, 128, 256, 512)):
        for i in range(2):
            spec += [("block", f"block{stage}_{i}", width, 2 if stage and not i else 1)]
    return [*spec, ("mean",), ("dense", "fc", 1000)]


def _small(widths, padding, dense):
    spec = []
    for i, width in enumerate(widths):
        spec += [("conv", f"conv{i}", width, 3, 1, padding), _relu, ("pool", 2, 2, 0)]
    return [*spec, ("flatten",), ("dense", "fc1", dense), _relu, ("dense", "fc2", 10)]


_mnist_b = [("conv", "conv0", 32, 3, 1, 0), _relu, ("conv", "conv1", 64, 3, 1, 0), _relu]
_mnist_b += [("pool", 2, 2, 0), ("flatten",), ("dense", "fc1", 128), _relu, ("dense", "fc2", 10)]
_mnist_c = [("conv", "conv0", 32, 3, 1, 0), _relu, ("pool", 2, 2, 0), ("norm", "norm0")]
_mnist_c += [("conv", "conv1", 64, 2, 1, 0), _relu, ("pool", 2, 2, 0), ("norm", "norm1")]
_mnist_c += [("flatten",), ("dense", "fc1", 256), _relu, ("dense", "fc2", 10)]

# name: (net, shape of x, window, stride)
NETS = {
    "mnist_a": (_small((24, 48, 64), 1, 128), (8, 28, 28, 1), 4, 2),
    "mnist_b": (_mnist_b, (8, 28, 28, 1), 4, 2),
    "mnist_c": (_mnist_c, (8, 28, 28, 1), 4, 2),
    "cifar": (_small((32, 64), 0, 64), (8, 32, 32, 3), 4, 2),
    "squeezenet": (_squeezenet(), (1, 224, 224, 3), 32, 16),
    "resnet18": (_resnet18(), (1, 224, 224, 3), 32, 16),
    "vgg16": (_vgg16(), (1, 224, 224, 3), 32, 16),
}


def weights(spec, shape, seed=0):
    """He-initialised arrays for every layer of a net on `shape`, found by running it once."""
    rng, arrays = np.random.default_rng(seed), {}

    def draw(name, *sizes):
        kind = name.split("/")[-1]
        spread = {"kernel": np.sqrt(2 / np.prod(sizes[:-1])), "mean": 0.1, "bias": 0.1}
        drawn = rng.standard_normal(sizes) * spread.get(kind, 0.2) + (kind in ("var", "scale"))
        arrays[name] = np.float32(np.abs(drawn) + 0.1 if kind == "var" else drawn)
        return jnp.asarray(arrays[name])

    jax.eval_shape(lambda x: evaluate(spec, draw, x), jax.ShapeDtypeStruct(shape, jnp.float32))
    return arrays


def run(spec, params, x):
    """The net that `spec` describes."""
    return evaluate(spec, lambda name, *_: params[name], x)


def evaluate(spec, look, x):
    """The same with params looked up by name and sizes."""

    def conv(x, name, width, size, stride, padding, bias=True):
        pads = ((padding, padding),) * 2
        kernel = look(f"{name}/kernel", size, size, x.shape[-1], width)
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), pads, dimension_numbers=numbers
        )
        return x + look(f"{name}/bias", width)[None, None, None, :] if bias else x

    def norm(x, name):
        mean, var, scale, bias = (
            look(f"{name}/{k}", x.shape[-1])[None, None, None, :]
            for k in ("mean", "var", "scale", "bias")
        )
        return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias

    for kind, *options in spec:
        if kind == "conv":
            x = conv(x, *options)
        elif kind == "norm":
            x = norm(x, *options)
        elif kind == "fire":
            name, squeeze, expand = options
            x = jax.nn.relu(conv(x, f"{name}/squeeze", squeeze, 1, 1, 0))
            parts = [conv(x, f"{name}/expand{k}", expand, k, 1, k // 2) for k in (1, 3)]
            x = jnp.concatenate([jax.nn.relu(part) for part in parts], -1)
        elif kind == "block":
            name, width, stride = options
            y = jax.nn.relu(
                norm(conv(x, f"{name}/conv1", width, 3, stride, 1, False), f"{name}/n1")
            )
            y = norm(conv(y, f"{name}/conv2", width, 3, 1, 1, False), f"{name}/n2")
            if stride > 1:
                x = norm(conv(x, f"{name}/conv3", width, 1, stride, 0, False), f"{name}/n3")
            x = jax.nn.relu(x + y)
        elif kind == "dense":
            name, width = options
            kernel = look(f"{name}/kernel", x.shape[-1], width)
            x = x @ kernel + look(f"{name}/bias", width)[None, :]
        elif kind == "pool":
            size, stride, padding = options
            pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
            size, stride = (1, size, size, 1), (1, stride, stride, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, size, stride, pads)
        elif kind == "relu":
            x = jax.nn.relu(x)
        else:
            x = x.reshape(x.shape[0], -1) if kind == "flatten" else x.mean((1, 2))
    return x


def timed(call):
    start = time.perf_counter()
    jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - start)


def temporaries(call):
    """Bytes that the compiled program of a call of `occlusion` needs besides its arguments."""
    apply_fn, *arrays = call.args
    explain = lambda *arrays: call.func(apply_fn, *arrays, **call.keywords)
    memory = jax.jit(explain).lower(*arrays).compile().memory_analysis()
    return memory.temp_size_in_bytes  # type: ignore[union-attr]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30, help="for each net")
    parser.add_argument("--methods", nargs="+", default=["auto", "full"])
    parser.add_argument("--chunk", type=int, help="chunk_size of ours in place of the default")
    parser.add_argument("--evals", nargs="+", type=int, default=[1, 4, 16, 64], help="to try")
    parser.add_argument("--layouts", nargs="+", default=["default", "channels_last"])
    parser.add_argument("--alone", action="store_true", help="without the peer")
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    peer = (
        None
        if arguments.alone or arguments.memory
        else Peer(arguments.peer_python, "occlusion_peers.py")
    )
    folder = pathlib.Path(tempfile.mkdtemp())
    for name in arguments.nets:
        spec, shape, window, stride = NETS[name]
        arrays = weights(spec, shape)
        x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        net = functools.partial(run, spec)
        params = {k: jnp.asarray(a) for k, a in arrays.items()}
        target = np.asarray(jax.jit(net)(params, x).argmax(1))
        explain = functools.partial(
            occlusion,
            net,
            params,
            jnp.asarray(x),
            jnp.asarray(target),
            window=(window, window),
            stride=(stride, stride),
        )
        if arguments.memory:
            for chunk, method in itertools.product((1, 4, 16, 64), arguments.methods):
                call = functools.partial(explain, chunk_size=chunk, method=method)
                temporaries_mb = temporaries(call) / 2**20
                json_line(net=name, method=method, chunk_size=chunk, temporaries_mb=temporaries_mb)
            continue
        mine = {
            method: functools.partial(explain, method=method, chunk_size=arguments.chunk)
            for method in arguments.methods
        }
        compile_ms = {method: timed(call) for method, call in mine.items()}
        off, best, theirs = {}, {}, []
        if peer is not None:
            np.savez(folder / "weights.npz", **arrays)
            np.savez(folder / "x.npz", x=x, target=target)
            load = {k: str(folder / f"{k}.npz") for k in ("weights", "x")}
            load |= {"net": spec, "window": window, "stride": stride}
            for layout in arguments.layouts:
                peer.ask(**load, layout=layout)
                for evals in arguments.evals:
                    ask = {"evals": evals, "save": str(folder / "peer.npy")}
                    best[layout, evals] = peer.ask(**ask)["ms"]
            layout, evals = min(best, key=lambda k: best[k])
            peer.ask(**load, layout=layout)
            peer.ask(evals=evals)
            saved = np.load(folder / "peer.npy")[..., 0]
            for method, call in mine.items():
                difference = np.abs(np.asarray(call()) - saved).max() / np.abs(saved).max()
                off[method] = f"{difference:.1e}"
        times, begin = {method: [] for method in mine}, time.perf_counter()
        for repeat in range(arguments.repeats):
            for method, call in mine.items():
                times[method].append(timed(call))
            if peer is not None:
                theirs.append(peer.ask(evals=evals)["ms"])
            if time.perf_counter() - begin > arguments.seconds and repeat >= 1:
                break
        ms = {method: statistics.median(some) for method, some in times.items()}
        fields = {"net": name, "examples": shape[0], "window": window, "stride": stride}
        for method in mine:
            fields |= {f"{method}_ms": ms[method], f"{method}_first_call_ms": compile_ms[method]}
        if peer is not None:
            peer_ms = statistics.median(theirs)
            fields |= {"peer_ms": peer_ms, "peer_layout": layout, "peer_evals": evals}
            fields |= {f"{method}_ratio": peer_ms / ms[method] for method in mine}
            fields |= {"largest_difference": off}
        json_line(**fields)
    if peer is not None:
        assert peer.process.stdin is not None
        peer.process.stdin.close()
        peer.process.wait()


if __name__ == "__main__":
    main()
