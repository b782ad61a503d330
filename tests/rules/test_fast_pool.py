"""Max pooling by the winner's place: against XLA's own pooling, its pullback and its tangents."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxviz.rules.kernels_pool import max_pool, max_pool_difference, shared_max_pool


def native(x, *, base_dilation, **options):
    names = ("window_dimensions", "window_strides", "padding", "window_dilation")
    window, strides, padding, dilation = (options[name] for name in names)
    least = np.array(-np.inf, x.dtype)  # concrete: JAX then knows its derivative
    return lax.reduce_window(x, least, lax.max, window, strides, padding, None, dilation)


def geometry(window, strides=None, padding=None, dilation=None):
    rank = len(window)
    return dict(
        window_dimensions=window,
        window_strides=strides or (1,) * rank,
        padding=padding or ((0, 0),) * rank,
        base_dilation=(1,) * rank,
        window_dilation=dilation or (1,) * rank,
    )


def random_geometry(rng):
    """Batch, 1 to 3 spatial axes and channels in any order; windows that fit."""
    rank = int(rng.integers(1, 4)) + 2
    slides = np.sort(rng.choice(rank, rank - 2, replace=False))
    shape, window, strides = [2] * rank, [1] * rank, [1] * rank
    padding, dilation = [(0, 0)] * rank, [1] * rank
    for axis in slides:
        window[axis], strides[axis], dilation[axis] = (int(i) for i in rng.integers(1, [4, 4, 3]))
        reach = (window[axis] - 1) * dilation[axis]
        shape[axis] = reach + 1 + int(rng.integers(0, 5))
        padding[axis] = tuple(int(i) for i in rng.integers(0, reach + 1, 2))
    options = geometry(*(tuple(o) for o in (window, strides, padding, dilation)))
    return tuple(shape), options


def pooled_and_gradient(pool, options):
    def run(x, g):
        y, back = jax.vjp(functools.partial(pool, **options), x)
        return y, back(g)[0]

    return jax.jit(run)


def slow(x, g, options, shared=False):
    """Pooling and its pullback, window by window in NumPy; of equal places the first wins, or all
    share."""
    x, g = np.asarray(x), np.asarray(g)
    names = ("window_dimensions", "window_strides", "padding", "window_dilation")
    window, strides, padding, dilation = (np.array(options[name]) for name in names)
    padded = np.pad(x, padding, constant_values=-np.inf)
    y, dx = np.zeros_like(g), np.zeros_like(padded)
    offsets = [np.array(o) * dilation for o in np.ndindex(*window)]
    for out in np.ndindex(*g.shape):
        at = [tuple(np.array(out) * strides + o) for o in offsets]
        y[out] = max(padded[place] for place in at)
        winners = [place for place in at if padded[place] == y[out]]
        for place in winners if shared else winners[:1]:
            dx[place] += g[out] / (len(winners) if shared else 1)
    crop = tuple(slice(low, low + n) for (low, _), n in zip(padding, x.shape, strict=True))
    return y, dx[crop]


@pytest.mark.parametrize("seed", range(16))
def test_equals_a_loop_over_windows_and_xla(seed):  # ties everywhere: five values only
    rng = np.random.default_rng(seed)
    shape, options = random_geometry(rng)
    x = jnp.array(rng.integers(-2, 3, shape), jnp.float32)
    g = jnp.array(rng.normal(size=native(x, **options).shape), jnp.float32)
    ours = pooled_and_gradient(max_pool, options)(x, g)
    others = [slow(x, g, options)]
    if max(options["window_dilation"]) == 1:  # JAX differentiates no others
        others.append(pooled_and_gradient(native, options)(x, g))
    for y, gradient in others:
        np.testing.assert_array_equal(ours[0], y)
        # At most prod(window) = 27 gradients meet in one place, added in another order.
        np.testing.assert_allclose(ours[1], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [*range(6), "large"])
def test_equal_winners_share(seed):
    rng = np.random.default_rng(0 if seed == "large" else seed)
    shape, options = random_geometry(rng)
    if seed == "large":  # more places than bits in a word
        shape, options = (2, 13, 7), geometry((1, 7, 6), (1, 3, 1), ((0, 0), (2, 1), (0, 3)))
    x = jnp.array(rng.integers(-2, 3, shape), jnp.float32)
    g = jnp.array(rng.normal(size=native(x, **options).shape), jnp.float32)
    y, gradient = slow(x, g, options, shared=True)
    ours = pooled_and_gradient(shared_max_pool, options)(x, g)
    np.testing.assert_array_equal(ours[0], y)
    np.testing.assert_allclose(ours[1], gradient, rtol=1e-5, atol=1e-5)


def test_equal_winners_explain_a_change_together():
    """By hand: four windows of three, a difference of 1 carried by each place."""
    x = jnp.array([[5.0, 5.0, 1.0], [1.0, 2.0, 4.0], [2.0, 2.0, 2.0], [-np.inf, -np.inf, 3.0]])
    x0 = jnp.array([[1.0, 3.0, 4.0], [6.0, 6.0, 0.0], [2.0, 0.0, 2.0], [-np.inf, -np.inf, 3.0]])
    options = geometry((1, 3))
    each = lambda d: max_pool_difference(x, x0, d, **options)[2].sum()
    multipliers = jax.grad(each)(jnp.ones_like(x))
    # Grew by 1: the two at 5 moved by 4 and 2. Fell by 2: the two at 6 moved by 5 and 4.
    expected = [[1 / 8, 1 / 4, 0], [1 / 5, 1 / 4, 0], [0, 0, 0], [0, 0, 0]]
    np.testing.assert_allclose(multipliers, expected, rtol=1e-6)
    y, y0, carried = max_pool_difference(x, x0, jnp.nan_to_num(x - x0), **options)
    np.testing.assert_allclose(carried, y - y0, rtol=1e-6)


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (1, 4)])
def test_windows_apart_are_bit_equal(size):
    options = geometry((1, *size, 1), (1, 3, 4, 1))
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(size=(3, 11, 13, 5)), jnp.float32)
    g = jnp.array(rng.normal(size=native(x, **options).shape), jnp.float32)
    ours, theirs = (pooled_and_gradient(f, options)(x, g) for f in (max_pool, native))
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("stride", [2, 1])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1)])
def test_not_finite_like_xla(stride, padding):
    """NaN and infinities win as in XLA, against each other and against the padding."""
    rng = np.random.default_rng(stride)
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], np.float32)
    x = jnp.array(rng.choice(values, (40, 6, 6, 1), p=[0.2, 0.1, 0.4, 0.1, 0.1, 0.1]))
    options = geometry((1, 2, 2, 1), (1, stride, stride, 1), ((0, 0), padding, padding, (0, 0)))
    g = jnp.ones(native(x, **options).shape)
    ours, theirs = (pooled_and_gradient(f, options)(x, g) for f in (max_pool, native))
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])  # sums of ones: exact


@pytest.mark.parametrize(
    ("dtype", "stride"),
    [(jnp.bfloat16, 1), (jnp.bfloat16, 2), (jnp.float16, 1), (jnp.float32, 2)],
)
def test_dtype_is_kept(dtype, stride):
    options = geometry((1, 2, 2, 1), (1, stride, stride, 1))
    x = jnp.arange(32.0).reshape(1, 4, 4, 2).astype(dtype)
    g = jnp.ones(native(x, **options).shape, dtype)
    ours, theirs = (pooled_and_gradient(f, options)(x, g) for f in (max_pool, native))
    assert ours[0].dtype == ours[1].dtype == dtype
    np.testing.assert_array_equal(ours[1].astype(jnp.float32), theirs[1].astype(jnp.float32))


@pytest.mark.parametrize("stride", [1, 2])
def test_tangent_second_order_and_vmap(stride):
    options = geometry((1, 3, 3, 1), (1, stride, stride, 1), ((0, 0), (1, 0), (0, 1), (0, 0)))
    x, v = jnp.array(np.random.default_rng(0).normal(size=(2, 2, 7, 6, 3)), jnp.float32)

    def all_orders(pool):
        f = lambda x: jnp.sin(pool(x, **options)).sum()
        penalty = lambda x: (jax.grad(f)(x) ** 2).sum()
        hessian_v = jax.jvp(jax.grad(f), (x,), (v,))[1]
        each = jax.vmap(jax.grad(f))(jnp.stack([x, v]))
        return jax.jvp(f, (x,), (v,))[1], jax.grad(penalty)(x), hessian_v, each

    ours, theirs = (jax.jit(functools.partial(all_orders, f))() for f in (max_pool, native))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_gradient_by_finite_differences():
    options = geometry((1, 3, 2, 1), (1, 2, 1, 1), ((0, 0), (1, 1), (0, 1), (0, 0)), (1, 1, 2, 1))
    with jax.enable_x64(True):
        # A permutation: neighbours differ by 1, so a step of 1/4 changes no winner.
        x = jnp.array(np.random.default_rng(0).permutation(np.arange(60.0)).reshape(1, 6, 5, 2))
        f = jax.jit(lambda x: (max_pool(x, **options) ** 2).sum())
        steps = 0.25 * jnp.eye(x.size).reshape(-1, *x.shape)
        gain = jax.vmap(lambda step: f(x + step) - f(x - step))(steps) / 0.5
        np.testing.assert_allclose(jax.grad(f)(x).ravel(), gain, rtol=1e-12)  # a quadratic: exact


def test_winner_is_looked_for_once():
    """The index is not recomputed in the consumers: the backward pass does not read `x` again."""
    options = geometry((1, 2, 2, 1), (1, 2, 2, 1))
    shape = (8, 16, 16, 4)

    def gradient(x):
        return jax.grad(lambda x: (max_pool(jnp.tanh(x), **options) ** 2).sum())(x)

    text = jax.jit(gradient).lower(jnp.ones(shape)).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert "conditional(" in entry
    if jax.default_backend() == "cpu":
        assert "s8[8,8,8,4]" in entry  # the winners, written to memory


def test_refuses_what_it_cannot():
    options = geometry((1, 2)) | dict(base_dilation=(1, 2))
    with pytest.raises(
        ValueError, match=r"base_dilation must be ones .* got base_dilation \(1, 2\)"
    ):
        max_pool(jnp.ones((2, 4)), **options)
