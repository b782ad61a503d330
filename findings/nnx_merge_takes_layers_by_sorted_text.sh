#!/usr/bin/env bash
# nnx.merge hands variables to layers by position in sorted order and does not compare the keys.
#
# Versions: flax 0.12.8 with jax 0.10.2 (Python 3.11); seen in flax 0.12.12 with jax 0.12.0.1 too.
# A list of layers is numbered 0, 1, 2, ... in a state. A checkpoint that went through names in text
# (as folders and JSON keep them) comes back with "0", "1", "10", "11", "2", ... Given to nnx.merge,
# layer 2 gets the weights of layer 10: same shapes, no error, other outputs. The same dictionary in
# nnx.replace_by_pure_dict is read by number and is right.
# Output seen: "ten layers: off by 0.0", "twelve layers: off by 0.59", "replace_by_pure_dict: off by 0.0".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 flax==0.12.8
"$folder/venv/bin/python" - <<'PY'
import jax.numpy as jnp
from flax import nnx


class Tower(nnx.Module):
    def __init__(self, depth, seed=0):
        rngs = nnx.Rngs(seed)
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(depth)])

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


def in_text(module):
    layers = nnx.to_pure_dict(nnx.state(module))["layers"]
    return {"layers": {str(number): layer for number, layer in layers.items()}}


def off(depth):
    module, x = Tower(depth), jnp.ones((1, 3))
    merged = nnx.merge(nnx.graphdef(module), nnx.State(in_text(module)))
    return float(abs(merged(x) - module(x)).max())


short, long = off(10), off(12)
print("ten layers: off by", short)
print("twelve layers: off by", round(long, 2))
module, other, x = Tower(12), Tower(12, seed=1), jnp.ones((1, 3))
state = nnx.state(other)
nnx.replace_by_pure_dict(state, in_text(module))
nnx.update(other, state)
by_number = float(abs(other(x) - module(x)).max())
print("replace_by_pure_dict: off by", by_number)
assert short == 0 and long > 0.1 and by_number == 0
PY
