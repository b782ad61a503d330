"""Every kind of model beside every kind of method: right, or refused by name; never wrong."""

import contextlib
import re

import equinox as eqx
import frameworks
import handwritten
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import guided_by_hand

import jaxviz

BUILDERS = {**handwritten.ROWS, **frameworks.ROWS}
MOST_CUTS = 4  # a net's layers are cut one in so many that there are no more
STEPS = np.polynomial.legendre.leggauss(3)


def total(a):
    """The sum over an example, of all leaves."""
    return sum(leaf.reshape(len(leaf), -1).sum(1) for leaf in jax.tree.leaves(a))


def tried(run):
    """What a method gives, or the words with which it refuses."""
    try:
        return run()
    except (NotImplementedError, ValueError) as error:
        return str(error)


def ours(row, cuttable):
    net, params, x = row[:3]
    given = (net, params, x, 1)
    options = {} if row.baseline is None else {"baseline": row.baseline}
    methods = {
        "gradient": lambda: jaxviz.gradient(*given),
        "integrated": lambda: jaxviz.integrated_gradients(*given, num_steps=3, **options),
        "lrp": lambda: jaxviz.lrp(*given, rules="epsilon"),
        "deep_lift": lambda: jaxviz.deep_lift(*given, **options),
        "guided": lambda: jaxviz.guided_backprop(*given),
        "split": lambda: [out for name in cuttable if (out := rejoined(row, name)) is not None],
    }
    if row.cam:
        raw = {"layer": row.cam[0], "relu": False, "resize": False}
        methods["grad_cam"] = lambda: jaxviz.grad_cam(*given, **raw)
    return {name: tried(run) for name, run in methods.items()}


def rejoined(row, name):
    """The outputs by way of a layer; None where it does not depend on x, as `split` then says."""
    try:
        head, tail = jaxviz.split(*row[:3], name)
    except ValueError as error:
        if "does not depend on x" in str(error):
            return None
        raise
    a, carry = head(row.params, row.x)
    return tail((row.params, carry), a)


def plain(row):
    """The same by JAX alone; functions of their own, so that JAX remembers none of the others'."""
    net, params, x = row[:3]
    slope = jax.grad(lambda x: net(params, x)[:, 1].sum())
    start = jax.tree.map(jnp.zeros_like, x) if row.baseline is None else row.baseline
    along = lambda t: jax.tree.map(lambda a, b: a + (1 + t) / 2 * (b - a), start, x)
    # One program for the three steps and, last of all, for x itself.
    slopes = jax.lax.map(lambda t: slope(along(t)), jnp.float32([*STEPS[0], 1]))
    weights = jnp.float32([*STEPS[1] / 2, 0])
    mean = jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), slopes)
    out = {
        "gradient": jax.tree.map(lambda g: g[-1], slopes),
        "integrated": jax.tree.map(lambda a, b, g: (b - a) * g, start, x, mean),
        "outputs": net(params, x),
        "start": net(params, start),
    }
    with guided_by_hand():
        out["guided"] = jax.grad(lambda x: net(params, x)[:, 1].sum())(x)
    if row.cam:
        layer, channels = row.cam
        head, tail = jaxviz.split(net, params, x, layer)
        a, carry = head(params, x)
        g = jax.grad(lambda a: tail((params, carry), a)[:, 1].sum())(a)
        a, g = (jnp.moveaxis(b, channels, -1) for b in (a, g))
        space = tuple(range(1, a.ndim - 1))
        heat = (a * g.mean(space, keepdims=True)).sum(-1)
        out["grad_cam"] = heat.reshape(len(heat), *(row.grid or heat.shape[1:]))
    return out


def close(found, expected, rtol=2e-4):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(b).all(), "the net itself is not finite"
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max() + 1e-7)


@pytest.mark.parametrize("name", BUILDERS)
def test_right_or_refused_by_name(name):
    row = BUILDERS[name]()
    refused = {}

    def both(params, x):
        mine = row._replace(params=params, x=x)
        found = ours(mine, cuttable)
        refused.update({k: v for k, v in found.items() if isinstance(v, str)})
        return {k: v for k, v in found.items() if k not in refused}, plain(mine)

    with lax_promotion() if row.relaxed else contextlib.nullcontext():
        layers = jaxviz.layers(*row[:3])
        cuttable = [layer.name for layer in layers if layer.can_cut]
        cuttable = cuttable[:: -(-len(cuttable) // MOST_CUTS)]
        found, expected = eqx.filter_jit(both)(row.params, row.x)
    wrong = {}

    def check(what, holds, *arguments):
        try:
            assert holds(*arguments) is not False
        except AssertionError as error:
            wrong[what] = f"{error}; {arguments}"

    for method, words in refused.items():
        check(method, lambda words: re.match(r"[a-z_]+: ", words), words)
    names = [layer.name for layer in layers]
    check("names", lambda names: len(set(names)) == len(names), names)
    check("names", lambda names: not [n for n in names if set(n) & set(">,<() ")], names)
    batches = {layer.name: layer.shape for layer in layers if layer.can_cut}
    rows = lambda shape: shape != () and shape[0] % 2 == 0
    check("batch", lambda shapes: all(map(rows, shapes.values())), batches)

    for method in ("gradient", "integrated", "guided", "grad_cam"):
        if method in found:
            check(method, close, found[method], expected[method])
    for outputs in found.get("split", ()):
        check("split", close, outputs, expected["outputs"])
    score, start = expected["outputs"][:, 1], expected["start"][:, 1]
    if "deep_lift" in found:
        check("deep_lift", close, total(found["deep_lift"]), score - start, 1e-3)
    if "lrp" in found:
        finite = lambda a: all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(a))
        check("lrp", finite, found["lrp"])
        if row.lrp == "sum":
            check("lrp", close, total(found["lrp"]), score, 1e-3)
    unexpected = {what: told[:200] for what, told in wrong.items() if what not in row.known}
    assert not unexpected, unexpected
    assert set(wrong) == set(row.known), "known, and no longer wrong"
    assert set(refused) == set(row.refuses), refused


@contextlib.contextmanager
def lax_promotion():
    """For frameworks whose own code mixes types and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
