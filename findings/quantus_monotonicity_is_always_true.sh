#!/usr/bin/env bash
# Quantus' Monotonicity calls every explanation of every model monotonic.
#
# Versions: quantus 0.6.0 with torch 2.13.0 and numpy 1.26.4 (Python 3.11, CPU).
# The metric (Luss et al. 2019) puts the features back one after the other, least attributed first,
# and asks whether the score never falls. This one starts from an input that holds the baseline
# everywhere and then writes that same baseline into it: x is never put back, all scores are equal,
# and "never falls" holds. Here the score is minus the sum of positive features, which falls with
# each feature that is put back: the right answer is False for any map, random ones too.
# Output seen: "8 of 8 random maps are monotonic on a score that falls at every step".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 quantus==0.6.0 numpy==1.26.4
"$folder/venv/bin/python" - <<'PY' 2>/dev/null
import numpy as np
import quantus
import torch

scores_met = set()


class Falls(torch.nn.Module):
    def forward(self, x):
        score = -x.flatten(1).sum(1)
        scores_met.update(score.tolist())
        return torch.stack([score, 0 * score], 1)


rng = np.random.default_rng(0)
x = rng.uniform(0.5, 1.0, size=(8, 1, 4, 4)).astype(np.float32)
maps = rng.uniform(size=x.shape).astype(np.float32)
metric = quantus.Monotonicity(features_in_step=1, perturb_baseline="black", disable_warnings=True)
found = metric(
    model=Falls().eval(), x_batch=x, y_batch=np.zeros(8, int), a_batch=maps, softmax=False
)
yes, scores = sum(map(bool, found)), len(np.unique(np.round(np.array(list(scores_met)), 3)))
print(f"{yes} of 8 random maps are monotonic on a score that falls at every step")
assert yes == 8, found
# Each example has one "black", its own smallest number, and one score: nothing was put back.
assert scores <= 8, scores
PY
