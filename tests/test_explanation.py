"""One call for all: the numbers of the methods alone, names for classes, nothing overwritten."""

import functools
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
    want = jv.smooth_grad(jv.gradient)(conv, w, X, key=jax.random.key(0))
    np.testing.assert_array_equal(out.maps["smooth_grad"], want)
    np.testing.assert_array_equal(out.maps["grad_cam"], jv.grad_cam(conv, w, X))
    assert out.maps["occlusion"].shape == (3, 8, 8)
    assert out.manifest["key"] == [0, 0]


def test_feature_ablation_hides_cells_of_images_unless_told_otherwise():
    net = lambda w, x: jnp.tanh(x * w).sum((1, 2))
    rows = np.arange(8).repeat(8).reshape(8, 8)
    own = {"feature_ablation": {"segments": rows}}
    made = jv.explain(net, 0.5, X, 0, methods=("feature_ablation",)).maps["feature_ablation"]
    cells = jv.grid_segments((8, 8), (7, 7))
    want = jv.feature_ablation(net, 0.5, X, 0, segments=cells)
    np.testing.assert_array_equal(made, want)
    made = jv.explain(net, 0.5, X, 0, methods=own).maps["feature_ablation"]
    np.testing.assert_array_equal(made, jv.feature_ablation(net, 0.5, X, 0, segments=rows))
    at_layer = {"feature_ablation": {"layer": "tanh_0"}}
    made = jv.explain(net, 0.5, X, 0, methods=at_layer).maps["feature_ablation"]
    assert made.shape == X.shape  # of a layer each number


KEYS = jax.random.split(jax.random.key(3), 4)
WORDS = {"words": jax.random.normal(KEYS[0], (9, 4)), "out": jax.random.normal(KEYS[1], (4, 2))}
IDS = jnp.array([[5, 7, 2], [1, 0, 8]])


def text(p, ids):
    return jnp.tanh(p["words"][ids]).mean(1) @ p["out"]


def test_token_ids_are_moved_where_they_become_floating_and_hidden_where_they_are():
    out = jv.explain(text, WORDS, IDS, 1, methods=("gradient", "feature_ablation", "occlusion"))
    want = jv.gradient(lambda p, a: jnp.tanh(a).mean(1) @ p["out"], WORDS, WORDS["words"][IDS], 1)
    np.testing.assert_allclose(out.maps["gradient"], want, rtol=1e-6)
    ablated = jv.feature_ablation(text, WORDS, IDS, 1)
    np.testing.assert_array_equal(out.maps["feature_ablation"], ablated)
    assert out.maps["occlusion"].shape == IDS.shape
    assert [a.get_label() for a in out.figure().axes][:2] == ["input", "gradient"]
    with pytest.raises(TypeError, match=r"explain: x must be floating.*at_layer\(jaxviz.gradient"):
        jv.explain(text, WORDS, IDS, methods=("grad_cam",))
    sums = lambda w, ids: ids.astype(w.dtype) + w
    with pytest.raises(ValueError, match=r"explain: .*no layer that can be cut makes floating"):
        jv.explain(sums, jnp.ones((1, 3)), IDS, methods=("gradient",))


def test_several_inputs_functions_of_outputs_and_options():
    def both(p, x):
        return {"score": text(p, x["ids"])[:, 0] * x["image"].mean((1, 2, 3)), "other": x["ids"]}

    x = {"ids": IDS, "image": X[:2]}
    score = lambda outputs: outputs["score"]
    segments = {"ids": np.arange(3), "image": np.full((8, 8), -1)}
    methods = {
        "integrated_gradients": {"num_steps": 3},
        "at the words": jv.at_layer(jv.gradient, "embed_0"),
        "smooth": jv.smooth_grad(jv.gradient, num_samples=2),
        "tokens": functools.partial(jv.feature_ablation, segments=segments),
    }
    assert next(layer.name for layer in jv.layers(both, WORDS, x)) == "embed_0"
    out = jv.explain(both, WORDS, x, score, methods=methods, key=KEYS[0])
    steps = jv.integrated_gradients(both, WORDS, x, score, num_steps=3)
    np.testing.assert_array_equal(out.maps["integrated_gradients"]["image"], steps["image"])
    smooth = methods["smooth"](both, WORDS, x, score, key=KEYS[0])
    np.testing.assert_array_equal(out.maps["smooth"]["image"], smooth["image"])
    means = X[:2].mean((1, 2, 3))[:, None, None]
    words = jax.grad(lambda a: (jnp.tanh(a).mean(1) @ WORDS["out"])[:, 0].sum())(
        WORDS["words"][IDS]
    )
    np.testing.assert_allclose(out.maps["at the words"], words * means, rtol=1e-5, atol=1e-7)
    assert (out.target, out.probabilities) == (None, None)
    assert out.manifest["options"] == {"integrated_gradients": {"num_steps": 3}}
    titles = [ax.get_title() for ax in out.figure().axes]
    assert {"input", "integrated gradients", "smooth"} <= set(titles)


