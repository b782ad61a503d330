#!/usr/bin/env bash
# Quantus' score of an explanation depends on which other explanations are in the batch.
#
# Versions: quantus 0.6.0 with torch 2.13.0 and numpy 1.26.4 (Python 3.11, CPU).
# With normalise=True, the default, maps are divided by their largest number before they are judged.
# That number is one for the whole batch. EffectiveComplexity counts a map's entries above a
# threshold (eps, 0.01 here): the same map has all of its 16 entries above it alone, and none when a
# map a thousand times larger sits beside it.
# Output seen: "alone: 16 features matter; beside a larger map: 0".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 quantus==0.6.0 numpy==1.26.4
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import numpy as np
import quantus
import torch

model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2)).eval()
x = np.ones((2, 1, 4, 4), np.float32)
map_ = np.linspace(0.5, 1.0, 16, dtype=np.float32).reshape(1, 1, 4, 4)


def features(maps):
    metric = quantus.EffectiveComplexity(eps=1e-2, disable_warnings=True)
    n = len(maps)
    return metric(model=model, x_batch=x[:n], y_batch=np.zeros(n, int), a_batch=maps)[0]


alone, beside = features(map_), features(np.concatenate([map_, 1000 * map_]))
print(f"alone: {alone} features matter; beside a larger map: {beside}")
assert (alone, beside) == (16, 0)
PY
