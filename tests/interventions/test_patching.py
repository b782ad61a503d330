"""Patching all parts of layers, exactly and to first order; oracle: the forward pass in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_transformer import BLOCKS, HEADS, IDS, OTHER, TOKENS, W, by_hand, difference, net

import jaxviz as jv

RUNS = []


def counted(w, ids):
    RUNS.append(1)
    return net(w, ids)


CLEAN, AT_X = by_hand(IDS)
THERE, AT_OTHER = by_hand(OTHER)
# From what is asked to the oracle's name of a layer, its turn left open, and the places.
ASKED = {
    "heads": ({"layers": None}, "scan_0[{}]/attention:heads", (HEADS,)),
    "positions": ({"layers": ["stream", "middle"]}, None, (TOKENS,)),
    "heads by queries": (
        {"layers": ["scan_0/attention:heads"], "axis": (1, 2)},
        "scan_0[{}]/attention:heads",
        (HEADS, TOKENS),
    ),
    "neurons": ({"layers": ["neurons[1]"], "axis": -1}, None, (24,)),
}


def layers_of(asked):
    _, name, _ = ASKED[asked]
    if name:
        return [name.format(i) for i in range(BLOCKS)]
    if asked == "neurons":
        return ["neurons[1]"]
    return [f"{name}[{i}]" for name in ("stream", "middle") for i in range(BLOCKS)]


def part(asked, places):
    return (slice(None), slice(None), *places) if asked == "neurons" else (slice(None), *places)


def edited(name, places, to, amount):
    def edit(at, a):
        if at != name:
            return a
        new = np.broadcast_to(to(at, a), a.shape)
        a = a.copy()
        a[places] += amount * (new[places] - a[places])
        return a

    return edit


def moved(asked, to, amount=1.0):
    """`[N, layers, *places]` by hand: the score with each part on its way to `to(name, a)`."""
    names, (*_, sizes) = layers_of(asked), ASKED[asked]
    scores = np.zeros((len(IDS), len(names), *sizes))
    for i, name in enumerate(names):
        for places in itertools.product(*map(range, sizes)):
            edit = edited(name, part(asked, places), to, amount)
            scores[:, i, *places] = difference(by_hand(IDS, edit)[0])
    return scores


def to_other(name, a):
    return AT_OTHER[name]


@pytest.mark.parametrize("asked", ASKED)
def test_every_part_is_replaced_as_by_hand(asked):
    options, *_ = ASKED[asked]
    found = jv.activation_patching(counted, W, IDS, OTHER, difference, **options)
    base = difference(CLEAN)
    rest = [1] * (found.effect.ndim - 1)
    expected = moved(asked, to_other) - base.reshape(-1, *rest)
    np.testing.assert_allclose(found.effect, expected, rtol=1e-4, atol=3e-5)
    gap = difference(THERE) - base
    np.testing.assert_allclose(found.gap, gap, rtol=1e-5, atol=1e-5)
    share = expected / gap.reshape(-1, *rest)
    np.testing.assert_allclose(found.share, share, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("asked", ASKED)
def test_the_first_order_is_the_slope_of_the_exact_one(asked):
    options, *_ = ASKED[asked]
    found = jv.attribution_patching(counted, W, IDS, OTHER, difference, **options)
    ends = [moved(asked, to_other, amount) for amount in (1e-5, -1e-5)]
    np.testing.assert_allclose(found.effect, (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=3e-5)
    np.testing.assert_allclose(found.gap, difference(THERE) - difference(CLEAN), rtol=1e-5)


@pytest.mark.parametrize("asked", ["heads", "neurons"])
def test_ablation_puts_zero_or_a_mean_there(asked):
    options, *_ = ASKED[asked]
    for reference, to in (
        (None, lambda name, a: 0.0),
        (OTHER, lambda name, a: AT_OTHER[name].mean(0)),
    ):
        found = jv.layer_ablation(counted, W, IDS, difference, reference=reference, **options)
        expected = difference(CLEAN)[:, None, None] - moved(asked, to)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=3e-5)


def test_nothing_is_traced_or_compiled_again_and_chunks_change_nothing(compiled):
    ask = lambda x, source, **more: jv.activation_patching(
        counted, W, x, source, difference, axis=(1, 2), **more
    )
    whole = ask(IDS, OTHER)
    before = len(compiled)
    ask(IDS[::-1].copy(), OTHER[::-1].copy())
    assert len(compiled) == before
    cut = ask(IDS, OTHER, chunk_size=3)
    np.testing.assert_allclose(cut.effect, whole.effect, rtol=1e-5, atol=1e-5)
    inside = jax.jit(lambda w: jv.activation_patching(counted, w, IDS, OTHER[:1], difference))(W)
    alone = jv.activation_patching(counted, W, IDS[:1], OTHER[:1], difference)
    np.testing.assert_allclose(inside.effect[:1], alone.effect, rtol=1e-5, atol=1e-5)
    assert sum(RUNS) <= 4  # shapes: of both, of one alone, and of each under the user's jit


def test_everything_from_the_source_is_the_source():
    read = lambda w, ids: net(w, ids)[:, -1]
    last = jv.activation_patching(read, W, IDS, OTHER, 1, layers=["stream[1]"])
    np.testing.assert_allclose(last.share[:, 0, -1], 1.0, rtol=1e-5)  # the last token's alone
    np.testing.assert_allclose(last.effect[:, 0, :-1], 0.0, atol=1e-6)
    # None explains the class that wins at x, in both runs.
    top = jv.activation_patching(read, W, IDS, OTHER, layers=["stream[1]"])
    best = CLEAN[:, -1].argmax(1)
    rows = np.arange(len(IDS))
    np.testing.assert_allclose(
        top.gap, THERE[rows, -1, best] - CLEAN[rows, -1, best], rtol=1e-4, atol=1e-5
    )


def test_images_have_channels_and_places():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 1, 4)), "float32")

    def convolved(w, x):
        dims = ("NHWC", "HWIO", "NHWC")
        a = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims)
        return jnp.tanh(a).mean((1, 2))

    draw = np.random.default_rng(1)
    x, source = (draw.normal(size=(2, 3, 3, 1)).astype(np.float32) for _ in range(2))
    a, b = (np.asarray(jv.activations(convolved, w, v, ["tanh_0"])["tanh_0"]) for v in (x, source))
    found = jv.activation_patching(convolved, w, x, source, 2, layers=["tanh_0"], axis=(1, 2))
    np.testing.assert_allclose(found.effect[:, 0], (b - a)[..., 2] / 9, rtol=1e-4, atol=1e-6)
    by_channel = jv.activation_patching(convolved, w, x, source, 2, layers=["tanh_0"], axis=3)
    expected = (b - a).mean((1, 2)) * (np.arange(4) == 2)
    np.testing.assert_allclose(by_channel.effect[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_errors_say_what_is_wrong():
    ask = lambda **options: jv.activation_patching(
        counted, W, IDS, options.pop("source", OTHER), difference, **options
    )
    with pytest.raises(ValueError, match=r"one size along axis 2; got 'stream\[0\]' \(2, 4, 8\), "):
        ask(layers=["stream[0]", "neurons[0]"], axis=2)
    with pytest.raises(ValueError, match=r"axis must be of the value of layer .* got \(1, 3\)"):
        ask(layers=["stream"], axis=(1, 3))
    with pytest.raises(ValueError, match="not the batch's 0; got 0"):
        ask(layers=["stream"], axis=0)
    with pytest.raises(ValueError, match=r"^activation_patching: source must be an input like x"):
        ask(source=OTHER[:, :2])
    with pytest.raises(ValueError, match=r"must have an attention"):
        jv.layer_ablation(lambda w, x: x @ w, jnp.eye(2), jnp.ones((1, 2)), 0)
    with pytest.raises(ValueError, match=r"no layer 'strem'"):
        jv.attribution_patching(counted, W, IDS, OTHER, difference, layers=["strem"])
