"""Times every method of jaxviz beside Captum and pytorch-grad-cam, net by net: one table, one JSON.

    python -m benchmarks.run --nets mnist_a --methods saliency ig --out results.json

Same weights, inputs, batch, copies and threads; both processes keep large blocks of memory
(`jaxviz.keep_memory`), but for `--memory`, a run of its own that adds peaks to the rows of `--out`.
The two results are compared before anything is timed. The peer runs in the better of torch's two
memory layouts and with the best number of copies at once; then calls alternate, ours and theirs,
and medians are taken. `--out` is read first and written after each row, so a long table is built
piece by piece; the table shows all of it. `--processor` counts processor time on both sides, for a
machine that others use, too; with `--threads 1`, for torch's threads spin while they wait.
Rows beside torch-cam, shap, shapiq and saliency say so where the peer has them not. Without torch,
Captum and pytorch-grad-cam (extra `bench`, or another interpreter by `--peer-python`) only our side
is timed.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

import jaxviz
from benchmarks.memory import give_back, peak_mb
from benchmarks.methods import METHODS as FIRST, draws
from benchmarks.more_methods import MORE
from benchmarks.peer import Peer
from benchmarks.suite import NETS, cases
from jaxviz.graph.flops import call_flops


def arguments_of_command():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results.json"))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--repeats", type=int, default=7, help="least pairs of calls, 3 or more")
    parser.add_argument("--seconds", type=float, default=90, help="for a row's pairs, then it ends")
    parser.add_argument("--threads", type=int, default=CORES)
    parser.add_argument(
        "--memory", action="store_true", help="peak memory of the rows in --out, not time"
    )
    parser.add_argument(
        "--processor", action="store_true", help="processor time, for a machine that is not idle"
    )
    parser.add_argument("--table", action="store_true", help="only print the table of --out")
    return parser.parse_args()


METHODS = FIRST | MORE
AFFINITY = hasattr(os, "sched_getaffinity")
CORES = len(os.sched_getaffinity(0)) if AFFINITY else os.cpu_count() or 1
NEEDED = "import torch, torchvision, captum, pytorch_grad_cam"
PEAK_SIZE = {"cpu": 2048}  # of the matrices whose product is the machine's peak; 8192 elsewhere
SHORT = 500  # milliseconds
CLOCK = "perf_counter"


def timed(call):
    """Milliseconds of a call and its result."""
    time.sleep(5e-3)  # until the threads of the other library have ceased to spin
    clock = getattr(time, CLOCK)
    start = clock()
    result = jax.block_until_ready(call())
    return 1e3 * (clock() - start), result


def matmul_peak(peer):
    """The machine's FLOP/s at a float32 matrix product: the best of both libraries."""
    size = PEAK_SIZE.get(jax.default_backend(), 8192)
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    best = min(timed(lambda: product(a, a))[0] for _ in range(40))  # a second: cores wake slowly
    found = [2e3 * size**3 / best]
    return max(found + ([peer.ask("peak", size=size)["flops"]] if peer else []))


def best_setting(peer, name, load):
    """The peer's faster layout, then its best number of copies at once; (layout, copies)."""
    times = {}

    def attempt(layout, copies):
        peer.ask("load", **load, layout=layout, copies=copies)
        times[layout, copies] = peer.ask("run", method=name, clock=CLOCK)["ms"]
        if times[layout, copies] < 2000:  # the first call in a layout has more to do
            times[layout, copies] = peer.ask("run", method=name, clock=CLOCK)["ms"]

    copies = METHODS[name].copies
    for layout in ("contiguous_format", "channels_last"):
        attempt(layout, copies[0])
    layout = min(times, key=lambda k: times[k])[0]
    for number in copies[1:]:
        attempt(layout, number)
    return min(times, key=lambda k: times[k])


