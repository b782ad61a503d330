"""A sweep as a job: `main(store, process, processes, port)`.

With STOP="signal:chunk:seconds" in its environment it sends itself that signal so many seconds
after it began its chunk-th chunk: before it is done, however busy the machine.
"""

import functools
import os
import threading
import time

import jax
import numpy as np

import jaxviz as jv

ROWS, SIZE = 96, 4


def net(w, x):
    return jax.numpy.tanh(x) @ w


class Slow:
    """A method without anything to tell two runs of it apart."""

    def __init__(self, method):
        self.method = method

    def __call__(self, apply_fn, params, x, target=None):
        return self.method(apply_fn, params, x, target)

    def __repr__(self):
        return "Slow"


def main(out, process="0", processes="1", port="0"):
    mesh = None
    if int(processes) > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
        mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 300)).astype(np.float32)
    w = rng.normal(size=(300, 5)).astype(np.float32)
    methods = {
        "gradient": jv.gradient,
        "noisy": jv.smooth_grad(jv.gradient, num_samples=2),
        "path": functools.partial(jv.integrated_gradients, num_steps=4),
    }

    stop, at, delay = (float(v) for v in os.environ.get("STOP", "0:-1:0").split(":"))
    calls = []

    def slowly(apply_fn, params, x, target=None):
        if len(calls) == at:
            threading.Timer(delay, os.kill, (os.getpid(), int(stop))).start()
        calls.append(None)
        time.sleep(0.03)
        return jv.saliency(apply_fn, params, x, target)

    # By class, for what a function's closure holds is part of what a store is made with.
    methods["slow"] = Slow(slowly)
    jv.sweep(methods, net, w, (x, np.arange(ROWS) % 5), out=out, batch_size=SIZE, mesh=mesh,
             key=jax.random.key(1))  # fmt: skip
