"""Scans over layers: the same net with its turns written by hand is the oracle."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import jaxviz as jv

L, C = 3, 4
KEYS = jax.random.split(jax.random.key(0), 8)
X = jax.random.normal(KEYS[0], (2, 6, 6, C))
W = {
    "blocks": {
        "kernel": jax.random.normal(KEYS[1], (L, 3, 3, C, C)) / 3,
        "bias": jax.random.normal(KEYS[2], (L, C)) / 3,
    },
    "head": jax.random.normal(KEYS[3], (C, 3)),
}


def conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def block(h, w):
    return h + jax.nn.relu(conv(h, w["kernel"]) + w["bias"][None, None, None])


def one(stack, i):
    return jax.tree.map(lambda a: a[i], stack)


def written_out(w, x, *, order=range(L)):
    for i in order:
        x = block(x, one(w["blocks"], i))
    return x.mean((1, 2)) @ w["head"]


def scan(w, x, step, **options):
    h, _ = jax.lax.scan(step, x, w["blocks"], **options)
    return h.mean((1, 2)) @ w["head"]


def rematerialised(w, x):
    return scan(w, x, lambda h, p: (jax.checkpoint(block)(h, p), None))


def by_index(w, x):
    step = lambda i, h: block(h, one(w["blocks"], i))
    return jax.lax.fori_loop(0, L, step, x).mean((1, 2)) @ w["head"]


def carrying_more(w, x):
    step = lambda c, p: ({"h": block(c["h"], p), "seen": c["seen"] + 1}, c["h"].mean((1, 2)))
    last, _ = jax.lax.scan(step, {"h": x, "seen": jnp.int32(0)}, w["blocks"], unroll=2)
    return last["h"].mean((1, 2)) @ w["head"]


def closed_over(w, x):
    return scan({**W, "head": w["head"]}, x, lambda h, p: (block(h, p), None))


SCANS = {
    "plain": lambda w, x: scan(w, x, lambda h, p: (block(h, p), None)),
    "remat": rematerialised,
    "by index": by_index,
    "carrying more": carrying_more,
    "params closed over": closed_over,
}


KINDS = ("conv", "relu", "add")


@pytest.mark.parametrize("kind", SCANS)
def test_turns_are_layers_of_the_net_written_out(kind):
    net = SCANS[kind]
    listed = lambda net: [layer for layer in jv.layers(net, W, X) if layer.kind in KINDS]
    found, plain = listed(net), listed(written_out)
    assert [(a.kind, a.shape, a.flops, a.can_cut) for a in found] == [
        (b.kind, b.shape, b.flops, True) for b in plain
    ]
    assert [a.name for a in found][:4] == [
        *("scan_0[0]/conv_0", "scan_0[0]/relu_0", "scan_0[0]/add_0", "scan_0[1]/conv_0")
    ]
    if kind != "params closed over":
        assert [a.num_params for a in found if a.kind == "conv"] == [9 * C * C + C] * L

    head, tail = jv.split(net, W, X, "scan_0[1]/relu_0")
    a, carry = head(W, X)
    want = jax.nn.relu(conv(h := block(X, one(W["blocks"], 0)), W["blocks"]["kernel"][1])
                       + W["blocks"]["bias"][1][None, None, None])  # fmt: skip
    chex.assert_trees_all_close(a, want, rtol=1e-5, atol=1e-6)
    after = lambda a: block(h + a, one(W["blocks"], 2)).mean((1, 2)) @ W["head"]
    chex.assert_trees_all_close(tail((W, carry), a), after(want), rtol=1e-5, atol=1e-6)
    got = jv.gradient(tail, (W, carry), a, 1)
    slope = jax.grad(lambda a: after(a)[:, 1].sum())(want)
    chex.assert_trees_all_close(got, slope, rtol=1e-4, atol=1e-6)


def test_methods_that_name_a_layer_take_a_turn():
    net, numbered = SCANS["plain"], "scan_0[1]/relu_0"
    for method in (jv.grad_cam, jv.layer_cam):
        got = method(net, W, X, 1, layer=numbered)
        chex.assert_trees_all_close(got, method(written_out, W, X, 1, layer="relu_1"), rtol=1e-4)
    objective = jv.objectives.channel("scan_0[2]/conv_0", 1)
    plain = jv.objectives.channel("conv_2", 1)
    climb = lambda net, what: jv.maximize_activation(
        net, W, (6, 6, C), what, key=KEYS[4], num_steps=2, transforms=()
    )
    chex.assert_trees_all_close(climb(net, objective), climb(written_out, plain), rtol=1e-3)
    kernel = jv.filters(net, W, X, "scan_0[2]/conv_0")
    chex.assert_trees_all_equal(kernel, W["blocks"]["kernel"][2])


def test_a_stack_is_read_by_the_name_without_numbers():
    got = jv.activations(SCANS["plain"], W, X, ["scan_0/add_0", "scan_0[1]/add_0"])
    h, want = X, []
    for i in range(L):
        h = block(h, one(W["blocks"], i))
        want.append(h)
    chex.assert_trees_all_close(got["scan_0/add_0"], jnp.stack(want, 1), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(got["scan_0[1]/add_0"], want[1], rtol=1e-5, atol=1e-6)


def test_a_scan_from_the_last_layer_has_the_numbers_of_the_params():
    net = lambda w, x: scan(w, x, lambda h, p: (block(h, p), None), reverse=True)
    names = [layer.name for layer in jv.layers(net, W, X)]
    assert names[:4] == [
        "scan_0[2]/conv_0",
        "scan_0[2]/relu_0",
        "scan_0[2]/add_0",
        "scan_0[1]/conv_0",
    ]
    got = jv.activations(net, W, X, ["scan_0[2]/add_0"])["scan_0[2]/add_0"]
    chex.assert_trees_all_close(got, block(X, one(W["blocks"], 2)), rtol=1e-5, atol=1e-6)


def test_scans_inside_one_another():
    stack = jax.random.normal(KEYS[5], (2, L, C, C)) / 2
    inner = lambda h, rows: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, rows)
    net = lambda w, x: jax.lax.scan(inner, x, w)[0]
    x = X[:, 0, 0]
    got = jv.activations(net, stack, x, ["scan_0/scan_0/tanh_0", "scan_0[1]/scan_0[2]/tanh_0"])
    h, want = x, []
    for w in stack.reshape(-1, C, C):
        h = jnp.tanh(h @ w)
        want.append(h)
    want = jnp.stack(want, 1).reshape(2, 2, L, C)
    chex.assert_trees_all_close(got["scan_0/scan_0/tanh_0"], want, rtol=1e-5)
    chex.assert_trees_all_close(got["scan_0[1]/scan_0[2]/tanh_0"], want[:, 1, 2], rtol=1e-5)


def test_a_rule_may_be_for_one_turn_or_for_all():
    net = SCANS["plain"]
    twice = lambda op: lambda x: 2 * op.evaluate(x)

    def by_hand(turns):
        h = X
        for i in range(L):
            w = one(W["blocks"], i)
            h = h + (1 + (i in turns)) * (block(h, w) - h)
        return h.mean((1, 2)) @ W["head"]

    for name, turns in (("scan_0[1]/relu_0", (1,)), ("scan_0/relu_0", (0, 1, 2))):
        got = jv.rewrite(net, jv.RuleSet("twice", {name: twice}))(W, X)
        chex.assert_trees_all_close(got, by_hand(turns), rtol=1e-4, atol=1e-5)


def test_explanations_of_whole_nets_are_those_of_the_net_written_out():
    net = SCANS["plain"]
    for method in (jv.gradient, jv.lrp, jv.deep_lift, jv.guided_backprop):
        got, want = method(net, W, X, 1), method(written_out, W, X, 1)
        chex.assert_trees_all_close(got, want, rtol=1e-3, atol=1e-5)
    chex.assert_trees_all_close(
        jv.grad_cam(net, W, X, 1), jv.grad_cam(written_out, W, X, 1), rtol=1e-4, atol=1e-5
    )


class Block(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        h = h + nn.MultiHeadDotProductAttention(2, name="attn")(nn.LayerNorm(name="norm")(h))
        return h + nn.Dense(C, name="mlp")(nn.gelu(nn.Dense(8, name="wide")(h))), None


class Tower(nn.Module):
    remat: bool

    @nn.compact
    def __call__(self, x):
        part = nn.remat(Block) if self.remat else Block
        stack = nn.scan(part, variable_axes={"params": 0}, split_rngs={"params": True}, length=L)
        x, _ = stack(name="blocks")(x, None)
        return nn.Dense(3, name="head")(x.mean(1))


@pytest.mark.parametrize("remat", [False, True])
def test_a_linen_tower_has_the_paths_of_its_modules(remat):
    net, x = Tower(remat), X[:, 0]
    params = jax.jit(net.init)(KEYS[6], x)
    found = {layer.name: layer for layer in jv.layers(net.apply, params, x)}
    assert {f"blocks[{i}]{part}" for i in range(L) for part in ("", "/attn", "/mlp")} <= set(found)
    assert found["blocks[1]/mlp"].num_params == 8 * C + C
    inside = params["params"]["blocks"]
    count = sum(a[0].size for a in jax.tree.leaves(inside))
    assert found["blocks[1]"].num_params == count
    h, run = x, jax.jit(lambda block, h: Block().apply({"params": block}, h, None))
    for i in range(L):
        h, _ = run(one(inside, i), h)
        got = jv.activations(net.apply, params, x, [f"blocks[{i}]"])[f"blocks[{i}]"]
        chex.assert_trees_all_close(got, h, rtol=1e-4, atol=1e-5)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(C, C, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.linear(x)) + x


class Stack(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.vmap(Layer, in_axes=0)(rngs.split(L))
        self.head = nnx.Linear(C, 2, rngs=rngs)

    def __call__(self, x):
        run = nnx.scan(lambda x, b: b(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.head(run(x, self.blocks))


def test_an_nnx_tower_has_the_paths_of_its_modules():
    module, x = Stack(nnx.Rngs(0)), X[:, 0, 0]
    apply_fn, params = jv.from_nnx(module)
    names = [layer.name for layer in jv.layers(apply_fn, params, x)]
    assert [f"blocks[{i}]/linear" for i in range(L)] == [n for n in names if "linear" in n]
    kernel, bias = np.asarray(module.blocks.linear.kernel[...]), module.blocks.linear.bias[...]
    got = jv.activations(apply_fn, params, x, ["blocks[0]/linear"])["blocks[0]/linear"]
    chex.assert_trees_all_close(got, x @ kernel[0] + bias[0][None], rtol=1e-5)


def test_loops_over_time_stay_loops():
    w = {"into": jnp.ones((C, C)) / 9, "own": jnp.ones((C, C)) / 9}
    rows = lambda x: x[:, 0].swapaxes(0, 1)
    step = lambda h, row: (jnp.tanh(row @ w["into"] + h @ w["own"]), None)
    recurrent = lambda w, x: jax.lax.scan(step, jnp.zeros((2, C)), rows(x))[0]
    steps = jnp.linspace(0.0, 1.0, 5)
    solver = lambda w, x: jax.lax.scan(
        lambda h, t: (h - t * (h @ w["own"]), None), rows(x)[0], steps
    )[0]
    at = lambda w, x: jax.lax.fori_loop(
        0, 6, lambda i, h: jnp.tanh(rows(x)[i] @ w["into"] + h), jnp.zeros((2, C))
    )
    for net in (recurrent, solver, at):
        assert not [layer.name for layer in jv.layers(net, w, X) if "[" in layer.name]
    long = lambda w, x: jax.lax.fori_loop(0, 500, lambda i, h: jnp.tanh(h @ w["own"]), rows(x)[0])
    assert not [layer.name for layer in jv.layers(long, w, X) if "[" in layer.name]
    with pytest.raises(ValueError, match="split: layer 'scan_0/tanh_0' is inside a loop"):
        jv.split(long, w, X, "scan_0/tanh_0")
    with pytest.raises(ValueError, match=r"split: no layer 'scan_0\[3\]/tanh_0', for .*in a loop"):
        jv.split(long, w, X, "scan_0[3]/tanh_0")


def test_the_same_params_over_and_over_are_turns_too():
    w = W["blocks"]["kernel"][0]
    net = lambda w, x: jax.lax.scan(lambda h, _: (jax.nn.relu(conv(h, w)), None), x, None, 3)[0]
    found = [layer for layer in jv.layers(net, w, X) if layer.kind == "conv"]
    assert [(a.name, a.num_params) for a in found] == [
        (f"scan_0[{i}]/conv_0", 9 * C * C) for i in range(3)
    ]
    got = jv.activations(net, w, X, ["scan_0/relu_0"])["scan_0/relu_0"]
    h = X
    for i in range(3):
        h = jax.nn.relu(conv(h, w))
        chex.assert_trees_all_close(got[:, i], h, rtol=1e-5, atol=1e-6)


def test_an_equinox_tower_has_the_paths_of_its_modules():
    eqx = pytest.importorskip("equinox")

    class Tower(eqx.Module):
        blocks: eqx.nn.Linear

        def __call__(self, x):
            arrays, static = eqx.partition(self.blocks, eqx.is_array)
            step = lambda h, part: (jax.nn.relu(eqx.combine(part, static)(h)), None)
            return jax.lax.scan(step, x, arrays)[0]

    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(C, C, key=key))
    tower = Tower(make(jax.random.split(KEYS[7], L)))
    apply_fn, params = jv.from_equinox(tower)
    x = X[:, 0, 0]
    names = [layer.name for layer in jv.layers(apply_fn, params, x) if layer.kind == "dense"]
    assert names == [f"blocks[{i}]" for i in range(L)]
    got = jv.activations(apply_fn, params, x, ["blocks[0]"])["blocks[0]"]
    want = x @ tower.blocks.weight[0].T + tower.blocks.bias[0][None]
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
