"""DAVE: its mean over shifts and its filter in NumPy, over a small vision transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv


def net(p, x):
    """Patches of 2x2, one head of attention, a mean."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, 4 * c)
    x = x @ p["in"]
    mixed = jax.nn.softmax(x @ p["q"] @ x.swapaxes(1, 2)) @ x
    return (x + mixed / jnp.linalg.norm(mixed, axis=-1, keepdims=True)).mean(1) @ p["out"]


def test_it_is_the_filtered_mean_of_shifted_matrices():
    rng = np.random.default_rng(0)
    drawn = lambda *shape: rng.normal(size=shape).astype(np.float32)
    p = {"in": drawn(4, 5), "q": drawn(5, 5), "out": drawn(5, 3)}
    x = drawn(2, 6, 8, 1)
    got = jv.dave(net, p, x, 1, radius=1, sigma=50.0)
    linear = jv.rewrite(net, jv.rules.constants())

    def moved(a, i, j):
        return np.pad(a, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")[:, 1 + i : 7 + i, 1 + j : 9 + j]

    near = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    many = np.concatenate([moved(x, i, j) for i, j in near])
    slopes = np.asarray(jv.gradient(linear, p, many, 1)).reshape(9, *x.shape)
    back = [moved(s, -i, -j) for s, (i, j) in zip(slopes, near, strict=True)]
    waves = np.fft.fft2(x * np.mean(back, 0), axes=(1, 2))
    along = [np.fft.fftfreq(size).reshape(shape) for size, shape in ((6, (6, 1)), (8, (1, 8)))]
    kept = np.sqrt(along[0] ** 2 + along[1] ** 2) <= 50 / 224
    asked = np.fft.ifft2(waves * kept[None, :, :, None], axes=(1, 2)).real
    np.testing.assert_allclose(got, asked, rtol=1e-4, atol=1e-5)


def test_what_has_no_space_is_refused():
    with pytest.raises(ValueError, match=r"^dave: "):
        jv.dave(lambda w, x: x @ w, jnp.ones((2, 1)), jnp.ones((1, 2)), 0)
