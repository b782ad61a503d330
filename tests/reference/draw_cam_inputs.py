"""Writes cam_inputs.npz: the random draws of our own methods, for run_cam_peers.py to hand on.

Run with JAX: `python tests/reference/draw_cam_inputs.py`. The key is that of test_cam_more.py.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

FOLDER = pathlib.Path(__file__).parent
CHANNELS, SAMPLES, EXAMPLES, SIZE, SEGMENTS = 6, 2, 3, 12, 4


def main():
    key = jax.random.key(7)
    with jax.enable_x64(True):
        draw = lambda k: jax.random.normal(
            jax.random.fold_in(key, k), (EXAMPLES, SIZE, SIZE, 1), jnp.float64
        )
        noise = [
            [draw(jnp.int32(c * SAMPLES + s)) for s in range(SAMPLES)] for c in range(CHANNELS)
        ]
        out = {"mask_noise": np.array(noise)[..., 0]}
    halves = np.arange(SIZE) // (SIZE // 2)
    out["segments"] = 2 * halves[:, None] + halves[None, :]
    orders = [jax.random.permutation(jax.random.fold_in(key, k), EXAMPLES) for k in range(SEGMENTS)]
    donors = np.zeros((SEGMENTS, EXAMPLES), int)
    for k, order in enumerate(np.array(orders)):
        donors[k, order] = np.roll(order, -1)
    out["donors"] = donors
    np.savez_compressed(FOLDER / "cam_inputs.npz", **out)


if __name__ == "__main__":
    main()
