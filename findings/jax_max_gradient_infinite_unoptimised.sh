#!/usr/bin/env bash
# With XLA's optimisation off, the compiled gradient of a maximum is infinite for some inputs.
#
# Versions: jax 0.10.2, numpy 2.4.1 (Python 3.11, CPU of x86-64 with fused multiply-add); seen in jax
# 0.12.0.1 (Python 3.13) too, there under jax.vmap instead of jax.lax.map.
# JAX divides the slope by the number of places that equal the maximum. Where what is compared is
# computed in the same program, --xla_backend_optimization_level=0 computes it twice, once with a
# fused multiply-add and once without. The two differ by a rounding, so no place equals the maximum
# and the slope is divided by zero. With the default level no gradient of the same program is
# infinite. Test suites set that flag, because programs compile in a third of the time.
# Output seen: "400 gradients of a maximum: 25 are infinite at level 0, 0 at the default level".
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.1
cat >"$folder/count.py" <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

rng = np.random.default_rng(0)
w, x, noise = (rng.normal(size=shape).astype("f") for shape in ((36,), (36,), (400, 36)))
slope = jax.grad(lambda y: jnp.max(y * w))
found = jax.jit(lambda noise: jax.lax.map(lambda e: slope(x + 0.3 * e), noise))(noise)
assert found.shape == (400, 36)
assert not np.isnan(found).any()
print(int(np.isinf(found).any(-1).sum()))
PY
run() { JAX_PLATFORMS=cpu XLA_FLAGS="$1" "$folder/venv/bin/python" "$folder/count.py"; }
off="$(run --xla_backend_optimization_level=0)"
on="$(run "")"
echo "400 gradients of a maximum: $off are infinite at level 0, $on at the default level"
[[ "$off" -gt 0 && "$on" -eq 0 ]]
