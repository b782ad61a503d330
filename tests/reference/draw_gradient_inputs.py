"""Writes gradient_inputs.npz: a small net, its inputs, and the random draws of our own methods.

Run with JAX, before run_gradient_peers.py: `python tests/reference/draw_gradient_inputs.py`.
"""

import pathlib

import jax
import numpy as np

FOLDER = pathlib.Path(__file__).parent
NUM_SAMPLES = 4
SHAPES = {
    "conv1": (3, 3, 2, 6),
    "conv2": (3, 3, 6, 8),
    "fc1": (72, 10),
    "fc2": (10, 4),
}


def main():
    rng = np.random.default_rng(20)
    out = {}
    for name, shape in SHAPES.items():
        fan_in = np.prod(shape[:-1])
        out[f"{name}/kernel"] = np.float32(rng.normal(size=shape) * np.sqrt(2 / fan_in))
        out[f"{name}/bias"] = np.float32(0.3 * rng.normal(size=shape[-1:]))
    out["x"] = np.float32(rng.normal(size=(3, 12, 12, 2)))
    out["target"] = np.array([0, 3, 1])
    out["baseline"] = np.float32(0.5 * rng.normal(size=(12, 12, 2)))
    out["baselines"] = np.float32(rng.normal(size=(5, 12, 12, 2)))

    # The draws as smooth_grad and expected_gradients make them, in double precision.
    key, x = jax.random.key(7), out["x"]
    normal = lambda key: jax.random.normal(jax.random.fold_in(key, 0), x.shape, np.float64)
    samples = range(NUM_SAMPLES)
    with jax.enable_x64(True):
        smooth = [normal(jax.random.fold_in(key, k)) for k in samples]
        which_key, where_key, noise_key = jax.random.split(key, 3)
        which = jax.random.randint(which_key, (NUM_SAMPLES, len(x)), 0, 5)
        where = jax.random.uniform(where_key, (NUM_SAMPLES, len(x)))
        noise = [normal(jax.random.fold_in(noise_key, k)) for k in samples]
    out |= {"smooth_noise": smooth, "which": which, "where": where, "noise": noise}
    np.savez_compressed(FOLDER / "gradient_inputs.npz", **out)


if __name__ == "__main__":
    main()
