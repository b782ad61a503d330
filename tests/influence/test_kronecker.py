"""Layers read off the computation, and EK-FAC, where its factors are exact, against the matrix."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxviz as jv
from jaxviz.influence import kronecker, layered
from jaxviz.influence.parameters import chosen, leaf_names, taken

INF = jv.influence
RNG = np.random.default_rng(0)
HERE = pathlib.Path(__file__).parents[1]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x)), None


class Net(nn.Module):
    """A convolution of steps and holes, one of groups used twice, one transposed; a scan over
    blocks of attention; a dense layer used twice."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 2), strides=(2, 1), kernel_dilation=(1, 2), name="first")(x))
        grouped = nn.Conv(4, (3, 3), feature_group_count=2, use_bias=False, name="grouped")
        x = grouped(jnp.tanh(grouped(x)))
        x = nn.ConvTranspose(6, (2, 2), strides=(2, 2), name="up")(x)
        scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = scanned(name="blocks")(x.reshape(len(x), -1, 6)[:, :5], None)
        same = nn.Dense(6, name="same")
        return same(jnp.tanh(same(x.mean(1))))


def test_products_of_what_goes_in_and_comes_back_are_the_gradients():  # oracle: jax.grad
    net, x = Net(), RNG.normal(size=(1, 6, 5, 2)).astype(np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    params = jax.tree.map(lambda a: RNG.normal(size=a.shape).astype(np.float32) / 2, shapes)
    places = chosen("f", params, None)
    plan = layered.plan_of(net.apply, params, x[0], places)
    names = leaf_names(params)
    assert {names[p].split("/")[-2].split("_")[0] for p in plan.rest} == {"LayerNorm"}
    kinds = {one.name[7:]: (one.weight.shape, len(one.uses)) for one in plan.layers}
    assert kinds["grouped/kernel"] == ((2, 18, 2), 2)
    assert kinds["same/kernel"] == ((1, 6, 6), 2)
    assert kinds["blocks/MultiHeadDotProductAttention_0/out/kernel[1]"] == ((1, 6, 6), 1)
    assert all(one.bias is not None for one in plan.layers if "grouped" not in one.name)

    @jax.jit
    def both(params):
        seen = layered.read(plan, params, x[0])
        back, rest = seen.pull(jnp.cos(seen.outputs))
        weights = layered.weight_gradients(seen.inputs, back)
        ours = layered.leaf_gradients(plan, places, weights, rest)
        theirs = jax.grad(lambda p: jnp.sin(net.apply(p, x)).sum())(params)
        return ours, taken(theirs, places)

    for ours, theirs in zip(*both(params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * (1 + np.abs(theirs).max()))


def test_eigenvalues_are_of_the_explicit_gauss_newton_in_every_kind_of_layer():
    """Oracle: the outputs' Jacobian by each weight, times a root of the softmax's covariance."""
    net, x = Net(), RNG.normal(size=(2, 6, 5, 2)).astype(np.float32)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x[:1])
    params = jax.tree.map(lambda a: RNG.normal(size=a.shape).astype(np.float32) / 2, shapes)
    factors = INF.kronecker_factors(net.apply, params, (x, np.arange(2)))
    places = chosen("f", params, None)
    plan = layered.plan_of(net.apply, params, x[0], places)

    @jax.jit
    def columns(x):  # of the root, [N, outputs, P]; one row at a time, for that compiles sooner
        def one(x):
            out, back = jax.vjp(lambda p: net.apply(p, x[None])[0], params)
            p = jax.nn.softmax(out)
            flat = lambda row: jnp.concatenate([a.ravel() for a in taken(back(row)[0], places)])
            return jax.lax.map(flat, jnp.diag(jnp.sqrt(p)) - jnp.sqrt(p)[:, None] * p[None])

        return jax.lax.map(one, x)

    found = np.asarray(columns(x), np.float64)
    for layer in plan.layers:
        blocks = found[..., layer.index]  # [N, outputs, B, in, out]
        u, v = (np.asarray(a[layer.name]) for a in (factors.inputs, factors.outputs))
        turned = np.swapaxes(u, -1, -2) @ blocks @ v
        wanted = np.square(turned).sum(1).mean(0)
        values = factors.eigenvalues[layer.name]
        np.testing.assert_allclose(values, wanted, atol=1e-5 * wanted.max(), err_msg=layer.name)


def over_time(params, x):
    step = lambda h, t: (jnp.tanh(h @ params["w"] + t), None)
    return jax.lax.scan(step, x, x.T[:, :, None] + x[None] * 0)[0]


def test_what_is_read_in_another_way_too_is_no_layer():
    x = jnp.ones((1, 4))
    cases = [
        (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, []),  # tied
        (lambda p, x: x @ p["w"] + p["w"].sum(), []),
        (lambda p, x: x @ (2 * p["w"]), []),
        (over_time, []),
        (lambda p, x: x @ p["w"].T + p["b"][None], [("w", True)]),
        (lambda p, x: x @ p["w"] + p["b"][None] + p["b"][None], [("w", False)]),
        (lambda p, x: x @ p["w"][:, :2], [("w", False)]),
    ]
    for number, (net, wanted) in enumerate(cases):
        params = {"b": jnp.ones(4), "w": jnp.ones((4, 4))}
        plan = layered.plan_of(net, params, x[0], (0, 1))
        assert [(one.name, one.bias is not None) for one in plan.layers] == wanted, number
    net = lambda p, x: (x * p[None]).sum((1,), keepdims=True)
    data = (x, jnp.array([0]))
    with pytest.raises(ValueError, match=r"^ek_fac: apply_fn must have a dense layer"):
        INF.ek_fac(net, jnp.ones(4), data, data)


@pytest.fixture(scope="module")
def one_layer():
    """A zero softmax layer, whose Gauss-Newton matrix is one Kronecker product."""
    x, y = RNG.normal(size=(7, 4)).astype(np.float32), np.arange(7) % 3
    ones = np.concatenate([x, np.ones((7, 1))], 1)
    p = np.full(3, 1 / 3)
    gradients = (ones[:, :, None] * (p - np.eye(3)[y])[:, None]).reshape(7, -1)
    matrix = np.kron(ones.T @ ones / 7, np.diag(p) - np.outer(p, p))
    params = {"b": jnp.zeros(3), "w": jnp.zeros((4, 3))}
    return lambda p, x: x @ p["w"] + p["b"][None], params, (x, y), gradients, matrix


def test_ek_fac_is_the_damped_gauss_newton_where_that_factors(one_layer):
    net, params, data, gradients, matrix = one_layer
    test = (data[0][:2], data[1][:2])
    solved = lambda damping: (
        gradients[:2] @ np.linalg.solve(matrix + damping * np.eye(15), gradients.T)
    )
    found = INF.ek_fac(net, params, data, test, damping=0.02, chunk_size=3)
    np.testing.assert_allclose(found, solved(0.02) / 7, atol=1e-5)
    factors = INF.kronecker_factors(net, params, data)
    again = INF.ek_fac(net, params, data, test, factors=factors)  # damping: 0.1 of the mean
    np.testing.assert_allclose(again, solved(0.1 * np.trace(matrix) / 15) / 7, atol=1e-5)
    other, two = lambda p, x: x @ p["a"] @ p["b"], {"a": jnp.eye(4), "b": jnp.ones((4, 3))}
    with pytest.raises(ValueError, match="factors must be of the same layers, a, b"):
        INF.ek_fac(other, two, data, test, factors=factors)


@pytest.mark.parametrize(
    ("places", "vectors", "pairs"), [(1, 1, True), (2, 8, True), (4, 4, False)]
)
def test_squares_of_gradients_by_either_way(places, vectors, pairs):  # oracle: NumPy
    assert kronecker._by_pairs(places, 3, vectors, 5) == pairs
    a, g = RNG.normal(size=(2, 1, places, 3)), RNG.normal(size=(2, vectors, 1, places, 5))
    wanted = np.square(np.einsum("nbpi,nsbpo->nsbio", a, g)).sum((0, 1))
    found = kronecker._squared(jnp.asarray(a, jnp.float32), jnp.asarray(g, jnp.float32))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_one_random_sum_of_the_outputs_is_right_on_average(one_layer):
    net, params, (x, y), _, matrix = one_layer
    many = np.tile(x, (300, 1)), np.tile(y, 300)
    factors = INF.kronecker_factors(net, params, many, key=jax.random.key(0))
    values = np.sort(np.ravel(factors.eigenvalues["w"]))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix), atol=0.15 * values.max())
    # Another loss, its Hessian by the outputs not written out: half the squared error.
    loss = lambda outputs, y: 0.5 * jnp.square(outputs - y).sum(1)
    targets = jnp.zeros((7, 3))
    factors = INF.kronecker_factors(net, params, (x, targets), loss=loss)
    ones = np.concatenate([x, np.ones((7, 1))], 1)
    found = np.sort(np.ravel(factors.eigenvalues["w"]))
    np.testing.assert_allclose(
        found, np.repeat(np.linalg.eigvalsh(ones.T @ ones / 7), 3), atol=1e-4
    )


