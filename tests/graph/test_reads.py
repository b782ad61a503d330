"""Which layer reads which parameters, in the order of the computation, whatever the model."""

import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn, nnx

import jaxviz as jv
from jaxviz.graph.held import hold
from jaxviz.graph.reads import Part, readers
from jaxviz.graph.trace import trace

X = jnp.ones((2, 4))


def found(apply_fn, params, x=X, last=False):
    """Names of layers and what they read, leaves by their paths."""
    apply_fn, params = hold("test", apply_fn, params)
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    told = {}
    for reader in readers(trace(apply_fn, params, x), last):
        names = [
            paths[part.leaf] + ("" if part.axis is None else f"[{part.index}]@{part.axis}")
            for part in reader.parts
        ]
        told[reader.name] = sorted(names)
    return told


class Twelve(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(12):
            x = nn.tanh(nn.Dense(4)(x))
        return x


def test_layers_are_in_the_order_of_the_computation_and_not_of_the_keys():
    net = Twelve()
    params = jax.jit(net.init)(jax.random.key(0), X)
    assert list(params["params"])[1:3] == ["Dense_1", "Dense_10"]  # a jitted init sorts them
    told = found(net.apply, params)
    assert list(told) == [f"Dense_{i}" for i in range(12)]
    assert told["Dense_10"] == ["params/Dense_10/bias", "params/Dense_10/kernel"]


def test_running_statistics_are_not_trained():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))
            return nn.Dense(2)(x)

    net = Net()
    told = found(net.apply, net.init(jax.random.key(0), X))
    assert list(told) == ["Dense_0", "BatchNorm_0", "Dense_1"]
    assert told["BatchNorm_0"] == ["params/BatchNorm_0/bias", "params/BatchNorm_0/scale"]


def test_a_layer_run_twice_is_one_layer():
    def net(w, x):
        x = jnp.tanh(x @ w["shared"])
        x = jnp.tanh(x @ w["own"])
        return x @ w["shared"]

    params = {"own": jnp.ones((4, 4)), "shared": jnp.ones((4, 4))}
    assert found(net, params) == {"dense_0": ["shared"], "dense_1": ["own"]}
    # From the top it is met first, from the bottom too.
    assert list(found(net, params, last=True).items()) == [
        ("dense_1", ["own"]),
        ("dense_2", ["shared"]),
    ]


def test_the_frameworks_agree():
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, name="b")(nn.relu(nn.Dense(3, name="z")(x)))

    class Module(nnx.Module):
        def __init__(self, rngs):
            self.b, self.z = nnx.Linear(3, 2, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.z(x)))

    linen = Linen()
    nets = [
        (linen.apply, linen.init(jax.random.key(0), X)),
        jv.from_nnx(Module(nnx.Rngs(0))),
        jv.from_equinox(
            eqx.nn.Sequential(
                [
                    eqx.nn.Linear(4, 3, key=jax.random.key(0)),
                    eqx.nn.Lambda(jax.nn.relu),
                    eqx.nn.Linear(3, 2, key=jax.random.key(1)),
                ]
            )
        ),
    ]
    for apply_fn, params in nets:
        told = found(apply_fn, params)
        assert [len(leaves) for leaves in told.values()] == [2, 2]
    assert list(found(*nets[0])) == list(found(*nets[1])) == ["z", "b"]


def stacked(w, x):
    def block(x, layer):
        return jnp.tanh(x @ layer["w"] + layer["b"][None]), None

    x, _ = jax.lax.scan(block, x, w["blocks"])
    return x @ w["head"]


STACK = {
    "blocks": {"b": jnp.zeros((3, 4)), "w": jnp.ones((3, 4, 4))},
    "head": jnp.ones((4, 2)),
}


def by_index(w, x):
    for i in range(3):
        x = jnp.tanh(x @ w["blocks"]["w"][i] + w["blocks"]["b"][i][None])
    return x @ w["head"]


def by_counter(w, x):
    step = lambda i, x: jnp.tanh(x @ w["blocks"]["w"][i] + w["blocks"]["b"][i][None])
    return jax.lax.fori_loop(0, 3, step, x) @ w["head"]


def turned(w, x):
    blocks = {"w": w["blocks"]["w"].T.astype(jnp.float32), "b": w["blocks"]["b"].T}
    layer = lambda i: {"w": blocks["w"][..., i].T, "b": blocks["b"][:, i]}
    for i in range(3):
        x = jnp.tanh(x @ layer(i)["w"] + layer(i)["b"][None])
    return x @ w["head"]


@pytest.mark.parametrize("net", [stacked, by_index, by_counter, turned], ids=lambda f: f.__name__)
def test_each_layer_of_a_stack_has_its_slice(net):
    told = found(net, STACK)
    assert list(told.values()) == [
        *([f"blocks/b[{i}]@0", f"blocks/w[{i}]@0"] for i in range(3)),
        ["head"],
    ]


def test_slices_and_the_whole_of_one_leaf_are_the_whole():
    net = lambda w, x: jnp.tanh(x @ w[0]) @ w[1] + w.sum()
    (reader,) = readers(trace(net, jnp.ones((2, 4, 4)), X))
    assert reader.parts == {Part(0)}


def test_a_loop_over_time_reads_inside():
    def net(w, x):
        def step(h, x):
            h = jnp.tanh(x @ w["in"] + h @ w["again"])
            return h, None

        h, _ = jax.lax.scan(step, jnp.zeros((2, 3)), jnp.moveaxis(x, 1, 0))
        return h @ w["out"]

    w = {"again": jnp.ones((3, 3)), "in": jnp.ones((4, 3)), "out": jnp.ones((3, 2))}
    told = found(net, w, jnp.ones((2, 5, 4)))
    assert sorted(functools.reduce(operator.iadd, told.values(), [])) == ["again", "in", "out"]
    assert list(told.values())[-1] == ["out"]


def test_branches_that_x_chooses():
    def net(w, x):
        chosen = jax.lax.cond(x.sum() > 0, lambda: w["a"], lambda: w["b"])
        return x @ chosen

    told = found(net, {"a": jnp.ones((4, 2)), "b": jnp.ones((4, 2)), "unread": jnp.ones(3)})
    assert sorted(functools.reduce(operator.iadd, told.values(), [])) == ["a", "b"]


def test_what_belongs_to_no_layer_has_the_name_of_its_leaf():
    told = found(lambda w, x: (x * w["scale"][None]).sum(1, keepdims=True), {"scale": jnp.ones(4)})
    assert told == {"scale": ["scale"]}


def test_tied_embedding_and_logits_of_token_ids():
    def net(w, ids):
        return jnp.tanh(w["table"][ids].mean(1) @ w["mix"]) @ w["table"].T

    w = {"table": jnp.ones((5, 3)), "mix": jnp.ones((3, 3))}
    ids = np.zeros((2, 4), np.int32)
    assert list(found(net, w, ids).values()) == [["table"], ["mix"]]
    assert list(found(net, w, ids, last=True).values()) == [["mix"], ["table"]]
