"""Names, kinds, shapes, parameters and FLOPs of layers, against hand counts and XLA."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from zoo import NETS, build

import jaxviz as jv
from jaxviz.graph.flops import call_flops


def names(net):
    return [layer.name for layer in jv.layers(*build(net))]


def test_nested_modules_have_their_paths():
    assert names("nested") == [
        "block1/Conv_0",
        "block1/BatchNorm_0",
        "block1/relu_0",
        "block1/max_pool_0",
        "block1",
        "block2/Conv_0",
        "block2/BatchNorm_0",
        "block2/relu_0",
        "block2/max_pool_0",
        "block2",
        "flatten_0",
        "Dropout_0",
        "out",
    ]


def test_kinds_and_shapes_of_a_nested_net():
    found = {layer.name: layer for layer in jv.layers(*build("nested"))}
    assert found["block1/Conv_0"].kind == "conv"
    assert found["block1/BatchNorm_0"].kind == "batch_norm"
    assert found["block1"].kind == "Block"
    assert found["block1"].submodules
    assert found["block1/max_pool_0"].shape == (2, 4, 4, 4)
    assert found["out"].kind == "dense"
    assert found["out"].shape == (2, 5)


def test_parameters_counted_by_hand():
    found = {layer.name: layer for layer in jv.layers(*build("nested"))}
    assert found["block1/Conv_0"].num_params == 3 * 3 * 3 * 4 + 4
    assert (found["block1/BatchNorm_0"].num_params, found["block1/BatchNorm_0"].num_state) == (8, 8)
    assert found["block1"].num_params == 112 + 8
    assert found["out"].num_params == 2 * 2 * 6 * 5 + 5
    assert found["block1/relu_0"].num_params == 0


def test_flops_counted_by_hand():
    found = {layer.name: layer for layer in jv.layers(*build("shared"))}
    assert found["shared"].flops == 2 * (2 * 6 * 6) + 2 * 6  # two rows: products, then the bias
    assert found["relu_0"].flops == 12


def test_a_module_called_twice_has_two_names():
    assert names("shared") == ["shared", "relu_0", "shared_1", "relu_1", "out"]


def test_residual_and_concatenation_are_listed():
    assert [k.kind for k in jv.layers(*build("residual"))].count("add") == 1
    assert "concatenate_0" in names("concatenating")


def test_nnx_modules_have_their_paths():
    assert names("nnx") == [
        "block/conv",
        "block/norm",
        "block/relu_0",
        "block/dropout",
        "block",
        "mean_0",
        "out",
    ]


def test_equinox_and_plain_functions_are_numbered_by_kind():
    assert names("equinox") == ["conv_0", "relu_0", "mean_0", "dense_0"]
    assert [n for n in names("plain") if "relu" in n] == ["relu_0", "relu_1", "relu_2", "relu_3"]


def test_unnamed_layers_hold_their_bias():
    found = {layer.name: layer for layer in jv.layers(*build("jit"))}
    assert found["dense_0"].num_params == 6 * 5 + 5


def test_a_layer_in_a_loop_over_time_is_listed_with_its_turns():
    def recurrent(w, x):
        step = lambda h, row: (jnp.tanh(row @ w["into"] + h @ w["own"]), None)
        return jax.lax.scan(step, jnp.zeros((2, 6)), x.swapaxes(0, 1))[0]

    w = {"into": jnp.ones((4, 6)), "own": jnp.ones((6, 6))}
    found = {layer.name: layer for layer in jv.layers(recurrent, w, jnp.ones((2, 5, 4)))}
    own = found["scan_0/dense_1"]
    assert (own.turns, own.can_cut, own.shape, own.num_params) == (5, False, (2, 6), 36)
    assert own.flops == 5 * 2 * 2 * 6 * 6


def test_layers_in_branches_and_custom_derivatives_are_listed():
    assert "cond_0/branch_1/relu_0" in names("cond")
    assert any(n.startswith("custom_vjp_0") for n in names("custom_vjp"))


def test_remat_is_seen_through():
    assert "block/Conv_0" in names("linen_remat")
    assert "bottleneck" in names("remat")


def test_a_jit_traced_before_still_gives_names():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="inside")(x)

    module = Inner()
    variables = module.init(jax.random.key(0), jnp.ones((1, 2)))
    jitted = jax.jit(module.apply)
    jitted(variables, jnp.ones((1, 2)))  # now in JAX's trace cache, without names
    found = jv.layers(lambda v, x: jitted(v, x) * 2, variables, jnp.ones((1, 2)))
    assert [layer.name for layer in found] == ["inside"]
    assert "inside" not in str(jax.make_jaxpr(jitted)(variables, jnp.ones((1, 2))))


def test_names_survive_rewriting():
    twice = jv.RuleSet("twice", {"relu": lambda op: lambda x: 2 * op.evaluate(x)})
    apply_fn, params, x = build("nested")
    rewritten = [layer.name for layer in jv.layers(jv.rewrite(apply_fn, twice), params, x)]
    assert rewritten == names("nested")


# A loop's body is counted by XLA once, by us for each turn; a branch has no one count.
COUNTED = [n for n in NETS if n not in ("scan", "linen_scan", "while", "cond")]


def test_flops_of_a_gradient_through_clipped_activations():
    net = lambda w, x: nn.relu6(nn.relu6(x @ w) @ w)
    w, x = jnp.ones((4, 4)), jnp.ones((2, 4))
    products = 4 * (2 * 2 * 4 * 4)  # two forward, two backward
    found = call_flops(lambda w, x: jv.saliency(net, w, x), w, x)
    assert products < found < 3 * products  # the rest is pointwise


@pytest.mark.parametrize("net", COUNTED)
def test_flops_agree_with_xla(net):
    apply_fn, params, x = build(net)
    told: Any = jax.jit(apply_fn).lower(params, x).cost_analysis()
    xla = told["flops"]
    ours = sum(layer.flops for layer in jv.layers(apply_fn, params, x) if not layer.submodules)
    total = total_flops(apply_fn, params, x)
    assert abs(total - xla) <= 0.05 * xla
    assert ours <= total


def total_flops(apply_fn, params, x):
    """The total of the summary's last line."""
    number, unit = jv.summary(apply_fn, params, x).splitlines()[-1].split()[1:3]
    return float(number) * {"k": 1e3, "M": 1e6, "G": 1e9}.get(unit, 1)


