"""A model is computed where its outputs read it, and nowhere else: the same numbers, fewer sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.graph.flops import call_flops
from jaxviz.graph.trace import model
from jaxviz.rules import unread
from jaxviz.rules.fast import serving
from jaxviz.rules.unread import read_only

DRAW = np.random.default_rng(0)
W = {k: jnp.asarray(DRAW.normal(size=(4, 4)) / 2, jnp.float32) for k in "qkvoud"}
X = jnp.asarray(DRAW.normal(size=(2, 6, 4)), jnp.float32)

GRID = lambda a: a.reshape(2, 2, 3, 4)


@pytest.fixture(autouse=True)
def at_any_size(monkeypatch):
    monkeypatch.setattr(unread, "_COMPILED", 0.0)


def block(w, x, act=jax.nn.gelu, causal=False):
    """Two heads, the norms by hand."""
    norm = lambda x: (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1)
    q, k, v = ((norm(x) @ w[n]).reshape(*x.shape[:2], 2, 2) for n in "qkv")
    scores = jnp.einsum("nqhd,nkhd->nhqk", q, k)
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones((x.shape[1],) * 2, bool)), scores, -jnp.inf)
    z = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), v)
    x = x + z.reshape(x.shape) @ w["o"]
    return x + act(norm(x) @ w["u"]) @ w["d"]


def by_head(w, x):
    """Written with transposes, a head's matrix at a time, and one product for all three."""
    qkv = (x @ jnp.concatenate([w["q"], w["k"], w["v"]], 1)).reshape(2, 6, 3, 2, 2)
    q, k, v = jnp.moveaxis(qkv, 2, 0).swapaxes(2, 3)
    z = jax.nn.softmax(q @ k.swapaxes(-1, -2), -1) @ v
    return x + z.swapaxes(1, 2).reshape(2, 6, 4) @ w["o"]


def stacked(w, x, reverse=False):
    """Three blocks of one kind, in a scan."""
    stack = {k: jnp.stack([a, -a, 0.5 * a]) for k, a in w.items()}
    step = lambda x, w: (
        x + x.mean(1, keepdims=True) @ w["k"] + jax.nn.gelu(x @ w["q"]) @ w["v"],
        None,
    )
    return jax.lax.scan(step, x, stack, reverse=reverse)[0]


READ = {
    "scan": lambda w, x: stacked(w, x)[:, 0],
    "scan back": lambda w, x: stacked(w, x, reverse=True)[:, -1],
    "a scan of one block": lambda w, x: jax.lax.scan(
        lambda c, _: (
            (c[0] + jnp.tanh(c[0].sum(1, keepdims=True) + c[0]) @ w["q"], c[1] + 1),
            None,
        ),
        (x, 0),
        None,
        length=3,
    )[0][0][:, 2],
    "a scan whose turns are kept": lambda w, x: (lambda last, all_: last[:, 0] + all_.sum(0)[:, 0])(
        *jax.lax.scan(lambda x, w: (x @ w, x), x, jnp.stack([w["q"], w["k"]]))
    ),
    "first": lambda w, x: block(w, x)[:, 0] @ w["q"],
    "last": lambda w, x: block(w, x, causal=True)[:, -1] @ w["q"],
    "relu6": lambda w, x: block(w, x, jax.nn.relu6)[:, 0],
    "remat": lambda w, x: jax.checkpoint(lambda x: jax.nn.silu(x @ w["q"]) @ w["k"])(x)[:, 0],
    "heads": lambda w, x: by_head(w, x)[:, 2] @ w["u"] @ w["d"],
    "taken": lambda w, x: jnp.take(jnp.tanh(x @ w["q"]), 3, axis=1),
    "taken out": lambda w, x: jnp.take(jnp.tanh(x @ w["q"]), jnp.array([4]), axis=1)[:, 0],
    "indexed": lambda w, x: jax.lax.dynamic_index_in_dim(x @ w["q"], 2, 1, keepdims=False),
    "vmapped": lambda w, x: jax.vmap(lambda x: jax.nn.relu(x @ w["q"])[0])(x),
    "class token": lambda w, x: block(
        w, jnp.concatenate([jnp.broadcast_to(w["q"][:1], (2, 1, 4)), x], 1)
    )[:, 0],
    "concatenated": lambda w, x: jnp.concatenate([x @ w["q"], x @ w["k"]], 1)[:, 7] @ w["u"],
    "an empty part": lambda w, x: jnp.concatenate(
        [jnp.concatenate([x, 2 * x], 1)[:, :0], (x @ w["q"])[:, 1:2]], 1
    )[:, 0],
    "a straddling part": lambda w, x: jnp.concatenate([x @ w["q"], x @ w["k"]], 1)[:, 5:8].sum(1),
    "running sum": lambda w, x: jnp.cumsum(x @ w["q"], 2)[:, 1],
    "running sum over tokens": lambda w, x: (jnp.cumsum(x @ w["q"], 1) @ w["k"])[:, 1:3],
    "largest from the end": lambda w, x: (jax.lax.cummax(x @ w["q"], 1, reverse=True) @ w["k"])[
        :, 2
    ],
    "largest": lambda w, x: jnp.max(x @ w["q"], 2)[:, 1:3],
    "squared": lambda w, x: ((x @ w["q"]) * (x @ w["q"]))[:, 3],
    "both sides": lambda w, x: (lambda y: (y @ y.swapaxes(1, 2))[:, 0])(x @ w["q"]),
    "strided": lambda w, x: (x @ w["q"])[:, ::3].reshape(2, 8),
    "two places": lambda w, x: (lambda y: y[:, 1] + y[:, 4])(x @ w["q"]),
    "rows": lambda w, x: (x.reshape(12, 4) @ w["q"]).reshape(2, 6, 4)[:, 0],
    "a dtype between": lambda w, x: (x.astype(jnp.bfloat16) @ w["q"].astype(jnp.bfloat16))[
        :, 0
    ].astype(jnp.float32),
}


