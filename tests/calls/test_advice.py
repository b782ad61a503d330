"""What errors advise works: the code that they name, run on what was refused, is taken."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxviz as jv

IMAGES = jnp.arange(2 * 8 * 8 * 2, dtype=jnp.float32).reshape(2, 8, 8, 2) / 256
ROWS = jnp.arange(8.0).reshape(2, 4) / 8
LABELS = np.arange(64).reshape(8, 8) // 16
KEY = jax.random.key(0)
NAMES = {
    **{"np": np, "jnp": jnp, "jax": jax, "H": 8, "W": 8, "N": 2},
    **{"grid_segments": jv.grid_segments, "natural_spectrum": jv.parametrizations.natural_spectrum},
}


def net(w, x):
    return x.mean((1, 2)) @ w


W = jnp.ones((2, 3))
row_net = lambda w, x: jnp.tanh(x) * 2


class Foreign:
    """Labels as another library holds them."""

    shape, ndim, dtype = (8, 8), 2, "torch.int64"

    def __array__(self, dtype=None, copy=None):
        return LABELS.astype(dtype or np.int64)


def dependence(grid):
    return jv.partial_dependence(row_net, None, ROWS, 0, feature=1, grid=grid)


def ablation(segments):
    return jv.feature_ablation(net, W, IMAGES, 0, segments=segments)


def waves(magnitude):
    phases = jv.parametrizations.phases(magnitude)
    return phases.initial(KEY, (1, 8, 8, 3), *phases.data)


# What was refused, by which call, and where in the error the code stands.
CASES = {
    "numbers in lists": (np.ones((2, 4)).tolist(), lambda x: jv.gradient(row_net, None, x, 0), ""),
    "whole numbers": (
        np.arange(8).reshape(2, 4),
        lambda x: jv.gradient(row_net, None, x, 0),
        "`(x.*255)`",
    ),
    "a generator": (
        (row for row in np.ones((2, 4), np.float32)),
        lambda x: jv.gradient(row_net, None, x, 0),
        r"gives: (np\.stack.*)\.$",
    ),
    "a mask of NumPy": (
        np.ma.masked_array(np.ones((2, 4), np.float32)),
        lambda x: jv.gradient(row_net, None, x, 0),
        r"Fill it: (x.*\))\.",
    ),
    "one example": (ROWS[0], jv.metrics.sparseness, r"One example is (attr.*)\.$"),
    "a number for a key": (
        0,
        lambda key: jv.rise(net, W, IMAGES, 0, key=key, num_samples=4, cells=2),
        r"Pass (.*\)), say",
    ),
    "labels of another library": (Foreign(), ablation, r"Make it one: (.*)\.$"),
    "labels with gaps": (LABELS * 1000, ablation, r"anew: (.*)\.$"),
    "one value of a grid": (0.5, dependence, r"such as (\[.*\])\.$"),
    "as many designs": (
        5,
        lambda num: jv.sobol(net, W, IMAGES, 0, key=KEY, num_designs=num, cells=2),
        r"Take (\d+)\.$",
    ),
    "too many players": (
        np.arange(64).reshape(8, 8),
        lambda cells: jv.shapley_values(net, W, IMAGES[:1], 0, segments=cells),
        r"\(`(grid_segments.*\))`\)",
    ),
    "labels for masks": (
        [LABELS] * 2,
        lambda segments: jv.xrai(net, W, IMAGES, 0, segments=segments),
        r"labels by (.*)\.$",
    ),
    "a mask for all": (
        LABELS > 1,
        lambda mask: jv.metrics.relevance_mass(IMAGES, mask),
        r"for all is (.*)\.$",
    ),
    "magnitudes of another size": (
        np.ones((3, 4, 4), np.float32),
        waves,
        r"Take `(.*)`\.$",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_an_error_advises_is_taken(name):
    value, call, code = CASES[name]
    with pytest.raises((TypeError, ValueError)) as told:
        call(value)
    found = re.search(code or r"Make it one: (.*)\.$", str(told.value))
    assert found, told.value
    each = value if isinstance(value, list) and name != "numbers in lists" else [value]
    names = ("value", "x", "attribution", "segments", "mask", "labels")
    advised = [eval(found[1], NAMES | dict.fromkeys(names, one)) for one in each]
    call(advised if len(each) > 1 else advised[0])


def test_lists_of_token_ids_are_to_stay_whole():
    with pytest.raises(TypeError, match=r"np\.asarray\(value, np\.int32\)"):
        jv.feature_ablation(row_net, None, [[1, 2], [3, 4]], 0)
    with pytest.raises(TypeError, match=r"np\.asarray\(value, np\.float32\)"):
        jv.saliency(row_net, None, [[1.0, 2], [3, 4]], 0)
    with pytest.raises(TypeError, match=r"np\.asarray\(value, np\.float32\)"):
        jv.saliency(row_net, None, [[1.0, 2], [3]], 0)


@pytest.mark.parametrize(("x", "stars"), [((ROWS, ROWS), "*"), ({"a": ROWS, "mask": ROWS}, "**")])
def test_several_inputs_are_to_be_taken_apart(x, stars):
    two = lambda params, a, mask: a * mask
    with pytest.raises(TypeError, match=r"is a (tuple|dict), one argument") as told:
        jv.gradient(two, None, x, 0)
    found = re.search(r"`(lambda params, x: apply_fn\(params, (\*+)x\))`", str(told.value))
    assert found is not None
    assert found[2] == stars
    advised = eval(found[1], {"apply_fn": two})
    slopes = jax.tree.leaves(jv.gradient(advised, None, x, 0))
    np.testing.assert_allclose(slopes[0][:, 0], ROWS[:, 0])


def test_a_missing_key_and_a_name_nearly_right_are_told():
    with pytest.raises(TypeError, match=r"Pass key=jax\.random\.key\(0\)"):
        jv.lime(row_net, None, ROWS, 0)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'features'\. Did you"):
        jv.partial_dependence(row_net, None, ROWS, 0, features=[0])


@pytest.mark.parametrize(
    "target", [np.eye(4, dtype=np.float32)[[1, 3]], np.array([1.0, 3.0]), np.array([[1], [3]])]
)
def test_labels_of_other_shapes_are_to_become_indices(target):
    with pytest.raises(ValueError, match=r"(P|p)ass ") as told:
        jv.gradient(row_net, None, ROWS, target)
    found = re.search(r"[Pp]ass (.*)\.$", str(told.value))
    assert found is not None
    assert eval(found[1], {"target": target, "np": np}).tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"names\.index\(name\)"):
        jv.gradient(row_net, None, ROWS, np.array(["cat", "dog"]))
