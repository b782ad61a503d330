"""Shares of a loop on threads: the results of the plain program, at the same time, traced once."""

import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.attribution.contract import explanation, select
from jaxviz.attribution.copies import stacked
from jaxviz.graph import shares
from jaxviz.graph.shares import shared, side_by_side, width


def turns(params, x, parts=4):
    """What comes before, in and after a loop; inputs and numbers that go straight through."""
    weights = jnp.sin(params["w"]) * x["scale"]
    found = shared(
        lambda k: jax.lax.map(lambda i: weights * jnp.cos(i), k),
        [3.0 * p + jnp.arange(3.0) for p in range(parts)],
    )
    total = jnp.concatenate(found).sum(0)
    return {"total": total + params["b"], "b": params["b"], "one": 1.0, "found": found[-1]}


ARGUMENTS = {"w": jnp.arange(5.0), "b": jnp.ones(5)}, {"scale": 0.5}


@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_the_results_are_those_of_the_plain_function(count):
    chex.assert_trees_all_close(
        side_by_side(turns, count)(*ARGUMENTS), jax.jit(turns)(*ARGUMENTS), rtol=1e-6
    )


def test_shares_run_at_the_same_time():
    both = threading.Barrier(2)

    def meet(k):
        both.wait(60)  # breaks unless the other share comes while this one waits
        return k

    def function(x):
        number = jax.ShapeDtypeStruct((), jnp.float32)
        return shared(lambda k: jax.pure_callback(meet, number, k) + x, [x, 2 * x])

    found = side_by_side(function, 2)(jnp.float32(1))
    assert [float(a) for a in found] == [2, 3]


def test_new_data_traces_nothing_again():
    function = side_by_side(chex.assert_max_traces(turns, 1), 2)
    first = function(*ARGUMENTS)
    second = function({"w": 2 * jnp.arange(5.0), "b": jnp.zeros(5)}, {"scale": 0.25})
    assert not np.allclose(first["total"], second["total"])


def test_static_arguments_and_other_shapes_have_programs_of_their_own():
    function = side_by_side(
        lambda power, x: sum(shared(lambda k: k**power, [x, x + 1])), 2, static_argnums=(0,)
    )
    assert float(function(2, jnp.float32(3))) == 25
    assert float(function(3, jnp.float32(1))) == 9
    assert function(2, jnp.arange(2.0)).tolist() == [1, 5]


def test_a_loop_that_needs_the_results_of_another():
    def function(x):
        first = sum(shared(jnp.sin, [x, 2 * x]))
        return sum(shared(lambda k: k * first, [x, first]))

    x = jnp.float32(0.7)
    chex.assert_trees_all_close(side_by_side(function, 2)(x), function(x), rtol=1e-6)


def test_what_the_function_closes_over():
    weights = jnp.arange(3.0)

    def loss(scale):
        loop = lambda x: shared(lambda k: (k * scale * weights).sum(), [x, 2 * x])
        return sum(side_by_side(loop, 2)(jnp.float32(2)))

    assert float(loss(jnp.float32(1))) == 18
    assert float(jax.grad(loss)(jnp.float32(1))) == 18
    assert jax.vmap(loss)(jnp.arange(3.0)).tolist() == [0, 18, 36]


def test_a_function_without_shares_is_compiled_as_it_is():
    function = side_by_side(lambda x: x + 1, 2)
    assert [float(function(jnp.float32(k))) for k in range(3)] == [1, 2, 3]


def test_a_loop_within_a_share_is_that_shares_own():
    widths = []

    def inner(k):
        widths.append(width())
        return k

    def function(x):
        widths.append(width())
        return shared(inner, [x, x])

    side_by_side(function, 2)(jnp.float32(0))
    assert widths == [2, 1]
    assert width() == 1


def test_one_part_is_no_share():
    """It would have one core, and the others nothing to do."""

    def function(x):
        return shared(lambda k: (jnp.sin(k), widths.append(width()))[0], [x])[0]

    widths: list[int] = []
    assert float(side_by_side(function, 2)(jnp.float32(0))) == 0
    assert widths == [2]


def test_double_precision_reaches_the_threads():
    with jax.enable_x64(True):
        found = side_by_side(lambda x: shared(lambda k: k / 3, [x, 2 * x]), 2)(np.float64(1))
        assert [a.dtype for a in found] == [jnp.float64] * 2
        assert [float(a) for a in found] == [1 / 3, 2 / 3]


def test_with_jit_switched_off():
    with jax.disable_jit():
        found = side_by_side(turns, 2)(*ARGUMENTS)
    chex.assert_trees_all_close(found, turns(*ARGUMENTS), rtol=1e-6)


def test_errors_of_the_function_and_of_a_share_reach_the_caller():
    def refuses(x):
        raise ValueError("not this")

    with pytest.raises(ValueError, match="not this"):
        side_by_side(refuses, 2)(jnp.float32(1))

    def fails(k):
        raise RuntimeError("in a share")

    def function(x):
        number = jax.ShapeDtypeStruct((), jnp.float32)
        return shared(lambda k: jax.pure_callback(fails, number, k), [x, x])

    with pytest.raises(Exception, match="in a share"):
        jax.block_until_ready(side_by_side(function, 2)(jnp.float32(1)))


@pytest.mark.parametrize(
    ("num", "chunk_size", "lanes"), [(7, None, 3), (7, 2, 2), (7, 1, 1), (2, 5, 2)]
)
def test_copies_are_shared_within_the_chunk_size(monkeypatch, num, chunk_size, lanes):
    monkeypatch.setattr("jaxviz.attribution.copies._SHARED", 0)
    monkeypatch.setattr("jaxviz.attribution.contract.cores", lambda: 3)
    parts = []

    def counted(function, starts):
        parts.append(len(starts))
        return shares.shared(function, starts)

    monkeypatch.setattr("jaxviz.attribution.copies.shared", counted)

    @explanation("chunk_size", sweeps=True)
    def method(apply_fn, params, x, target=None, *, chunk_size=None):
        one = lambda k: select(apply_fn(params, x * k.astype(x.dtype)), target)
        return stacked("method", one, num, chunk_size, x)

    net = lambda w, x: x @ w
    w, x = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = method(net, w, x, 1, chunk_size=chunk_size)
    expected = np.arange(num)[:, None] * np.array([[2.0, 4.0, 6.0]])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert parts == [lanes] or (parts == [] and lanes == 1)
    nested = jax.jit(lambda x: method(net, w, x, 1, chunk_size=chunk_size))(x)
    np.testing.assert_allclose(nested, expected, rtol=1e-6)
