"""What is refused and what is not: rows of a batch, target functions, models that fail, arrays."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxviz as jv
from jaxviz import data
from jaxviz.calls import arrays

W = jnp.array([[1.0, 2.0, 4.0], [-1.0, 0.5, 3.0]])
X = jnp.array([[1.0, 2.0], [3.0, -1.0]])
IMAGES = jnp.ones((2, 8, 8, 2))
KEY = jax.random.key(0)


def net(w, x):
    return x @ w


def seen(w, x):
    return jax.nn.relu(x).mean((1, 2)) @ w


@pytest.mark.parametrize("method", [jv.saliency, jv.integrated_gradients, jv.lrp, jv.occlusion])
@pytest.mark.parametrize("target", [1, None])
def test_outputs_must_have_a_row_for_each_example(method, target):
    if method is jv.occlusion:
        method = functools.partial(method, window=(1,), stride=(1,))
    with pytest.raises(ValueError, match=r"a row for each of the 2 examples.*got outputs \(1, 3\)"):
        method(lambda w, x: net(w, x).mean(0, keepdims=True), W, X, target)
    with pytest.raises(ValueError, match=r"got outputs \(3, 2\).*return outputs\.T"):
        method(lambda w, x: net(w, x).T, W, X, target)


def test_as_many_classes_as_examples_are_told_apart_by_one_example_more():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="examples first"):
        jv.gradient(lambda w, x: net(w, x).T, W, x, 0)
    np.testing.assert_array_equal(jv.gradient(net, W, x, 1), jnp.tile(W[:, 1], (3, 1)))
    fixed = lambda w, x: net(w, x.reshape(3, 2))  # a model of one batch size cannot be asked
    np.testing.assert_array_equal(jv.gradient(fixed, W, x, 1), jnp.tile(W[:, 1], (3, 1)))


OUTSIDE = {
    "column": lambda o: o[:, 7],
    "margin": lambda o: o[:, 1] - o[:, 5],
    "before the first": lambda o: o[:, -4],
    "after a softmax": lambda o: jax.nn.log_softmax(o)[:, 3],
    "labels": lambda o: o[jnp.arange(2), jnp.array([1, 3])],
    "along an axis": lambda o: jnp.take_along_axis(o, jnp.array([[0], [9]]), 1)[:, 0],
    "take": lambda o: jnp.take(o, 5, axis=1),
    "lax": lambda o: jax.lax.dynamic_index_in_dim(o, 4, 1, keepdims=False),
    "in a loop": lambda o: jax.lax.map(lambda row: row[9], o),
    "in a branch": lambda o: jax.lax.cond(True, lambda o: o[:, 9], lambda o: o[:, 0], o),
}
INSIDE = {
    "last": (lambda o: o[:, -1], W[:, 2]),
    "margin": (lambda o: o[:, 0] - o[:, 2], W[:, 0] - W[:, 2]),
    "labels": (lambda o: o[jnp.arange(2), jnp.array([1, 1])], W[:, 1]),
    "sum": (lambda o: o[:, :2].sum(1), W[:, 0] + W[:, 1]),
    "take": (lambda o: jnp.take(o, 1, axis=1), W[:, 1]),
    "in a loop": (lambda o: jax.lax.map(lambda row: row[1], o), W[:, 1]),
    "by a loop's own count": (
        lambda o: jax.lax.fori_loop(0, 3, lambda k, total: total + o[:, k], 0 * o[:, 0]),
        W.sum(1),
    ),
}


def test_labels_in_the_byte_order_of_files_are_taken():
    big = np.array([2, 0], ">i4")
    np.testing.assert_array_equal(jv.gradient(net, W, X, big), W[:, [2, 0]].T)
    with pytest.raises(ValueError, match=r"^gradient: target must be in \[0, 3\).*got 3"):
        jv.gradient(net, W, X, np.array([3, 0], ">i8"))


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_target_function_must_index_inside(name):
    explain = lambda x: jv.gradient(net, W, x, OUTSIDE[name])
    for call in (explain, jax.jit(explain)):
        with pytest.raises(ValueError, match=r"^gradient: target must .* indexes inside"):
            call(X)


@pytest.mark.parametrize("name", INSIDE)
def test_a_target_function_that_indexes_inside_is_taken(name):
    target, expected = INSIDE[name]
    for method in (jv.gradient, jax.jit(jv.gradient, static_argnums=(0, 3))):
        np.testing.assert_allclose(method(net, W, X, target), jnp.tile(expected, (2, 1)))


def test_a_target_function_may_hold_labels_under_trace():
    labels = lambda x, y: jv.gradient(net, W, x, lambda o: o[jnp.arange(2), y])
    out = jax.jit(labels)(X, jnp.array([0, 2]))
    np.testing.assert_array_equal(out, jnp.stack([W[:, 0], W[:, 2]]))


def test_a_target_function_that_fails_is_told_of():
    with pytest.raises(
        ValueError, match=r"^saliency: target must be a function of outputs"
    ) as told:
        jv.saliency(net, W, X, lambda o: o["logits"])
    assert isinstance(told.value.__cause__, Exception)
    with pytest.raises(ValueError, match=r"one number an example.*returned shape \(2, 3\)"):
        jv.saliency(net, W, X, lambda o: o)


def one_number(w, x):  # a row of w for each channel; its first column is the number
    return jax.nn.relu(x).mean((1, 2)) @ w[:, 0]


@pytest.mark.parametrize("target", [None, 0])
def test_one_number_an_example_is_a_model_of_one_class(target):
    as_class = lambda w, x: one_number(w, x)[:, None]
    for method in (jv.gradient, jv.integrated_gradients, jv.lrp, jv.deep_lift, jv.xrai):
        options = {"segments": [np.ones((1, 8, 8), bool)] * 2} if method is jv.xrai else {}
        found, expected = (
            method(f, jnp.ones((2, 3)), IMAGES, target, **options) for f in (one_number, as_class)
        )
        np.testing.assert_array_equal(found, expected)
    for f in (one_number, as_class):
        with pytest.raises(ValueError, match=r"in \[0, 1\).*got 1. One number an example"):
            jv.gradient(f, jnp.ones((2, 3)), IMAGES, 1)
    added = lambda w, x: one_number(w, x).sum() * w[0, :2]  # as many numbers, but of no example
    with pytest.raises(ValueError, match=r"needs outputs \[N, K\]"):
        jv.gradient(added, jnp.ones((2, 3)), IMAGES, 0)


def test_numbers_in_lists_and_generators_are_no_array():
    rows = np.zeros((2, 3)).tolist()
    for value, words in (
        (rows, r"gradient: x must be an array .*numbers in a list of 2\. Make it one: np\.asarr"),
        ((row for row in rows), r"gradient: x must be an array \[N, \.\.\.\]; got a generator"),
    ):
        with pytest.raises(TypeError, match=words):
            jv.gradient(lambda p, x: x, None, value, 0)


def test_a_missing_batch_axis_is_seen():
    with pytest.raises((TypeError, ValueError), match=r"saliency: .*shape \(8, 8, 2\).*x\[None\]"):
        jv.saliency(seen, jnp.ones((2, 3)), IMAGES[0])


def test_what_a_call_would_take_instead_is_said():
    net = linen.Conv(3, (2, 2))
    params = net.init(KEY, IMAGES)
    first = lambda p, x: net.apply(p, x.transpose(0, 2, 3, 1))
    for f, x, told in (
        (net.apply, IMAGES.transpose(0, 3, 1, 2), r"channels last: pass jnp.moveaxis\(x, 1, -1\)"),
        (first, IMAGES, r"channels first: pass jnp.moveaxis\(x, -1, 1\)"),
        (lambda p, x, train: x, IMAGES, r"besides: functools.partial\(apply_fn, train=\.\.\.\)"),
        (linen.BatchNorm(True).apply, IMAGES, r"Pass all that `init` gave: .*batch_stats"),
    ):
        with pytest.raises((TypeError, ValueError), match=told):
            jv.saliency(f, params, x)


def test_a_batch_of_a_data_set_is_no_input():
    batch = {"image": IMAGES, "label": np.zeros(2, int)}
    with pytest.raises((TypeError, ValueError), match=r"^grad_cam: .*pass batch\['image'\]"):
        jv.grad_cam(seen, jnp.ones((2, 3)), batch, 0)


def test_a_module_is_no_function_of_params():
    dense = linen.Dense(3)
    variables = dense.init(KEY, X)
    with pytest.raises((TypeError, ValueError), match=r"^saliency: .*pass `module\.apply`"):
        jv.saliency(dense, variables, X)
    with pytest.raises((TypeError, ValueError), match=r"^layers: .*pass `module\.apply`"):
        jv.layers(dense, variables, X)
    with pytest.raises((TypeError, ValueError), match=r"^saliency: .*from_nnx\(module\)"):
        jv.saliency(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), None, X)


def test_the_words_of_a_model_that_fails_are_kept():
    def broken(w, x):
        raise KeyError("scale of the lens")

    with pytest.raises(ValueError, match=r"^saliency: .*KeyError.*scale of the lens") as told:
        jv.saliency(broken, W, X)
    assert isinstance(told.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("begins", "call"),
    [
        ("grad_cam", lambda: jv.grad_cam(seen, jnp.ones((2, 3)), IMAGES, 0, layer="conv")),
        ("guided_grad_cam", lambda: jv.guided_grad_cam(seen, W, IMAGES, 0, layer="conv")),
        ("invert", lambda: jv.invert(seen, W, IMAGES, layer="relu_0", key=KEY, num_views=0)),
        ("smooth_grad(grad_cam)", lambda: _smooth(jv.grad_cam, layer="conv")),
        ("smooth_grad(gradient)", lambda: _smooth(jv.gradient, chunk=3)),
        ("xrai", lambda: jv.xrai(seen, W, IMAGES, 9)),
        ("summary", lambda: jv.summary(seen, W, jnp.ones((2, 8)))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_begin_with_the_function_called(begins, call):
    with pytest.raises((TypeError, ValueError)) as told:
        call()
    assert str(told.value).startswith(f"{begins}: "), told.value


def _smooth(method, **options):
    return jv.smooth_grad(method)(seen, jnp.ones((2, 3)), IMAGES, 0, key=KEY, **options)


def test_a_wrong_name_gets_the_nearest_and_a_short_signature():
    with pytest.raises(TypeError, match="Did you mean num_steps") as told:
        jv.integrated_gradients(net, W, X, 0, num_step=3)
    assert len(str(told.value)) < 300
    assert "collections" not in str(told.value)


def test_other_byte_orders_are_the_same_numbers():
    there = np.asarray(X).astype(">f4")
    np.testing.assert_array_equal(jv.input_x_gradient(net, W, there, 1), X * W[:, 1][None])


@pytest.mark.parametrize("value", [np.ma.masked_array(X, X > 2), np.array([["a"]]), [[1.0]], "x"])
def test_what_is_no_array_of_numbers_is_refused(value):
    with pytest.raises((TypeError, ValueError), match=r"^saliency: x must be"):
        jv.saliency(net, W, value)


@pytest.mark.parametrize("num", [4, np.int64(4), np.int32(4), jnp.int32(4), np.array(4)])
def test_whole_numbers_of_any_kind_are_one(num):
    out = jv.integrated_gradients(net, W, X, np.int64(1), num_steps=num, rule="middle")
    np.testing.assert_allclose(out, X * W[:, 1][None], rtol=1e-6)


KEYS = [jax.random.key(1), jax.random.PRNGKey(1), np.array([0, 1], "u4")]


@pytest.mark.parametrize("key", [*KEYS, jax.random.PRNGKey(1, impl="rbg")])
def test_keys_of_both_kinds(key):
    out = jv.smooth_grad(jv.gradient, num_samples=2, noise_scale=jnp.float32(0.1))(
        net, W, X, 1, key=key
    )
    np.testing.assert_allclose(out, jnp.tile(W[:, 1], (2, 1)), rtol=1e-6)


EMPTY = {
    "gradient": (jv.gradient, (0, 2)),
    "guided_integrated_gradients": (jv.guided_integrated_gradients, (0, 2)),
    "feature_ablation": (jv.feature_ablation, (0, 2)),
    "shapley_values": (jv.shapley_values, (0, 2)),
    "lime": (functools.partial(jv.lime, key=KEY), (0, 2)),
    "smooth_grad": (functools.partial(jv.smooth_grad(jv.gradient), key=KEY), (0, 2)),
}


@pytest.mark.parametrize("name", EMPTY)
@pytest.mark.parametrize("target", [None, 1, np.zeros(0, int), lambda o: o[:, 1]])
def test_of_no_examples_there_are_no_rows(name, target):
    method, shape = EMPTY[name]
    out = method(net, W, X[:0], target)
    assert jax.tree.leaves(out)[0].shape == shape


def test_some_functions_need_an_example():
    model, none = (seen, jnp.ones((2, 3))), IMAGES[:0]
    for call in (
        lambda: jv.concepts.tcav(
            *model, none, 0, concepts={"a": IMAGES}, random=[IMAGES] * 3, layers=["relu_0"], key=KEY
        ),
        lambda: jv.concepts.counterfactual_examples(*model, none, IMAGES, layer="relu_0"),
        lambda: jv.concepts.nearest_examples(*model, IMAGES, none, layer="relu_0"),
        lambda: jv.deep_dream(*model, none, jv.objectives.logit(0), key=KEY),
    ):
        with pytest.raises(ValueError, match=r"^\w+: (x|examples) must hold an example at least"):
            call()


def test_history_of_no_examples_keeps_its_steps():
    out = jv.learned_mask(seen, jnp.ones((2, 3)), IMAGES[:0], 0, num_steps=3)
    assert (out.mask.shape, out.history.shape) == ((0, 8, 8), (3, 0))


@pytest.mark.parametrize("method", [jv.lime, jv.kernel_shap, jv.shapley_sampling])
def test_segments_that_ask_for_too_much_are_refused(method):
    segments = jv.grid_segments((8, 8), (2, 2))
    call = functools.partial(method, seen, jnp.ones((2, 3)), IMAGES, 0, key=KEY)
    with pytest.raises(ValueError, match=r"numbers up to 3000000 for 64 places"):
        call(segments=segments * 10**6, num_samples=10**7)
    with pytest.raises(ValueError, match=r"need about [\d,]+ GiB"):
        call(segments=segments, num_segments=10**6, num_samples=10**8)
    with pytest.raises(ValueError, match="num_segments must be more than every number"):
        call(segments=segments, num_segments=2)


def test_a_method_that_loses_the_rows_is_not_averaged():
    total = lambda apply_fn, params, x, target=None: jv.gradient(apply_fn, params, x, target).sum(0)
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"smooth_grad.*a row for each of the 3 examples"):
        jv.smooth_grad(total)(net, W, x, 0, key=KEY)


def test_a_range_is_a_list_of_numbers():
    np.testing.assert_array_equal(arrays.numbers_list("f", "unit", range(3)), [0, 1, 2])


def test_numbers_that_jax_has_not_and_no_numbers_at_all_are_refused():
    net = lambda params, x: x.reshape(len(x), -1)[:, :3]
    wide = np.ones((2, 4, 4, 1), np.longdouble)
    if wide.dtype.itemsize > 8:  # on this machine
        for call in (jv.gradient, jv.saliency, jv.layers, jv.summary):
            with pytest.raises(TypeError, match=f"^{call.__name__}: x must be of at most 64 bits"):
                call(net, None, wide)
    for call in (jv.gradient, jv.layers):
        with pytest.raises(ValueError, match=f"^{call.__name__}: x must hold numbers"):
            call(net, None, np.ones((2, 0, 4, 1), np.float32))
    for spoiled in (np.nan, np.inf):
        with pytest.raises(ValueError, match=r"^slic_segments: x must be .* finite"):
            jv.slic_segments(np.full((1, 8, 8, 3), spoiled, np.float32))


@pytest.mark.parametrize("wrap", [jv.softmax, jv.log_softmax])
def test_probabilities_need_an_axis_of_classes(wrap):
    x = np.ones((2, 3), np.float32)
    for outputs in (lambda x: x[:, 0], lambda x: x.sum(), lambda x: (x, x), lambda x: None):
        model = wrap(lambda params, x, outputs=outputs: outputs(x))
        with pytest.raises(ValueError, match=rf"^{wrap.__name__}: .* logits \[N, K\]"):
            model(None, x)


def test_xrai_refuses_outputs_without_classes_as_the_others_do():
    x = np.ones((2, 4, 4, 1), np.float32)
    for outputs in (lambda x: x.mean((1, 2)).sum(0), lambda x: (x, x), lambda x: {"logits": x}):
        with pytest.raises(ValueError, match=r"^xrai: a target index \(or None\) needs outputs"):
            jv.xrai(lambda params, x, outputs=outputs: outputs(x), None, x)


def test_the_systems_words_about_a_file_name_the_call():
    with pytest.raises(FileNotFoundError, match=r"^read_idx: cannot use /nowhere/at/all: No such"):
        data.read_idx("/nowhere/at/all")


def test_params_of_files_and_what_jax_has_not():
    want = jv.gradient(net, W, X, 0)
    for dtype in (">f4", ">f8", "<f8"):  # as HDF5 and old archives keep them
        np.testing.assert_array_equal(jv.gradient(net, np.asarray(W, dtype), X, 0), want)
    given_away = jnp.ones(3)
    given_away.delete()  # as `donate_argnums` does
    ignored = lambda params, x: net(W, x)
    for leaf, told in (
        (given_away, r"still there; the memory of that at \['a'\] was given away"),
        (2**70, r"whole numbers of 32 bits; got 1180591620717411303424 at \['a'\]"),
        (np.ones(3, np.clongdouble), r"at most 64 bits a number; got complex\d+ at \['a'\]"),
        (np.zeros(2, [("b", "f4")]), r"hold arrays, and .* numpy.ndarray of \[.* at \['a'\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"^gradient: params must .*{told}"):
            jv.gradient(ignored, {"a": leaf}, X, 0)


def test_a_function_to_lay_out_maps_that_fails_is_told_of():
    image, conv = jnp.ones((1, 4, 4, 2)), lambda w, x: jax.nn.relu(x @ w).mean((1, 2))
    ask = lambda reshape: jv.grad_cam(conv, W, image, 0, layer="relu_0", reshape=reshape)
    with pytest.raises(ValueError, match=r"^grad_cam: reshape must be .*ZeroDivisionError: div"):
        ask(lambda a: 1 / 0)
    with pytest.raises(
        TypeError, match=r"^grad_cam: reshape must be .* returns an array; got None"
    ):
        ask(lambda a: None)
    with pytest.raises(TypeError, match=r"^at_layer: method must be a function whose parameters"):
        jv.at_layer(int, "relu_0")


def test_a_blur_wider_than_any_image_is_its_mean():
    image = jnp.arange(12.0).reshape(1, 3, 4, 1)
    np.testing.assert_allclose(jv.blurred(image, 1e12), jnp.full_like(image, 5.5), rtol=1e-4)


def test_logits_that_are_no_numbers_are_told_of_before_any_method_runs():
    x = jnp.array([[1.0, 2.0], [-9.0, 0.0]])
    with pytest.raises(ValueError, match=r"^explain: the net's outputs .* 1 of 2 .*number 1"):
        jv.explain(lambda w, x: jnp.log(x @ w), jnp.ones((2, 3)), x)
    shut_out = lambda w, x: (x @ w).at[:, 1].set(-jnp.inf)
    assert jv.explain(shut_out, W, x, methods=["gradient"]).probabilities[0, 1] == 0


class Made:
    """A model of a class, of which someone passes the class."""

    def __init__(self, *args):
        pass

    def __call__(self, w, x):
        return x @ w


def test_what_a_model_returns_is_arrays():
    for model, told in (
        (Made, "a Made. It is a class: pass an ins"),
        (lambda w, x: "cat", "'cat'"),
    ):
        for call in (jv.gradient, jv.explain, jv.layers, jv.summary, jv.lrp):
            with pytest.raises(TypeError, match=f"^{call.__name__}: apply_fn must return .*{told}"):
                call(model, W, X)
    for number in (1.0, jnp.float32(1)):
        with pytest.raises(ValueError, match=r"^explain: outputs must be .*; got \(\)"):
            jv.explain(lambda w, x, number=number: number, W, X)
    np.testing.assert_array_equal(jv.gradient(Made(), W, X, 0), jv.gradient(net, W, X, 0))


@pytest.mark.parametrize(
    ("shaped", "told"),
    [
        (lambda o: {"logits": o}, "{'logits': (1, 3)}"),
        (lambda o: o.astype(int), "int32 of shape (1, 3)"),
        (lambda o: o.T, "float32 of shape (3, 1)"),
        (lambda o: o.sum(), "float32 of shape ()"),
    ],
)
def test_outputs_that_no_image_can_climb_are_refused(shaped, told):
    climbed = lambda w, x: shaped(x.mean((1, 2)) @ w)
    with pytest.raises(ValueError, match=f"^maximize_activation: .*got {re.escape(told)}"):
        jv.maximize_activation(climbed, W, (4, 4, 2), jv.objectives.logit(0), key=KEY)


def test_a_loss_has_no_gradient_through_the_class_that_wins():
    winner, given = lambda w, x: (x @ w).astype(int), (X, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"^trac_in: apply_fn must return floating .* int32\. Ret"):
        jv.influence.trac_in(winner, [W], given, given, learning_rates=[0.1])


def test_one_number_an_example_without_axes_is_ablated():  # what it adds is what is lost
    x, net = jnp.array([1.0, -2.0]), lambda w, x: jax.nn.relu(x)[:, None] * w[0][None]
    np.testing.assert_array_equal(jv.feature_ablation(net, W, x, 1), [2.0, 0.0])
    permuted = jv.feature_permutation(net, W, x, 1, key=KEY)
    np.testing.assert_array_equal(permuted, [2.0, -2.0])  # each takes the other's


def test_a_model_that_fails_for_want_of_examples_is_told_so():
    with pytest.raises(ValueError, match=r"ZeroDivisionError.*x holds no example: leave empty"):
        jv.layers(lambda w, x: x.reshape(len(x), -1), None, X[:0])
