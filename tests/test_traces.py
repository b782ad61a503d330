"""What a first call costs in Python, in counts: a model runs once, whoever explains it.

Counted are the runs of the model's Python, the programs made of jaxprs, the operations evaluated
while a method is traced, and the one-equation functions that these are bound through.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

import jaxviz as jv
from jaxviz.graph import equations, interpreter, trace
from jaxviz.models import parts
from jaxviz.rules import kernels_conv

KEY = jax.random.key(0)
SEGMENTS = jnp.arange(64).reshape(8, 8) // 16


def conv(w, x):
    x = jax.nn.relu(_conv(x, w["first"]) + w["bias"])
    x = jax.nn.relu(x + _conv(x, w["second"]))
    return x.mean((1, 2)) @ w["last"]


def _conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def transformer(w, x):
    x = x.reshape(x.shape[0], 4, 2, 4, 2, 3).swapaxes(2, 3).reshape(x.shape[0], 16, 12) @ w["in"]
    y = _norm(x)
    q, k, v = y @ w["q"], y @ w["k"], y @ w["v"]
    x = x + jax.nn.softmax(q @ k.swapaxes(1, 2) / 2.0) @ v
    x = x + jax.nn.gelu(_norm(x) @ w["up"]) @ w["down"]
    return _norm(x).mean(1) @ w["last"]


def _norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def _weights(**shapes):
    keys = jax.random.split(KEY, len(shapes))
    pairs = zip(shapes.items(), keys, strict=True)
    return {name: 0.3 * jax.random.normal(key, shape) for (name, shape), key in pairs}


X = jax.random.normal(KEY, (2, 8, 8, 3))
SQUARE = {name: (4, 4) for name in "qkv"}
NETS = {
    "conv": (
        conv,
        _weights(first=(3, 3, 3, 4), bias=(1, 1, 1, 4), second=(3, 3, 4, 4), last=(4, 5)),
        {"layer": "relu_1"},
    ),
    "transformer": (
        transformer,
        _weights(**{"in": (12, 4)}, **SQUARE, up=(4, 8), down=(8, 4), last=(4, 5)),
        {"layer": "add_1", "reshape": lambda a: a.reshape(len(a), 4, 4, 4)},
    ),
}
SLIDE = {"window": (4, 4), "stride": (4, 4), "chunk_size": 2}
SHAP = {"key": KEY, "segments": SEGMENTS, "num_samples": 14, "chunk_size": 2}
# Method and options; for each net the programs, operations and functions of one equation that it
# took when this was written. There is a little room above them: a doubling fails.
METHODS = {
    "saliency": ({}, (1, 10, 8), (1, 0, 0)),
    "grad_cam": ("cut", (5, 16, 15), (3, 75, 68)),
    "integrated_gradients": ({"num_steps": 4, "chunk_size": 2}, (3, 34, 18), (3, 75, 68)),
    "lrp": ({"rules": "epsilon"}, (11, 26, 13), (44, 179, 86)),
    "deep_lift": ({"baseline": 0.0}, (20, 20, 7), (2, 186, 65)),
    "occlusion": (SLIDE, (11, 416, 394), (3, 136, 68)),
    "score_cam": ("chunks", (4, 22, 15), (2, 59, 54)),
    "kernel_shap": (SHAP, (1, 10, 7), (1, 0, 0)),
}


def _options(options, cut):
    """Those of a method; chunks are given, for their default goes by the cores."""
    return (
        {"cut": cut, "chunks": {**cut, "chunk_size": 2}}[options]
        if isinstance(options, str)
        else options
    )


@pytest.fixture
def counts(monkeypatch):
    """How often each function of the interpreter has run."""
    homes = {"build": interpreter, "run_node": interpreter, "section": equations}
    found = dict.fromkeys(homes, 0)

    def counted(name):
        function = getattr(homes[name], name)

        @functools.wraps(function)
        def called(*args, **kwargs):
            found[name] += 1
            return function(*args, **kwargs)

        return called

    for name in found:
        monkeypatch.setattr(homes[name], name, counted(name))
    monkeypatch.setattr(trace, "build", interpreter.build)
    return found


@pytest.mark.parametrize("net", NETS)
def test_a_model_runs_once_for_all_methods(net, counts):
    function, w, cut = NETS[net]
    runs = []

    def model(w, x):
        runs.append(x.shape)
        return function(w, x)

    for name, (options, *_) in METHODS.items():
        method = functools.partial(getattr(jv, name), **_options(options, cut))
        method(model, w, X, jnp.array([0, 1]))
        assert runs == [X.shape], name
        counts.update(dict.fromkeys(counts, 0))
        method(model, w, X + 1, jnp.array([3, 0]))  # new data and labels
        assert runs == [X.shape], name
        assert not any(counts.values()), name


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("net", NETS)
def test_a_first_call_takes_no_more_work_in_python_than_it_did(net, name, counts):
    function, w, cut = NETS[net]
    options, *measured = METHODS[name]
    model = lambda w, x: function(w, x)
    method = functools.partial(getattr(jv, name), **_options(options, cut))
    jax.eval_shape(lambda w, x: method(model, w, x, 0), w, X)  # traced, not compiled
    known = dict(zip(counts, measured[list(NETS).index(net)], strict=True))
    assert all(counts[k] <= 1.25 * known[k] + 3 for k in counts), (counts, known)


def _counted(function, found):
    @functools.wraps(function)
    def called(*args):
        found.append(args)
        return function(*args)

    return called


def test_the_sum_of_a_kernel_is_traced_once_for_its_value_and_its_gradient(monkeypatch):
    taps = []
    monkeypatch.setattr(kernels_conv, "_taps", _counted(kernels_conv._taps, taps))
    function, w, _ = NETS["conv"]  # its first convolution is such a sum, of these shapes alone
    jax.eval_shape(lambda w, x: jv.saliency(function, w, x, 0), w, X[:, :7])
    assert len(taps) == 1


def test_flax_asks_an_initialiser_for_known_shapes_and_nothing_is_drawn_anew(monkeypatch):
    drawn = []
    he_normal = _counted(jax.nn.initializers.he_normal(), drawn)
    monkeypatch.setattr(parts, "_he_normal", jax.jit(he_normal, static_argnums=(1, 2)))
    net, x = jv.models.nets["mobilenet_v2"](), jnp.ones((1, 32, 32, 3))
    w = jax.eval_shape(net.init, KEY, x)
    shapes = len(drawn)
    assert shapes == len({shape for _, shape, _ in drawn})
    jv.layers(net.apply, w, x)
    assert len(drawn) == shapes