def difference(peer, name, case, load, folder):
    """|ours - theirs| / |theirs| given the same draws."""
    method = METHODS[name]
    precise = "highest" if jax.default_backend() != "cpu" else None
    with jax.default_matmul_precision(precise):
        ours = np.asarray((method.check or method.ours)(case))
    np.savez(folder / "draws.npz", **draws(name, case))  # type: ignore
    peer.ask("load", **load, layout="contiguous_format", copies=None)
    saved = str(folder / "peer.npy")
    peer.ask("run", method=name, given=str(folder / "draws.npz"), save=saved)
    theirs = np.load(saved)
    if theirs.ndim == 4 and ours.ndim == 3:  # one value for all channels of a place
        theirs = theirs[..., 0]
    theirs = theirs.reshape(ours.shape)
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def handed_over(case, folder):
    """What the peer's `load` is told of a case, whose arrays go through a file."""
    inputs = folder / "inputs.npz"
    np.savez(inputs, x=np.asarray(case.x), target=np.asarray(case.target))
    return {"inputs": str(inputs), "options": case.options._asdict()}


def row(peer, net, name, case, options, folder, peak):
    """One row: compare, choose the peer's setting, time in turn."""
    method, ours = METHODS[name], lambda: METHODS[name].ours(case)
    count = case.options.images if name == "maximize" else len(case.x)
    number = method.number and getattr(case.options, method.number)
    found = {"net": net, "method": name, "title": method.title.format(number), "batch": count}
    found |= {"peer": method.peer, "date": datetime.date.today().isoformat(), "peak": peak}
    found["first_call_ms"] = timed(ours)[0]
    traced = lambda params, x: method.ours(case._replace(params=params, x=x))
    turns = getattr(case.options, method.turns) if method.turns else 1
    found["flops"] = turns * call_flops(traced, case.params, case.x)
    # What one side does cools the other's caches: a short call is timed right after another one.
    calls = 2 if timed(ours)[0] < SHORT else 1
    if peer:
        load = handed_over(case, folder)
        try:
            found["agrees"] = True
            if method.same:
                found["difference"] = difference(peer, name, case, load, folder)
                found["agrees"] = found["difference"] <= method.tolerance
            layout, copies = best_setting(peer, name, load)
            peer.ask("load", **load, layout=layout, copies=copies)
            peer.ask("run", method=name)
            found |= {"peer_layout": layout, "peer_copies": copies}
        except RuntimeError as error:
            found["peer_error"] = str(error)
            peer = None
    pairs, begin = [], time.perf_counter()
    spent = lambda: time.perf_counter() - begin
    # Short calls are repeated for two seconds: their times wander for longer than seven take.
    while len(pairs) < options.repeats or spent() < 2:
        if len(pairs) >= 3 and spent() > options.seconds:
            break
        ask = lambda: peer.ask("run", method=name, clock=CLOCK)["ms"] if peer else 0.0
        theirs = [ask() for _ in range(calls)]
        pairs.append(([timed(ours)[0] for _ in range(calls)][-1], theirs[-1]))
    ms, peer_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    found |= {"ms": ms, "pairs": len(pairs)} | ({"peer_ms": peer_ms} if peer else {})
    return found


def memory(peer, name, case, found, folder):
    """Adds to a row by how much a call raises each process's memory, once it has run before."""
    ours = lambda: METHODS[name].ours(case)
    timed(ours)
    found["mb"] = peak_mb(ours)
    if peer and "peer_ms" in found:
        load = handed_over(case, folder)
        peer.ask("load", **load, layout=found["peer_layout"], copies=found["peer_copies"])
        peer.ask("run", method=name)
        found["peer_mb"] = peer.ask("run", method=name, memory=True)["mb"]


def table(results):
    """The rows as a table, and below it the median ratio of those whose results agree."""
    grid = Table(title="Milliseconds for each image", caption=caption(results))
    for column in ("net", "method"):
        grid.add_column(column)
    columns = "batch", "jaxviz ms", "peer ms", "ratio", "GFLOP", "of peak", "MB", "peer MB"
    for column in columns:
        grid.add_column(column, justify="right")
    grid.add_column("note")
    shown = lambda value, form: "" if value is None else format(value, form)
    for found in ordered(results):
        notes = [found["peer_error"]] if "peer_error" in found else []
        if found.get("agrees") is False:
            notes.append(f"results differ by {found['difference']:.1g}: not counted")
        if found["pairs"] < 7:
            notes.append(f"{found['pairs']} pairs")
        count, peer_ms = found["batch"], found.get("peer_ms")
        grid.add_row(
            NETS[found["net"]].title,
            found["title"],
            str(count),
            f"{found['ms'] / count:.3g}",
            shown(peer_ms and peer_ms / count, ".3g"),
            shown(peer_ms and peer_ms / found["ms"], ".2f"),
            f"{found['flops'] / count / 1e9:.3g}",
            f"{share(found):.0%}",
            shown(found.get("mb"), ".0f"),
            shown(found.get("peer_mb"), ".0f"),
            "; ".join(notes),
            style=None if found.get("agrees", True) else "dim",
        )
    return grid


