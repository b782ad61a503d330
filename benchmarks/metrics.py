"""Metrics of faithfulness beside Quantus: same weights, inputs, numbers of passes, one run.

    python benchmarks/metrics.py --python PYTHON_WITH_QUANTUS [--nets mnist_a cifar] [--only NAME]

Each metric is called in turn on both sides; Quantus at the best of its batch sizes (a quarter of
the images, and all of them). Compile time is apart. Prints a line a metric with medians, the ratio
of wall seconds and that of processor seconds, and the median ratio of a net. Both sides always get
the same images, `--images` of them, and make the same number of passes: nothing is extrapolated.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import jax
import numpy as np

import jaxviz as jv
from benchmarks.suite import NETS
from jaxviz import metrics, models

RUNS = 100  # random sets of faithfulness correlation


def ours(name, apply_fn, params, x, y, a, step, window, places):
    """Our call, with as many passes through the net as Quantus'."""
    key, numbers = jax.random.key(0), x[0].size
    steps = -(-numbers // step)
    args = apply_fn, params, x, a, y
    changes = {"perturb": metrics.square_removal(window), "num_samples": 2 * places}
    return {
        "pixel_flipping": lambda: metrics.pixel_flipping(*args, num_steps=steps),
        "region_perturbation": lambda: metrics.region_perturbation(
            *args, window=window, num_steps=places
        ),
        "selectivity": lambda: metrics.selectivity(*args, window=window),
        "irof": lambda: metrics.irof(*args, segments=jv.slic_segments(x, 100)),
        "faithfulness_correlation": lambda: metrics.faithfulness_correlation(
            *args, key=key, num_samples=RUNS, fraction=step / numbers, unit="number"
        ),
        "faithfulness_estimate": lambda: metrics.faithfulness_estimate(
            *args, num_steps=steps, unit="number"
        ),
        "monotonicity": lambda: metrics.monotonicity(*args, num_steps=steps, unit="number"),
        "monotonicity_correlation": lambda: metrics.monotonicity_correlation(
            *args, key=key, num_steps=steps, num_samples=5, unit="number"
        ),
        "infidelity": lambda: metrics.infidelity(*args, key=key, **changes),
        "road": lambda: metrics.road(*args, key=key),
        "sufficiency": lambda: metrics.sufficiency(apply_fn, params, x, a),
    }[name]


NAMES = (
    *("pixel_flipping", "region_perturbation", "selectivity", "irof", "faithfulness_correlation"),
    *("faithfulness_estimate", "monotonicity", "monotonicity_correlation", "infidelity", "road"),
    "sufficiency",
)


class Peer:
    """Asks quantus_side.py, with another Python."""

    def __init__(self, python):
        self.process = subprocess.Popen(
            [python, str(pathlib.Path(__file__).with_name("quantus_side.py"))],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
        )

    def ask(self, **asked):
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline() or '{"error": "the process ended"}')


def timed(call):
    clocks = time.perf_counter(), time.process_time()
    jax.block_until_ready(call())
    return time.perf_counter() - clocks[0], time.process_time() - clocks[1]


def net_rows(peer, name, wanted, repeats, threads, images):
    net, module = NETS[name], models.nets[name]()
    side = net.shape[1]
    step, patch = (side, 4) if side < 100 else (side * side * 3 // 28, 28)
    places = (side // patch) ** 2
    with tempfile.TemporaryDirectory() as folder:
        weights, path = f"{folder}/w.pth", f"{folder}/given.npz"
        print(json.dumps(peer.ask(do="build", net=name, weights=weights)), flush=True)
        params = models.load_torchvision(module, weights)
        apply_fn = models.apply_fn(module)
        shape = (images or net.shape[0], *net.shape[1:])
        x = jax.random.normal(jax.random.key(1), shape)
        logits = jax.jit(apply_fn)(params, x)
        y, a = logits.argmax(1), jv.input_x_gradient(apply_fn, params, x)
        first = lambda v: np.moveaxis(np.asarray(v), -1, 1)
        np.savez(path, x=first(x), y=np.asarray(y), a=first(a))
        theirs = peer.ask(do="load", path=path)["logits"]
        np.testing.assert_allclose(theirs, logits[:2], rtol=1e-3, atol=1e-3)
    ratios = []
    for row in wanted:
        call = ours(row, apply_fn, params, x, y, a, step, (patch, patch), places)
        start = time.perf_counter()
        jax.block_until_ready(call())
        compiled = time.perf_counter() - start
        ask = lambda batch, row=row: peer.ask(
            do="run", metric=[row, step, patch, places, RUNS], batch=batch, threads=threads
        )
        tried = {batch: ask(batch) for batch in {max(1, len(x) // 4), len(x)}}
        if any("error" in reply for reply in tried.values()):
            print(f"{name:14} {row:26} {next(iter(tried.values()))}", flush=True)
            continue
        batch = min(tried, key=lambda b: tried[b]["wall"])
        # The best of its trials is the first of its runs.
        pairs = [(timed(call), tried[batch] if i == 0 else ask(batch)) for i in range(repeats)]
        middle = lambda values: statistics.median(values)
        us, us_cpu = (middle(p[0][i] for p in pairs) for i in (0, 1))
        them, them_cpu = (middle(p[1][k] for p in pairs) for k in ("wall", "cpu"))
        ratios.append(them / us)
        print(
            f"{name:14} {row:26} ours {us:8.3f} s (cpu {us_cpu:8.3f}; first {compiled:6.1f})  "
            f"quantus {them:8.3f} s (cpu {them_cpu:8.3f}; batch {batch} of {len(x)})  "
            f"ratio {them / us:7.1f}  cpu {them_cpu / us_cpu:7.1f}",
            flush=True,
        )
    if ratios:
        print(f"{name:14} median {statistics.median(ratios):.1f}, least {min(ratios):.1f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--python", required=True, help="a Python with torch and quantus")
    parser.add_argument("--nets", nargs="+", default=["mnist_a", "cifar"])
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--images", type=int, help="instead of 64, of photographs 4")
    parser.add_argument("--repeats", type=int, default=1)
    asked = parser.parse_args()
    jv.keep_memory()
    peer, threads = Peer(asked.python), len(os.sched_getaffinity(0))
    for name in asked.nets:
        net_rows(peer, name, asked.only, asked.repeats, threads, asked.images)


if __name__ == "__main__":
    main()
