"""Draws the JSON of run.py: every ratio as a bar on a logarithmic axis that begins at 1.

python -m benchmarks.plot results.json speed.png
"""

import argparse
import json
import pathlib
import statistics

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.methods import METHODS
from benchmarks.suite import NETS

FASTER, SLOWER = "#1b6ca8", "#c0532b"


def ratio_bars(results):
    """A panel for each net, a bar for each method that was timed on both sides and agrees."""
    rows = [r for r in results["rows"].values() if "peer_ms" in r and r["agrees"]]
    nets = [name for name in NETS if any(r["net"] == name for r in rows)]
    methods = [name for name in METHODS if any(r["method"] == name for r in rows)][::-1]
    ratios = {(r["net"], r["method"]): r["peer_ms"] / r["ms"] for r in rows}
    middle = statistics.median(ratios.values())
    columns, lines = min(3, len(nets)), -(-len(nets) // 3)
    size = 2 + 2.4 * columns, 1 + lines * (0.6 + 0.24 * len(methods))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for axes in panels[len(nets) :]:
        axes.set_visible(False)
    for axes, net in zip(panels, nets, strict=False):
        axes.axvline(middle, color="0.55", linewidth=0.8, linestyle=":", zorder=0)
        for place, method in enumerate(methods):
            ratio = ratios.get((net, method))
            if ratio is None:
                axes.text(1.08, place, "not compared", va="center", fontsize=7, color="0.55")
                continue
            colour = FASTER if ratio >= 1 else SLOWER
            axes.barh(place, ratio - 1, left=1, color=colour, height=0.7)
            align, shift = ("left", 1.06) if ratio >= 1 else ("right", 1 / 1.06)
            axes.text(ratio * shift, place, f"{ratio:.3g}", va="center", ha=align, fontsize=7.5)
        axes.set_title(NETS[net].title, fontsize=10)
        axes.set_xscale("log")
        axes.axvline(1, color="0.2", linewidth=0.9)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=9)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(lambda *_: "")
        axes.tick_params(axis="x", labelsize=8)
    panels[0].set_xlim(0.4 * min(1, *ratios.values()), 2.4 * max(1, *ratios.values()))
    titles = [METHODS[name].title.replace("-{}", "").split(",")[0] for name in methods]
    panels[0].set_yticks(range(len(methods)), titles, fontsize=9)
    machine = results["machine"]
    figure.suptitle(
        f"How many times as fast as Captum and pytorch-grad-cam (median {middle:.1f}, dotted)",
        fontsize=11,
    )
    date = max(r["date"] for r in rows)
    figure.supxlabel(
        f"time of the peer / time of jaxviz · {machine['device']}, {machine['threads']} threads, "
        f"jax {machine['jax']}, torch {machine['torch']}, {date}",
        fontsize=8.5,
    )
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    options = parser.parse_args()
    matplotlib.use("agg")
    ratio_bars(json.loads(options.results.read_text())).savefig(options.picture, dpi=150)


if __name__ == "__main__":
    main()
