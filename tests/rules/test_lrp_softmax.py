"""LRP through softmaxes that are not divided at once, and through their logarithms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import jaxviz as jv
from jaxviz import rules

TAKING = rules.lrp.signal_takes_all()
TABLES = {"halves": "epsilon", "plus": "epsilon_plus", "signal": {"mul": TAKING, "matmul": TAKING}}


def drawn(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def relevance(f, x, target=0, table="epsilon"):
    return jv.lrp(lambda _, x: f(x), None, x, target, rules=table)


def unshifted(x):
    return jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)


def two_steps(x):
    shifted = x - x.max(-1, keepdims=True)
    return jnp.log(jnp.exp(shifted) / jnp.exp(shifted).sum(-1, keepdims=True))


def by_pairs(x):  # log(1 + ...) of the others
    most = x.max(-1, keepdims=True)
    others = jnp.exp(x - most).sum(-1, keepdims=True) - 1
    return x - (most + jnp.log1p(others))


LOGARITHMS = {
    "jax.nn": jax.nn.log_softmax,
    "of a softmax": lambda x: jnp.log(jax.nn.softmax(x)),
    "by hand": lambda x: jnp.log(unshifted(x)),
    "shifted by hand": two_steps,
    "less logsumexp": lambda x: x - jax.nn.logsumexp(x, -1, keepdims=True),
    "less the sum's": lambda x: x - jnp.log(jnp.exp(x).sum(-1, keepdims=True)),
    "log1p of the others": by_pairs,
    "log1p": lambda x: jnp.log1p(jax.nn.softmax(x) - 1),
    "log2": lambda x: jnp.log2(jax.nn.softmax(x)) * np.float32(np.log(2)),
    "named between": lambda x: jnp.log(checkpoint_name(jax.nn.softmax(x), "probabilities")),
    "read twice": lambda x: jnp.log(s := jax.nn.softmax(x)) + 0 * jax.lax.stop_gradient(s).sum(),
    "vmapped": lambda x: jnp.log(jax.vmap(jax.nn.softmax, 0, 1)(x)).T,
    "raised": lambda x: jnp.log(jax.nn.softmax(x) + 1e-9),
    "clipped": lambda x: jnp.log(jnp.clip(jax.nn.softmax(x), 1e-7, 1.0)),
    "over the first axis": lambda x: jnp.log(jax.nn.softmax(x.T, axis=0)).T,
}


@pytest.mark.parametrize("name", LOGARITHMS)
def test_a_logarithm_of_a_softmax_is_x_less_its_log_sum_exp_in_any_spelling(name):
    x = 2 * drawn(3, 5) + 1
    logits = np.asarray(x, np.float64)
    total = np.log(np.exp(logits).sum(1, keepdims=True))
    expected = -np.exp(logits - total) * total  # of the sum each has its part
    expected[:, 2] += logits[:, 2]
    found = relevance(LOGARITHMS[name], x, 2)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), (logits - total)[:, 2], rtol=1e-4)


def test_masked_and_picked_logarithms():
    x, keep = drawn(2, 4), jnp.array([True, True, False, True])
    masked = jnp.where(keep, x, -jnp.inf)
    for f in (jax.nn.log_softmax, lambda x: jnp.log(jax.nn.softmax(x))):
        found = relevance(lambda x, f=f: f(jnp.where(keep, x, -jnp.inf)), x, 1)
        assert np.isfinite(found).all()
        assert (found[:, 2] == 0).all()
        np.testing.assert_allclose(found.sum(1), jax.nn.log_softmax(masked)[:, 1], rtol=1e-4)


KEEP, IDS = jnp.array([True, True, False, True, True]), jnp.array([0, 0, 1, 1, 1])


def by_segments(z):
    def one(z):
        top = jax.ops.segment_max(z, IDS, 2)[IDS]
        return z - top - jnp.log(jax.ops.segment_sum(jnp.exp(z - top), IDS, 2)[IDS])

    return jax.vmap(one)(z)


def log_of_segments(z):
    def one(z):
        e = jnp.exp(z - jax.ops.segment_max(z, IDS, 2)[IDS])
        return jnp.log(e / jax.ops.segment_sum(e, IDS, 2)[IDS])

    return jax.vmap(one)(z)


def soft(z):
    return jax.nn.softmax(z, where=KEEP)


# Which logits are in the sum for number 1, and which of them are in the numerator.
PICKED = {
    "masked": (lambda z: jax.nn.log_softmax(z, where=KEEP)[:, 1:2], [0, 1, 3, 4], [1]),
    "of a masked one": (lambda z: jnp.log(soft(z)[:, 1:2] + 1e-12), [0, 1, 3, 4], [1]),
    "clipped": (lambda z: jnp.log(jnp.clip(soft(z), 1e-9, 1.0))[:, 1:2], [0, 1, 3, 4], [1]),
    "segments": (lambda z: by_segments(z)[:, 1:2], [0, 1], [1]),
    "of segments": (lambda z: log_of_segments(z)[:, 1:2], [0, 1], [1]),
    "picked": (lambda z: jnp.log(jax.nn.softmax(z)[:, 1:2]), range(5), [1]),
    "one hot": (
        lambda z: jnp.log(
            (jax.nn.softmax(z) * jax.nn.one_hot(jnp.array([1]), 5)).sum(1, keepdims=True)
        ),
        range(5),
        [1],
    ),
    "two of them": (
        lambda z: jnp.log(jax.nn.softmax(z)[:, :2].sum(1, keepdims=True)),
        range(5),
        [0, 1],
    ),
    "by hand": (
        lambda z: jnp.log(jnp.exp(z[:, 1:2]) / jnp.exp(z).sum(1, keepdims=True)),
        range(5),
        [1],
    ),
}


@pytest.mark.parametrize("name", PICKED)
def test_a_logarithm_of_probabilities_is_one_log_sum_exp_less_another(name):
    f, summed, picked = PICKED[name]
    z = 2 * drawn(3, 5) + 1
    logits = np.asarray(z, np.float64)
    e = np.exp(logits)
    total = np.log(e[:, list(summed)].sum(1, keepdims=True))
    p = e / np.exp(total)
    p[:, [i for i in range(5) if i not in summed]] = 0
    # Of the sum of the picked each has its part; of either log-sum-exp each exponent has its own.
    part = p[:, picked] / p[:, picked].sum(1, keepdims=True)
    whole = np.log(p[:, picked].sum(1, keepdims=True))
    ratio = part * whole / (logits[:, picked] - total)
    expected = -p * total * ratio.sum(1, keepdims=True)
    expected[:, picked] += logits[:, picked] * ratio
    found = relevance(f, z, 0)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found.sum(1), whole[:, 0], rtol=1e-4, atol=1e-5)


def test_weighted_log_sum_exp():
    z, b = drawn(3, 5), np.array([[1.0, 2.0, 0.0, 1.0, 0.5]])
    f = lambda z: jax.nn.logsumexp(z, -1, keepdims=True, b=jnp.asarray(b, z.dtype))
    e = b * np.exp(np.asarray(z, np.float64))
    total = e.sum(1, keepdims=True)
    np.testing.assert_allclose(relevance(f, z), e / total * np.log(total), rtol=1e-4, atol=1e-6)


def products(how):
    by_matrix = lambda e, v: e @ v
    return by_matrix if how == "matrix" else lambda e, v: (e[..., None] * v[:, None]).sum(2)


DIVIDED = {
    "quotient": lambda o, s: o / s,
    "reciprocal": lambda o, s: o * (1 / s),
    "power": lambda o, s: s**-1 * o,
}


@pytest.mark.parametrize(
    ("how", "table"), list(zip(("matrix", "sum", "matrix"), TABLES, strict=True))
)
def test_weights_divided_after_the_product_share_as_those_divided_before(how, table):
    w = [drawn(4, 4, seed=i) for i in range(3)]
    x, weigh = drawn(2, 5, 4, seed=5), products(how)
    logits = lambda x: jnp.einsum("nqd,nkd->nqk", x @ w[0], x @ w[1])
    first = lambda x: weigh(jax.nn.softmax(logits(x)), x @ w[2]).sum(1)
    expected = relevance(first, x, 1, TABLES[table])
    for shift in (True, False):
        for name, divide in DIVIDED.items():

            def after(x, shift=shift, divide=divide):
                z = logits(x)
                e = jnp.exp(z - z.max(-1, keepdims=True)) if shift else jnp.exp(z)
                return divide(weigh(e, x @ w[2]), e.sum(-1, keepdims=True)).sum(1)

            found = relevance(after, x, 1, TABLES[table])
            bound = 1e-5 * np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=name)


def test_weights_divided_after_the_product_by_hand():
    """Half to the values, and half of the softmax's gradient times input to the logits."""
    v, x = jnp.array([[3.0, -1.0, 2.0]]), jnp.array([[0.5, -0.3, 1.2]])

    def pooled(x, divided=True):
        e = jnp.exp(x - x.max(-1, keepdims=True))
        whole = (e * (x * v)).sum(-1, keepdims=True)
        return whole / e.sum(-1, keepdims=True) if divided else whole

    s, y = np.asarray(jax.nn.softmax(x)), np.asarray(x * v)
    out = (s * y).sum(1, keepdims=True)
    expected = s * y / 2 + s * (y - out) * np.asarray(x) / 2
    np.testing.assert_allclose(relevance(pooled, x), expected, rtol=1e-5)
    with pytest.raises(NotImplementedError, match=r"the exponential at .*test_lrp_softmax"):
        relevance(lambda x: pooled(x, divided=False), x)


