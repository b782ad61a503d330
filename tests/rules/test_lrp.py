"""LRP: rules against a slow definition and against peers, conservation, refusals, tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_nets import NETS, close, conv, double, max_pool, net, stored

import jaxviz as jv
from jaxviz import rules
from jaxviz.attribution.propagation import concept_relevance, lrp
from jaxviz.rules import lrp_composites
from jaxviz.rules.lrp_composites import composite


def every(rule, **options):
    """One rule in all convolutions and dense layers."""
    return composite("every", {"conv": rule, "dense": rule}, **options)


LRP_0 = lrp_composites.epsilon(1e-30)
ZENNITS = {"stabilizer": 1e-6}  # what zennit adds to every denominator unless told otherwise
SINGLE = {
    "epsilon": rules.lrp.epsilon(0.1),
    "gamma": rules.lrp.gamma(0.3, **ZENNITS),
    "zplus": rules.lrp.z_plus(**ZENNITS),
    "alpha2_beta1": rules.lrp.alpha_beta(2, 1, **ZENNITS),
    "wsquare_no_bias": rules.lrp.w_square(**ZENNITS),
    "flat": rules.lrp.flat(**ZENNITS),
}
PLUS = rules.epsilon_plus(1e-6, **ZENNITS)
ALPHA_BETA = rules.epsilon_alpha2_beta1(1e-6, **ZENNITS)
COMPOSITES = {
    "epsilon_plus": PLUS,
    "epsilon_plus_flat": rules.with_flat(PLUS, **ZENNITS),
    "epsilon_alpha2_beta1": ALPHA_BETA,
    "epsilon_alpha2_beta1_flat": rules.with_flat(ALPHA_BETA, **ZENNITS),
    "epsilon_gamma_box": rules.epsilon_gamma_box(-3.0, 4.0, epsilon=1e-6, **ZENNITS),
}


# Each rule alone on the plain net, and in a composite where there are skips and batch norms.
ZENNIT = [
    *(("plain", case) for case in SINGLE),
    ("residual", "epsilon_plus"),
    ("residual", "epsilon_alpha2_beta1_flat"),
    ("residual", "epsilon_gamma_box"),
    ("late_norm", "epsilon_plus_flat"),
    ("late_norm", "epsilon_alpha2_beta1"),
]


@pytest.mark.parametrize(("name", "case"), ZENNIT)
def test_rules_agree_with_zennit(name, case):  # zennit 0.5.1
    table = COMPOSITES.get(case) or every(SINGLE[case], **ZENNITS)
    with net(name) as (f, params, x, target):
        close(lrp(f, params, x, target, rules=table), f"{name}/zennit_{case}")


@pytest.mark.parametrize("name", NETS)
def test_epsilon_agrees_with_captum(name):  # Captum 0.9.0; undamped, so that folding makes no odds
    with net(name) as (f, params, x, target):
        close(lrp(f, params, x, target, rules=LRP_0), f"{name}/captum_epsilon")


@pytest.mark.parametrize("case", ["epsilon_025", "gamma_no_bias", "zplus_no_bias"])
def test_rules_agree_with_captum_on_positive_inputs_and_scores(case):
    rule = {
        "epsilon_025": rules.lrp.epsilon(0.25),
        "gamma_no_bias": rules.lrp.gamma(0.25, bias=False, stabilizer=1e-9),
        "zplus_no_bias": rules.lrp.z_plus(bias=False, stabilizer=1e-9),
    }[case]
    with net("plain") as (f, params, x, target):
        out = lrp(f, params, jnp.abs(x), target, rules=every(rule, stabilizer=1e-30))
    expected = stored()[f"plain/abs_captum_{case}"]
    assert stored()["plain/abs_logits"][0, 0] > 0
    np.testing.assert_allclose(out[0], expected[0], rtol=0, atol=1e-12)


def test_where_peers_and_papers_part():
    """Each peer's number is the formula that the paper does not have; ours is the paper's."""
    w = np.array([[2.0, -1.0], [1.0, 3.0], [-4.0, 0.5]])  # [in, out]
    b = np.array([0.3, -0.2])
    x = np.array([[1.0, -2.0, 0.5]])
    f = lambda p, x: x @ p["w"] + p["b"][None]
    with double():
        params = {"w": jnp.asarray(w), "b": jnp.asarray(b)}
        out = lambda rule, k: lrp(f, params, jnp.asarray(x), k, rules=every(rule))[0]
        z = (x @ w + b)[0]
        # Bach et al., eq. 60: contributions by sign. Captum's rule takes the weights by sign only,
        # so its share of a negative input through a positive weight is negative.
        for k in (0, 1):
            positive = np.maximum(x[0] * w[:, k], 0)
            share = positive / (positive.sum() + max(b[k], 0)) * z[k]
            np.testing.assert_allclose(out(rules.lrp.z_plus(), k), share, rtol=1e-5)
        # Montavon et al., section 10.2.2, for z < 0 by the symmetric formula: Captum enlarges the
        # positive weights there too.
        k = int(np.argmin(z))
        assert z[k] < 0
        c = x[0] * w[:, k]
        enlarged = c + 0.25 * np.minimum(c, 0)
        share = enlarged / (enlarged.sum() + b[k] + 0.25 * min(b[k], 0)) * z[k]
        np.testing.assert_allclose(out(rules.lrp.gamma(0.25), k), share, rtol=1e-5)
        # DTD, section IV-C: squares of weights alone. zennit adds that of the bias.
        share = w[:, 0] ** 2 / (w[:, 0] ** 2).sum() * z[0]
        np.testing.assert_allclose(out(rules.lrp.w_square(), 0), share, rtol=1e-6)
    peer, ours = (stored()[f"plain/zennit_wsquare{s}"] for s in ("", "_no_bias"))
    assert np.abs(peer.sum((1, 2, 3)) - ours.sum((1, 2, 3))).max() > 0.01


def slow(name, x, w, b, r):
    """One dense layer's rule, term by term, from the papers."""
    out = np.zeros_like(x)
    for n in range(x.shape[0]):
        for j in range(w.shape[1]):
            c, z = x[n] * w[:, j], float(x[n] @ w[:, j] + b[j])
            up, down = np.maximum(c, 0), np.minimum(c, 0)
            bias_up, bias_down = max(b[j], 0), min(b[j], 0)
            if name == "epsilon":
                share = c / z
            elif name == "gamma" and z > 0:
                share = (c + 0.25 * up) / ((c + 0.25 * up).sum() + b[j] + 0.25 * bias_up)
            elif name == "gamma":
                share = (c + 0.25 * down) / ((c + 0.25 * down).sum() + b[j] + 0.25 * bias_down)
            elif name == "alpha_beta":
                share = 3 * up / (up.sum() + bias_up) - 2 * down / (down.sum() + bias_down)
            elif name == "z_box":
                box = c - np.maximum(w[:, j], 0) * -3.0 - np.minimum(w[:, j], 0) * 3.0
                share = box / box.sum()
            elif name == "w_square":
                share = w[:, j] ** 2 / (w[:, j] ** 2).sum()
            else:
                share = np.full_like(c, 1 / len(c))
            out[n] += share * r[n, j]
    return out


