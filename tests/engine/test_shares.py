"""Shares of a loop on threads: the results of the plain program, at the same time, traced once."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.engine import contract, copies, shares
from jaxviz.engine.contract import explanation, select
from jaxviz.engine.copies import running_sum, stacked
from jaxviz.engine.progress import in_turns
from jaxviz.engine.shares import shared, shared_rows, side_by_side, width


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


@pytest.mark.parametrize("count", [1, 3])
def test_rows_are_shares_of_their_own(count):
    """Pytrees of rows, and numbers that all of them read; one row is no share."""
    seen = []

    def function(scale, rows):
        def some(rows):
            seen.append(len(rows["a"]))
            return {"found": scale * rows["a"] + rows["b"][:, None]}

        return shared_rows(some, rows)

    rows = {"a": jnp.arange(2.0 * count).reshape(count, 2), "b": jnp.arange(1.0 * count)}
    found = side_by_side(function, 2)(jnp.float32(3), rows)
    chex.assert_trees_all_close(found, {"found": 3 * rows["a"] + rows["b"][:, None]})
    assert set(seen) == {1}
    function(2.0, rows)  # traced for one core: all rows together
    assert seen[-1] == count


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


@pytest.fixture
def divided(monkeypatch):
    """Three cores, to share whatever there is; how many shares there were."""
    monkeypatch.setattr("jaxviz.engine.copies._SHARED", 0)
    for module in ("contract", "copies"):
        monkeypatch.setattr(f"jaxviz.engine.{module}.cores", lambda: 3)
    parts = []

    def counted(function, given):
        parts.append(len(given))
        return shares.shared(function, given)

    monkeypatch.setattr("jaxviz.engine.copies.shared", counted)
    contract._program.cache_clear()  # what was compiled for other cores is made anew
    yield parts
    contract._program.cache_clear()


NUMBERS = [(7, None, 3), (7, 2, 2), (7, 1, 1), (2, 5, 2), (4, None, 2), (12, None, 3)]


@pytest.mark.parametrize(("num", "chunk_size", "lanes"), NUMBERS)
def test_copies_are_shared_within_the_chunk_size(divided, num, chunk_size, lanes):
    @explanation("chunk_size", sweeps=True)
    def method(apply_fn, params, x, target=None, *, chunk_size=None):
        one = lambda k: select(apply_fn(params, x * k.astype(x.dtype)), target)
        return stacked("method", one, num, chunk_size, x)

    net = lambda w, x: x @ w
    w, x = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = method(net, w, x, 1, chunk_size=chunk_size)
    expected = np.arange(num)[:, None] * np.array([[2.0, 4.0, 6.0]])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert divided == [lanes] or (divided == [] and lanes == 1)
    if chunk_size == 2:
        nested = jax.jit(lambda x: method(net, w, x, 1, chunk_size=chunk_size))(x)
        np.testing.assert_allclose(nested, expected, rtol=1e-6)


@pytest.mark.parametrize("more", [0, 1])  # with the class told, or found at the input
def test_a_long_loop_is_taken_in_turns_of_whole_chunks(divided, monkeypatch, more):
    monkeypatch.setattr("jaxviz.engine.copies._TURN", 4)
    net = lambda w, x: x**3 @ w
    w, x = jnp.array([[1.0, -2.0], [3.0, 4.0]]), jnp.array([[1.0, 0.5], [-2.0, 1.0]])
    draws = {"key": jax.random.key(0)}
    target = None if more else 1
    explain = jv.smooth_grad(jv.gradient, num_samples=50, chunk_size=6)
    found = explain(net, w, x, target, **draws)
    assert divided[0] > 3
    whole = jax.jit(lambda x: explain(net, w, x, target, **draws))(x)
    np.testing.assert_allclose(found, whole, rtol=1e-5)
    lanes = shares.traced_with(3, lambda: copies._lanes("any", 50, 6, x, more=more))
    assert lanes.count * lanes.length >= 50
    assert (lanes.length + more) % lanes.chunk == 0


def test_between_turns_ctrl_c_is_heard(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setattr("jaxviz.engine.progress._SOON", 0)
    done = []
    with ThreadPoolExecutor(1) as threads:
        assert in_turns(threads, lambda k: k + 1, range(5), "rise") == [1, 2, 3, 4, 5]
        told = capsys.readouterr().err
        assert "rise" in told
        assert "4/5" in told or "3/5" in told

        def turn(k):
            done.append(k)
            if k == 1:
                signal.raise_signal(signal.SIGINT)
            time.sleep(0.05)  # between them the other thread has its turn

        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind a shell
        try:
            with pytest.raises(KeyboardInterrupt):
                in_turns(threads, turn, range(100), "rise")
        finally:
            signal.signal(signal.SIGINT, before)
    assert len(done) < 10


@pytest.mark.parametrize(("num", "chunk_size", "lanes"), NUMBERS)
def test_the_terms_of_a_sum_are_shared_within_the_chunk_size(divided, num, chunk_size, lanes):
    @explanation("chunk_size", sweeps=True)
    def method(apply_fn, params, x, *, chunk_size=None):
        one = lambda k: {"a": apply_fn(params, x) * k.astype(x.dtype), "k": k}
        return running_sum("method", one, num, chunk_size, x)

    x = jnp.array([[1.0, -2.0], [0.5, 3.0]])
    expected = {"a": 3.0 * x * sum(range(num)), "k": jnp.int32(sum(range(num)))}
    net = lambda w, x: x * w
    chex.assert_trees_all_close(method(net, 3.0, x, chunk_size=chunk_size), expected, rtol=1e-6)
    assert divided == [lanes]
    if chunk_size == 2:
        nested = jax.jit(lambda x: method(net, 3.0, x, chunk_size=chunk_size))(x)
        chex.assert_trees_all_close(nested, expected, rtol=1e-6)


def _draws(x):
    return {"baselines": jnp.stack([0 * x[0], x[1] / 2]), "key": jax.random.key(3)}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (jv.integrated_gradients, lambda x: {"num_steps": 7, "baseline": x[::-1]}),
        (jv.expected_gradients, lambda x: {"num_samples": 5, "noise_scale": 0.1, **_draws(x)}),
        (jv.deep_lift_shap, lambda x: {"baselines": x}),
        (jv.rise, lambda x: {"num_samples": 10, "cells": 2, "key": jax.random.key(1)}),
        (jv.var_grad(jv.saliency, num_samples=5), lambda x: {"key": jax.random.key(1)}),
        (jv.smooth_grad(jv.grad_cam, num_samples=4), lambda x: {"key": jax.random.key(1)}),
    ],
)
def test_methods_that_add_up_give_the_same_shared(divided, method, options):
    rng = np.random.default_rng(0)
    x, *params = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((3, 6, 6, 1), (3, 3, 1, 4), (4, 3))
    )

    def apply_fn(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        a = jax.lax.conv_general_dilated(x, params[0], (1, 1), "SAME", dimension_numbers=numbers)
        return jnp.tanh(jax.nn.relu(a).mean((1, 2))) @ params[1]

    whole = jax.jit(lambda params, x: method(apply_fn, params, x, **options(x)))(params, x)
    divided.clear()
    found = method(apply_fn, params, x, **options(x))
    assert divided[0] > 1
    chex.assert_trees_all_close(found, whole, rtol=1e-4, atol=1e-5 * float(jnp.abs(whole).max()))
