"""Everything worth knowing about jaxviz on a GPU, in eight minutes by its own clock.

    python -m benchmarks.gpu --out FOLDER [--minutes 8] [--peer PYTHON_WITH_TORCH_AND_CAPTUM]

Parts, the most important first, each a process of its own with a deadline, at which it is killed:
whether the core tests pass; each method beside the obvious formula in plain JAX; the same in torch
with Captum; the kernels of `rules.fast`, forced on and off; chunk sizes; and with what is left the
largest batch. `results.json` and `report.md` are written after every row, so that being cut off
loses nothing, and what was not reached is named. Compiling is told apart from running.
`--small` does the same with tiny nets: with it the command is tried where there is no GPU.
"""

import argparse
import collections
import functools
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import threading
import time
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import jaxviz as jv
from benchmarks import fast_rules
from benchmarks.memory import peak_mb
from benchmarks.nets import VisionTransformer, token_grid
from benchmarks.timing import machine
from jaxviz import models
from jaxviz.rules.fast import fast

# Name -> (module, side of an image, layer of class activation maps and its options).
Net = collections.namedtuple("Net", "make side place")
NETS = {
    "resnet50": Net(models.nets["resnet50"], 224, {"layer": "layer4"}),
    "vit_b16": Net(VisionTransformer, 224, {"layer": "block11", "reshape": token_grid}),
}
SMALL = {
    "cifar": Net(models.nets["cifar"], 32, {"layer": "relu_1"}),
    "vit_tiny": Net(
        functools.partial(VisionTransformer, 1, 48, 3), 64,
        {"layer": "block0", "reshape": token_grid},
    ),
}  # fmt: skip
METHODS = ("saliency", "ig", "gradcam", "lrp", "smoothgrad", "occlusion", "scorecam")
# Share of the time at which a part is stopped, whatever it has come to.
PARTS = {"tests": 0.2, "methods": 0.5, "torch": 0.66, "kernels": 0.78, "chunks": 0.9, "large": 0.99}
TESTS = (
    "tests/rules/test_fast.py", "tests/rules/test_relu.py", "tests/graph/test_rewrite.py",
    "tests/attribution/test_gradient.py", "tests/attribution/test_cam.py",
    "tests/engine/test_contract.py",
)  # fmt: skip


class Sizes(collections.namedtuple("Sizes", "steps noisy channels window stride")):
    """How many copies each method makes, and where."""


def sizes(small):
    return Sizes(4, 3, 4, (8, 8), (8, 8)) if small else Sizes(50, 25, 64, (32, 32), (16, 16))


@functools.cache
def case(small, name, batch):
    """`(model, params, x, target)`."""
    net = (SMALL if small else NETS)[name]
    module, key = net.make(), jax.random.key(0)
    x = jax.random.normal(key, (batch, net.side, net.side, 3))
    return models.apply_fn(module), jax.jit(module.init)(key, x[:1]), x, jnp.full(batch, 7)


def ours(method, small, name, **more) -> Any:
    """`(model, params, x, target) -> explanation` by our function."""
    n, place = sizes(small), (SMALL if small else NETS)[name].place
    key = jax.random.key(0)
    smooth = jv.smooth_grad(jv.gradient, num_samples=n.noisy)
    options = {
        "saliency": (jv.saliency, {}),
        "ig": (jv.integrated_gradients, {"num_steps": n.steps}),
        "smoothgrad": (smooth, {"key": key}),
        "gradcam": (jv.grad_cam, place),
        "lrp": (jv.lrp, {"rules": "epsilon"}),
        "occlusion": (jv.occlusion, {"window": n.window, "stride": n.stride}),
        "scorecam": (jv.score_cam, place | {"num_channels": n.channels}),
    }
    call, given = options[method]
    return functools.partial(call, **given, **more)


