#!/usr/bin/env bash
# A while loop that is never entered costs what its body costs, where the body does not depend on what
# the loop changes.
#
# Versions: jax and jaxlib 0.12.0.1 (Python 3.13, CPU); JAX 0.10.2 does the same.
# XLA computes what is the same in every turn ahead of the loop, without a look at whether there is a
# turn: products and even LAPACK's decompositions. So a loop of at most one turn is no way to compute
# something only where it is needed (under vmap, say, where both sides of a conditional run); once
# the body depends on the state, by adding nothing times it, the loop that is not entered is free.
# Output seen: "no turn: 1.09 ms, one turn: 1.08 ms, no turn of a body that depends on it: 0.02 ms".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.13 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.12.0.1 jaxlib==0.12.0.1
"$folder/venv/bin/python" - <<'PY'
import time
import jax
import jax.numpy as jnp

matrix = jax.random.normal(jax.random.key(0), (200, 200)) / 15


def product(m):
    found = m
    for _ in range(7):
        found = found @ m
    return found


def loop(matrix, turns, depends):
    step = lambda state: (state[0] + 1, product(matrix + 0 * state[1] if depends else matrix))
    return jax.lax.while_loop(lambda state: state[0] < turns, step, (0, matrix))[1]


def milliseconds(turns, depends=False):
    run = jax.jit(loop, static_argnums=2)
    turns = jnp.int32(turns)  # not known when it is compiled
    jax.block_until_ready(run(matrix, turns, depends))
    times = []
    for _ in range(50):
        start = time.process_time()
        jax.block_until_ready(run(matrix, turns, depends))
        times.append(time.process_time() - start)
    return 1e3 * min(times)


never, once, free = milliseconds(0), milliseconds(1), milliseconds(0, True)
print(f"no turn: {never:.2f} ms, one turn: {once:.2f} ms, no turn of a body that depends on it: {free:.2f} ms")
assert never > 0.7 * once and free < 0.3 * once
PY
