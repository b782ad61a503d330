"""DeepLIFT of softmax from logits of 1e-8 to 1e8, near the baseline and far from it."""

import decimal
import functools

import jax
import numpy as np
import pytest

import jaxviz as jv

RULES = ("rescale", "reveal_cancel")
ROWS = np.array(
    [
        [1.0, 0.5, -2.0, 0.0],
        [3.0, 3.0, 1.0, 2.0],
        [1.0, 1.0, 1.0, 0.999],
        [0.0, 0.0, 0.0, 0.0],
        [-1.0, 4.0, -3.0, 3.99],
    ]
)


@functools.cache
def ends():
    """Pairs of logits, and each pair's multipliers of softmax and of its logarithm."""
    pairs = []
    for scale in (1e-8, 1e-3, 1.0, 30.0, 1e4, 1e8):
        for turn in (1, 2):
            pairs += zip(scale * ROWS, scale * np.roll(ROWS, turn, 0), strict=True)
    for row in ROWS:  # near the baseline, and far from it by the same for each
        pairs += [(row * s, row * s * (1 + d)) for s in (1.0, 1e4, 1e8) for d in (1e-7, 1e-4)]
        pairs += [(row * s + 1e8, row * s) for s in (8.0, 32.0, 1e8)]
    pairs = np.array(pairs, np.float32)
    return pairs[:, 0], pairs[:, 1], [by_definition(*pair) for pair in pairs]


def by_definition(x, x0):
    """m_i (1[i = j] - m_j / sum m), by logarithmic means in 150 decimal digits; m_i and m_i = 1."""
    count = len(x)
    with decimal.localcontext(prec=150, Emin=-(10**17), Emax=10**17):
        logits = [[decimal.Decimal(float(v)) for v in a] for a in (x, x0)]
        exps = [[v.exp() for v in a] for a in logits]
        sums = [sum(e) for e in exps]
        whole = [total.ln() for total in sums]

        turned = lambda rows: zip(*rows, strict=True)

        def mean(values, logs):
            run = logs[0] - logs[1]
            near = abs(run) < decimal.Decimal("1e-70")
            return values[0] if near else (values[0] - values[1]) / run

        s = [[e / total for e in row] for row, total in zip(exps, sums, strict=True)]
        logs = [[v - at for v in row] for row, at in zip(logits, whole, strict=True)]
        m = [mean(*pair) for pair in zip(turned(s), turned(logs), strict=True)]
        rest = [[(i == j) - m[j] / sum(m) for j in range(count)] for i in range(count)]
        soft = [[float(m[i] * v) for v in rest[i]] for i in range(count)]
        return np.array(soft), np.array(rest, float)


@pytest.mark.parametrize(("rule", "logarithm"), list(zip(RULES, (False, True), strict=True)))
def test_every_share_at_every_scale_and_distance(rule, logarithm):
    x, x0, multipliers = ends()
    f = jax.nn.log_softmax if logarithm else jax.nn.softmax
    shares = lambda i: jv.deep_lift(lambda _, x: f(x), None, x, i, baseline=x0, rule=rule)
    found = np.stack([shares(i) for i in range(4)], 1)
    exact = np.stack([m[logarithm] for m in multipliers]) * (x - x0)[:, None, :]
    # Each share has its own digits; a weight of exp(-80) has lost those of its logarithm.
    bound = 5e-5 * np.abs(exact) + 1e-25
    worst = (np.abs(found - exact) / bound).argmax()
    i = worst // 16
    assert (np.abs(found - exact) <= bound).all(), (x[i], x0[i], found[i], exact[i])


def test_attention_of_large_logits_has_no_nan_whatever_xla_makes_twice():
    """From logits of 1e10 on, fused and rounded anew, none equalled its row's maximum."""

    def f(_, x):
        out = jax.nn.dot_product_attention(x, 0.7 * x, x)
        return out.reshape(len(x), -1, 4).mean(1)

    x = 1e6 * jax.random.normal(jax.random.key(6), (2, 5, 2, 2))
    shares = np.asarray(jv.deep_lift(f, None, x, 0))
    np.testing.assert_allclose(shares.sum((1, 2, 3)), f(None, x)[:, 0], rtol=1e-4)