def both(net, target=None):
    model(net, W, X)  # as what checks a call does
    return net, read_only(net, W, X, target)


@pytest.fixture(scope="module")
def slopes():
    """Values and gradients of all, with and without: one program for each."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(unread, "_COMPILED", 0.0)
        pairs = {name: both(net) for name, net in READ.items()}

        def all_of(which):
            weighed = lambda y: y * jnp.linspace(-1, 1, y.size).reshape(y.shape)
            score = lambda f: lambda x: weighed(f(W, x)).sum()
            return lambda x: {
                name: jax.value_and_grad(score(pair[which]))(x) for name, pair in pairs.items()
            }

        return [jax.jit(all_of(which))(X) for which in (0, 1)]


@pytest.mark.parametrize("name", READ)
def test_the_numbers_and_the_derivatives_are_the_models(name, slopes):
    wanted, found = (each[name] for each in slopes)
    close = 0.1 if name == "a dtype between" else 2e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, close, close), found, wanted)


WHOLE = {
    "strided",
    "rows",
    "taken out",
    "a scan whose turns are kept",
}  # places that are no interval, or not known beforehand


@pytest.mark.parametrize("name", sorted(READ))
def test_less_is_computed(name):
    net, read = both(READ[name])
    assert (read is net) == (name in WHOLE)
    if read is not net:
        assert call_flops(read, W, X) < 0.97 * call_flops(net, W, X)


def test_of_the_last_block_keys_and_values_alone_are_for_all_tokens():
    """One head of width 4, six tokens, counted by hand: products only."""
    bare = lambda w, x: (
        jnp.einsum("nqk,nkd->nqd", jnp.einsum("nqd,nkd->nqk", x @ w["q"], x @ w["k"]), x @ w["v"])
        @ w["o"]
    )[:, 0]
    _, read = both(bare)
    one = 2 * 2  # a sum of products, two examples
    for_all = one * 6 * 4 * 4
    keys_and_values, query_and_output = 2 * for_all, 2 * for_all // 6
    scores_and_mix = 2 * one * 6 * 4
    assert call_flops(read, W, X) == keys_and_values + query_and_output + scores_and_mix


def test_a_target_that_reads_one_token_spares_the_others_logits():
    lm = lambda w, x: jnp.tanh(x @ w["q"]) @ w["k"]
    target = lambda logits: logits[:, -1, 2] - logits[:, -1, 0]
    net, read = both(lm, target)
    assert read is not net
    assert read_only(lm, W, X) is net
    assert call_flops(read, W, X) < 0.3 * call_flops(net, W, X)
    wanted = jax.jit(jax.grad(lambda x: target(net(W, x)).sum()))(X)
    np.testing.assert_allclose(jv.gradient(lm, W, X, target), wanted, atol=2e-6)


def test_a_target_that_reads_none_of_an_output():
    both_ = lambda w, x: {"logits": x @ w["q"] @ w["k"], "features": x @ w["v"]}
    target = lambda outputs: outputs["features"][:, 0, 1]
    net, read = both(both_, target)
    assert read is not net
    assert not np.any(read(W, X)["logits"])
    assert read(W, X)["logits"].shape == (2, 6, 4)
    np.testing.assert_allclose(target(read(W, X)), target(net(W, X)), atol=1e-6)


def test_lrp_and_deep_lift_are_those_of_the_whole_model(monkeypatch):
    nets = [lambda w, x: block(w, x, jax.nn.relu)[:, 0] for _ in range(2)]
    explain = lambda net: (jv.lrp(net, W, X, 1, rules="attn_lrp"), jv.deep_lift(net, W, X, 1))
    found = explain(nets[0])
    monkeypatch.setattr(unread, "_COMPILED", np.inf)
    for a, b in zip(found, explain(nets[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()) + 1e-6)


def test_deep_lift_leaves_scans_as_they_are():
    net = lambda w, x: stacked(w, x)[:, 0]
    found = jv.deep_lift(net, W, X, 1)
    assert read_only(net, W, X, turns=False) is net
    gap = (net(W, X) - net(W, 0 * X))[:, 1]
    np.testing.assert_allclose(found.sum((1, 2)), gap, atol=1e-5)


def test_a_derivative_of_its_own_that_may_mix_places_sees_all_of_them():
    @jax.custom_vjp
    def normed(x):
        return x

    normed.defvjp(lambda x: (x, x), lambda x, g: (g / jnp.linalg.norm(x),))
    net = lambda w, x: normed(x @ w["q"])[:, 0]
    _, read = both(net)
    slope = lambda f: jax.grad(lambda x: f(W, x).sum())(X)
    np.testing.assert_allclose(slope(read), slope(net), atol=1e-6)


def test_infinite_and_undefined_numbers_elsewhere_do_not_reach_what_is_read():
    """Nor do they in the model: its rows do not mix."""
    net = lambda w, x: (jax.nn.relu(x @ w["q"]) @ w["k"])[:, 0]
    x = X.at[:, 3].set(jnp.nan).at[:, 4].set(jnp.inf)
    _, read = both(net)
    np.testing.assert_allclose(read(W, x), net(W, x), atol=1e-6)
    np.testing.assert_allclose(jv.gradient(net, W, x, 0)[:, 0], jv.gradient(net, W, X, 0)[:, 0])


def test_what_reads_all_stays_as_it_is():
    for net in (lambda w, x: block(w, x).mean(1), lambda w, x: block(w, x)):
        model(net, W, X)
        assert read_only(net, W, X) is net


def test_values_that_are_no_arrays_have_no_places():
    def net(w, x):
        jax.lax.after_all(jax.lax.create_token(0.0))
        return (jnp.tanh(x @ w["q"]) @ w["k"])[:, 0]

    _, read = both(net)
    np.testing.assert_allclose(read(W, X), net(W, X), atol=1e-6)
    found = jv.gradient(net, W, X, 1)
    np.testing.assert_allclose(found, jax.grad(lambda x: net(W, x)[:, 1].sum())(X), atol=1e-6)


def test_small_nets_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(unread, "_COMPILED", 0.011)
    net, read = both(READ["first"])
    assert read is net


def shaped(n):
    """A net whose unread products are of 256 x 256 weights, five of them and an activation."""
    net = lambda w, x: (jnp.tanh(x @ w) @ w @ w @ w @ w @ w)[:, 0]
    w, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((256, 256), (n, 256, 256)))
    model(net, w, x)
    return net, w, x


def test_a_first_look_does_not_wait_for_what_many_passes_or_examples_repay(monkeypatch):
    """Six products of 255 tokens are not read, 2.0e8 operations: 5 ms a call, and seven operations
    of new shapes, 0.077 s where one takes 0.011."""
    monkeypatch.setattr(unread, "_COMPILED", 0.011)
    monkeypatch.setattr(unread, "_CALLS", 10)
    net, w, x = shaped(1)
    assert read_only(net, w, x) is net
    with serving(2):
        assert read_only(net, w, x) is not net
    net, w, x = shaped(2)
    assert read_only(net, w, x) is not net


def test_what_does_not_repay_its_compilation_is_computed_whole(monkeypatch):
    """A product of all tokens ahead of twenty cheap operations, then one of fewer operations."""

    def net(w, x):
        x = x @ w["q"]
        for _ in range(20):
            x = jnp.tanh(x)
        return (x @ w["u"] @ w["d"])[:, 0]

    model(net, W, X)
    monkeypatch.setattr(unread, "_COMPILED", 1.0)
    monkeypatch.setattr(unread, "_SAVED", 1 / (2 * 2 * 5 * 4 * W["u"].shape[1]))  # of one product
    monkeypatch.setattr(unread, "_CALLS", 2)
    read = read_only(net, W, X)
    np.testing.assert_allclose(read(W, X), net(W, X), atol=1e-6)
    shapes = [v.aval.shape for e in jax.make_jaxpr(read)(W, X).eqns for v in e.outvars
              if e.primitive.name in ("tanh", "dot_general")]  # fmt: skip
    assert [s[1] for s in shapes] == [6] * 21 + [1, 1]
    slope = lambda f: jax.grad(lambda x: f(W, x).sum())(X)
    np.testing.assert_allclose(slope(read), slope(net), atol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        functools.partial(jv.grad_cam, reshape=GRID, resize=False),
        functools.partial(jv.recipro_cam, reshape=GRID, resize=False),
        functools.partial(jv.layer_conductance, num_steps=2),
    ],
)
def test_the_rest_behind_a_layer_is_read_in_part_the_first_time(monkeypatch, method):
    def flops():
        net = lambda w, x: block(w, jnp.tanh(x))[:, 0] @ w["q"]  # never traced before
        return call_flops(lambda w, x: method(net, w, x, 0, layer="tanh_0"), W, X)

    found = flops()
    monkeypatch.setattr(unread, "_COMPILED", float("inf"))
    assert found < 0.9 * flops()
