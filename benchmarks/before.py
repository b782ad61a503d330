"""Claim: no method is slower than in another checkout, an older one, say, or with another JAX.

    git worktree add ../older COMMIT
    python -m benchmarks.before ../older --nets mnist_a squeezenet1_1 --methods saliency lrp
    python -m benchmarks.before . --python OTHER_PYTHON --nets mnist_a

Each side has a process of its own; calls alternate, as in run.py, and medians are taken. A line of
JSON a row: milliseconds of a call here and there, the ratio (above 1: here is quicker) and the
first call of each in its process. The method `trace` is `jaxviz.layers`. `--processor` counts the
time that a process had a core, summed over its cores: what is left to compare on a machine where
others work.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent.parent
WORKER = """
import json, sys, time
import jax
import jaxviz
from benchmarks.methods import METHODS
from benchmarks.suite import cases

jaxviz.keep_memory()
clock = getattr(time, sys.argv[1])
held = {}
for line in sys.stdin:
    net, method = json.loads(line)
    if net not in held:
        held = {net: cases(net, None)}
    case = held[net][method != "trace" and METHODS[method].heavy]
    start = clock()
    if method == "trace":
        jax.clear_caches()
        jaxviz.layers(*case.main[:3])
    else:
        jax.block_until_ready(METHODS[method].ours(case))
    print(json.dumps(1e3 * (clock() - start)), flush=True)
"""


class Checkout:
    """A process that runs the methods of one checkout."""

    def __init__(self, folder, python=sys.executable, clock="perf_counter"):
        self.process = subprocess.Popen(
            [python, "-c", WORKER, clock],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(folder)},
        )

    def ms(self, net, method):
        """Milliseconds of one call."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([net, method]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def compare(sides, net, method, repeats, seconds):
    """Medians of both sides' calls by turns, after the first ones."""
    first = {name: side.ms(net, method) for name, side in sides.items()}
    for side in sides.values():
        side.ms(net, method)
    times, begin = {name: [] for name in sides}, time.perf_counter()
    while len(times["here"]) < repeats or time.perf_counter() - begin < 2:
        if len(times["here"]) >= 3 and time.perf_counter() - begin > seconds:
            break
        for name, side in sides.items():
            time.sleep(5e-3)  # until the other side's threads have ceased to spin
            times[name].append(side.ms(net, method))
    ms = {name: statistics.median(found) for name, found in times.items()}
    return {
        "net": net,
        "method": method,
        "here_ms": round(ms["here"], 3),
        "there_ms": round(ms["there"], 3),
        "ratio": round(ms["there"] / ms["here"], 3),
        "here_first_ms": round(first["here"]),
        "there_first_ms": round(first["there"]),
        "pairs": len(times["here"]),
    }


def main():
    sys.path.insert(0, str(HERE))
    from benchmarks.methods import METHODS
    from benchmarks.suite import NETS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=pathlib.Path, help="folder of the other checkout")
    parser.add_argument("--python", default=sys.executable, help="Python of the other side")
    parser.add_argument("--processor", action="store_true", help="processor time, not the clock's")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, "trace"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20, help="for a row's pairs")
    options = parser.parse_args()
    if not (options.other / "benchmarks" / "suite.py").exists():
        raise SystemExit(f"{options.other} is no checkout of jaxviz with benchmarks.")
    clock = "process_time" if options.processor else "perf_counter"
    there = Checkout(options.other.resolve(), options.python, clock)
    sides = {"here": Checkout(HERE, clock=clock), "there": there}
    for net in options.nets:
        for method in options.methods or [*METHODS, "trace"]:
            print(json.dumps(compare(sides, net, method, options.repeats, options.seconds)))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