TINY = {"stabilizer": 1e-30}
RULES = {
    "epsilon": rules.lrp.epsilon(1e-30),
    "gamma": rules.lrp.gamma(0.25, **TINY),
    "alpha_beta": rules.lrp.alpha_beta(3, 2, **TINY),
    "z_box": rules.lrp.z_box(-3.0, 3.0, **TINY),
    "w_square": rules.lrp.w_square(**TINY),
    "flat": rules.lrp.flat(**TINY),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("norm", ["none", "scale", "divide", "reversed"])
def test_a_rule_is_its_definition_with_batch_norm_folded_in(name, norm):
    rng = np.random.default_rng(3)
    # Enough inputs for contributions of either sign to every output.
    x, w, b = rng.normal(size=(3, 12)), rng.normal(size=(12, 4)), rng.normal(size=4)
    s = rng.uniform(0.5, 2, 4) * np.array([1, -1, 1, -1])
    chains = {
        "none": (lambda z, s: z, w, b),
        "scale": (lambda z, s: (z - 0.3) * s + 0.1, w * s, (b - 0.3) * s + 0.1),
        "divide": (lambda z, s: z / s - s, w / s, b / s - s),
        "reversed": (lambda z, s: (s - z) * s, -w * s, (s - b) * s),
    }
    chain, w_folded, b_folded = chains[norm]
    with double():
        p = {"w": jnp.asarray(w), "b": jnp.asarray(b), "s": jnp.asarray(s)}
        f = lambda p, x: chain(x @ p["w"] + p["b"][None], p["s"][None])
        # All outputs have relevance: the explained number is their sum.
        out = lrp(f, p, jnp.asarray(x), lambda o: o.sum(1), rules=every(RULES[name]))
        r = np.asarray(f(p, jnp.asarray(x)))
    np.testing.assert_allclose(out, slow(name, x, w_folded, b_folded, r), rtol=1e-9, atol=1e-9)


def test_two_spellings_of_one_net_have_one_explanation_because_batch_norm_is_folded():
    """A dense layer c times as large before a batch norm that takes c out again: the same function.

    Equation 58 of Bach et al. damps the z that the nonlinearity sees, which is the norm's output;
    so batch norm is fused with the layer (Guillemot et al. 2020, arXiv:2002.11018). Captum
    damps the layer's own output, in whatever units that is: its rule tells the spellings apart.
    """
    rng = np.random.default_rng(4)
    w, s, m = rng.normal(size=(5, 3)), rng.uniform(0.5, 2, 3), rng.normal(size=3)
    damped = rules.lrp.epsilon(0.25)
    alone = {"dense": damped, **dict.fromkeys(("batch_norm", "affine"), rules.lrp.epsilon(1e-30))}

    def explained(c, folded):
        f = lambda p, x: (x @ p["w"] - p["m"][None]) * p["s"][None]
        p = {"w": jnp.asarray(c * w), "m": jnp.asarray(c * m), "s": jnp.asarray(s / c)}
        table = dataclasses.replace(composite("t", alone, stabilizer=1e-30), folded=folded)
        return np.asarray(lrp(f, p, jnp.asarray(x), 1, rules=table))

    with double():
        x = rng.normal(size=(2, 5))
        ours = [explained(c, True) for c in (1, 10)]
        captum = [explained(c, False) for c in (1, 10)]
    z = (x @ w - m)[:, 1] * s[1]
    expected = x * (w * s)[:, 1] * (z / (z + 0.25 * np.sign(z)))[:, None]
    np.testing.assert_allclose(ours, [expected, expected], rtol=1e-12)
    layer = (x @ w)[:, 1]
    expected = x * (w * s)[:, 1] * (layer / (layer + 0.25 * np.sign(layer)))[:, None]
    np.testing.assert_allclose(captum[0], expected, rtol=1e-12)
    assert np.abs(captum[0] - captum[1]).max() > 0.1 * np.abs(captum[0]).max()


# Without a damping epsilon and with ReLUs and winners only, LRP is gradient times input exactly
# (Ancona et al. 2018, proposition 1); so any net of this kind is its own oracle.
def concatenating(w, x):
    a = jax.nn.relu(x @ w[0])
    b = jnp.concatenate([a[:, 2:], jnp.pad(a, ((0, 0), (1, 0)))[:, :3], -a[:, ::-1]], axis=1)
    return jax.nn.relu(b @ w[1]) @ w[2]


def moving_axes(w, x):
    a = jax.nn.relu(x.reshape(-1, 2, 3).transpose(0, 2, 1) @ w[3])  # [N, 3, 4]
    a = a[:, jnp.array([2, 0, 0])].max(2).cumsum(1)
    return jnp.squeeze(jnp.repeat(a, 2, axis=1)[:, :, None], 2) @ w[4]


def scanned(w, x):
    def layer(h, kernel):
        return h + jax.nn.relu(h @ kernel), None

    return jax.lax.scan(layer, x @ w[0], w[5])[0] @ w[6]


def branching(w, x):
    h = jax.checkpoint(lambda h: jax.nn.relu(h @ w[0]))(x)
    h = jax.lax.cond(w[0].sum() > 0, jax.nn.relu, lambda h: jnp.maximum(h, -h), h)
    return jnp.where(jnp.arange(4)[None] > 1, h, 2 * h) @ w[6]


def drawn():
    rng = np.random.default_rng(5)
    shapes = [(6, 4), (9, 5), (5, 3), (2, 4), (6, 3), (3, 4, 4), (4, 3)]
    w = [jnp.asarray(rng.normal(size=s)) for s in shapes]
    return w, jnp.asarray(rng.normal(size=(4, 6)))


@pytest.mark.parametrize("f", [concatenating, moving_axes, scanned, branching])
def test_lrp_0_is_gradient_times_input(f):
    with double():
        w, x = drawn()
        out = lrp(f, w, x, 1, rules=LRP_0)
        np.testing.assert_allclose(out, jv.input_x_gradient(f, w, x, 1), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(out.sum(1), f(w, x)[:, 1], rtol=1e-8)


def without_biases(params):
    keep = {"kernel", "scale", "var"}
    cut = lambda name, value: value if name in keep else jnp.zeros_like(value)
    return {k: {n: cut(n, v) for n, v in layer.items()} for k, layer in params.items()}


# Rules by sign lose the relevance of an output that has no contribution of that sign: behind the
# ReLUs of a plain net there is none, before a residual sum there may be.
@pytest.mark.parametrize(("name", "table"), [("plain", "epsilon_plus"), ("residual", "gamma")])
def test_relevance_is_conserved_at_every_layer_without_biases(name, table):
    table = every(rules.lrp.gamma()) if table == "gamma" else table
    with net(name) as (f, params, x, target):
        params = without_biases(params)
        score = np.asarray(f(params, x))[np.arange(2), target]
        total = lrp(f, params, x, target, rules=table).sum((1, 2, 3))
        np.testing.assert_allclose(total, score, rtol=1e-4)
        layers = {"plain": ["max_pool_0", "relu_1"], "residual": ["relu_2"]}
        for layer in layers[name]:  # nothing goes around these
            head, tail = jv.split(f, params, x, layer)
            a, carry = head(params, x)
            assert not carry
            total = lrp(tail, (params, carry), a, target, rules=table)
            np.testing.assert_allclose(total.reshape(2, -1).sum(1), score, rtol=1e-4)


@pytest.mark.parametrize(
    "table", ["epsilon", "epsilon_alpha2_beta1_flat", "excitation_backprop", "gamma"]
)
def test_each_table_conserves_relevance_without_biases(table):
    rng = np.random.default_rng(7)
    table = every(rules.lrp.gamma()) if table == "gamma" else table
    with double():
        shapes = (3, 3, 2, 4), (16, 5), (5, 3)
        w = [jnp.asarray(rng.normal(size=s)) for s in shapes]
        x = jnp.asarray(rng.normal(size=(2, 4, 4, 2)))

        def f(w, x):
            h = max_pool(jax.nn.relu(conv({"kernel": w[0]}, x)))
            return jax.nn.relu(h.reshape(2, -1) @ w[1]) @ w[2]

        total = lrp(f, w, x, 1, rules=table).sum((1, 2, 3))
        np.testing.assert_allclose(total, f(w, x)[:, 1], rtol=1e-4)


def test_what_biases_take_is_what_is_missing():
    """One layer: the bias's share is b R / (z + eps), and none with bias=False."""
    w, b, x = np.array([[2.0], [1.0]]), np.array([1.0]), np.array([[1.0, 3.0]])
    f = lambda p, x: x @ p[0] + p[1][None]
    with double():
        p = (jnp.asarray(w), jnp.asarray(b))
        total = lambda rule: float(lrp(f, p, jnp.asarray(x), 0, rules=every(rule)).sum())
        for make in (rules.lrp.epsilon, rules.lrp.gamma, rules.lrp.z_plus):
            assert total(make(bias=False)) == pytest.approx(6.0, rel=1e-5)
        assert total(rules.lrp.epsilon()) == pytest.approx(5.0, rel=1e-5)


def test_products_quotients_and_heads_by_hand():
    with double():
        x = jnp.asarray([[2.0, 3.0, -1.0]])
        rel = lambda f, **k: lrp(lambda _, x: f(x), None, x, 0, **k)[0].tolist()
        gate = lambda x: x[:, :1] * jax.nn.sigmoid(x[:, 1:2])
        score = float(gate(x)[0, 0])
        assert rel(gate) == pytest.approx([score / 2, score / 2, 0], rel=1e-6)
        attention = lambda x: jnp.einsum("ni,ni->n", x[:, :1], x[:, 1:2])[:, None]
        assert rel(attention) == pytest.approx([3.0, 3.0, 0], rel=1e-5)
        assert rel(lambda x: x[:, :1] / x[:, 1:2]) == pytest.approx([2 / 3, 0, 0], rel=1e-5)
        square = lambda x: (x * x)[:, 1:2]
        assert rel(square) == pytest.approx([0, 9.0, 0], rel=1e-5)
        # Softmax shares by gradient times input: x_i p_0 ([i = 0] - p_i).
        p = np.exp([2.0, 3.0, -1.0])
        p = p / p.sum()
        expected = np.array([2.0, 3.0, -1.0]) * p[0] * (np.array([1.0, 0, 0]) - p)
        assert rel(jax.nn.softmax) == pytest.approx(expected.tolist(), rel=1e-4)
        # A sigmoid head passes on; layer norm does.
        assert rel(lambda x: jax.nn.sigmoid(x[:, :1])) == pytest.approx(
            [float(jax.nn.sigmoid(2.0)), 0, 0], rel=1e-6
        )


def strange(w, x):
    h = jax.nn.relu(x @ w)
    return jnp.arctan2(h, 1 + h)  # here


def test_an_unknown_operation_is_refused_by_name_and_line():
    w, x = jnp.eye(4), jnp.ones((1, 4))
    with pytest.raises(NotImplementedError, match=r"epsilon_plus: .*'atan2'.*test_lrp\.py:\d+"):
        lrp(strange, w, x, 0)
    # Falls back to its own gradient times input where asked for.
    odd = lambda w, x: jax.lax.rem(x @ w, jnp.full((1, 1), 1.5))
    with pytest.raises(NotImplementedError, match="'rem'"):
        lrp(odd, w, x, 0)
    out = lrp(odd, w, 2 * x, 0, rules={"default": rules.lrp.epsilon()})
    np.testing.assert_allclose(out, jv.input_x_gradient(odd, w, 2 * x, 0), rtol=1e-4)


def test_tables_reach_layers_by_name_position_and_kind():
    flax = pytest.importorskip("flax.linen")

    class Net(flax.Module):
        @flax.compact
        def __call__(self, x):
            x = flax.relu(flax.Dense(5, name="a")(x))
            x = flax.relu(flax.Dense(4, name="b")(x))
            return flax.Dense(3, name="c")(x)

    x = jax.random.normal(jax.random.key(1), (2, 6))
    params = Net().init(jax.random.key(0), x)
    f = Net().apply
    lrp = lambda *args, **options: jax.eval_shape(lambda: jv.lrp(*args, **options))
    seen = []

    def spy(op):
        seen.append(op.name)
        return rules.lrp.epsilon()(op)

    lrp(f, params, x, 0, rules={"first": spy})
    assert set(seen) == {"a"}
    seen.clear()
    lrp(f, params, x, 0, rules={"b": spy, "first": rules.lrp.flat()})
    assert set(seen) == {"b"}
    seen.clear()
    head, tail = jv.split(f, params, x, "a")
    a, carry = head(params, x)
    lrp(tail, (params, carry), a, 0, rules={"first": spy, "c": spy})
    assert set(seen) == {"c"}  # the tail's first layer is not the net's
    assert rules.lrp.gamma(0.25) is rules.lrp.gamma(0.25)
    assert rules.epsilon_gamma_box(-1, 1) == rules.epsilon_gamma_box(-1.0, 1.0)


def test_errors_say_what_would_work():
    f, x = lambda w, x: x @ w, jnp.ones((1, 4))
    with pytest.raises(ValueError, match=r"lrp: rules must be one of attn_lrp, .*got 'gama'"):
        lrp(f, jnp.eye(4), x, 0, rules="gama")
    with pytest.raises(ValueError, match=r"pass rules\.epsilon_gamma_box\(low, high\)"):
        lrp(f, jnp.eye(4), x, 0, rules="epsilon_gamma_box")
    with pytest.raises(ValueError, match="alpha - beta = 1"):
        rules.lrp.alpha_beta(1, 1)
    with pytest.raises(ValueError, match="low must not be above high"):
        rules.lrp.z_box(1.0, [0.0, 2.0])
    with pytest.raises(NotImplementedError, match=r"gamma: needs a convolution or dense layer"):
        lrp(lambda w, x: x.sum(1, keepdims=True), None, x, 0, rules={"sum": rules.lrp.gamma()})


def test_channels_of_a_layer_add_up():
    with net("plain") as (f, params, x, target):
        whole = lrp(f, params, x, target)
        part = lambda k: concept_relevance(f, params, x, target, layer="relu_1", channel=k)
        parts = jax.vmap(part)(jnp.arange(8))
        np.testing.assert_allclose(parts.sum(0), whole, rtol=1e-9, atol=1e-12)
        own = part(jnp.array([2, 5]))
        np.testing.assert_allclose(own, jnp.stack([parts[2, 0], parts[5, 1]]), atol=1e-14)
    # Of a skip around the layer nothing passes through the channels.
    f = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1] + x @ w[1]
    w, x = (jnp.eye(2), jnp.array([[2.0], [3.0]])), jnp.array([[1.0, 4.0]])
    part = lambda k: concept_relevance(f, w, x, 0, layer="relu_0", channel=k, rules="epsilon")
    np.testing.assert_allclose(jax.vmap(part)(jnp.arange(2))[:, 0], [[2, 0], [0, 12]], rtol=1e-5)
    np.testing.assert_allclose(lrp(f, w, x, 0, rules="epsilon"), [[4, 24]], rtol=1e-5)
