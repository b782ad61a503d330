"""Small nets of every make that the graph must handle, each `name -> (apply_fn, params, x)`."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen as nn, nnx
from jax.ad_checkpoint import checkpoint_name

from jaxviz import from_nnx


def images(n=2, size=8, channels=3, seed=7):
    return jax.random.normal(jax.random.key(seed), (n, size, size, channels))


def linen(module, x, seed=0):
    """The contract's triple of a Linen module; biases and statistics are made non-trivial."""

    @jax.jit
    def variables(x):
        leaves, structure = jax.tree.flatten(module.init(jax.random.key(seed), x))
        keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
        moved = [
            jnp.abs(a + 0.1 * jax.random.normal(k, a.shape)) if a.ndim == 1 else a
            for k, a in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, moved)

    return module.apply, variables(x), x


class Block(nn.Module):
    """Convolution, batch norm, ReLU, pool: nested in `Nested`."""

    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.features, (3, 3))(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-5)(x)
        return nn.max_pool(nn.relu(x), (2, 2), (2, 2))


class Nested(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Block(4, name="block1")(x)
        x = Block(6, name="block2")(x)
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(5, name="out")(nn.Dropout(0.5, deterministic=True)(x))


class Shared(nn.Module):
    """One module called twice."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(x.shape[-1], name="shared")
        return nn.Dense(3, name="out")(nn.relu(dense(nn.relu(dense(x)))))


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="stem")(x)
        y = nn.Conv(4, (3, 3), name="conv1")(nn.relu(x))
        x = x + nn.Conv(4, (3, 3), name="conv2")(nn.relu(y))
        return nn.Dense(5, name="out")(x.mean((1, 2)))


class Concatenating(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="stem")(x))
        left = nn.relu(nn.Conv(3, (1, 1), name="left")(x))
        right = nn.relu(nn.Conv(5, (3, 3), name="right")(x))
        x = jnp.concatenate([left, right, x], axis=-1)
        x = nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4.0
        return nn.Dense(5, name="out")(x.mean((1, 2)))


class ScanStep(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(x.shape[-1], name="dense")(x)), None


class Scanned(nn.Module):
    """Three layers in one `nn.scan`."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="into")(x)
        stack = nn.scan(
            ScanStep, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = stack(name="stack")(x, None)
        return nn.Dense(4, name="out")(x)


class Remat(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.remat(Block)(4, name="block")(x)
        return nn.Dense(4, name="out")(x.mean((1, 2)))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(x)
        return nn.Dense(4, name="out")(nn.gelu(x).mean(1))


class NNXBlock(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.norm(self.conv(x))))


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.block = NNXBlock(rngs)
        self.out = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x):
        return self.out(self.block(x).mean((1, 2)))


class EquinoxNet(eqx.Module):
    conv: eqx.nn.Conv2d
    dense: eqx.nn.Linear

    def __init__(self, key):
        self.conv = eqx.nn.Conv2d(3, 4, 3, key=key)
        self.dense = eqx.nn.Linear(4, 5, key=key)

    def __call__(self, x):
        x = jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0)))
        return self.dense(x.mean((1, 2)))


def equinox_net():
    arrays, static = eqx.partition(EquinoxNet(jax.random.key(0)), eqx.is_array)
    return (lambda p, x: jax.vmap(eqx.combine(p, static))(x)), arrays, images()


