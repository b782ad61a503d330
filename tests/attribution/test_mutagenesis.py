"""In-silico mutagenesis: each substitution made by hand, and the model run on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

KEYS = jax.random.split(jax.random.key(0), 3)
LENGTH = 9
PARAMS = jax.random.normal(KEYS[0], (3, 4, 5)), jax.random.normal(KEYS[1], (LENGTH * 5, 2))
IDS = jax.random.randint(KEYS[2], (2, LENGTH), 0, 4)
# The last places of the second sequence hold no letter: padding, and a base not known.
X = jax.nn.one_hot(IDS, 4).at[1, -2].set(0.25).at[1, -1].set(0)


def net(p, x):
    numbers = ("NWC", "WIO", "NWC")
    hidden = jax.lax.conv_general_dilated(x, p[0], (1,), "SAME", dimension_numbers=numbers)
    return jax.nn.relu(hidden).reshape(len(x), -1) @ p[1]


def by_hand(f, x, letters):
    """Every letter put at every place in turn."""
    clean = np.asarray(f(x))
    changed = lambda place, letter: np.asarray(f(x.at[:, place].set(letter))) - clean
    rows = [[changed(place, letter) for letter in letters] for place in range(x.shape[1])]
    return np.moveaxis(np.array(rows), -1, 0)


RUN = jax.jit(lambda x: net(PARAMS, x)[:, 1])
WANTED = by_hand(RUN, X, jnp.eye(4))
WANTED[1, -2:] = 0


@pytest.mark.parametrize("method", ["full", "incremental"])
def test_letters_are_put_in_turn(method):
    found = jv.in_silico_mutagenesis(net, PARAMS, X, 1, method=method)
    np.testing.assert_allclose(found, WANTED, atol=1e-5)
    assert np.abs(WANTED).max() > 1
    np.testing.assert_array_equal(np.asarray(found)[np.asarray(X) == 1], 0)


def test_letters_before_places():
    first = lambda p, x: jax.nn.relu(jax.lax.conv(x, p[0], (1,), "SAME")).mean(2) @ p[1][:5]
    params = jnp.moveaxis(PARAMS[0], (0, 1, 2), (2, 1, 0)), PARAMS[1]
    last = lambda p, x: first(p, x.mT)
    found = jv.in_silico_mutagenesis(first, params, X.mT, 1)
    wanted = jv.in_silico_mutagenesis(last, params, X, 1)
    np.testing.assert_allclose(found.mT, wanted, atol=1e-5)


def test_ids_of_an_alphabet_and_no_others():
    """Ids 5, 3, 8 stand for one another; 0 (padding) and 1 (a class token) stay."""
    words = jax.random.normal(KEYS[0], (9, 6))
    text = lambda p, ids: jnp.tanh(p[ids]).sum(1) ** 2
    ids = jnp.array([[1, 5, 3, 8, 8], [1, 3, 3, 0, 0]])
    letters = [5, 3, 8]
    wanted = by_hand(lambda ids: text(words, ids)[:, 2], ids, letters)
    wanted[np.asarray(ids) < 2] = 0
    traces = []

    def counted(p, ids):
        traces.append(ids.shape)
        return text(p, ids)

    explain = lambda ids, **options: jv.in_silico_mutagenesis(
        counted, words, ids, 2, alphabet=letters, **options
    )
    found = explain(ids)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(explain(ids, chunk_size=3), wanted, atol=1e-4)
    first = len(traces)
    assert first <= 2  # not one a substitution
    np.testing.assert_allclose(explain(ids[::-1]), wanted[::-1], atol=1e-4)
    assert len(traces) == first


def test_errors_say_what_to_do():
    explain = jv.in_silico_mutagenesis
    with pytest.raises(ValueError, match=r"^in_silico_mutagenesis: alphabet must be the ids"):
        explain(lambda p, x: x.astype(float).sum(1, keepdims=True), None, IDS)
    with pytest.raises(ValueError, match=r"alphabet must be None for one-hot"):
        explain(net, PARAMS, X, alphabet=range(4))
    with pytest.raises(ValueError, match=r"each once"):
        explain(lambda p, x: x.astype(float).sum(1, keepdims=True), None, IDS, alphabet=[1, 1])
    with pytest.raises(ValueError, match=r"x must be ids \[N, L\] or one-hot"):
        explain(lambda p, x: x, None, jnp.ones((2, 4)))
