"""Rewriting: nothing changes without rules, everything that matches does with them."""

import chex
import jax
import jax.numpy as jnp
import pytest
from zoo import DIFFERENTIABLE, NETS, affine, build, dense_params, images

import jaxviz as jv
from jaxviz.graph.rewrite import refuse

NO_RULES = jv.RuleSet("none", {})
# Every operation replaced by itself: the whole interpreter is run, and nothing may change.
ITSELF = jv.RuleSet("itself", {}, default=lambda op: op.evaluate)


def total(apply_fn, params):
    def score(x):
        return sum(jnp.sum(jnp.sin(o)) for o in jax.tree.leaves(apply_fn(params, x)))

    return score


@pytest.mark.parametrize("net", NETS)
def test_rewriting_without_change_is_exact(net):
    apply_fn, params, x = build(net)
    eager, compiled = apply_fn(params, x), jax.jit(apply_fn)(params, x)
    for rules in (NO_RULES, ITSELF):
        rewritten = jv.rewrite(apply_fn, rules)
        chex.assert_trees_all_equal(rewritten(params, x), eager)
        chex.assert_trees_all_equal(jax.jit(rewritten)(params, x), compiled)


@pytest.mark.parametrize("net", DIFFERENTIABLE)
def test_gradients_without_change_are_exact(net):
    apply_fn, params, x = build(net)
    rewritten = jv.rewrite(apply_fn, ITSELF)
    by = lambda f: jax.jit(jax.grad(total(f, params), allow_int=True))
    got, want = by(rewritten)(x), by(apply_fn)(x)
    floats = lambda tree: [a for a in jax.tree.leaves(tree) if a.dtype == jnp.float32]
    chex.assert_trees_all_equal(floats(got), floats(want))


def tripled(op):
    return lambda *values: 3 * op.evaluate(*values)


THRICE = jv.RuleSet("thrice", {"relu": tripled})


def with_jvp(f):
    g = jax.custom_jvp(f)
    g.defjvp(lambda x, dx: (f(*x), dx[0]))
    return g


def with_vjp(f):
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (f(x), None), lambda _, ct: (ct,))
    return g


@pytest.mark.parametrize(
    ("wrap", "into"),
    [
        (lambda f: f, False),
        (jax.jit, False),
        (jax.checkpoint, False),
        (lambda f: lambda x: jax.lax.cond(x.sum() > -1e9, f, jnp.tanh, x), False),
        (lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=1)[0], False),
        (lambda f: lambda x: jax.lax.fori_loop(0, 1, lambda _, c: f(c), x), False),
        (
            lambda f: (
                lambda x: jax.lax.while_loop(
                    lambda c: c[0] < 1, lambda c: (c[0] + 1, f(c[1])), (0, x)
                )[1]
            ),
            False,
        ),
        (jax.vmap, False),
        (with_jvp, True),
        (with_vjp, True),
    ],
    ids="bare jit remat cond scan fori while vmap custom_jvp custom_vjp".split(),
)
def test_rules_reach_inside(wrap, into):
    inner = wrap(lambda x: jnp.maximum(x + 1, 0))
    x = jnp.array([[-3.0, 0.5], [2.0, -0.25]])
    rules = jv.RuleSet("thrice", {"relu": tripled}, into_custom=into)
    got = jv.rewrite(lambda _, x: inner(x) - 1, rules)(None, x)
    chex.assert_trees_all_close(got, 3 * jnp.maximum(x + 1, 0) - 1)


def test_custom_derivatives_stay_closed_unless_asked():
    apply_fn, params, x = build("custom_vjp")
    sines = {"sin": tripled}
    closed = jv.rewrite(apply_fn, jv.RuleSet("closed", sines))
    chex.assert_trees_all_equal(closed(params, x), apply_fn(params, x))
    opened = jv.rewrite(apply_fn, jv.RuleSet("open", sines, into_custom=True))
    assert not jnp.allclose(opened(params, x), apply_fn(params, x))


def test_a_models_own_rule_may_index_its_constants():
    @jax.custom_vjp
    def timed(x, times):
        return x * times.sum()

    def backward(times, g):
        total = jax.lax.fori_loop(0, 3, lambda i, t: t + times[i], 0.0)
        return g * total, None

    timed.defvjp(lambda x, times: (timed(x, times), times), backward)
    apply_fn = lambda _, x: jax.nn.relu(timed(x, jnp.array([1.0, 2.0, 4.0])))
    slope = jax.grad(lambda x: jv.rewrite(apply_fn, THRICE)(None, x).sum())(jnp.ones((1, 2)))
    chex.assert_trees_all_close(slope, jnp.full((1, 2), 21.0))


