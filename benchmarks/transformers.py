"""Methods of transformers beside PyTorch: same weights, inputs and threads, calls in turn.

    python -m benchmarks.transformers minilm --python PYTHON_WITH_TORCH_CAPTUM_LXT_GRADCAM

`minilm` has MiniLM-L6's sizes and 128 tokens, `vit` ViT-B/16's at 224; random weights
(transformer_nets.py). Prints a line of JSON a method of transformer_methods.py: both medians, their
ratio, how long ours compiled, and how far the two results are from each other, as a share of the
largest. `frozen`: the peer without its weights' gradients, where its code computes them.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxviz as jv
from benchmarks.timing import json_line
from benchmarks.transformer_methods import METHODS, Case
from benchmarks.transformer_nets import SIZES, drawn, transformer

PAUSE, AWAKE = 0.2, 0.3  # seconds
SIDE = os.path.join(os.path.dirname(__file__), "transformers_side.py")


class Side:
    """The process with torch, asked for one call at a time."""

    def __init__(self, python, given, clock, threads):
        self.process = subprocess.Popen(
            [python, SIDE, given],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=os.environ | {"THREADS": threads, "CLOCK": clock.__name__},
        )  # fmt: skip

    def ask(self, name, path="", frozen=False):
        """Its seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, path, frozen]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait()


def _apart(candidates, theirs):
    apart = [np.abs(np.asarray(a) - theirs).max() for a in candidates]
    return f"{min(apart) / np.abs(theirs).max():.1e}"


def _seconds(clock, call):
    start = clock()
    jax.block_until_ready(call())
    return clock() - start


def _alone(call):
    """Seconds of a call, once the other side's threads have ceased to spin and its own are awake.

    Cores that were idle need some tens of milliseconds of work to get up to speed.
    """
    time.sleep(PAUSE)
    start = time.perf_counter()
    found = call()
    while time.perf_counter() - start < AWAKE:
        found = call()
    return found


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("net", choices=SIZES)
    parser.add_argument("--python", required=True, help="one with torch, captum, lxt and grad-cam")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processor", action="store_true", help="processor time, of one core")
    parser.add_argument("--only", nargs="*", help="names of methods")
    arguments = parser.parse_args(argv)
    size = SIZES[arguments.net]
    w, inputs = drawn(size)
    if arguments.processor:  # others may be at work
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    threads = str(len(os.sched_getaffinity(0)))
    clock = time.process_time if arguments.processor else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        given, result = os.path.join(folder, "given.npz"), os.path.join(folder, "result.npy")
        sizes = {f"size.{name}": value for name, value in size._asdict().items()}
        np.savez(given, **w, **sizes, inputs=inputs)  # type: ignore[arg-type]
        side = Side(arguments.python, given, clock, threads)
        case = Case(
            size, transformer(size), jax.tree.map(jnp.asarray, w), *map(jnp.asarray, inputs)
        )
        for name, method in METHODS.items():
            if name not in (arguments.only or METHODS):
                continue
            if method.only == ("minilm" if size.patch else "vit"):
                continue
            start = time.perf_counter()
            ours = jax.block_until_ready(method.ours(case))
            first = time.perf_counter() - start
            side.ask(name, result)  # what is first asked warms up
            apart = {}
            if method.check:
                apart["apart"] = _apart(method.check(case, np.asarray(ours)), np.load(result))
            asked = {
                "ours": lambda method=method: _seconds(clock, lambda: method.ours(case)),
                "peer": lambda name=name: side.ask(name),
            }
            if method.frozen:
                asked["frozen"] = lambda name=name: side.ask(name, frozen=True)
            times: dict[str, list[float]] = {who: [] for who in asked}
            for _ in range(arguments.repeats):
                for who, call in asked.items():
                    times[who].append(_alone(call))
            ms = {who: 1e3 * statistics.median(each) for who, each in times.items()}
            ratios = {who: ms[who] / ms["ours"] for who in ms if who != "ours"}
            json_line(
                net=arguments.net, method=name, title=method.title, compared_with=method.peer,
                **{f"{who}_ms": value for who, value in ms.items()}, ratio=ratios["peer"],
                **({"frozen_ratio": ratios["frozen"]} if method.frozen else {}),
                first_call_s=first, **apart,
            )  # fmt: skip
        side.close()


if __name__ == "__main__":
    jv.keep_memory()
    main()
