"""`fast` on whole nets: same outputs, same gradients, and the kernels really in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxviz.graph.rewrite import rewrite
from jaxviz.rules.fast import compiler_options, fast, is_large, served, serving, weighed

NHWC = ("NHWC", "HWIO", "NHWC")
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="`fast` is for the CPU backend")


class Chain(nn.Module):
    """A first layer, poolings apart and overlapping, a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(nn.Conv(5, (3, 3))(x)), (3, 3), (2, 2), "SAME")
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


class Inverted(nn.Module):
    """A strided stem, depthwise and 1x1 convolutions with batch norm, a shortcut."""

    @nn.compact
    def __call__(self, x):
        norm = lambda x: nn.BatchNorm(use_running_average=True)(x)
        x = nn.relu6(norm(nn.Conv(4, (5, 5), 2)(x)))
        y = nn.relu6(norm(nn.Conv(8, (1, 1))(x)))
        y = nn.relu6(norm(nn.Conv(8, (3, 3), feature_group_count=8)(y)))
        return nn.Dense(3)((x + nn.Conv(4, (1, 1))(y)).mean((1, 2)))


class Looped(nn.Module):
    """One convolution applied in a scan."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3))(x)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, 3, 4, 4))
        numbers = ("NHWC", "HWIO", "NHWC")

        def step(x, _):
            y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
            return jnp.tanh(y), None

        x, _ = lax.scan(step, x, None, length=3)
        return nn.Dense(3)(x.mean((1, 2)))


def ready(net):
    """Weights (positive ones too where a variance is wanted) and two images."""
    rng = np.random.default_rng(0)
    x = jnp.array(rng.normal(size=(2, 12, 12, 2)), jnp.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    draw = lambda a: jnp.array(rng.uniform(0.1, 0.5, a.shape) * rng.choice([-1, 1], a.shape[-1:]))
    variables = jax.tree.map(lambda a: draw(a).astype(a.dtype), shapes)
    if "batch_stats" in variables:
        variables = variables | {"batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])}
    return variables, x


@pytest.mark.parametrize("net", [Chain(), Inverted(), Looped()], ids=lambda net: type(net).__name__)
def test_same_function_and_gradients(net):
    variables, x = ready(net)

    def run(f, variables, x):
        score = lambda variables, x: (f(variables, x) ** 2).sum()
        return f(variables, x), jax.grad(score, (0, 1))(variables, x)

    run = jax.jit(run, static_argnums=0)
    ours, plain = run(rewrite(net.apply, fast), variables, x), run(net.apply, variables, x)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        # float32, sums of up to 100 terms in another order.
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(jnp.abs(b).max())), rtol=0)


@on_cpu
def test_slow_operations_are_gone():
    net = Chain()
    variables, x = ready(net)
    f = rewrite(net.apply, fast)
    gradient = jax.grad(lambda x: f(variables, x).sum())
    text = str(jax.make_jaxpr(gradient)(x))
    assert "select_and_scatter" not in text
    assert "reduce_window" not in text


@on_cpu
@pytest.mark.parametrize(
    "f",
    [
        lambda w, x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 9, 9), (1, 1, 1), "SAME"),
        lambda w, x: lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 2, 2), (1, 1, 1), "VALID", base_dilation=(1, 2, 1)
        ),
        lambda w, x: lax.reduce_window(
            x.astype(int), np.iinfo(np.int32).min, lax.max, (1, 2, 2), (1, 1, 1), "VALID"
        ),
        lambda w, x: lax.conv_transpose(x, w, (2,), "SAME"),
    ],
    ids=["large window", "dilated input", "integers", "transposed convolution"],
)
def test_declines_what_it_would_not_speed_up(f):
    w, x = jnp.ones((3, 12, 4)), jnp.ones((2, 12, 12))
    before, after = (str(jax.make_jaxpr(g)(w, x)) for g in (f, rewrite(f, fast)))
    assert before == after


def test_compiler_options_compile():
    options = compiler_options()
    assert compiler_options("tpu") == {}
    double = jax.jit(lambda x: 2 * x, compiler_options=options or None)
    assert float(double(1.5)) == 3.0
    large = jax.jit(lambda x: 2 * x, compiler_options=compiler_options(large=True) or None)
    assert float(large(1.5)) == 3.0


def test_a_net_is_large_by_the_bytes_of_its_weights():
    weights = {"w": np.zeros((4, 1000, 1000), np.float32), "b": jnp.zeros(3), "number": 1.0}
    assert not is_large(weights)
    assert is_large([weights] * 5)


def calls(jaxpr, name):
    """The jaxprs that calls of this name lead to, at any depth."""
    found = []
    for equation in jaxpr.eqns:
        inner = equation.params.get("jaxpr") if equation.primitive.name == "jit" else None
        if inner is not None:
            found += [inner] if equation.params["name"] == name else calls(inner.jaxpr, name)
    return found


@on_cpu
@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (
            lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC),
            "_remembered",
        ),
        (lambda w, x: nn.max_pool(x, (3, 3), (1, 1), "SAME"), "_pool"),
    ],
    ids=["convolution", "pooling"],
)
def test_layers_of_one_shape_are_traced_once(layer, name):
    """Of a chain every further layer adds calls of what is there already, forward and backward."""
    w, x = jnp.ones((3, 3, 4, 4)), jnp.ones((1, 6, 6, 4))

    def gradient(depth):
        f = rewrite(lambda w, x: [x := jnp.tanh(layer(w, x)) for _ in range(depth)][-1], fast)
        return jax.make_jaxpr(jax.grad(lambda x: f(w, x).sum()))(x).jaxpr

    two, three, six = map(gradient, (2, 3, 6))
    assert len(six.eqns) - len(three.eqns) == 3 * (len(three.eqns) - len(two.eqns))
    assert len(calls(six, name)) == 12
    assert len(set(map(id, calls(six, name)))) == len(set(map(id, calls(two, name)))) <= 3


@on_cpu
def test_what_compiles_slowly_is_weighed_by_the_work_of_a_call():
    """Of one image 56x56x64 is 0.23 GFLOP, 112x112x128 1.8, and 0.86 of them repay filtering."""
    photo = jax.ShapeDtypeStruct((1, 56, 56, 64), jnp.float32)
    large = jax.ShapeDtypeStruct((1, 112, 112, 128), jnp.float32)
    plain = lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)

    def filters(x, rules):
        w = jax.ShapeDtypeStruct((3, 3, x.shape[-1], 64), jnp.float32)
        text = str(jax.make_jaxpr(rewrite(plain, rules))(w, x))
        return "conv_general_dilated" not in text

    assert filters(photo, fast)
    assert not filters(photo, weighed())
    assert filters(large, weighed())
    with serving(2):
        assert not filters(photo, weighed())
        with serving(3):
            assert served() == 4
            assert filters(photo, weighed())
    assert served() == 1


@pytest.mark.parametrize("falls", [False, True])
def test_gradient_of_a_normalised_extreme_is_not_lost(falls):  # oracle: JAX, an operation at a time
    """XLA computes the normalised map anew for each reader, and of two roundings none is equal."""
    kernel, last, x = (
        jax.random.normal(jax.random.key(seed), shape)
        for seed, shape in ((4, (3, 2, 5)), (5, (5, 2)), (6, (2, 7, 2)))
    )

    def net(x):
        numbers = ("NHC", "HIO", "NHC")
        h = lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=numbers)
        h = (h - h.mean(1, keepdims=True)) / jnp.sqrt(h.var(1, keepdims=True) + 1e-5)
        return ((h.min(1) if falls else h.max(1)) @ last)[:, 0].sum()

    quick = rewrite(lambda _, x: net(x), fast)
    found = jax.jit(jax.grad(lambda x: quick(None, x)))(x)
    np.testing.assert_allclose(found, jax.grad(net)(x), atol=1e-5)


def test_winners_alike_share_as_in_jax():
    x = jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [1.0, jnp.nan, 0.0]])
    quick = rewrite(lambda _, x: x.max(1) ** 2 + x.min(1), fast)
    plain = lambda x: x.max(1) ** 2 + x.min(1)
    for f in (jax.jacrev, jax.jacfwd):
        np.testing.assert_array_equal(f(lambda x: quick(None, x))(x), f(plain)(x))