@pytest.mark.parametrize("channels_first", [False, True])
def test_signals_and_channels_first_have_windows_over_their_space(channels_first, tmp_path):
    kernel, x = jax.random.normal(KEYS[2], (3, 2, 4)), jax.random.normal(KEYS[3], (2, 24, 2))
    space = "NCH" if channels_first else "NHC"

    def signal(w, x):
        h = jax.lax.conv_general_dilated(
            x, w, (1,), "SAME", dimension_numbers=(space, "HIO", space)
        )
        return jax.nn.relu(h).mean(2 if channels_first else 1)

    x = x.transpose(0, 2, 1) if channels_first else x
    out = jv.explain(signal, kernel, x, methods=("occlusion", "grad_cam", "gradient"))
    want = jv.occlusion(signal, kernel, x, out.target, window=(3,), stride=(1,))
    np.testing.assert_array_equal(out.maps["occlusion"], want)
    assert out.maps["grad_cam"].shape == (2, 24)
    if not channels_first:
        assert (out.save(tmp_path) / "explanation.png").stat().st_size > 5000


def test_a_sheet_is_the_commands(monkeypatch):
    drawn = {}
    monkeypatch.setattr(jv.plot, "explanation_sheet", lambda *a, **k: drawn.update(k, drawn=a))
    out = jv.explain(
        net, W, jnp.concatenate([X] * 4), methods=("occlusion", "saliency"), classes=NAMES
    )
    out.figure(8, images=np.ones((12, 4, 4, 3)), labels=np.arange(12) % 3, title="late ones")
    images, maps = drawn["drawn"]
    assert (images.shape, list(maps)) == ((4, 4, 4, 3), ["occlusion", "saliency"])
    np.testing.assert_array_equal(drawn["labels"], [2, 0, 1, 2])
    np.testing.assert_array_equal(drawn["target"], out.target[8:])
    assert (drawn["overlay"], drawn["title"]) == (["occlusion"], "late ones")


def test_what_explain_cannot_do_is_refused():
    total = lambda apply_fn, params, x, target=None: jv.gradient(apply_fn, params, x, target).sum()
    twice = ("crane", "zebra", "crane")  # as ImageNet has it: a bird, and a machine
    assert jv.explain(net, W, X, "zebra", classes=twice).classes == twice
    for options, error, words in (
        ({"methods": {}}, TypeError, "explain: methods must be names of methods or explanations"),
        ({"methods": {"saliency": 3}}, TypeError, "explain: methods must be names of.* got 3"),
        (
            {"methods": {1: {}, "saliency": {}}},
            TypeError,
            "explain: methods must be names of.* got 1",
        ),
        ({"methods": (jv.gradient, jv.gradient)}, ValueError, "'gradient' comes twice"),
        ({"methods": ("expected_gradients",)}, ValueError, "expected_gradients needs baselines"),
        ({"methods": {"saliency": {"num_steps": 2}}}, TypeError, "explain: .*num_steps"),
        ({"layer": "relu_0"}, ValueError, "explain: layer is for methods of a layer"),
        (
            {"methods": (jv.summary,)},
            TypeError,
            "explain: methods must be .*got the function summary",
        ),
        ({"methods": {"all": total}}, ValueError, r"method 'all' must give one map an .*got \(\)"),
        ({"target": "crane", "classes": twice}, ValueError, "'crane' must be .* 0, 2 have it"),
        ({"target": 1.5}, TypeError, "explain: target must be a class's name or index, or a func"),
        ({"target": lambda o: o}, ValueError, "explain: target: a function must return one number"),
    ):
        with pytest.raises(error, match=words):
            jv.explain(net, W, X, **options)
    with pytest.raises(TypeError, match=r"explain: x must hold numbers.*got traced arrays"):
        jax.jit(lambda x: jv.explain(net, W, x).maps)(X)


def test_a_binary_nets_one_output_has_one_name():
    net = lambda w, x: x @ w
    with pytest.raises(ValueError, match=r"got 2 for 1\. Pass the positive class's"):
        jv.explain(net, jnp.ones((2, 1)), jnp.ones((1, 2)), classes=("cat", "dog"))