ENTROPIES = {  # each p log p, of the same p: one function of the log softmax
    "of logarithms": lambda x, p, logs: jnp.exp(logs) * logs,
    "of probabilities": lambda x, p, logs: p * jnp.log(p),
    "of both": lambda x, p, logs: logs * p,
    "clipped": lambda x, p, logs: p * jnp.log(jnp.maximum(p, 1e-30)),
    "chosen": lambda x, p, logs: jnp.where(p > 0, p * jnp.log(p), 0),
    "divided": lambda x, p, logs: (lambda p: jnp.log(p) * p)(
        jnp.exp(x) / jnp.exp(x).sum(1)[:, None]
    ),
}


@pytest.mark.parametrize("name", ENTROPIES)
def test_an_entropy_conserves_in_any_spelling(name):
    def entropy(x):
        p, logs = jax.nn.softmax(x), jax.nn.log_softmax(x)
        return -ENTROPIES[name](x, p, logs).sum(1, keepdims=True)

    x = drawn(3, 5)
    p, logs = jax.nn.softmax(x), jax.nn.log_softmax(x)
    # By hand: p log p goes to log p = x - L, of which x has its part and L, by p, the rest.
    total = jax.nn.logsumexp(x, 1, keepdims=True)
    r = -p * logs
    expected = r * x / logs - p * (r * total / logs).sum(1, keepdims=True)
    np.testing.assert_allclose(relevance(entropy, x), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(expected.sum(1), entropy(x)[:, 0], rtol=1e-4)
