"""An evaluation as a job: `judging.py STORE`; STOP as for `worker.py`."""

import functools
import os
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv

ROWS, SIZE = 40, 4


def net(w, x):
    return jnp.tanh(x) @ w


class Fall(NamedTuple):
    area: jax.Array
    curve: jax.Array


@functools.partial(jax.jit, static_argnums=0)
def fall(apply_fn, params, x, attribution, target):
    """The score as the input is scaled down, and less where the attribution is large."""
    at = jnp.arange(len(x))
    steps = [x * (1 - k / 4) / (1 + k * jnp.abs(attribution)) for k in range(5)]
    curve = jnp.stack([apply_fn(params, step)[at, target] for step in steps], 1)
    return Fall(curve.mean(1), curve)


@jax.jit
def chance(attribution, key):
    return attribution[:, 0] + jax.random.normal(key, attribution.shape[:1])


def main(out):
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=size).astype(np.float32) for size in ((ROWS, 30), (30, 5)))
    stop, at, delay = (float(v) for v in os.environ.get("STOP", "0:-1:0").split(":"))
    calls = []

    class Share:  # what a function's closure holds is part of what a store is made with
        def __call__(self, attribution, mask):
            if len(calls) == at:
                threading.Timer(delay, os.kill, (os.getpid(), int(stop))).start()
            calls.append(None)
            time.sleep(0.02)
            return np.asarray(jnp.where(mask, jnp.abs(attribution), 0.0).sum(1))

    methods = {
        "gradient": jv.gradient,
        "noisy": jv.smooth_grad(jv.gradient, num_samples=2),
        "path": (jv.integrated_gradients, {"num_steps": 4}),
    }
    metrics = {"fall": fall, "chance": chance, "share": Share()}
    data = (x, np.arange(ROWS) % 5, rng.random((ROWS, 30)) > 0.5)
    jv.evaluate(
        methods, metrics, net, w, data, target="label", out=out, batch_size=SIZE,
        key=jax.random.key(1),
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
