"""Sweeps: the same numbers as the method on all at once, however they are fed, kept and divided."""

import functools
import json
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv
from jaxviz.sweep.store import Writer

X = np.random.default_rng(0).normal(size=(11, 4, 4, 1)).astype(np.float32)
Y = (np.arange(11) % 3).astype(np.int32)
W = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)


def net(w, x):
    return jnp.tanh(x.reshape(len(x), -1)) @ w


def in_batches(size=4, labels=True):
    for n in range(0, len(X), size):
        yield (X[n : n + size], Y[n : n + size]) if labels else X[n : n + size]


def whole(target=None):
    return np.asarray(jv.gradient(net, W, X, target))


@pytest.mark.parametrize("kind", ["arrays", "dataset", "generator", "list"])
@pytest.mark.parametrize("out", [None, "store", "sweep.npz"])
def test_maps_and_predictions_are_those_of_all_at_once(tmp_path, kind, out):
    batches = {
        "arrays": (X, Y),
        "dataset": jv.data.Dataset(X, Y, ("a", "b", "c")),
        "generator": in_batches(),
        "list": [[x, y] for x, y in in_batches()],
    }
    out = None if out is None else tmp_path / out
    swept = jv.sweep(jv.gradient, net, W, batches[kind], out=out, batch_size=4)
    logits = np.asarray(net(W, X))
    for result in (swept, *([] if out is None else [jv.open_sweep(out)])):
        assert result.maps["gradient"].shape == X.shape
        np.testing.assert_allclose(result.maps["gradient"], whole(), rtol=1e-6)
        np.testing.assert_allclose(result.outputs, logits, rtol=1e-5)
        np.testing.assert_array_equal(result.predicted, logits.argmax(-1))
        np.testing.assert_array_equal(result.labels, Y)
        np.testing.assert_allclose(
            result.probabilities, np.exp(logits) / np.exp(logits).sum(-1)[:, None], rtol=1e-5
        )
        summary = result.summaries["gradient"]
        np.testing.assert_allclose(summary.total, whole().sum((1, 2, 3)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(summary.magnitude, np.abs(whole()).sum((1, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(summary.lowest, whole().min((1, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(summary.highest, whole().max((1, 2, 3)), rtol=1e-6)


class Two(NamedTuple):
    mean: jax.Array
    places: jax.Array


def two(apply_fn, params, x, target=None):
    g = jv.gradient(apply_fn, params, x, target)
    return Two(g.mean((1, 2, 3)), jnp.argmax(g.reshape(len(g), -1), 1))


def test_several_methods_with_options_targets_and_named_tuples(tmp_path):
    methods = {
        "ig": functools.partial(jv.integrated_gradients, num_steps=3),
        "two": two,
    }
    for target, wanted in (("label", Y), (2, 2), (lambda o: o[:, 0] - o[:, 1], None)):
        swept = jv.sweep(methods, net, W, (X, Y), batch_size=4, target=target)
        explained = target if wanted is None else wanted
        expected = jv.integrated_gradients(net, W, X, explained, num_steps=3)
        np.testing.assert_allclose(swept.maps["ig"], expected, rtol=1e-5, atol=1e-7)
        g = np.asarray(jv.gradient(net, W, X, explained)).reshape(11, -1)
        np.testing.assert_allclose(swept.maps["two.mean"], g.mean(1), rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(swept.maps["two.places"], g.argmax(1))
    assert "num_steps" in swept.about["methods"]["ig"]["options"]


def test_no_method_gives_the_predictions_alone():
    swept = jv.sweep({}, net, W, X, batch_size=3)
    assert swept.maps == {}
    np.testing.assert_allclose(swept.outputs, net(W, X), rtol=1e-5)
    assert swept.labels is None


@pytest.mark.parametrize(
    ("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8), ("int8", 0)]
)
def test_narrow_maps_round_as_their_type_does(tmp_path, dtype, error):
    want = whole()
    # One scale an example: half a step of 1/127 of the largest magnitude.
    bound = np.abs(want).max((1, 2, 3), keepdims=True) / 254 * 1.001 if dtype == "int8" else 1e-7
    for out in (None, tmp_path / "store"):
        got = np.asarray(jv.sweep(jv.gradient, net, W, X, out=out, dtype=dtype).maps["gradient"])
        assert (np.abs(got.astype(np.float32) - want) <= np.abs(want) * error + bound).all()


def test_lazy_arrays_index_as_numpy_does(tmp_path):
    lazy = jv.sweep(jv.gradient, net, W, X, out=tmp_path / "s", batch_size=4).maps["gradient"]
    want = np.asarray(lazy)
    some = [
        3, -1, slice(2, 9, 3), slice(None, None, -1), np.array([7, 0, 7]), Y == 1, [1, 2, 3],
        (slice(1, 3), 0), (5, slice(None), 2), (np.array([0, 9]), 1), slice(3, 3), (Ellipsis, 0),
    ]  # fmt: skip
    for index in some:
        np.testing.assert_array_equal(lazy[index], want[index])
    assert (len(lazy), lazy.ndim, lazy.dtype) == (11, 4, np.float32)
    np.testing.assert_array_equal(np.stack(list(lazy)), want)
    with pytest.raises(IndexError):
        lazy[11]


def test_rows_by_class_correctness_and_confidence():
    swept = jv.sweep({}, net, W, (X, Y))
    assert {c: i.tolist() for c, i in swept.by_class()} == {
        c: np.flatnonzero(Y == c).tolist() for c in range(3)
    }
    right, wrong = swept.by_correctness()
    np.testing.assert_array_equal(np.sort([*right, *wrong]), np.arange(11))
    assert (swept.predicted[right] == Y[right]).all()
    assert (swept.predicted[wrong] != Y[wrong]).all()
    top = swept.probabilities.max(-1)[swept.by_confidence()]
    assert (np.diff(top) <= 0).all()
    with pytest.raises(ValueError, match="has no labels"):
        list(jv.sweep({}, net, W, X).by_class())


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    noisy = functools.partial(jv.smooth_grad(jv.gradient, num_samples=2))
    run = functools.partial(jv.sweep, {"noisy": noisy}, net, W, key=jax.random.key(3))
    run(in_batches(2), out=tmp_path / "whole")

    def breaks():
        for number, batch in enumerate(in_batches(2)):
            if number == 4:
                raise RuntimeError("the disk of the data set is gone")
            yield batch

    with pytest.raises(RuntimeError, match="is gone"):
        run(breaks(), out=tmp_path / "stopped")
    before = jv.open_sweep(tmp_path / "stopped")
    assert 0 < len(before.maps["noisy"]) <= 8
    np.testing.assert_array_equal(before.labels, Y[: len(before.labels)])
    run(in_batches(2), out=tmp_path / "stopped")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


CALLS = []


def counted(apply_fn, params, x, target=None):
    if not isinstance(x, jax.core.Tracer):  # of a chunk, not of its program
        CALLS.append(len(x))
    return jv.gradient(apply_fn, params, x, target)


def test_a_chunk_that_was_not_counted_is_made_again(tmp_path):
    run = functools.partial(jv.sweep, counted, net, W, X, out=tmp_path / "a", batch_size=4)
    run()
    want = contents(tmp_path / "a")
    (tmp_path / "a/rows/c/1").unlink()
    (tmp_path / "a/maps/counted/c/1/0/0/0").write_bytes(b"half a file")
    np.testing.assert_allclose(
        jv.open_sweep(tmp_path / "a").maps["counted"], whole()[[0, 1, 2, 3, 8, 9, 10]], rtol=1e-6
    )
    CALLS.clear()
    run()
    assert CALLS == [4]
    assert contents(tmp_path / "a") == want


def test_another_sweeps_store_is_refused(tmp_path):
    run = functools.partial(jv.sweep, jv.gradient, net, out=tmp_path / "s", batch_size=4)
    run(W, X)
    with pytest.raises(ValueError, match="its params is"):
        run(W + 1, X)
    with pytest.raises(ValueError, match="its data is"):
        run(W, X + 1)
    with pytest.raises(ValueError, match="its target is null"):
        run(W, X, target=1)
    with pytest.raises(ValueError, match="its methods is"):
        jv.sweep({"gradient": jv.saliency}, net, W, X, out=tmp_path / "s", batch_size=4)
    with pytest.raises(ValueError, match="its chunk_rows is 4"):
        jv.sweep(jv.gradient, net, W, X, out=tmp_path / "s", batch_size=2)
    with pytest.raises(ValueError, match="resume is False"):
        run(W, X, resume=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("something else")
    with pytest.raises(ValueError, match="holds other files"):
        jv.sweep(jv.gradient, net, W, X, out=tmp_path / "other")
    with pytest.raises(ValueError, match="holds no sweep"):
        jv.open_sweep(tmp_path / "nothing")


def double(w, x):
    return 2 * net(w, x)


def method(negative):
    if negative:
        return lambda apply_fn, params, x, target: -x
    return lambda apply_fn, params, x, target: x


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, apply_fn, params, x, target):
        return x * self.factor


# Functions of one name that compute something else, and inputs that differ behind the first chunk.
OTHERS = {
    "model": ({}, {"apply_fn": double}, "apply_fn computes something else"),
    "target": (
        {"target": lambda o: o[:, 0]},
        {"target": lambda o: o[:, 1]},
        "target computes something else",
    ),
    "method": (
        {"explain": {"m": method(False)}},
        {"explain": {"m": method(True)}},
        "method m computes something else",
    ),
    "object": (
        {"explain": {"m": Scaled(np.ones((1, 4, 4, 1), np.float32))}},
        {"explain": {"m": Scaled(np.full((1, 4, 4, 1), 2, np.float32))}},
        "method m computes something else",
    ),
    "inputs": ({}, {"batches": (np.concatenate([X[:4], -X[4:]]), Y)}, "rows 4 to 7 were made of"),
    "labels": ({}, {"batches": (X, np.where(np.arange(len(Y)) > 6, 0, Y))}, "rows 4 to 7 were"),
    "order": (
        {"batches": [(X[:4], Y[:4]), (X[4:8], Y[4:8])]},
        {"batches": [(X[:4], Y[:4]), (X[4:8][::-1], Y[4:8][::-1])]},
        "rows 4 to 7 were made of other inputs",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_computes_something_else_does_not_go_on_with_a_store(tmp_path, kind):
    first, second, message = OTHERS[kind]
    given = {"explain": jv.gradient, "apply_fn": net, "params": W, "batches": (X, Y), **first}
    given |= {"out": tmp_path / "s", "batch_size": 4, "progress": False}
    before = jv.sweep(**given)
    maps = {name: np.asarray(values) for name, values in before.maps.items()}
    with pytest.raises(ValueError, match=f"sweep: .* holds another sweep: its {message}"):
        jv.sweep(**given | second)
    again = jv.sweep(**given)  # and nothing of it was lost
    for name, values in maps.items():
        np.testing.assert_array_equal(again.maps[name], values)


def test_maps_that_a_narrow_type_cannot_hold_are_told(tmp_path):
    x = X.copy()
    x[2] *= 1e6  # beyond 65504
    x[5] *= 1e-12  # below the smallest of float16

    def itself(apply_fn, params, x, target):
        return x

    with pytest.warns(
        UserWarning, match="sweep: float16 cannot hold all maps: 2 of itself"
    ) as told:
        swept = jv.sweep(itself, net, W, x, out=tmp_path / "s", batch_size=4, dtype="float16")
    assert told[0].filename == __file__
    assert swept.not_finite("itself").tolist() == [2]
    swept = jv.sweep(itself, net, W, x, batch_size=4, dtype="int8")
    np.testing.assert_allclose(np.asarray(swept.maps["itself"])[2], x[2], atol=1e6 / 20)


WRONG_METHODS = {
    "one row": lambda apply_fn, params, x, target: x[:1],
    "a number": lambda apply_fn, params, x, target: 1.0,
    "none": lambda apply_fn, params, x, target: None,
    "text": lambda apply_fn, params, x, target: "map",
    "summed": lambda apply_fn, params, x, target: x.sum(),
    "three arguments": lambda apply_fn, params, x: x,
    "an option lacks": jv.occlusion,
}


@pytest.mark.parametrize("kind", WRONG_METHODS)
def test_methods_without_a_row_an_example_are_refused(kind):
    with pytest.raises((TypeError, ValueError), match="sweep: m must "):
        jv.sweep({"m": WRONG_METHODS[kind]}, net, W, X, batch_size=4, progress=False)


@pytest.mark.parametrize("out", [3, "", "a\0b", b"folder", ["a"], {}, "foo://x", {"driver": "no"}])
def test_no_place_is_refused_in_our_words(out):
    with pytest.raises((TypeError, ValueError), match=r"^sweep: out must be"):
        jv.sweep(jv.gradient, net, W, X, out=out)
    with pytest.raises((TypeError, ValueError), match=r"^open_sweep: out must be"):
        jv.open_sweep(out)


def test_an_unwritable_store_stops_with_what_was_saved(tmp_path, monkeypatch):
    write = Writer.write

    def full(self, number, count, arrays, inputs):
        if number == 2:
            raise OSError("No space left on device")
        return write(self, number, count, arrays, inputs)

    monkeypatch.setattr(Writer, "write", full)
    with pytest.raises(OSError, match="No space"):
        jv.sweep(jv.gradient, net, W, X, out=tmp_path / "s", batch_size=3)
    np.testing.assert_allclose(
        jv.open_sweep(tmp_path / "s").maps["gradient"], whole()[:6], rtol=1e-6
    )


def test_examples_that_are_not_finite_are_found(tmp_path):
    x = X.copy()
    x[5, 0, 0, 0] = np.nan
    swept = jv.sweep(jv.input_x_gradient, net, W, x, out=tmp_path / "s", batch_size=4)
    assert swept.not_finite("input_x_gradient").tolist() == [5]
    assert np.isfinite(np.asarray(swept.maps["input_x_gradient"])[6:]).all()


def test_out_of_memory_halves_the_chunk_once():
    sizes = []

    def hungry(apply_fn, params, x, target=None, *, chunk_size=8):
        sizes.append(chunk_size)
        if chunk_size > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return jv.gradient(apply_fn, params, x, target)

    with pytest.warns(UserWarning, match="half the chunk_size"):
        swept = jv.sweep(functools.partial(hungry, chunk_size=8), net, W, X, batch_size=4)
    np.testing.assert_allclose(swept.maps["hungry"], whole(), rtol=1e-6)
    assert 4 in sizes
    greedy = functools.partial(hungry, chunk_size=32)
    with (
        pytest.warns(UserWarning, match="half the chunk_size"),
        pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"),
    ):
        jv.sweep(greedy, net, W, X, batch_size=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batches": [X[:4], X[:6]]}, "one size"),
        ({"batches": [X[:4], X[:3], X[:4]]}, "one size"),
        ({"batches": []}, "there was none"),
        ({"batches": None}, "batches must be x, "),
        ({"batches": (X, Y, X)}, r"batches must be alike; .* a batch is x or \(x, y\)"),
        ({"batches": [(X, Y, X)]}, "must be x or"),
        ({"batches": [X[:4], (X[4:8], Y[4:8])]}, "batches must be alike; .*inputs and labels"),
        ({"batches": [X[:4], X[4:8, 1:]]}, "batches must be alike"),
        (
            {"batches": [{"image": X, "label": Y}]},
            r"""Map the batches: \(\(b\['image'\], b\['label'\]\) for b in batches\)""",
        ),
        (
            {"batches": {"labels": Y, "pixel_values": X}},
            r"""Map the batches: \(\(b\['pixel_values'\], b\['labels'\]\) for b""",
        ),
        ({"batches": ["photo.png"]}, "must be x or"),
        ({"batches": (X, Y.astype(np.float32))}, "labels must be integers"),
        ({"batches": (X, Y[:5])}, "of one N"),
        ({"batches": X, "target": "label"}, "needs labels"),
        ({"target": "top"}, 'must be "label"'),
        ({"dtype": "float64"}, "dtype must be one of"),
        ({"batch_size": 0}, "at least 1"),
        ({"explain": jv.smooth_grad(jv.gradient)}, "must be given a key"),
        ({"explain": {"a/b": jv.gradient}}, "names without"),
        ({"explain": functools.partial(jv.gradient, net)}, "must be keywords"),
    ],
)
def test_wrong_input_is_refused(change, message):
    given = {"explain": jv.gradient, "apply_fn": net, "params": W, "batches": X, "batch_size": 4}
    with pytest.raises((ValueError, TypeError), match=f"^sweep: .*{message}"):
        jv.sweep(**{**given, **change})


def test_a_net_that_takes_a_dict_is_given_one():
    both = jv.sweep(
        {},
        lambda w, x: x["a"] @ w + x["b"] @ w,
        W,
        {"a": X.reshape(11, 16), "b": X.reshape(11, 16)},
    )
    np.testing.assert_allclose(both.outputs, 2 * X.reshape(11, 16) @ W, rtol=1e-5)


DEVICES = """
import json, sys
import jax, numpy as np
import jaxviz as jv
sys.path.insert(0, sys.argv[1])
from test_sweep import X, Y, W, net
out = {}
for count in (1, 2, 4, 8):
    mesh = jax.sharding.Mesh(jax.devices()[:count], ("data",))
    noisy = jv.smooth_grad(jv.gradient, num_samples=2)
    swept = jv.sweep(noisy, net, W, (X, Y), mesh=mesh, batch_size=8, key=jax.random.key(0))
    out[count] = next(iter(swept.maps.values())).tolist()
try:
    jv.sweep(jv.gradient, net, W, X, mesh=mesh, batch_size=6)
except ValueError as error:
    out["error"] = str(error)
here, there = jax.devices()[:2]
try:
    jv.saliency(net, jax.device_put(W, there), jax.device_put(X, here))
except ValueError as error:
    out["apart"] = str(error)
print(json.dumps(out))
"""


def test_any_number_of_devices_gives_the_same_numbers(tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    here = os.path.dirname(__file__)
    run = subprocess.run(
        [sys.executable, "-c", DEVICES, here], env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    out = json.loads(run.stdout.splitlines()[-1])
    for count in "248":
        np.testing.assert_allclose(out[count], out["1"], rtol=1e-5, atol=1e-7)
    assert "must divide among the 8 devices" in out["error"]
    told = (
        "saliency: arguments must lie on the same devices; got params on devices [1] and x on [0]"
    )
    assert told in out["apart"]
