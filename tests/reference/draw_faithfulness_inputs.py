"""Draws what run_faithfulness_peers.py and the tests share: weights, inputs, random sets.

Run with JAX alone: `python tests/reference/draw_faithfulness_inputs.py faithfulness_inputs.npz`.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

COUNT, SIZE, CHANNELS = 4, 8, 2
SETS, HELD = 30, 20  # of faithfulness correlation: sets of numbers, and how many each holds
CHANGES = 12  # of infidelity


def drawn() -> dict[str, np.ndarray]:
    """Images `[N, H, W, C]`, signed attributions of their shape, and a small net's weights."""
    rng = np.random.default_rng(7)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, a = normal(COUNT, SIZE, SIZE, CHANNELS), normal(COUNT, SIZE, SIZE, CHANNELS)
    w = {"kernel": 0.4 * normal(3, 3, CHANNELS, 4), "dense": 0.3 * normal(4, 3), "bias": normal(3)}
    key, size = jax.random.key(3), x[0].size
    bits = lambda k: jax.random.bits(jax.random.fold_in(key, k), (size,))
    order = jnp.argsort(jax.vmap(bits)(jnp.arange(SETS, dtype=jnp.uint32)), axis=1)
    change = lambda k: x + 0.2 * jax.random.normal(jax.random.fold_in(key, k), x.shape[1:])[None]
    changed = np.stack([np.asarray(change(k)) for k in range(CHANGES)])
    return w | {"x": x, "a": a, "held": np.asarray(order) < HELD, "changed": changed}


if __name__ == "__main__":
    np.savez(sys.argv[1], **drawn())
