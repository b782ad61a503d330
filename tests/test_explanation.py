"""One call for all: the numbers of the methods alone, names for classes, nothing overwritten."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

NAMES = ("<b>cat", "dog", "zebra")
W = jax.random.normal(jax.random.key(0), (8 * 8 * 3, 3))
X = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3))


def net(w, x):
    return jnp.tanh(x.reshape(len(x), -1)) @ w


def test_maps_and_probabilities_are_those_of_the_methods_and_of_jax():
    out = jv.explain(net, W, X, ["zebra", "<b>cat", 1], methods=("saliency",), classes=NAMES)
    assert out.target.tolist() == [2, 0, 1]
    expected = jv.saliency(net, W, X, jnp.array([2, 0, 1]))
    np.testing.assert_array_equal(out.maps["saliency"], expected)
    np.testing.assert_allclose(out.probabilities, jax.nn.softmax(net(W, X)), rtol=1e-5)


def test_the_model_is_traced_as_often_for_three_methods_as_for_one():
    def traces(*methods):
        calls = []

        def fresh(w, x):
            calls.append(1)
            return net(w, x)

        jv.explain(fresh, W, X, methods=methods)
        return len(calls)

    several = traces("saliency", "input_x_gradient", "integrated_gradients")
    assert several == traces("saliency")


def test_it_is_saved_whole_once_and_shown_escaped(tmp_path):
    out = jv.explain(net, W, X, classes=NAMES)
    page = out._repr_html_()
    assert "<b>cat" not in page
    assert "data:image/png;base64," in page
    folder = out.save(tmp_path / "new" / "one")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["jax"] == jax.__version__
    assert manifest["params"] != jv.explain(net, W + 1, X).manifest["params"]
    with np.load(folder / "maps.npz") as saved:
        np.testing.assert_array_equal(saved["map_saliency"], out.maps["saliency"])
    with pytest.raises(ValueError, match=r"must not hold an explanation yet; it has maps\.npz"):
        out.save(folder)


def test_what_is_missing_or_misspelt_is_named():
    for options, words in (
        ({"methods": ("saliancy",)}, "did you mean saliency"),
        ({"target": "zebre", "classes": NAMES}, "did you mean zebra"),
        ({"classes": ("a",)}, "got 1 for 3"),
        ({"target": [0, 1]}, "got 2 for 3 examples"),
    ):
        with pytest.raises(ValueError, match=words):
            jv.explain(net, W, X, **options)


def test_what_is_not_given_has_a_default_that_the_manifest_tells():
    conv = lambda w, x: jax.nn.relu(jax.lax.conv(x.transpose(0, 3, 1, 2), w, (1, 1), "SAME")).mean(
        (2, 3)
    )
    w = jax.random.normal(jax.random.key(2), (3, 3, 3, 3))
    out = jv.explain(conv, w, X, methods=("grad_cam", "smooth_grad", "occlusion"))
    want = jv.smooth_grad(jv.gradient)(conv, w, X, out.target, key=jax.random.key(0))
    np.testing.assert_array_equal(out.maps["smooth_grad"], want)
    np.testing.assert_array_equal(out.maps["grad_cam"], jv.grad_cam(conv, w, X, out.target))
    assert out.maps["occlusion"].shape == (3, 8, 8)
    assert out.manifest["key"] == [0, 0]
