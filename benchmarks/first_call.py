"""Claim: a first answer comes soon. First calls of each method on each net, and whole processes.

    git worktree add ../older COMMIT
    python -m benchmarks.first_call --other ../older --peer PYTHON_WITH_TORCH_AND_CAPTUM
    python -m benchmarks.first_call --other ../older --whole --images dog.jpg
    python -m benchmarks.first_call --other ../older --cache FOLDER --repeats 1 --limit 2400
    python -m benchmarks.first_call --nets keras:ResNet50 equimo:convnext_t --methods saliency

Every number is a median over fresh processes, all sides by turns: this checkout (`here`), another
one (`other`), `jax.jit(jax.grad)` of the same net (`plain`), PyTorch with Captum (`torch`) and,
with `--cache`, this checkout with JAX's compilation cache in a folder, filled by a process before
(`warm`). One image of 224x224; the sizes of suite.py for photographs; random weights.

The nets with a colon are other people's (third_party.py), whose packages must be installed.

What a first call holds: everything from the call of the method to its finished result. What it
does not: imports, and the net's random weights, drawn before by a compiled `init`. The second call
is the next one. `cpu` is the first in processor seconds, which say more where others are at work.
The first is split by what JAX reports: XLA, lowering, tracing, and the rest (our own Python and the
run). Counts of the first call: outermost `traces`, `programs` compiled or taken from the cache,
`jaxprs` made on the way and the `equations` in them.

`--whole` times processes from start to end instead, as whole_process.py says.

`--limit` ends it after so many seconds: every cell gets one process a side before any gets a
second, and what is missing is said. The whole table with one process a cell, four sides and those
that fill the caches, is 160 processes of 5 to 25 s each.

A line of JSON a row; at the end a table of medians. Ratios: above 1, here is quicker.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

from benchmarks.third_party import NETS as THIRD_PARTY
from benchmarks.whole_process import HERE, ratios, run, surroundings, whole

NETS = ("squeezenet1_1", "resnet18", "mobilenet_v2", "vit6")
METHODS = (
    "saliency", "gradcam", "ig", "lrp", "deeplift", "occlusion", "scorecam", "kernelshap",
)  # fmt: skip
ONE_PASS = ("saliency", "gradcam", "lrp", "deeplift")


def sides_of(options):
    """Name -> (Python, checkout, side of one_process.py)."""
    found = {"here": (sys.executable, HERE, "jaxviz")}
    if options.other:
        found["other"] = (sys.executable, options.other.resolve(), "jaxviz")
    found["plain"] = (sys.executable, HERE, "plain")
    if options.peer:
        found["torch"] = (options.peer, HERE, "torch")
    if options.cache:
        found["warm"] = (sys.executable, HERE, "jaxviz")
    return {k: v for k, v in found.items() if not options.sides or k in options.sides}


class Cell:
    """One row: fresh processes of all sides by turns."""

    def __init__(self, sides, net, method, cache):
        self.sides, self.net, self.method, self.cache = sides, net, method, cache
        self.runs, self.errors, self.filled = {name: [] for name in sides}, {}, False

    def one(self, name):
        python, checkout, side = self.sides[name]
        more = {}
        if name == "warm":
            more["JAX_COMPILATION_CACHE_DIR"] = str(self.cache / f"{self.net}-{self.method}")
            more["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        worker = str(HERE / "benchmarks" / "one_process.py")
        command = [python, worker, side, self.net, self.method]
        found = json.loads(run(command, surroundings(checkout, **more))[1])
        if side == "jaxviz" and not found["from"].startswith(str(checkout)):
            raise SystemExit(f"jaxviz was imported from {found['from']}, not from {checkout}.")
        return found

    def turn(self, repeat):
        """One process more for each side."""
        names = [name for name in self.sides if name not in self.errors]
        start = repeat % max(len(names), 1)
        for name in names[start:] + names[:start]:
            try:
                if name == "warm" and not self.filled:
                    self.one("warm")
                    self.filled = True
                self.runs[name].append(self.one(name))
            except RuntimeError as error:  # a method that a side lacks for this net is a finding
                self.errors[name] = str(error)

    def row(self):
        """Medians, and ratios to here."""
        row = {"net": self.net, "method": self.method}
        for name, found in self.runs.items():
            if name in self.errors:
                row[f"{name}_error"] = self.errors[name]
                continue
            for key in [key for key in found[0] if key != "from"]:
                row[f"{name}_{key}"] = round(statistics.median(f[key] for f in found), 1)
        named = lambda key: {name: f"{name}_{key}_ms" for name in self.sides}
        cpu = {f"cpu_{k}": v for k, v in ratios(row, named("cpu")).items()}
        return row | ratios(row, named("first")) | cpu


def table(rows):
    """First calls in seconds, net by net, and medians of the ratios."""
    names = [k.removesuffix("_first_ms") for r in rows for k in r if k.endswith("_first_ms")]
    names = list(dict.fromkeys(names))
    print(f"\n{'first call, s':32}" + "".join(f"{n:>9}" for n in names) + "   second calls, ms")
    for row in rows:
        line = f"{row['net']:16}{row['method']:16}"
        line += "".join(f"{row.get(f'{n}_first_ms', float('nan')) / 1e3:9.2f}" for n in names)
        print(line + "".join(f"{row.get(f'{n}_second_ms', float('nan')):9.1f}" for n in names))
    for name in names[1:]:
        all_of = [r for r in rows if f"{name}_by_here" in r]
        if name == "plain":  # a claim about methods of one pass
            all_of = [r for r in all_of if r["method"] in ONE_PASS]
        found = [r[f"{name}_by_here"] for r in all_of]
        if found:
            median, least = statistics.median(found), min(found)
            print(f"{name} / here: median {median:.2f}, least {least:.2f}, {len(found)} cells")
    warm = [r for r in rows if {"other_first_ms", "warm_first_ms"} <= r.keys()]
    both = [r["other_first_ms"] / r["warm_first_ms"] for r in warm]
    if both:
        print(f"other / warm: median {statistics.median(both):.2f}, least {min(both):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", nargs="+", choices=NETS + THIRD_PARTY, default=NETS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes a side")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds, for all of it")
    parser.add_argument("--other", type=pathlib.Path, help="another checkout")
    parser.add_argument("--peer", help="a Python with torch and captum")
    parser.add_argument("--cache", type=pathlib.Path, help="folder for the side `warm`")
    parser.add_argument("--sides", nargs="+", help="only these of here, other, plain, torch, warm")
    parser.add_argument("--whole", action="store_true", help="whole processes instead")
    parser.add_argument("--rows", nargs="+", default=("script", "explain", "demo"))
    parser.add_argument("--images", nargs="+", type=pathlib.Path, help="photographs for --whole")
    options = parser.parse_args()
    if options.whole and not options.images:
        raise SystemExit("--whole needs a photograph: --images FILE")
    sides = sides_of(options)
    if options.whole:
        return whole(options, sides)
    cache = options.cache and options.cache.resolve()
    end = time.monotonic() + options.limit
    cells = [Cell(sides, net, method, cache) for net in options.nets for method in options.methods]
    rows = {}
    for repeat in range(options.repeats):
        for cell in cells:
            if time.monotonic() < end:
                cell.turn(repeat)
                rows[cell] = cell.row()
                print(json.dumps({"turn": repeat + 1} | rows[cell]), flush=True)
    table(list(rows.values()))
    for cell in cells:
        if cell not in rows:
            print(f"not run, for --limit was over: {cell.net} {cell.method}")


if __name__ == "__main__":
    main()
