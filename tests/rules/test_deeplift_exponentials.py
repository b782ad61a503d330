"""DeepLIFT of softmaxes behind masks, over segments, with sinks, divided late: as of plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

KEEP, IDS = jnp.array([True, True, False, True, True]), jnp.array([0, 0, 1, 1, 1])
SINK = 0.3


def by_where(x):
    return jax.nn.softmax(x, where=KEEP)


def by_factor(x):
    e = jnp.exp(x - x.max(-1, keepdims=True)) * KEEP.astype(x.dtype)[None]
    return e / e.sum(-1, keepdims=True)


def of_kept(x):
    s = jax.nn.softmax(x[:, KEEP])
    return jnp.zeros_like(x).at[:, KEEP].set(s)


def over_segments(x):
    def one(x):
        top = jax.ops.segment_max(x, IDS, 2)[IDS]
        e = jnp.exp(x - jax.lax.stop_gradient(top))
        return e / (jax.ops.segment_sum(e, IDS, 2)[IDS])

    return jax.vmap(one)(x)


def of_each_segment(x):
    return jnp.concatenate([jax.nn.softmax(x[:, :2]), jax.nn.softmax(x[:, 2:])], 1)


def with_sink(x):
    top = jnp.maximum(x.max(-1, keepdims=True), SINK)
    e = jnp.exp(x - top)
    return e * (1 / (e.sum(-1, keepdims=True) + jnp.exp(SINK - top)))


def with_column(x):
    column = jnp.full((len(x), 1), SINK, x.dtype)
    return jax.nn.softmax(jnp.concatenate([x, column], 1))[:, :-1]


def logarithm_where(x):
    return jnp.where(KEEP, jax.nn.log_softmax(x, where=KEEP), 0)


def logarithm_of_kept(x):
    s = jax.nn.log_softmax(x[:, KEEP])
    return jnp.zeros_like(x).at[:, KEEP].set(s)


def from_log_sum(x):
    kept = jnp.where(KEEP, x, -jnp.inf)
    return jnp.where(KEEP, jnp.exp(x - jax.nn.logsumexp(kept, 1, keepdims=True)), 0)


def from_weighted_log_sum(x):
    total = jax.nn.logsumexp(x, 1, b=KEEP.astype(x.dtype)[None])
    return jnp.where(KEEP, jnp.exp(x - total[:, None]), 0)


def from_segments(x):
    def one(x):
        top = jax.ops.segment_max(x, IDS, 2)
        e = jnp.exp(x - jax.lax.stop_gradient(top)[IDS])
        return jnp.exp(x - (jnp.log(jax.ops.segment_sum(e, IDS, 2)) + top)[IDS])

    return jax.vmap(one)(x)


def softmaxes_first(x):
    return jnp.broadcast_to(jax.nn.softmax(x)[:, :1], x.shape)


def of_two(x):
    s = jax.nn.softmax(x[:, :2])
    return jnp.concatenate([s[:, :1], s[:, :1], 0 * x[:, 2:]], 1)


def by_hand_of_two(x):
    a, b = x[:, :1], x[:, 1:2]
    top = jnp.maximum(a, b)
    s = jnp.exp(a - top) / (jnp.exp(a - top) + jnp.exp(b - top))
    return jnp.concatenate([s, s, 0 * x[:, 2:]], 1)


def from_logaddexp(x):
    s = jnp.exp(x[:, :1] - jnp.logaddexp(x[:, :1], x[:, 1:2]))
    return jnp.concatenate([s, s, 0 * x[:, 2:]], 1)


def from_a_list(x):
    top = x.max(1)
    e = [jnp.exp(x[:, i] - top) for i in range(x.shape[1])]
    return jnp.broadcast_to((e[0] / sum(e))[:, None], x.shape)


def against_others(x):  # one positive among negatives
    e = jnp.exp(x - x.max(1, keepdims=True))
    s = e[:, 0] / (e[:, 0] + e[:, 1:].sum(1))
    return jnp.broadcast_to(s[:, None], x.shape)


def two_arrays(x):
    top = x.max(1, keepdims=True)
    one, others = jnp.exp(x[:, :1] - top), jnp.exp(x[:, 1:] - top)
    return jnp.broadcast_to(one / (one + others.sum(1, keepdims=True)), x.shape)


def over_a_part(x):
    s = jnp.exp(x - jax.nn.logsumexp(x[:, :2], 1, keepdims=True))
    return jnp.concatenate([s[:, :1], s[:, :1], 0 * x[:, 2:]], 1)


def some_over_all(x):
    s = jnp.exp(x[:, :2] - jax.nn.logsumexp(x, 1, keepdims=True))
    return jnp.broadcast_to(s[:, :1], x.shape)


SAME = {
    "of two": (by_hand_of_two, of_two),
    "logaddexp": (from_logaddexp, of_two),
    "a list": (from_a_list, softmaxes_first),
    "against others": (against_others, softmaxes_first),
    "two arrays": (two_arrays, softmaxes_first),
    "from a part's log-sum-exp": (over_a_part, of_two),
    "from the whole's log-sum-exp": (some_over_all, softmaxes_first),
    "from a log-sum-exp": (from_log_sum, of_kept),
    "from a weighted log-sum-exp": (from_weighted_log_sum, of_kept),
    "from segments": (from_segments, of_each_segment),
    "where": (by_where, of_kept),
    "factor": (by_factor, of_kept),
    "segments": (over_segments, of_each_segment),
    "sink": (with_sink, with_column),
    "logarithm": (logarithm_where, logarithm_of_kept),
    "graph attention": (
        lambda x: over_segments(jax.nn.leaky_relu(x, 0.2)),
        lambda x: of_each_segment(jax.nn.leaky_relu(x, 0.2)),
    ),
}


def drawn(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def logits():
    """Near each other, far from each other, far from the baseline; x and baseline."""
    rows, starts = drawn(3, 5), drawn(3, 5, seed=1)
    x = jnp.concatenate([rows * s for s in (1e-3, 1.0, 20.0)] + [rows + 1e4])
    return x, jnp.concatenate([starts * s for s in (1e-3, 1.0, 20.0)] + [rows])


@pytest.mark.parametrize(
    ("name", "rule"), list(zip(SAME, ("rescale", "reveal_cancel") * len(SAME), strict=False))
)
def test_shares_are_those_of_the_plain_softmax(name, rule):
    x, x0 = logits()
    if name == "factor":  # what is masked must not be so far above that all others vanish
        x, x0 = x[:6], x0[:6]
    if name.startswith("from"):  # the net itself rounds its logits less a sum as large
        x, x0 = x[:9], x0[:9]
    found, plain = (
        jv.deep_lift(lambda _, x, f=f: f(x)[:, 1:2], None, x, 0, baseline=x0, rule=rule)
        for f in SAME[name]
    )
    np.testing.assert_allclose(found, plain, rtol=2e-4, atol=1e-7 * np.abs(plain).max())
    assert np.abs(plain).max() > 0.1


def weights(i):
    return drawn(4, 4, seed=7 + i)


def attention(normal, late=False):
    def f(_, x):
        q, k, v = (x @ weights(i) for i in range(3))
        z = jnp.einsum("nqd,nkd->nqk", q, k)
        if late:
            return (normal(z, v)).sum(1)
        return (normal(z) @ v).sum(1)

    return f


def late(z, v):
    e = jnp.exp(z - z.max(-1, keepdims=True))
    return (e @ v) / e.sum(-1, keepdims=True)


def tiny_in_the_sum(z):
    e = jnp.exp(z - z.max(-1, keepdims=True))
    return e / (e.sum(-1, keepdims=True) + 1e-3)


def one_in_the_sum(z):
    e = jnp.exp(z)
    return e / (1 + e.sum(-1, keepdims=True))


def clipped_sum(z):
    e = jnp.exp(z - z.max(-1, keepdims=True))
    return e / jnp.clip(e.sum(-1, keepdims=True), 1e-9)


def causal(z):
    return jax.nn.softmax(z, where=jnp.tril(jnp.ones(z.shape[1:], bool)))


def wrong_axis(z):  # divided by sums that are not of their own rows
    e = jnp.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1)[:, None, :]


def banded(z):  # each by the sum of its neighbours, in base 2
    e = jnp.exp2(z - z.max(-1, keepdims=True))
    window = jnp.convolve
    return e / jax.vmap(jax.vmap(lambda a: window(a, jnp.ones(3, a.dtype), "same")))(e)


def pooled(z):
    return z - jax.nn.logsumexp(z, -1, b=jnp.array([[[1.0, 0.5, 2.0, 1.0, 0.1]]]), keepdims=True)


NETS = {
    "causal": attention(causal),
    "late": attention(late, late=True),
    "tiny in the sum": attention(tiny_in_the_sum),
    "one in the sum": attention(one_in_the_sum),
    "clipped sum": attention(clipped_sum),
    "wrong axis": attention(wrong_axis),
    "banded": attention(banded),
    "weighted log-sum-exp": attention(pooled),
}


@pytest.mark.parametrize(
    ("name", "rule"), list(zip(NETS, ("reveal_cancel", "rescale") * len(NETS), strict=False))
)
def test_complete_at_any_distance(name, rule):
    f, x, start = NETS[name], drawn(2, 5, 4, seed=3), drawn(2, 5, 4, seed=4)
    bare = name in ("one in the sum", "banded", "wrong axis")  # overflows, or divides by nothing
    # Near the baseline, far from it, and where all but the largest vanish.
    cases = ((1e-4, 1.0), (1.0, 0.0), (1.0, 1.0), (1.0 if bare else 30.0, 0.0))
    x = jnp.concatenate([scale * x for scale, _ in cases])
    start = jnp.concatenate([scale * b * start for scale, b in cases])
    found = jv.deep_lift(f, None, x, 0, baseline=start, rule=rule)
    one, other = (np.asarray(f(None, a), np.float64)[:, 0] for a in (x, start))
    size = np.abs(one) + np.abs(other) + 0.1 * np.abs(found).sum((1, 2))
    gap = np.abs(np.asarray(found, np.float64).sum((1, 2)) - (one - other))
    assert (gap <= 3e-6 * size).all(), gap / size
    near = slice(0, 6)  # beyond, shares of a softmax may be as large as its logits
    assert (size <= 10 * (np.abs(one) + np.abs(other)))[near].all()


@pytest.mark.parametrize("rule", ["rescale", "reveal_cancel"])
def test_masked_log_sum_exp_at_any_size(rule):
    """What is masked too: its logarithm is its logit less the log-sum-exp of the others."""
    x = jnp.concatenate([scale * drawn(2, 5) for scale in (1.0, 1e2, 1e4, 1e8, 1e25)])

    def f(_, x):
        z = x @ drawn(5, 5, seed=1)
        z = z - jax.nn.logsumexp(jnp.where(KEEP, z, -jnp.inf), 1, keepdims=True)
        return jnp.concatenate([jnp.where(KEEP, jnp.exp(z), 0), z], 1)

    target = jnp.repeat(jnp.array([1, 7]), len(x))  # one that is in the sum, and one that is not
    x = jnp.tile(x, (2, 1))
    found = jv.deep_lift(f, None, x, target, rule=rule)
    gained = (f(None, x) - f(None, jnp.zeros_like(x)))[jnp.arange(len(x)), target]
    np.testing.assert_allclose(found.sum(1), gained, rtol=3e-6, atol=1e-6)
    assert (np.abs(found).max(1) < 10)[target == 1].all()


def test_reveal_cancel_of_an_exponential_far_above_both_ends():
    """exp(90 - 90) = exp(0): one part alone is e^90, so rounding would be all that is left."""
    f = lambda _, x: jnp.exp(x.sum(1, keepdims=True))
    x = jnp.array([[90.0, -91.0], [1.0, -2.0]])
    found = jv.deep_lift(f, None, x, 0, rule="reveal_cancel")
    np.testing.assert_allclose(found.sum(1), np.exp(-1.0) - 1, rtol=1e-5)
    np.testing.assert_allclose(found[0], (1 - np.exp(-1.0)) * x[0], rtol=1e-5)  # as Rescale
    up = (np.e - 1 + np.exp(-1) - np.exp(-2)) / 2  # as RevealCancel, by hand
    np.testing.assert_allclose(found[1, 0], up, rtol=1e-6)


def test_attention_far_from_its_baseline_has_shares_of_its_scores_size():
    """A row whose logits all fall by 1e8 and more: what is common to them has no share."""
    x = jnp.concatenate([scale * drawn(2, 5, 4, seed=3) for scale in (1.0, 1e4, 1e8)])
    found = np.asarray(jv.deep_lift(NETS["causal"], None, x, 0), np.float64).sum((2,))
    gained = np.asarray(NETS["causal"](None, x), np.float64)[:, 0]  # nothing at zeros
    np.testing.assert_allclose(found.sum(1), gained, rtol=1e-4)
    assert (np.abs(found).max(1) < 100 * np.abs(gained)).all()