def test_lo_gra_is_the_damped_fisher_where_nothing_is_projected(one_layer):
    net, params, data, gradients, _ = one_layer
    found = INF.lo_gra(net, params, data, data, key=jax.random.key(0), rank=8, damping=0.05)
    fisher = gradients.T @ gradients / 7 + 0.05 * np.eye(15)
    np.testing.assert_allclose(
        found, gradients @ np.linalg.solve(fisher, gradients.T) / 7, atol=1e-5
    )
    few = np.asarray(
        INF.lo_gra(net, params, data, data, key=jax.random.key(0), rank=2, damping=5.0)
    )
    assert few.shape == (7, 7)
    assert (np.diag(few) > 0).all()
    np.testing.assert_allclose(few, few.T, atol=1e-7)


def test_scores_of_kronfluence_with_the_same_weights():  # 1.0.1, empirical Fisher
    stored = np.load(HERE / "reference" / "influence_kronfluence.npz")
    params = {name: stored[name] for name in stored.files if name[0].isdigit()}

    def net(p, x):  # a torch net as it stands: channels first, weights [out, in]
        conv = lambda x, w, step, pad: jax.lax.conv_general_dilated(x, w, (step, step), [pad] * 2)
        x = conv(x, p["0.weight"], 2, (1, 1)) + p["0.bias"].reshape(1, -1, 1, 1)
        x = jnp.tanh(conv(jax.nn.relu(x), p["2.weight"], 1, (0, 0)))
        x = jax.nn.relu(x.reshape(len(x), -1) @ p["5.weight"].T + p["5.bias"][None])
        return x @ p["7.weight"].T + p["7.bias"][None]

    data = stored["x"], stored["y"]
    train, test = ([a[:40] for a in data], [a[40:] for a in data])
    factors = INF.kronecker_factors(net, params, train, curvature="empirical_fisher")
    assert set(factors.eigenvalues) == {"0.weight", "2.weight", "5.weight", "7.weight"}
    found = 40 * np.asarray(INF.ek_fac(net, params, train, test, factors=factors))
    theirs = stored["scores_default"]
    for ours, row in zip(found, theirs, strict=True):
        ranks = [np.argsort(np.argsort(a)) for a in (ours, row)]
        assert np.corrcoef(*ranks)[0, 1] > 0.99  # Spearman
    np.testing.assert_allclose(found, theirs, atol=2e-2 * np.abs(theirs).max())