def plain(method, small, name, model, batch):
    """`(params, x) -> explanation` as one would write it down; None where that is no few lines.

    Copies are mapped over, as many at once as make 64 images.
    """
    n, place = sizes(small), (SMALL if small else NETS)[name].place
    score = lambda params, x: model(params, x)[:, 7]
    gradient = lambda params, x: jax.grad(lambda x: score(params, x).sum())(x)
    over = functools.partial(jax.lax.map, batch_size=max(64 // batch, 1))

    def ig(params, x):
        steps = (jnp.arange(n.steps) + 0.5) / n.steps
        return x * over(lambda t: gradient(params, t * x), steps).mean(0)

    def smoothgrad(params, x):
        keys = jax.random.split(jax.random.key(0), n.noisy)
        noise = lambda key: 0.15 * jnp.ptp(x) * jax.random.normal(key, x.shape)
        return over(lambda key: gradient(params, x + noise(key)), keys).mean(0)

    def gradcam(params, x):
        head, tail = jv.split(model, params, x, place["layer"])
        grid = place.get("reshape", lambda a: a)
        a, carry = head(params, x)
        g = jax.grad(lambda a: tail((params, carry), a)[:, 7].sum())(a)
        return jax.nn.relu((grid(g).mean((1, 2), keepdims=True) * grid(a)).sum(-1))

    def occlusion(params, x):
        axes = [jnp.arange(0, x.shape[1], s) for s in n.stride]
        places = jnp.arange(x.shape[1])

        def hides(corner):
            row, column = (
                (places >= c) & (places < c + w) for c, w in zip(corner, n.window, strict=True)
            )
            return (row[:, None] & column[None])[None]

        def lost(corner):
            hidden = hides(corner)
            change = clean - score(params, jnp.where(hidden[..., None], 0, x))
            return change[:, None, None] * hidden.astype(x.dtype)

        clean = score(params, x)

        corners = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
        covered = over(lambda corner: hides(corner).astype(x.dtype), corners).sum(0)
        return over(lost, corners).sum(0) / covered

    found = {
        "saliency": lambda params, x: abs(gradient(params, x)),
        "ig": ig, "smoothgrad": smoothgrad, "gradcam": gradcam, "occlusion": occlusion,
    }.get(method)  # fmt: skip
    return found and jax.jit(found)


def timed(call, seconds=1.5):
    """`(first, median of later calls)` in milliseconds; a long call is made twice at most."""

    def once():
        start = time.perf_counter()
        jax.block_until_ready(call())
        return 1e3 * (time.perf_counter() - start)

    first, begin, times = once(), time.perf_counter(), []
    while not times or (time.perf_counter() - begin < seconds and len(times) < 50):
        times.append(once())
    return round(first, 1), round(statistics.median(times), 3)


def method_row(small, method, name, batch):
    """One method beside the plain formula."""
    model, params, x, target = case(small, name, batch)
    explain = functools.partial(ours(method, small, name), model, params, x, target)
    first, ms = timed(explain)
    row = {"first_ms": first, "ms": ms, "images_per_s": round(1e3 * batch / ms, 1)}
    row["peak_mb"] = round(peak_mb(explain), 1)
    formula = plain(method, small, name, model, batch)
    if formula:
        row["plain_first_ms"], row["plain_ms"] = timed(lambda: formula(params, x))
        row["plain_by_ours"] = round(row["plain_ms"] / ms, 2)
    return row


def forced(function):
    """`jax.jit(function)`, traced as if this were a CPU, where `rules.fast` puts its kernels in."""

    def traced(*arguments):
        with mock.patch.object(jax, "default_backend", return_value="cpu"):
            return function(*arguments)

    return jax.jit(traced)


def kernel_row(small, name):
    """Plain and forced kernels: of one operation, or of a net's gradient or occlusion."""
    if name in fast_rules.OPERATIONS:
        f, params, x = fast_rules.as_function(fast_rules.OPERATIONS[name])
        g = jnp.ones(jax.eval_shape(f, params, x).shape)
        calls = {
            "off": jax.jit(fast_rules.pullback(f, 0)),
            "on": forced(fast_rules.pullback(jv.rewrite(f, fast), 0)),
        }
        arguments = params, x, g
    else:
        net, method = name.split()
        model, params, x, target = case(small, net, 2 if small else 32)
        explain = ours(method, small, net, **({"chunk_size": 2} if method == "occlusion" else {}))
        # A model of its own each, so that no side finds what was traced for the other.
        one, other = (lambda p, x: model(p, x)), (lambda p, x: model(p, x))
        calls = {
            "off": jax.jit(lambda p, x: explain(one, p, x, target)),
            "on": forced(lambda p, x: explain(other, p, x, target)),
        }
        arguments = params, x
    row = {}
    for side, call in calls.items():
        row[f"{side}_first_ms"], row[f"{side}_ms"] = timed(functools.partial(call, *arguments))
    return row | {"off_by_on": round(row["off_ms"] / row["on_ms"], 2)}


def chunk_row(small, method, name, batch, chunk):
    model, params, x, target = case(small, name, batch)
    explain = ours(method, small, name, chunk_size=chunk)
    first, ms = timed(functools.partial(explain, model, params, x, target))
    return {"first_ms": first, "ms": ms, "images_per_s": round(1e3 * batch / ms, 1)}


def cells(part, small):
    """The rows of a part, as `(function, arguments)`, in order."""
    nets, batches = (SMALL, (2, 1)) if small else (NETS, (32, 1))
    if part in ("methods", "large"):
        batches = ((4,) if small else (256,)) if part == "large" else batches
        table = itertools.product(batches, nets, METHODS)
        return [(method_row, (method, net, batch)) for batch, net, method in table]
    if part == "kernels":
        whole = [f"{net} {method}" for net in nets for method in ("saliency", "occlusion")]
        loops = [n for n, op in fast_rules.OPERATIONS.items() if not op.loop]
        # The whole operations are large: of the tiny nets' size there are none.
        return [(kernel_row, (name,)) for name in whole + ([] if small else loops)]
    chunked = ("ig", "occlusion", "scorecam")
    sweep = (None, 1, 2) if small else (None, 8, 32, 64, 128)
    return [(chunk_row, (m, n, 1, c)) for n in nets for m in chunked for c in sweep]


def work(part, small):
    """A part's process: where it runs and what it plans, then a line of JSON for each row."""
    tell = lambda found: print(json.dumps(found), flush=True)
    plan = cells(part, small)
    tell({"plan": [list(arguments) for _, arguments in plan], "machine": machine()})
    for row, arguments in plan:
        try:
            found = row(small, *arguments)
        except Exception as error:  # out of memory, say: a finding, and the next row may do
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        tell({"row": list(arguments)} | found)


def command(part, options):
    """The command of a part's process, which prints lines that `hear` understands."""
    if part == "tests":
        here = pathlib.Path(__file__).parent.parent
        tests = [str(here / name) for name in (TESTS[:1] if options.small else TESTS)]
        return [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *tests]
    if part == "torch":
        nets, n = (SMALL if options.small else NETS), sizes(options.small)
        batches = (2, 1) if options.small else (32, 1)
        told = {
            "rows": [[m, net, b] for b in batches for net in nets for m in METHODS],
            "side": {name: net.side for name, net in nets.items()},
            "options": {"noisy": n.noisy, "channels": n.channels, "steps": n.steps},
        }
        side = pathlib.Path(__file__).with_name("torch_side.py")
        return [options.peer, str(side), json.dumps(told)]
    small = ["--small"] if options.small else []
    return [sys.executable, "-m", "benchmarks.gpu", "--part", part, *small]


def supervise(command, seconds, hear, log):
    """Runs a command, hands on each line it prints, kills it at its deadline; its exit status."""
    # Memory that JAX does not use is torch's and the tests'.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with (
        open(log, "w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        assert process.stdout is not None
        deadline = threading.Timer(max(seconds, 0), process.kill)
        deadline.start()
        for line in process.stdout:
            hear(line)
        deadline.cancel()
    return process.returncode


def heard(found, part, line):
    """Adds what a part's process printed to the part's results."""
    if part == "tests":
        name, _, rest = line.strip().partition(" ")
        outcome = rest.split(" ")[0]
        if "::" in name and outcome in ("PASSED", "FAILED", "ERROR", "SKIPPED"):
            found["rows"].append({"row": [name], "outcome": outcome.lower()})
    elif line.startswith("{"):
        told = json.loads(line)
        if "plan" in told:
            found |= told
        else:
            found["rows"].append(told)


def report(results):
    """The results as Markdown, each part with what it did not come to."""
    lines = ["# jaxviz on this device", ""]
    for part, found in results.items():
        rows = found["rows"]
        lines += [f"## {part}", "", f"{found['seconds']} s; {found['end']}.", ""]
        lines += [f"`{found['machine']}`", ""] if "machine" in found else []
        if part == "tests":
            counts = collections.Counter(row["outcome"] for row in rows)
            lines += [", ".join(f"{n} {outcome}" for outcome, n in counts.items()), ""]
            rows = [row for row in rows if row["outcome"] in ("failed", "error")]
        if rows:
            keys = list(dict.fromkeys(key for row in rows for key in row if key != "row"))
            lines += [f"| row | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
        for row in rows:
            values = [" ".join(map(str, row["row"])), *(row.get(key, "") for key in keys)]
            told = (" ".join(str(value).replace("|", "/").split()) for value in values)
            lines.append(f"| {' | '.join(told)} |")
        reached = [row["row"] for row in found["rows"]]
        missed = [" ".join(map(str, row)) for row in found["plan"] if row not in reached]
        lines += ["", f"Not reached: {', '.join(missed)}."] if missed else []
        lines += [""] if rows or missed else []
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu-report"))
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--peer", default=sys.executable, help="a Python with torch and captum")
    parser.add_argument("--small", action="store_true", help="tiny nets, to try the command")
    parser.add_argument(
        "--part",
        choices=[p for p in PARTS if p not in ("tests", "torch")],
        help="only this one, in this process, to standard output",
    )
    options = parser.parse_args()
    if options.part:
        return work(options.part, options.small)
    options.out.mkdir(parents=True, exist_ok=True)
    results, start = {}, time.perf_counter()
    for part, share in PARTS.items():
        found = results[part] = {"plan": [], "rows": [], "end": "running", "seconds": 0}
        begin = time.perf_counter()
        until = start + 60 * options.minutes * share

        def write(found=found, begin=begin):
            found["seconds"] = round(time.perf_counter() - begin, 1)
            (options.out / "results.json").write_text(json.dumps(results, indent=1))
            (options.out / "report.md").write_text(report(results))

        def hear(line, found=found, part=part, write=write):
            heard(found, part, line)
            write()

        log = options.out / f"{part}.log"
        status = supervise(command(part, options), until - begin, hear, log)
        ends = {0: "whole", -9: "stopped by the clock"}
        found["end"] = ends.get(status, f"ended with status {status}: {log.name}")
        write()
        print(f"{part}: {found['end']}, {len(found['rows'])} rows", flush=True)
    print(f"{options.out / 'report.md'}")


if __name__ == "__main__":
    main()
