"""Segments of token ids and of several inputs; Shapley values by their definition, by hand."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {"words": jax.random.normal(KEYS[0], (12, 5)), "out": jax.random.normal(KEYS[1], (5, 3))}
IDS = jnp.array([[3, 7, 9], [1, 1, 5]])
BOTH = {"ids": IDS, "numbers": jax.random.normal(KEYS[2], (2, 4))}
FILL = {"ids": 2, "numbers": [0.0, 1.0, 2.0, 0.5]}
# One numbering for both: segment 2 is a word and a number, and the third number is never hidden.
SEGMENTS = {"ids": np.array([0, 1, 2]), "numbers": np.array([2, 3, -1, 0])}


def text(params, ids):
    words = params["words"][ids]
    return jnp.tanh(words.sum(1) * words[:, 0]) @ params["out"]


def both(params, x):
    return text(params, x["ids"]) * (1 + jnp.tanh(x["numbers"].sum(1, keepdims=True)))


def hidden(kept):
    """The two inputs with the segments left that are kept, written out."""
    kept = np.array(kept, bool)
    ids = jnp.where(kept[SEGMENTS["ids"]][None], BOTH["ids"], 2)
    seen = (SEGMENTS["numbers"] < 0) | kept[SEGMENTS["numbers"]]
    numbers = jnp.where(seen[None], BOTH["numbers"], jnp.array([FILL["numbers"]]))
    return both(PARAMS, {"ids": ids, "numbers": numbers})[:, 1]


def shares(score, count):
    """Shapley values by their definition, a sum over all coalitions."""
    scores = {s: np.asarray(score(s)) for s in itertools.product((0, 1), repeat=count)}
    found = np.zeros((2, count))
    for s, g in itertools.product(scores, range(count)):
        if not s[g]:
            weight = math.factorial(sum(s)) * math.factorial(count - sum(s) - 1)
            grown = (*s[:g], 1, *s[g + 1 :])
            found[:, g] += (scores[grown] - scores[s]) * weight / math.factorial(count)
    return found


def test_shapley_values_of_token_ids():
    wanted = shares(lambda s: text(PARAMS, jnp.where(np.array([s], bool), IDS, 2))[:, 1], 3)
    exact = jv.shapley_values(text, PARAMS, IDS, 1, fill=2)
    np.testing.assert_allclose(exact.values, wanted, atol=1e-5)
    np.testing.assert_allclose(exact.map, wanted, atol=1e-5)  # a token is a segment
    found = jv.kernel_shap(text, PARAMS, IDS, 1, fill=2, key=KEYS[3])  # all coalitions
    np.testing.assert_allclose(found.values, wanted, atol=1e-5)
    walked = jv.shapley_sampling(text, PARAMS, IDS, 1, fill=2, key=KEYS[3], num_samples=200)
    assert (abs(walked.values - wanted) <= 4 * walked.standard_errors + 1e-5).all()


def test_segments_have_one_numbering_across_the_leaves():
    wanted = shares(hidden, 4)
    options = {"segments": SEGMENTS, "fill": FILL}
    found = jv.shapley_values(both, PARAMS, BOTH, 1, **options)
    np.testing.assert_allclose(found.values, wanted, atol=1e-5)
    np.testing.assert_allclose(found.map["ids"], wanted[:, [0, 1, 2]], atol=1e-5)
    numbers = np.where(SEGMENTS["numbers"] < 0, 0, wanted[:, [2, 3, 0, 0]])
    np.testing.assert_allclose(found.map["numbers"], numbers, atol=1e-5)
    traced = jax.jit(lambda x: jv.kernel_shap(both, PARAMS, x, 1, key=KEYS[3], **options))(BOTH)
    np.testing.assert_allclose(traced.values, wanted, atol=1e-5)


def test_a_linear_model_of_words_and_numbers():
    add = lambda p, x: p["words"][x["ids"]].sum((1, 2))[:, None] + x["numbers"].sum(1)[:, None]
    word = PARAMS["words"].sum(1)
    found = jv.lime(add, PARAMS, BOTH, 0, key=KEYS[3], num_samples=60, strength=0.0)
    np.testing.assert_allclose(found.map["ids"], word[IDS] - word[0], atol=1e-3)
    np.testing.assert_allclose(found.map["numbers"], BOTH["numbers"], atol=1e-3)
    assert found.values.shape == (2, 7)


def test_feature_ablation_hides_what_has_one_number_together():
    found = jv.feature_ablation(both, PARAMS, BOTH, 1, segments=SEGMENTS, fill=FILL)
    whole = hidden([1, 1, 1, 1])
    lost = np.stack([whole - hidden([j != g for j in range(4)]) for g in range(4)], 1)
    np.testing.assert_allclose(found["ids"], lost[:, [0, 1, 2]], atol=1e-5)
    np.testing.assert_allclose(found["numbers"][:, [0, 1, 3]], lost[:, [2, 3, 0]], atol=1e-5)
    assert (found["numbers"][:, 2] == 0).all()
    # One array is the numbering of every leaf: what stands side by side goes together.
    pair = (IDS, BOTH["numbers"][:, :3])
    net = lambda p, x: both(p, {"ids": x[0], "numbers": x[1]})
    found = jv.feature_ablation(net, PARAMS, pair, 1, segments=np.arange(3))
    first = net(PARAMS, tuple(a.at[:, 0].set(0) for a in pair))
    np.testing.assert_allclose(found[0][:, 0], (net(PARAMS, pair) - first)[:, 1], atol=1e-5)
    np.testing.assert_allclose(found[0], found[1], atol=0)


@pytest.mark.parametrize("method", ["auto", "full", "incremental"])
def test_ablation_and_occlusion_of_token_ids(method):
    whole = text(PARAMS, IDS)[:, 1]
    lost = [whole - text(PARAMS, IDS.at[:, i].set(4))[:, 1] for i in range(3)]
    options = {"fill": 4, "method": method}
    found = jv.feature_ablation(text, PARAMS, IDS, 1, **options)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.stack(lost, 1), atol=1e-5)
    slid = jv.occlusion(text, PARAMS, IDS, 1, window=(1,), stride=(1,), **options)
    np.testing.assert_allclose(slid, np.stack(lost, 1), atol=1e-5)


def test_no_examples_of_two_inputs():
    none = jax.tree.map(lambda a: a[:0], BOTH)
    found = jv.feature_ablation(both, PARAMS, none, 1)
    assert jax.tree.map(jnp.shape, found) == {"ids": (0, 3), "numbers": (0, 4)}


def test_methods_of_places_say_what_takes_several_inputs():
    with pytest.raises(ValueError, match=r"^occlusion: x must be one array.*feature_ablation"):
        jv.occlusion(both, PARAMS, BOTH, 1, window=(1,), stride=(1,))


def test_a_method_that_moves_its_input_names_the_layer_of_token_ids():
    told = r"^learned_mask: x must be floating; got int32.*at_layer\(jaxviz.learned_mask, 'embed_0'"
    with pytest.raises(TypeError, match=told):
        jv.learned_mask(text, PARAMS, IDS, 1)


def test_a_set_of_baselines_gives_the_mean_over_them_as_fills():
    add = lambda w, x: jnp.tanh(x @ w)
    w, x = jax.random.normal(KEYS[0], (4, 3)), jax.random.normal(KEYS[1], (2, 4))
    sets = jax.random.normal(KEYS[2], (3, 4))
    each = [jv.shapley_values(add, w, x, 1, fill=b) for b in sets]
    wanted, base = (np.mean([getattr(e, part) for e in each], 0) for part in ("values", "base"))
    found = jv.shapley_values(add, w, x, 1, baselines=sets)
    np.testing.assert_allclose(found.values, wanted, atol=1e-5)
    np.testing.assert_allclose(found.base, base, atol=1e-5)
    options = {"key": KEYS[3], "baselines": sets}
    fitted = jv.kernel_shap(add, w, x, 1, **options)  # all coalitions
    np.testing.assert_allclose(fitted.values, wanted, atol=1e-5)
    walked = jv.shapley_sampling(add, w, x, 1, **options, num_samples=40)
    assert (abs(walked.values - wanted) <= 4 * walked.standard_errors + 1e-5).all()
    np.testing.assert_allclose(walked.values.sum(1), add(w, x)[:, 1] - base, atol=1e-5)
    # A linear model is fitted exactly: from the mean baseline.
    line = jv.lime(lambda w, x: x @ w, w, x, 1, **options, num_samples=40, strength=0.0)
    np.testing.assert_allclose(line.values, (x - sets.mean(0)[None]) * w[None, :, 1], atol=1e-3)
    own = jnp.stack([sets, sets[::-1] * 2])  # each example's own
    mine = jv.shapley_values(add, w, x, 1, baselines=own)
    alone = jv.shapley_values(add, w, x, 1, baselines=own[1])
    np.testing.assert_allclose(mine.values[0], wanted[0], atol=1e-5)
    np.testing.assert_allclose(mine.values[1], alone.values[1], atol=1e-5)
    with pytest.raises(
        ValueError, match=r"shapley_values: baselines must be \[B, ...\] with B >= 1"
    ):
        jv.shapley_values(add, w, x, 1, baselines=sets[0])


def test_each_example_may_have_baselines_of_its_own_on_a_path_too():
    net = lambda w, x: jnp.tanh(x @ w)
    w, x = jax.random.normal(KEYS[0], (4, 3)), jax.random.normal(KEYS[1], (2, 4))
    own = jax.random.normal(KEYS[2], (2, 3, 4))
    found = jv.deep_lift_shap(net, w, x, 1, baselines=own)
    gained = net(w, x)[:, 1] - net(w, own.reshape(6, 4)).reshape(2, 3, 3)[..., 1].mean(1)
    np.testing.assert_allclose(found.sum(1), gained, atol=1e-5)
    one = jv.expected_gradients(net, w, x, 1, baselines=own[:, :1], key=KEYS[3], num_samples=400)
    exact = jv.integrated_gradients(net, w, x, 1, baseline=own[:, 0])
    np.testing.assert_allclose(one, exact, atol=0.2)
    assert abs(jnp.sum(one - exact)) < 0.2
