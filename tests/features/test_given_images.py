"""Climbs that start from, or aim at, given images: closed forms and plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxviz as jv
from jaxviz import objectives, parametrizations

KEY = jax.random.key(0)
PIXELS = parametrizations.pixels()
PLAIN = {"parametrization": PIXELS, "transforms": (), "redirected_steps": 0}


def grey(w, x):
    """A layer that keeps the mean of the colours and forgets the rest."""
    return checkpoint_name(x @ w, "grey").mean((1, 2))


W = jnp.full((3, 1), 1 / 3)
X = jax.random.uniform(KEY, (2, 6, 6, 3), minval=0.2, maxval=0.8)


def test_inversion_finds_what_the_layer_kept():
    found = jv.invert(
        grey,
        W,
        X,
        layer="grey",
        key=KEY,
        num_steps=150,
        regularizers=(),
        optimizer=optax.adam(0.1),
        **PLAIN,
    )
    np.testing.assert_allclose(found.images.mean(-1), X.mean(-1), atol=0.01)
    assert np.abs(found.images - X).mean() > 0.1  # the colours are gone
    off = np.square(found.images.mean(-1) - X.mean(-1)).sum((1, 2))
    np.testing.assert_allclose(
        -found.scores, off / np.square(X.mean(-1)).sum((1, 2)), rtol=1e-2, atol=1e-7
    )


def test_a_caricature_exaggerates():
    """Of one linear unit the objective is its product with the given one: bright where bright."""
    signed = lambda w, x: grey(w, x - 0.5)
    found = jv.caricature(
        signed,
        W,
        X,
        layer="grey",
        key=KEY,
        num_steps=60,
        optimizer=optax.adam(0.2),
        init=X,
        **PLAIN,
    )
    before, after = np.asarray(X.mean(-1)) - 0.5, np.asarray(found.images.mean(-1)) - 0.5
    sure = np.abs(before) > 0.02
    np.testing.assert_array_equal(np.sign(after[sure]), np.sign(before[sure]))
    assert (np.abs(after[sure]) > 2 * np.abs(before[sure])).mean() > 0.9


def test_style_is_taken_over_and_content_kept():
    def net(w, x):
        return checkpoint_name(x @ w, "colours").mean((1, 2))

    style = jnp.full((1, 4, 4, 3), 0.5) * jnp.array([1.6, 1.0, 0.2])[None, None, None]
    only = jv.restyle(
        net,
        jnp.eye(3),
        X,
        style,
        layer="colours",
        style_layers=["colours"],
        key=KEY,
        num_steps=80,
        style_weight=30.0,
        optimizer=optax.adam(0.05),
        parametrization=PIXELS,
        redirected_steps=0,
    )
    gram = lambda a: np.einsum("nhwc,nhwd->ncd", a, a) / (a.shape[1] * a.shape[2])
    far, near = (
        np.abs(gram(np.asarray(a)) - gram(np.asarray(style))).mean() for a in (X, only.images)
    )
    assert near < 0.25 * far
    rows = lambda a: np.asarray(a).reshape(2, -1)
    kept = [np.corrcoef(a, b)[0, 1] for a, b in zip(rows(only.images), rows(X), strict=True)]
    assert min(kept) > 0.2  # 0 on the average for images of their own


def test_accentuation_balances_the_feature_and_staying():
    """With f = sum w x and |x - x0|^2 / |x0|^2: x = x0 + w |x0|^2 / (2 weight), in pixels."""
    net = lambda w, x: checkpoint_name(jnp.tanh(x) * 1.0, "same").sum((1, 2)) @ w
    x = jnp.full((1, 2, 2, 1), 0.5)
    w = jnp.full((1, 1), 0.2)
    found = jv.accentuate(
        net,
        w,
        x,
        objectives.logit(0),
        layer="same",
        key=KEY,
        weight=2.0,
        num_steps=120,
        transforms=(),
        num_views=1,
        optimizer=optax.adam(0.02),
    )
    a0 = np.tanh(0.5)
    expected = a0 + 0.2 * 4 * a0**2 / (2 * 2.0)
    np.testing.assert_allclose(np.tanh(found.images), expected, atol=5e-3)


def test_maco_keeps_the_spectrum_and_climbs():
    photographs = jax.random.uniform(KEY, (8, 8, 8, 3))
    magnitude = parametrizations.spectrum(photographs, (8, 8, 3))
    corner = lambda w, x: x[:, :2, :2].mean((1, 2)) @ w
    found = jv.maco(
        corner,
        jnp.ones((3, 1)),
        (8, 8, 3),
        objectives.logit(0),
        magnitude=magnitude,
        key=KEY,
        num_steps=40,
        num_views=1,
        transforms=(),
        redirected_steps=0,
    )
    assert float(found.scores[0]) > float(found.history[0, 0]) + 0.3
    image = np.asarray(found.images[0], float)
    mixed = np.log(image) - np.log1p(-image)
    strength = np.abs(np.fft.rfft2(mixed @ np.linalg.inv(_matrix()).T, axes=(0, 1)))
    np.testing.assert_allclose(
        np.moveaxis(strength, -1, 0)[..., 1:-1],
        np.asarray(magnitude)[..., 1:-1],
        rtol=2e-2,
        atol=2e-2,
    )


def _matrix():
    root = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    return root / np.linalg.norm(root, axis=0).max()


def test_a_dream_of_brightness_is_brighter_everywhere_and_keeps_the_picture():
    """A linear objective has one slope everywhere: each step adds step_size to a middle pixel."""
    net = lambda w, x: x.mean((1, 2)) @ w
    x = 0.5 + 0.05 * (X - 0.5)
    dream = jv.deep_dream(
        net,
        jnp.ones((3, 1)),
        x,
        objectives.logit(0),
        key=KEY,
        num_octaves=1,
        num_steps=4,
        step_size=0.01,
    )
    np.testing.assert_allclose(dream, x + 0.04, atol=2e-3)
    both = jv.deep_dream(
        net,
        jnp.ones((3, 1)),
        x,
        objectives.logit(0),
        key=KEY,
        num_octaves=2,
        num_steps=4,
        step_size=0.01,
    )
    np.testing.assert_allclose(both, x + 0.08, atol=4e-3)  # the detail of the small one is added


def test_errors():
    with pytest.raises(ValueError, match=r"deep_dream: octave_scale must be above 1; got 1\.0"):
        jv.deep_dream(grey, W, X, objectives.logit(0), key=KEY, octave_scale=1.0)
    with pytest.raises(ValueError, match=r"deep_dream: x must be \[N, H, W, C\]"):
        jv.deep_dream(grey, W, X[0], objectives.logit(0), key=KEY)
    with pytest.raises(ValueError, match="no layer 'gray'"):
        jv.invert(grey, W, X, layer="gray", key=KEY)
