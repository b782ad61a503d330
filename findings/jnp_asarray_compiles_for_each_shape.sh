#!/usr/bin/env bash
# jnp.asarray of a NumPy array compiles a program for each shape; jax.device_put compiles none.
#
# Versions: jax 0.10.2 (Python 3.11, CPU); seen in jax 0.12.0.1 (Python 3.13), too.
# The dtype is the array's own, so there is nothing to convert, and yet each new shape goes through
# XLA, as jnp.array does. Loading a checkpoint by jnp.asarray, leaf by leaf, compiles as many programs
# as it has shapes (30 for SqueezeNet 1.1), before anything is computed.
# Output seen: "five shapes: jnp.asarray 5 programs, jnp.array 5, jax.device_put 0".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
)
counts = []
for rows, put in enumerate((jnp.asarray, jnp.array, jax.device_put), start=2):
    before = len(compiled)
    for columns in range(1, 6):
        found = put(np.ones((rows, columns), np.float32))
        assert found.dtype == np.float32 and found.shape == (rows, columns)
    counts.append(len(compiled) - before)
print("five shapes: jnp.asarray {} programs, jnp.array {}, jax.device_put {}".format(*counts))
assert counts == [5, 5, 0], counts
PY
