#!/usr/bin/env bash
# tojax turns torch's exact GELU into the tanh one, and adaptive pooling into windows of one length.
#
# Versions: tojax 1.0.1 with torch 2.13.0 and jax 0.12.0.1 (Python 3.12, CPU).
# GELU: torch's default is approximate="none"; that word reaches jax.nn.gelu(approximate=...) as a
# true value, so nn.GELU() and TransformerEncoderLayer(activation="gelu") are the tanh approximation,
# up to 4.7e-4 off in each unit.
# Pooling: torch's window i of n reaches from floor(i * size / n) to ceil((i + 1) * size / n); tojax
# takes size // n + size % n for all, size // n apart. The mean of 0..7 over three windows comes out
# as (1.5, 3.5, 5.5) in place of (1, 3.5, 6), in the right shape. AdaptiveAvgPool2d((7, 7)), of
# AlexNet's and VGG's kind, differs for most image sizes. (A comment in its source says that it is
# not all correct; nothing is said to the caller.)
# Output seen: "gelu: 0.00047 off torch's exact, 2e-07 off its tanh" (the last figure varies) and
# "pool: torch [1.0, 3.5, 6.0], tojax [1.5, 3.5, 5.5]".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 tojax==1.0.1 jax==0.12.0.1 numpy
"$folder/venv/bin/python" - <<'PY'
import jax.numpy as jnp
import numpy as np
import torch
from tojax import tojax

x = torch.linspace(-4, 4, 801)
found = np.asarray(tojax(torch.nn.GELU())(jnp.asarray(x.numpy())))
off = abs(found - torch.nn.GELU()(x).numpy()).max()
tanh = abs(found - torch.nn.GELU(approximate="tanh")(x).numpy()).max()
print(f"gelu: {off:.2g} off torch's exact, {tanh:.1g} off its tanh")

pool = torch.nn.AdaptiveAvgPool2d((1, 3))
row = torch.arange(8.0).reshape(1, 1, 1, 8)
right = pool(row).flatten().tolist()
pooled = tojax(pool)(jnp.asarray(row.numpy())).reshape(-1).tolist()
print(f"pool: torch {right}, tojax {pooled}")
assert 4e-4 < off < 5e-4 and tanh < 1e-5
assert right == [1.0, 3.5, 6.0] and pooled == [1.5, 3.5, 5.5]
PY