def ordered(results):
    """Rows in the order of `NETS` and `METHODS`."""
    places = [list(NETS), list(METHODS)]
    return sorted(
        results["rows"].values(),
        key=lambda r: (places[0].index(r["net"]), places[1].index(r["method"])),
    )


def share(found):
    """Of the measured peak of matrix products, for a row."""
    return found["flops"] / (1e-3 * found["ms"] * found["peak"])


def ratios(results):
    """Those of rows that were timed on both sides and agree."""
    rows = [r for r in ordered(results) if "peer_ms" in r and r["agrees"]]
    return [r["peer_ms"] / r["ms"] for r in rows]


def caption(results):
    found = ratios(results)
    machine = ", ".join(f"{k} {v}" for k, v in results["machine"].items())
    middle = (
        f"median ratio {statistics.median(found):.2f}, least {min(found):.2f}, " if found else ""
    )
    return f"{middle}{len(found)} of {len(results['rows'])} rows compared\n{machine}"


def processor():
    """The processor's or the accelerator's name."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].device_kind
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main():
    global CLOCK
    options = arguments_of_command()
    if options.processor:
        CLOCK = "process_time"
    (give_back if options.memory else jaxviz.keep_memory)()
    if AFFINITY:  # XLA takes one thread for each core it is given
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs the GPU, too
    results = {"machine": {}, "rows": {}}
    if options.out.exists():
        results = json.loads(options.out.read_text())
    if options.table:
        return Console(width=160).print(table(results))
    for given, known in ((options.nets, NETS), (options.methods, METHODS)):
        if unknown := set(given or ()) - set(known):
            raise SystemExit(f"unknown: {', '.join(sorted(unknown))}. Known: {', '.join(known)}.")
    has_peer = subprocess.run([options.peer_python, "-c", NEEDED], capture_output=True)
    peer = None if has_peer.returncode else Peer(options.peer_python, keeps=not options.memory)
    if peer is None:
        print(f"Only jaxviz is timed: {options.peer_python} cannot `{NEEDED}`.", file=sys.stderr)
    machine = {"device": processor(), "threads": options.threads, "jaxviz": jaxviz.__version__}
    machine |= {"python": platform.python_version(), "jax": jax.__version__}
    machine |= {"clock": "processor"} if options.processor else {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        peak = None if options.memory else matmul_peak(peer)
        for net in options.nets or NETS:
            weights = None
            if peer:
                weights = folder / f"{net}.pth"
                named = {"net": net, "layer": NETS[net].peer_layer, "weights": str(weights)}
                machine |= peer.ask("build", **named, threads=options.threads)["versions"]
            of_weight = cases(net, weights)
            if results["machine"] not in ({}, machine):
                raise SystemExit(
                    f"{options.out} was made elsewhere: {results['machine']}, here {machine}. "
                    "Give another --out."
                )
            results["machine"] = machine
            for method in options.methods or METHODS:
                case = of_weight[METHODS[method].heavy]
                if not options.memory:
                    found = row(peer, net, method, case, options, folder, peak)
                    results["rows"][f"{net}/{method}"] = found
                elif found := results["rows"].get(f"{net}/{method}"):
                    memory(peer, method, case, found, folder)
                else:
                    continue
                options.out.write_text(json.dumps(results, indent=1))
                keys = ("mb", "peer_mb") if options.memory else ("ms", "peer_ms", "difference")
                told = {k: found[k] for k in keys if k in found}
                print(
                    f"{net} {method}", {k: float(f"{v:.3g}") for k, v in told.items()}, flush=True
                )
    if peer:
        peer.close()
    Console(width=160).print(table(results))


if __name__ == "__main__":
    main()