def test_a_rule_by_layer_name_reaches_that_layer_alone():
    apply_fn, params, x = build("shared")
    seen = []

    def spy(op):
        seen.append((op.name, op.kind))

    jv.rewrite(apply_fn, jv.RuleSet("spy", {"shared_1": spy}))(params, x)
    assert seen == [("shared_1", "dense"), ("shared_1", "bias")]


def test_an_operation_shows_what_a_rule_needs():
    seen = {}
    rules = jv.RuleSet("spy", {"conv": lambda op: seen.setdefault(op.name, op) and None})
    apply_fn, params, x = build("residual")
    jv.rewrite(apply_fn, rules)(params, x)
    op = seen["stem"]
    assert op.primitive == "conv_general_dilated"
    assert op.depends == (True, False)
    assert [a.shape for a in op.inputs] == [(2, 8, 8, 3), (3, 3, 3, 4)]
    assert op.options["window_strides"] == (1, 1)
    assert "zoo.py:" in op.source


def test_operands_tell_the_order_that_inputs_do_not():
    seen = []
    rules = jv.RuleSet("spy", {"sub": lambda op: seen.append(op.operands)})
    jv.rewrite(lambda _, x: 1.0 - x, rules)(None, jnp.ones((1, 1)))
    ((first, second),) = seen
    assert (first.value, second) == (1.0, 0)


def test_a_group_that_is_declined_is_offered_member_by_member():
    seen = []

    def spy(op):
        seen.append(op.kind)

    rules = jv.RuleSet("spy", {"softmax": spy, "exp": spy, "div": spy})
    jv.rewrite(lambda _, x: jax.nn.softmax(x), rules)(None, jnp.ones((1, 3)))
    assert seen == ["softmax", "exp", "div"]


def test_refusal_names_the_operation_and_the_users_line():
    rules = jv.RuleSet("strict", {"dense": lambda op: None}, default=refuse)
    apply_fn = lambda p, x: jnp.fft.fft(affine(p[0], x)).real
    params, x = dense_params(6, 4), jnp.ones((1, 6))
    strict = jv.RuleSet("strict", {"dense": refuse_nothing, "bias": refuse_nothing}, default=refuse)
    with pytest.raises(NotImplementedError, match=r"strict: no rule .*test_rewrite\.py:\d+"):
        jv.rewrite(apply_fn, strict)(params, x)
    with pytest.raises(NotImplementedError, match="'bias'"):
        jv.rewrite(apply_fn, rules)(params, x)


def refuse_nothing(op):
    return None


def test_equal_arguments_give_equal_functions_and_one_compilation():
    apply_fn, params, x = build("nested")
    first, second = jv.rewrite(apply_fn, THRICE), jv.rewrite(apply_fn, THRICE)
    assert first == second
    assert hash(first) == hash(second)
    traces = []

    def counted(params, x):
        traces.append(1)
        return jv.rewrite(apply_fn, THRICE)(params, x)

    run = jax.jit(counted)
    run(params, x), run(params, x + 1)
    assert len(traces) == 1


def test_rewrites_compose():
    twice = jv.rewrite(jv.rewrite(lambda _, x: jax.nn.relu(x), ADD_ONE), ADD_ONE_MORE)
    chex.assert_trees_all_close(twice(None, jnp.ones((1, 1))), jnp.array([[12.0]]))


ADD_ONE = jv.RuleSet("one", {"relu": lambda op: lambda x: jax.nn.relu(x) + 1})
ADD_ONE_MORE = jv.RuleSet("ten", {"relu": lambda op: lambda x: jax.nn.relu(x) + 10})


def test_a_rewritten_function_vmaps_and_differentiates():
    apply_fn, params, _ = build("nested")
    x = images(n=3)
    rewritten = jax.jit(jv.rewrite(apply_fn, THRICE))
    one_by_one = jax.jit(jax.vmap(lambda row: rewritten(params, row[None])[0]))(x)
    chex.assert_trees_all_close(one_by_one, rewritten(params, x), rtol=1e-4)
    chex.assert_tree_all_finite(jax.jit(jax.grad(lambda p: rewritten(p, x).sum()))(params))


def test_wrong_arguments():
    with pytest.raises(TypeError, match="apply_fn must be a function"):
        jv.rewrite(3, THRICE)
    with pytest.raises(TypeError, match="rules must be a RuleSet; got a dictionary with keys relu"):
        jv.rewrite(lambda p, x: x, {"relu": tripled})
