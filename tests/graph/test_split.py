"""Cutting a model: exact in values, gradients and work, at every layer of every net."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name
from zoo import NETS, build

import jaxviz as jv


def composed(net, layer):
    apply_fn, params, x = build(net)
    head, tail = jv.split(apply_fn, params, x, layer)

    def both(params, x):
        a, carry = head(params, x)
        return tail((params, carry), a)

    return both


@pytest.mark.parametrize("net", NETS)
def test_tail_of_head_is_the_model_bit_for_bit(net):
    apply_fn, params, x = build(net)
    eager, compiled = apply_fn(params, x), jax.jit(apply_fn)(params, x)
    cuttable = [layer.name for layer in jv.layers(apply_fn, params, x) if layer.can_cut]
    assert cuttable
    # XLA adds up otherwise in a loop than in the same turns one after the other.
    same = chex.assert_trees_all_close if "scan" in net else chex.assert_trees_all_equal
    for layer in cuttable:
        both = composed(net, layer)
        same(both(params, x), eager)
        same(jax.jit(both)(params, x), compiled)


@pytest.mark.parametrize("net", ["nested", "residual", "concatenating", "nnx", "equinox", "jit"])
def test_gradient_at_a_layer_is_that_of_a_perturbation_added_there(net):
    """Against the same net with `value + eps` put in by a rule: another path through the code."""
    apply_fn, params, x = build(net)
    layer = next(r for r in jv.layers(apply_fn, params, x) if r.kind == "relu" and r.can_cut)
    head, tail = jv.split(apply_fn, params, x, layer.name)
    a, carry = head(params, x)
    at_layer = jax.grad(lambda a: tail((params, carry), a).sum())(a)

    def perturbed(eps):
        rules = jv.RuleSet("add", {layer.name: lambda op: lambda *v: op.evaluate(*v) + eps})
        return jv.rewrite(apply_fn, rules)(params, x).sum()

    chex.assert_trees_all_close(at_layer, jax.grad(perturbed)(jnp.zeros_like(a)), rtol=1e-6)


@pytest.mark.parametrize(("net", "layer"), [("nested", "block2"), ("residual", "add_0")])
def test_compiled_tail_holds_none_of_the_heads_work(net, layer):
    apply_fn, params, x = build(net)
    head, tail = jv.split(apply_fn, params, x, layer)
    a, carry = jax.eval_shape(head, params, x)

    def flops(f, *args):
        return jax.jit(f).lower(*args).cost_analysis()["flops"]

    whole, before = flops(apply_fn, params, x), flops(head, params, x)
    after = flops(tail, (params, carry), a)
    assert after < 0.1 * whole
    assert before + after == pytest.approx(whole, rel=0.01)


def test_carry_is_empty_where_every_path_goes_through():
    apply_fn, params, x = build("residual")
    carries = {}
    for layer in ("stem", "conv1", "conv2", "add_0"):
        head, _ = jv.split(apply_fn, params, x, layer)
        carries[layer] = len(head(params, x)[1])
    assert carries == {"stem": 0, "conv1": 1, "conv2": 1, "add_0": 0}


def test_tail_takes_many_variants_of_each_example():
    apply_fn, params, x = build("residual")
    head, tail = jv.split(apply_fn, params, x, "conv1")
    a, carry = head(params, x)
    many = tail(
        (params, jax.tree.map(lambda c: jnp.tile(c, (3, 1, 1, 1)), carry)),
        jnp.tile(a, (3, 1, 1, 1)),
    )
    chex.assert_trees_all_close(many, jnp.tile(tail((params, carry), a), (3, 1)), rtol=1e-6)


def test_head_and_tail_are_equal_for_equal_arguments_and_compile_once():
    apply_fn, params, x = build("nested")
    first, second = (jv.split(apply_fn, params, x, "block1") for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    before = jv.gradient.__wrapped__  # the tail keeps the contract
    assert callable(before)
    head, tail = first
    a, carry = head(params, x)
    explained = jv.gradient(tail, (params, carry), a, 2)
    chex.assert_shape(explained, a.shape)


def test_split_works_inside_jit_vmap_and_grad():
    apply_fn, params, x = build("nested")

    @jax.jit
    def score(x):
        head, tail = jv.split(apply_fn, params, x, "block1")
        a, carry = head(params, x)
        return tail((params, carry), a).sum()

    chex.assert_trees_all_close(
        jax.grad(score)(x), jax.grad(lambda x: apply_fn(params, x).sum())(x), rtol=1e-5, atol=1e-6
    )


def test_tuple_and_dict_values():
    apply_fn, params, x = build("mixed")
    head, tail = jv.split(apply_fn, params, x, "relu_0")
    a, carry = head(params, x)
    outputs = tail((params, carry), a)
    assert set(outputs) == {"logits", "hidden"}


def test_unknown_layer_names_the_nearest():
    with pytest.raises(ValueError, match=r"split: no layer 'block1/Conv'.*'block1/Conv_0'"):
        jv.split(*build("nested"), "block1/Conv")


def turning(w, x):
    return jax.lax.while_loop(lambda h: h.sum() < 9, lambda h: h @ w + 1, x)


@pytest.mark.parametrize(
    ("net", "layer"),
    [
        ((turning, jnp.eye(2), jnp.ones((1, 2))), "while_0/dense_0"),
        ("cond", "cond_0/branch_1/relu_0"),
    ],
)
def test_cutting_inside_a_loop_or_branch_is_refused_by_name(net, layer):
    with pytest.raises(ValueError, match=f"split: layer '{layer}' is inside a loop.*, a branch"):
        jv.split(*(build(net) if isinstance(net, str) else net), layer)


def test_nothing_is_shared_out_to_a_layer_that_no_output_reads():
    def net(w, x):
        aside = jax.nn.relu(x)
        jnp.tanh(aside)
        return jnp.sin(x) @ w

    w, x = jnp.ones((3, 2)), jnp.ones((2, 3))
    names = [layer.name for layer in jv.layers(net, w, x)]
    assert "relu_0" in names
    options = {"layer": "relu_0"}
    for method in (
        lambda: jv.grad_cam(net, w, x, 0, **options, resize=False),
        lambda: jv.layer_conductance(net, w, x, 0, **options),
        lambda: jv.at_layer(jv.gradient, "relu_0")(net, w, x, 0),
    ):
        with pytest.raises(ValueError, match="layer must be one that the outputs are made of"):
            method()
    head, tail = jv.split(net, w, x, "relu_0")  # but it can be read, and the rest is the model
    a, carry = head(w, x)
    chex.assert_trees_all_equal(tail((w, carry), a), net(w, x))


def test_wrong_shapes_are_refused():
    apply_fn, params, x = build("residual")
    head, tail = jv.split(apply_fn, params, x, "conv1")
    a, carry = head(params, x)
    with pytest.raises(ValueError, match=r"tail at 'conv1' takes a of shape \(2, 8, 8, 4\)"):
        tail((params, carry), a[:, :4])
    with pytest.raises(ValueError, match="a carry of 1 arrays; got 0"):
        tail((params, ()), a)


def test_activations_are_the_modules_outputs():
    apply_fn, params, x = build("nested")
    _, state = apply_fn(params, x, capture_intermediates=True, mutable=["intermediates"])
    want = state["intermediates"]
    got = jv.activations(apply_fn, params, x, ["block1/Conv_0", "block2", "out"])
    chex.assert_trees_all_close(got["block1/Conv_0"], want["block1"]["Conv_0"]["__call__"][0])
    chex.assert_trees_all_close(got["block2"], want["block2"]["__call__"][0], rtol=1e-5)
    chex.assert_trees_all_close(got["out"], want["out"]["__call__"][0], rtol=1e-5)
    with pytest.raises(TypeError, match="a list of names"):
        jv.activations(apply_fn, params, x, "out")


def test_a_number_of_the_whole_batch_is_cut_and_carried():  # as the step of a solver
    def net(params, x):
        size = checkpoint_name(jnp.sum(x**2), "size")
        return checkpoint_name(jnp.tanh(x) / size, "scaled") * size

    x = jnp.array([[1.0, -2.0], [0.5, 3.0]])
    for name in ("size", "scaled"):
        head, tail = jv.split(net, (), x, name)
        a, carry = head((), x)
        chex.assert_trees_all_close(tail(((), carry), a), jnp.tanh(x), rtol=1e-6)
