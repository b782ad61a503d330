"""Candidates for gamma and epsilon in one program, beside a loop over fixed rules.

    python -m benchmarks.lrp_search

A small vision transformer with random weights, six candidates, 8 examples, SRG of 8 steps. Prints a
line of JSON: processor seconds of both, the first time and again, and how far their scores are
apart.
"""

import functools
import itertools
import time

import jax
import jax.numpy as jnp

import jaxviz as jv
from benchmarks.timing import json_line
from benchmarks.transformer_nets import Size, drawn, transformer
from jaxviz import metrics, rules

CANDIDATES = {"gamma": [0, 0.05, 0.25], "epsilon": [0, 0.01]}


def main():
    size = Size(blocks=4, width=64, heads=4, tokens=37, classes=10, image=24, patch=4)
    net, w = transformer(size), jax.tree.map(jnp.asarray, drawn(size)[0])
    x = jax.random.normal(jax.random.key(0), (8, 24, 24, 3))
    judge = functools.partial(metrics.srg, num_steps=8)

    def search():
        return jv.lrp_search(net, w, x, 0, metric=judge, candidates=CANDIDATES).scores

    def loop():
        found = []
        for gamma, epsilon in itertools.product(*CANDIDATES.values()):
            heat = jv.lrp(net, w, x, 0, rules=rules.attn_lrp(epsilon, gamma=gamma))
            found.append(judge(net, w, x, heat, 0).area)
        return jnp.stack(found)

    seconds, scores = {}, {}
    for name, function in (("search", search), ("loop", loop)):
        for turn in ("first", "again"):
            start = time.process_time()
            scores[name] = jax.block_until_ready(function())
            seconds[f"{name}_{turn}_s"] = time.process_time() - start
    apart = float(jnp.abs(scores["search"] - scores["loop"]).max())
    json_line(candidates=len(scores["loop"]), apart=f"{apart:.1e}", **seconds)


if __name__ == "__main__":
    main()
