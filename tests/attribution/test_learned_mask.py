"""Learned masks on models of which it is known what they look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.attribution.learned_mask import learned_mask

NUMBERS = ("NHWC", "HWIO", "NHWC")
LOOK = np.s_[:, 2:6, 8:12]  # 16 of 144 places


def looks(_, x):
    """Each class reads its own square: [N, 12, 12, 1] -> [N, 2]."""
    return jnp.stack([x[LOOK].mean((1, 2, 3)), x[:, :2, :2].mean((1, 2, 3))], 1)


@pytest.mark.parametrize("goal", ["preserve", "delete"])
def test_the_mask_is_where_the_model_looks(goal):
    x = jax.random.uniform(jax.random.key(0), (2, 12, 12, 1), minval=0.5)
    options = {"goal": goal, "area": 16 / 144, "fill": 0.0, "smoothness": 0.01}
    out = learned_mask(looks, None, x, 0, **options)
    inside = np.asarray(out.mask[LOOK])
    rest = np.asarray(out.mask.at[LOOK].set(0)).sum((1, 2)) / 128
    assert inside.mean() > 0.9
    assert rest.max() < 0.05
    np.testing.assert_allclose(out.clean_score, looks(None, x)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(out.filled_score, [0, 0], atol=1e-6)
    # The score is that of the input so masked, and it got to where the goal asks.
    seen = out.mask if goal == "preserve" else 1 - out.mask
    np.testing.assert_allclose(out.score, looks(None, x * seen[..., None])[:, 0], rtol=1e-4)
    assert out.history.shape == (200, 2)
    share = out.score / out.clean_score
    assert (share > 0.9).all() if goal == "preserve" else (share < 0.1).all()


def test_without_an_area_the_mask_is_as_small_as_its_price_says():
    x = jnp.ones((1, 12, 12, 1))
    options = {"goal": "delete", "area": None, "fill": 0.0, "smoothness": 0.0}
    # All that is gained is 1 and a place inside gives 1/16 of it, so a price below 9 a unit of
    # area (144 places) pays inside, and none does outside.
    out = learned_mask(looks, None, x, 0, sparsity=1.0, **options)
    assert out.mask[LOOK].min() > 0.8
    assert out.mask.at[LOOK].set(0).max() < 0.2
    dear = learned_mask(looks, None, x, 0, sparsity=20.0, **options)
    assert dear.mask.max() < 0.2


def test_errors_say_what_came():
    x = jnp.ones((1, 4, 4, 1))
    net = lambda _, x: x[:, 0, 0]
    with pytest.raises(ValueError, match="goal must be 'preserve' or 'delete'; got 'keep'"):
        learned_mask(net, None, x, 0, goal="keep")
    with pytest.raises(ValueError, match=r"area must be in \(0, 1\); got 1.5"):
        learned_mask(net, None, x, 0, area=1.5)
    with pytest.raises(ValueError, match="num_steps must be at least 1; got 0"):
        learned_mask(net, None, x, 0, num_steps=0)


@pytest.mark.parametrize("options", [{"area": None, "fill": 0.0}, {"area": 0.2, "goal": "delete"}])
def test_a_mirrored_model_and_input_have_the_mirrored_mask(options):
    def net(w, x):
        y = jax.lax.conv_general_dilated(x, w, (2, 2), "VALID", dimension_numbers=NUMBERS)
        return jax.nn.relu(y).mean((1, 2))

    turn = lambda a: a[:, ::-1, ::-1]
    mirrored = lambda w, x: net(w, turn(x))
    keys = jax.random.split(jax.random.key(0), 2)
    w = jax.random.normal(keys[0], (4, 4, 1, 3))
    x = jax.random.uniform(keys[1], (1, 16, 16, 1)).at[:, :6].set(0)  # flat at the beginning
    options = {"num_steps": 20, "cells": 8, **options}
    mask = learned_mask(net, w, x, 0, **options).mask
    other = learned_mask(mirrored, w, turn(x), 0, **options).mask
    assert mask.std() > 0.1
    np.testing.assert_allclose(turn(other), mask, atol=1e-3)


def test_a_score_of_nan_gives_its_example_no_mask():
    x = jnp.ones((2, 6, 6, 1)).at[1, 0, 0, 0].set(jnp.nan)
    net = lambda _, x: jax.nn.relu(x).sum((1, 2))
    out = learned_mask(net, None, x, 0, num_steps=2, fill=0.0)
    assert np.isnan(out.mask[1]).all()
    assert np.isfinite(out.mask[0]).all()