def dense_params(*sizes, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    return [
        {"w": jax.random.normal(k, (m, n)) / m**0.5, "b": jnp.linspace(-0.5, 0.5, n)}
        for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]


def affine(p, x):
    return x @ p["w"] + p["b"][None, :]


def plain(params, x):
    """Functional, shared and hand-written ReLUs."""
    relu = jax.nn.relu
    x = relu(affine(params[0], x))
    h = affine(params[1], x)
    x = jnp.where(h > 0, h, 0.0)
    x = relu(affine(params[2], x))
    return jnp.maximum(affine(params[3], x), 0.0)


def scanned(params, x):
    def step(carry, w):
        return jax.nn.relu(carry @ w), carry.sum(1)

    last, sums = jax.lax.scan(step, x, params)
    return jnp.concatenate([last, sums.T], axis=1)


def rematerialised(params, x):
    x = jax.checkpoint(lambda p, x: jnp.tanh(affine(p, x)))(params[0], x)
    return affine(params[1], checkpoint_name(x, "bottleneck"))


@jax.custom_vjp
def clipped(x):
    return jnp.clip(jnp.sin(x), -0.5, 0.5)


clipped.defvjp(lambda x: (clipped(x), x), lambda x, g: (g * jnp.cos(x),))


def with_custom_vjp(params, x):
    return affine(params[1], clipped(affine(params[0], x)))


def with_cond(params, x):
    x = affine(params[0], x)
    x = jax.lax.cond(x.sum() > 0, lambda v: jax.nn.relu(v), lambda v: jnp.tanh(v) * 2, x)
    return affine(params[1], x)


def with_while(params, x):
    def grow(state):
        i, v = state
        return i + 1, v * 1.5

    _, x = jax.lax.while_loop(lambda s: s[0] < 3, grow, (0, affine(params[0], x)))
    return affine(params[1], x)


inner_jit = jax.jit(lambda p, x: jax.nn.relu(affine(p, x)))


def with_jit(params, x):
    return affine(params[1], inner_jit(params[0], x))


def mixed_inputs(params, x):
    """Token ids beside floats, as a dict; outputs as a dict."""
    words = params["table"][x["ids"]].mean(1)
    hidden = jax.nn.relu(affine(params["mix"][0], jnp.concatenate([words, x["dense"]], axis=1)))
    return {"logits": affine(params["mix"][1], hidden), "hidden": hidden}


BUILDERS = {
    "nested": lambda: linen(Nested(), images()),
    "shared": lambda: linen(Shared(), jax.random.normal(jax.random.key(1), (2, 6))),
    "residual": lambda: linen(Residual(), images()),
    "concatenating": lambda: linen(Concatenating(), images()),
    "linen_scan": lambda: linen(Scanned(), jax.random.normal(jax.random.key(1), (2, 5))),
    "linen_remat": lambda: linen(Remat(), images()),
    "attention": lambda: linen(Attention(), jax.random.normal(jax.random.key(1), (2, 5, 8))),
    "nnx": lambda: (*from_nnx(NNXNet(nnx.Rngs(0))), images()),
    "equinox": lambda: equinox_net(),
    "plain": lambda: (plain, dense_params(6, 5, 5, 4, 4), jnp.linspace(-1, 1, 18).reshape(3, 6)),
    "scan": lambda: (
        scanned,
        jax.random.normal(jax.random.key(2), (3, 4, 4)),
        jnp.linspace(-1, 1, 8).reshape(2, 4),
    ),
    "remat": lambda: (rematerialised, dense_params(6, 5, 4), jnp.linspace(-1, 1, 12).reshape(2, 6)),
    "custom_vjp": lambda: (with_custom_vjp, dense_params(6, 5, 4), jnp.ones((2, 6))),
    "cond": lambda: (with_cond, dense_params(6, 5, 4), jnp.linspace(-1, 1, 12).reshape(2, 6)),
    "jit": lambda: (with_jit, dense_params(6, 5, 4), jnp.linspace(-1, 1, 12).reshape(2, 6)),
    "mixed": lambda: (
        mixed_inputs,
        {"table": jnp.linspace(-1, 1, 21).reshape(7, 3), "mix": dense_params(5, 4, 3)},
        {"ids": jnp.array([[1, 2, 3], [4, 5, 6]]), "dense": jnp.ones((2, 2))},
    ),
    # No reverse mode through `while`, so its gradient is not compared.
    "while": lambda: (with_while, dense_params(6, 5, 4), jnp.linspace(-1, 1, 12).reshape(2, 6)),
}
NETS = list(BUILDERS)
DIFFERENTIABLE = [name for name in NETS if name != "while"]


@functools.cache
def build(name):
    """The net of that name, made once."""
    return BUILDERS[name]()
