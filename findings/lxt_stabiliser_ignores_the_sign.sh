#!/usr/bin/env bash
# LXT's explicit epsilon rules add epsilon to z itself, not to its magnitude: just below 0 they blow up.
#
# Versions: lxt 2.1 with torch 2.13.0 (Python 3.11, CPU).
# Of one dense output z that gets the relevance 1, z / (z + 1e-6) should arrive. For z = -2e-6 twice
# the relevance does, for z = -1.01e-6 a hundred times, and for z = -1e-6 it is infinite. In float64
# as well: on an encoder of MiniLM-L6's sizes with random weights and 128 tokens single relevances
# are off by 1.6 % of the largest, nearly all of it by `linear_epsilon`; without the stabilisers
# float32 is within 5e-7 of float64.
# Output seen: "z = -2e-06: 2 arrives; z = -1.01e-06: 101 arrives; z = -1e-06: inf arrives".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 tabulate numpy
"$folder/venv/bin/pip" install -q --no-deps lxt==2.1
"$folder/venv/bin/python" - <<'PY'
import lxt.explicit.functional as lf
import torch

told = []
for z, wanted in ((-2e-6, 2.0), (-1.01e-6, 101.0), (-1e-6, float("inf"))):
    x = torch.tensor([[z]], dtype=torch.float64, requires_grad=True)
    out = lf.linear_epsilon(x, torch.ones(1, 1, dtype=torch.float64))
    (relevance,) = torch.autograd.grad(out, x, torch.ones_like(out))
    found = relevance.abs().item()
    told.append(f"z = {z:g}: {found:.4g} arrives")
    assert found == wanted or abs(found / wanted - 1) < 1e-6, (z, found)
print("; ".join(told))
PY
