"""Rollout, Chefer's relevance and patching by hooks, in PyTorch on a tiny encoder.

    python tests/reference/run_attention_peers.py tests/reference/attention_peers.npz

Needs torch and captum and lxt (what benchmarks/transformers_side.py imports). That file has the
published formulas: rollout divides rows of A + I (Abnar and Zuidema 2020), relevance is
R <- R + mean_heads(relu(A * dA)) R (Chefer et al. 2021), patching a forward pass a head.
"""

import os
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
draw = np.random.default_rng(0)
made = lambda *shape: (draw.normal(size=shape) / np.sqrt(shape[-2])).astype(np.float32)
given = {name: made(2, 8, 8) for name in "qkvo"} | {"u": made(2, 8, 32), "d": made(2, 32, 8)}
given |= {"head": made(8, 3), "x": made(2, 5, 8), "source": made(2, 5, 8)}
path = sys.argv[1]
np.savez(path, **given, heads=2, steps=4)
os.environ["THREADS"] = "1"
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.stdin = open(os.devnull)
import transformers_side as side  # noqa: E402

named = ("rollout", "relevance", "patching")
found = {name: side.METHODS[name]().detach().numpy() for name in named}
np.savez(path, **given, heads=2, steps=4, **found)
