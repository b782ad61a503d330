"""The same net in every framework beside every kind of method: the same numbers."""

import functools

import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest

import jaxviz
from jaxviz.features import objectives, parametrizations

KEY = jax.random.key(1)
X = jax.random.uniform(KEY, (2, *nets.SIZE, nets.CHANNELS[0]))
TARGET = jnp.array([2, 0])
# All to the inputs, nothing to biases: relevance is conserved whatever the weights.
of = jaxviz.rules.lrp
CONSERVING = {"conv": of.z_plus(bias=False), "dense": of.epsilon(bias=False)}


def found(net):
    """What each method gives for one net, with channels last."""
    there = functools.partial(jnp.moveaxis, source=-1, destination=net.channels)
    back = lambda a: jnp.moveaxis(a, net.channels, -1) if a.ndim == 4 else a
    given = (net.apply_fn, net.params, there(X))
    explained = (*given, TARGET)
    layer = net.names[2]

    def maximized():
        best = jaxviz.maximize_activation(
            *(*given[:2], given[2].shape, objectives.logit([1, 2])),
            key=KEY,
            num_steps=3,
            transforms=(),
            parametrization=parametrizations.pixels(),
            init=given[2],
            redirected_steps=0,
        )
        return back(best.images), best.scores

    def cut():
        head, tail = jaxviz.split(*given, layer)
        a, carry = head(net.params, given[2])
        return back(a), tail((net.params, carry), a)

    compiled = {
        "outputs": lambda: net.apply_fn(*given[1:]),
        "gradient": lambda: back(jaxviz.gradient(*explained)),
        "integrated": lambda: back(jaxviz.integrated_gradients(*explained, num_steps=100)),
        "lrp": lambda: back(jaxviz.lrp(*explained, rules=CONSERVING)),
        "deep_lift": lambda: back(jaxviz.deep_lift(*explained)),
        "grad_cam": lambda: jaxviz.grad_cam(*explained, layer=layer),
        "occlusion": lambda: jaxviz.occlusion(*explained, window=(2, 2), stride=(2, 2)),
        "ablation": lambda: back(
            jaxviz.feature_ablation(*explained, segments=jaxviz.grid_segments(nets.SIZE, (2, 2)))
        ),
        "activations": lambda: [back(a) for a in jaxviz.activations(*given, [layer]).values()],
        "split": cut,
    }
    results = jax.jit(lambda: {name: run() for name, run in compiled.items()})()
    results["maximization"] = maximized()
    batches, explain = (given[2], TARGET), {"gradient": jaxviz.gradient}
    swept = jaxviz.sweep(explain, *given[:2], batches, target="label", progress=False)
    results["sweep"] = back(jnp.asarray(swept.maps["gradient"]))
    return results


@functools.cache
def expected():
    return found(nets.by_hand())


def close(a, b, atol=1e-5):
    size = max(np.abs(b).max(), 1.0)
    return np.shape(a) == np.shape(b) and np.abs(np.asarray(a) - np.asarray(b)).max() < atol * size


def check_names(net):
    given = (net.apply_fn, net.params, jnp.moveaxis(X, -1, net.channels))
    with net.promotion():
        listed = {layer.name: layer for layer in jaxviz.layers(*given)}
        text = str(jaxviz.summary(*given))
    assert [listed[name].num_params for name in net.names] == [76, 148, 148, 15]
    assert all(name in text for name in net.names)


def test_the_net_by_hand():  # oracles: plain JAX, completeness, conservation
    net, at = nets.by_hand(), (jnp.arange(2), TARGET)
    out, score = expected(), lambda x: net.apply_fn(net.params, x)[at]
    assert close(out["gradient"], jax.grad(lambda x: score(x).sum())(X))
    gain = score(X) - score(jnp.zeros_like(X))
    assert close(out["integrated"].sum((1, 2, 3)), gain, 5e-3)
    assert close(out["deep_lift"].sum((1, 2, 3)), gain)
    assert close(out["lrp"].sum((1, 2, 3)), score(X))
    assert close(out["split"][1], out["outputs"])
    assert close(out["sweep"], out["gradient"])
    assert (out["maximization"][1] > jnp.diag(out["outputs"][:, 1:])).all()
    check_names(net)


@pytest.mark.parametrize("row", nets.ROWS)
def test_the_same_numbers_in_every_framework(row):
    net = nets.ROWS[row]()
    with net.promotion():
        results = found(net)
    wrong = {
        name: what
        for name, what in results.items()
        if not all(map(close, jax.tree.leaves(what), jax.tree.leaves(expected()[name])))
    }
    assert not wrong
    check_names(net)


@pytest.mark.parametrize("row", ["nnx", "equinox"])  # elsewhere the function is the user's own
def test_a_new_copy_is_the_same_function(row):
    one, other = nets.ROWS[row](), nets.ROWS[row]()
    assert (one.apply_fn, hash(one.apply_fn)) == (other.apply_fn, hash(other.apply_fn))
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
