"""Claim: gradient, path and CAM methods are faster than Captum's and pytorch-grad-cam's on a CPU.

`python benchmarks/gradient_methods.py --peer-python PYTHON` (one with torch, captum and grad-cam;
by default this one). Same weights, images, draws and threads (2). The maps are compared before
anything is timed (largest difference, relative to the largest number). torch is given the best of
its two layouts and of its copies all at once or eight at a time; calls are interleaved. One JSON
line for each net and method, with each side's rise in memory above the loaded net.
"""

import argparse
import functools
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

from benchmarks.gradient_nets import NETS, run, weights
from benchmarks.memory import Peak
from benchmarks.peer import Peer
from benchmarks.timing import json_line
from jaxviz.attribution.cam import grad_cam, guided_grad_cam
from jaxviz.attribution.cam_perturb import ablation_cam, score_cam
from jaxviz.attribution.gradient import gradient
from jaxviz.attribution.path import expected_gradients, integrated_gradients
from jaxviz.attribution.smooth import smooth_grad

STEPS, SAMPLES, CHANNELS = 50, 25, 64
COPIED = ("integrated_gradients", "smooth_grad")  # methods of the peer with a batch size for copies


def ours(net, params, x, target, few, layer):
    key = jax.random.key(0)
    named = {"layer": f"at_{layer}"}
    raw = named | {"relu": False, "resize": False}
    draw = {"baselines": jnp.zeros_like(x[:1]), "key": key, "num_samples": SAMPLES}
    smooth = smooth_grad(gradient, num_samples=SAMPLES, noise_scale=0.15)
    some, labels = x[:few], target[:few]
    return {
        "gradient": lambda: gradient(net, params, x, target),
        "integrated_gradients": lambda: integrated_gradients(
            net, params, some, labels, num_steps=STEPS
        ),
        "smooth_grad": lambda: smooth(net, params, some, labels, key=key),
        "expected_gradients": lambda: expected_gradients(net, params, some, labels, **draw),
        "grad_cam": lambda: grad_cam(net, params, x, target, **raw),
        "guided_grad_cam": lambda: guided_grad_cam(net, params, x, target, **named),
        "score_cam": lambda: score_cam(net, params, some, labels, num_channels=CHANNELS, **raw),
        "ablation_cam": lambda: ablation_cam(net, params, some, labels, **raw),
    }


def draws(x):
    """What `smooth_grad` and `expected_gradients` draw, one example after another."""
    key = jax.random.key(0)
    spread = x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True)

    def noise(k):
        noise_key = jax.random.fold_in(jax.random.fold_in(key, k), 0)
        return 0.15 * spread * jax.random.normal(noise_key, x.shape, x.dtype)

    where = jax.random.uniform(jax.random.split(key, 3)[1], (SAMPLES, len(x)))
    rows = lambda a: np.swapaxes(np.asarray(a), 0, 1).reshape(-1, *a.shape[2:])
    which = np.zeros(SAMPLES * len(x), int)  # one baseline
    return {
        "noise": rows(jax.vmap(noise)(jnp.arange(SAMPLES))),
        "where": rows(where).astype(float),
        "which": which,
    }


def best_setting(peer, load, method):
    """The layout and number of copies at once that suit the peer best."""
    tried = []
    for channels_last in (False, True):
        for batch in (None, 8) if method in COPIED else (None,):
            setting = {"channels_last": channels_last, "batch": batch}
            peer.ask(**load, **setting)
            peer.ask(method=method)
            tried.append((peer.ask(method=method)["ms"], len(tried), setting))
    return min(tried)[-1]


def compare(peer, load, method, mine, repeats, seconds):
    """One row: difference of the maps, then times call by call, then memory."""
    start = time.perf_counter()
    out = np.asarray(jax.block_until_ready(mine()))
    compile_ms = 1e3 * (time.perf_counter() - start)
    setting = best_setting(peer, load, method)
    # The draws are handed over all at once.
    peer.ask(**load, **(setting | {"batch": None}))
    peer.ask(method=method, save=load["out"], draws=load["drawn"])
    theirs = np.load(load["out"]).reshape(out.shape)
    peer.ask(**load, **setting)
    peer.ask(method=method)
    pairs, begin = [], time.perf_counter()
    while len(pairs) < repeats and (len(pairs) < 2 or time.perf_counter() - begin < seconds):
        start = time.perf_counter()
        jax.block_until_ready(mine())
        pairs.append((1e3 * (time.perf_counter() - start), peer.ask(method=method)["ms"]))
    ms, peer_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    with Peak() as peak:
        jax.block_until_ready(mine())
    return {
        "ratio": peer_ms / ms,
        "ms": ms,
        "peer_ms": peer_ms,
        "compile_ms": compile_ms,
        "difference": f"{np.abs(out - theirs).max() / np.abs(theirs).max():.1e}",
        "mb": peak.mb,
        "peer_mb": peer.ask(method=method, memory=True)["mb"],
        "calls": len(pairs),
        "peer_setting": ("channels_last" if setting["channels_last"] else "default")
        + (f", {setting['batch']} copies" if setting["batch"] else ""),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=10, help="for each net and method")
    arguments = parser.parse_args()
    peer = Peer(arguments.peer_python, "gradient_peers.py")
    folder = pathlib.Path(tempfile.mkdtemp())
    ratios = []
    for name in arguments.nets:
        spec, shape, few, layer = NETS[name]
        arrays = weights(spec)
        x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        net = functools.partial(run, spec)
        params = {k: jnp.asarray(a) for k, a in arrays.items()}
        target = np.asarray(jax.jit(net)(params, x).argmax(1))
        np.savez(folder / "weights.npz", **arrays)
        np.savez(folder / "x.npz", x=x, target=target)
        np.savez(folder / "drawn.npz", **draws(jnp.asarray(x[:few])))
        load = {"net": spec, "layer": layer, "few": few, "out": str(folder / "out.npy")}
        load |= {k: str(folder / f"{k}.npz") for k in ("weights", "x", "drawn")}
        load |= {"steps": STEPS, "samples": SAMPLES, "channels": CHANNELS}
        mine = ours(net, params, jnp.asarray(x), jnp.asarray(target), few, layer)
        for method in arguments.methods or mine:
            row = compare(peer, load, method, mine[method], arguments.repeats, arguments.seconds)
            ratios.append(row["ratio"])
            json_line(net=name, method=method, **row)
    json_line(rows=len(ratios), least=min(ratios), median=statistics.median(ratios))
    assert peer.process.stdin is not None
    peer.process.stdin.close()
    peer.process.wait()


if __name__ == "__main__":
    main()