def test_summary_is_a_table_with_totals(monkeypatch):
    shown = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *_: shown.append("by rich"))
    text = jv.summary(*build("nested"))
    assert not shown  # in a notebook too
    assert "block2/Conv_0" in text
    assert "2 x 4 x 4 x 4" in text
    trained = 112 + 8 + (3 * 3 * 4 * 6 + 6) + 12 + 125
    assert f"Parameters: {trained} trained, 20 of state" in text


def test_layers_take_shapes_and_compute_nothing():
    apply_fn, params, x = build("nested")
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, x))
    assert jv.layers(apply_fn, *shapes) == jv.layers(apply_fn, params, x)


SPELLINGS = {
    "jax.nn.relu": jax.nn.relu,
    "linen": nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
    "maximum, swapped": lambda x: jnp.maximum(0.0, x),
    "lax": lambda x: jax.lax.max(x, jnp.zeros_like(x)),
    "where": lambda x: jnp.where(x > 0, x, 0),
    "where, swapped": lambda x: jnp.where(x <= 0, 0.0, x),
    "product": lambda x: x * (x > 0).astype(x.dtype),
    "clip": lambda x: jnp.clip(x, 0),
    "absolute": lambda x: (x + jnp.abs(x)) / 2,
    "user's jit": jax.jit(lambda x: jnp.maximum(x, 0)),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_relu_is_told_however_it_is_spelled(spelling):
    f = SPELLINGS[spelling]
    kinds = [layer.kind for layer in jv.layers(lambda _, x: f(x), None, jnp.ones((2, 3)))]
    assert kinds == ["relu"]


OTHERS = {
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "silu": lambda x: x * jax.nn.sigmoid(x),
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "softplus": jax.nn.softplus,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "hard_silu": jax.nn.hard_silu,
    "mish": jax.nn.mish,
    "softmax": jax.nn.softmax,
    "log_softmax": jax.nn.log_softmax,
    "layer_norm": lambda x: jax.nn.standardize(x, axis=-1),
    "rms_norm": lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_functions_are_told_by_their_values(kind):
    f = OTHERS[kind]
    kinds = [layer.kind for layer in jv.layers(lambda _, x: f(x), None, jnp.ones((2, 3)))]
    assert kinds == [kind]


@pytest.mark.parametrize(
    "f", [lambda x: jnp.maximum(x, 0.1), lambda x: jnp.minimum(x, 0), lambda x: jnp.maximum(x, -x)]
)
def test_what_is_no_relu_is_not_called_one(f):
    kinds = [layer.kind for layer in jv.layers(lambda _, x: f(x), None, jnp.ones((2, 3)))]
    assert "relu" not in kinds


def test_a_clamped_variance_is_no_relu():
    kinds = [layer.kind for layer in jv.layers(*build("attention"))]
    assert "layer_norm" in kinds
    assert "relu" not in kinds


class _Recurrent(nn.Module):
    """One dense layer for all times, and a loop that takes in what it gives."""

    @nn.compact
    def __call__(self, x):
        drive = x @ self.param("drive", nn.initializers.ones, (3, 4))
        step = lambda h, a: (jnp.tanh(h + a), None)
        return jax.lax.scan(step, jnp.zeros((len(x), 4)), drive.swapaxes(0, 1))[0]


def test_a_module_of_a_layer_and_a_loop_is_not_that_layer():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(_Recurrent(name="memory")(x))

    x = jnp.ones((2, 5, 3))
    net = Net()
    found = {one.name: one for one in jv.layers(net.apply, net.init(jax.random.key(0), x), x)}
    assert found["memory"].kind == "_Recurrent"
    assert found["memory/dense_0"].shape == (2, 5, 4)
