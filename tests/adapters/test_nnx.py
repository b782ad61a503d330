"""`from_nnx`: modules with Flax's transformations inside, and modules that write when called."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxviz


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return x + nnx.tanh(self.linear(x))


class RematBlock(Block):
    @nnx.remat
    def __call__(self, x):
        return x + nnx.tanh(self.linear(x))


class JitBlock(Block):
    @nnx.jit
    def __call__(self, x):
        return x + nnx.tanh(self.linear(x))


class Around(nnx.Module):
    """A block between a layer and the mean over time."""

    def __init__(self, rngs, block):
        self.into, self.block = nnx.Linear(3, 4, rngs=rngs), block(rngs)
        self.out = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.block(self.into(x)).mean(1))


class Scanned(nnx.Module):
    def __init__(self, rngs):
        make = nnx.vmap(lambda r: nnx.Linear(4, 4, rngs=r), in_axes=(0,), out_axes=0)
        self.blocks = nnx.split_rngs(splits=2)(make)(rngs)

    def __call__(self, x):
        run = nnx.scan(lambda x, b: nnx.tanh(b(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return run(x, self.blocks)


class Ensemble(Scanned):
    """The mean of two layers, made and run by vmap."""

    def __call__(self, x):
        return nnx.vmap(lambda b, x: b(x), in_axes=(0, None))(self.blocks, x).mean(0)


BLOCKS = {
    "plain": Block,
    "remat": RematBlock,
    "jit": JitBlock,
    "scan": Scanned,
    "vmap": Ensemble,
    "rnn": lambda rngs: nnx.RNN(nnx.GRUCell(4, 4, rngs=rngs)),
}


def by_hand(module):
    """The module by Flax's functional interface."""
    graph, state = nnx.split(module)
    return lambda x: nnx.merge(graph, state, copy=True)(x)


@pytest.mark.parametrize("kind", BLOCKS)
def test_transformations_inside_a_module(kind):  # oracle: jax.grad of the module merged by hand
    module = Around(nnx.Rngs(0), BLOCKS[kind])
    apply_fn, params = jaxviz.from_nnx(module)
    x = jax.random.normal(jax.random.key(0), (2, 3, 3))
    expected = jax.grad(lambda x: by_hand(module)(x)[:, 1].sum())(x)
    chex.assert_trees_all_close(jaxviz.gradient(apply_fn, params, x, 1), expected, rtol=1e-5)
    names = [layer.name for layer in jaxviz.layers(apply_fn, params, x)]
    inside = {"vmap": "blocks", "scan": "blocks", "rnn": "cell"}.get(kind, "linear")
    assert {"into", "block", "out"} <= set(names)
    assert any(name.startswith(f"block/{inside}") for name in names)
    head, tail = jaxviz.split(apply_fn, params, x, "into")
    a, carry = head(params, x)
    joined = tail((params, carry), a)
    # One of the outputs nearly cancels: its rounding is that of its terms.
    chex.assert_trees_all_close(joined, by_hand(module)(x), rtol=1e-5, atol=1e-6)


class Writes(nnx.Module):
    """Writes, in a call, all that a module may."""

    def __init__(self):
        self.linear = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(3, use_running_average=False, rngs=nnx.Rngs(1))
        self.rngs = nnx.Rngs(2)
        self.seen = nnx.Intermediate(())
        self.last = nnx.Cache(jnp.zeros((2, 3)))
        self.total = np.zeros(3)
        self.history = nnx.List([])

    def eval(self, **attributes):  # stays in training
        return self

    def __call__(self, x):
        self.seen.set_value((*self.seen.get_value(), x))
        self.last.set_value(x)
        self.history.append(nnx.Cache(x))
        self.total += 1.0
        noise = jax.random.normal(self.rngs.noise(), x.shape)
        return self.linear(self.norm(x) + noise)


def numbers(state):
    """Every number of a state, but for keys, which are no arrays of NumPy."""
    state = nnx.filter_state(state, nnx.Not(nnx.RngKey))
    return jax.tree.map(np.array, nnx.to_pure_dict(state))


def test_module_is_read_never_changed():
    module, x = Writes(), jnp.arange(6.0).reshape(2, 3)
    module(x)  # has written once before
    before = numbers(nnx.state(module))
    apply_fn, params = jaxviz.from_nnx(module)
    given = numbers(params["state"])
    outputs = apply_fn(params, x)
    jaxviz.gradient(apply_fn, params, x, 0)
    jaxviz.guided_backprop(apply_fn, params, x, 0)
    jaxviz.summary(apply_fn, params, x)
    chex.assert_trees_all_equal(before, numbers(nnx.state(module)))
    chex.assert_trees_all_equal(given, numbers(params["state"]))
    chex.assert_trees_all_equal(apply_fn(params, x), outputs)  # so the keys' counter stood still
    chex.assert_trees_all_close(module(x), outputs, rtol=1e-6)  # as the module's own next call


def test_training_on_does_not_change_params():
    module, x = nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jnp.ones((1, 3))
    apply_fn, params = jaxviz.from_nnx(module)
    before = apply_fn(params, x)
    module.kernel.set_value(jnp.zeros((3, 2)))
    chex.assert_trees_all_equal(apply_fn(params, x), before)


def test_settings_in_a_dict():
    @dataclasses.dataclass
    class Settings:
        power: int = 2

    class Net(nnx.Module):
        def __init__(self):
            self.scale, self.settings = {"by": 3.0}, Settings()

        def __call__(self, x):
            return self.scale["by"] * x**self.settings.power

    apply_fn, params = jaxviz.from_nnx(Net())
    assert apply_fn == jaxviz.from_nnx(Net())[0]
    assert hash(apply_fn) == hash(jaxviz.from_nnx(Net())[0])
    assert jaxviz.gradient(apply_fn, params, jnp.array([[2.0, 5.0]]), 0).tolist() == [[12.0, 0.0]]


class Asks(nnx.Module):
    """A call with all that a call may ask for."""

    def __init__(self, rngs):
        self.embed, self.out = nnx.Embed(7, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.drop = nnx.Dropout(0.5)

    def __call__(self, ids, mask, scale=1.0, *, train, rngs):
        x = (self.encode(ids, train, rngs) * mask[..., None]).mean(1)
        return self.out(x) * scale

    def encode(self, ids, train=True, rngs=None):
        return self.drop(self.embed(ids), deterministic=not train, rngs=rngs)


IDS, MASK = jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


def test_several_inputs_by_name_or_by_place():
    module = Asks(nnx.Rngs(0))
    apply_fn, params = jaxviz.from_nnx(module)
    expected = module(IDS, MASK, train=False, rngs=nnx.Rngs(1))
    by_name = {"ids": IDS, "mask": MASK}
    chex.assert_trees_all_close(apply_fn(params, by_name), expected)
    chex.assert_trees_all_close(apply_fn(params, (IDS, MASK)), expected)
    slopes = jaxviz.gradient(apply_fn, params, by_name, 1)["mask"]
    by_hand = jax.grad(lambda m: module(IDS, m, train=False, rngs=nnx.Rngs(1))[:, 1].sum())(MASK)
    chex.assert_trees_all_close(slopes, by_hand, rtol=1e-5)


def test_further_arguments_are_data_and_compile_once():
    module, traces = Asks(nnx.Rngs(0)), []
    for scale in (2.0, 3.0):
        arguments = (MASK, jnp.array(scale))
        apply_fn, params = jaxviz.from_nnx(module, *arguments, rngs=nnx.Rngs(dropout=3))
        expected = module(IDS, *arguments, train=False, rngs=nnx.Rngs(1))
        run = jax.jit(lambda f, p, x: traces.append(f) or f(p, x), static_argnums=0)
        chex.assert_trees_all_close(run(apply_fn, params, IDS), expected, rtol=1e-6)
    assert traces[0] == traces[1]
    assert hash(traces[0]) == hash(traces[1])
    other, _ = jaxviz.from_nnx(module, *arguments, train=True)  # a flag shapes the program
    assert other != traces[0]
    # The user's own flag goes before inference: half of the numbers are dropped.
    apply_fn, params = jaxviz.from_nnx(module, method="encode", train=True, rngs=nnx.Rngs(1))
    assert 0 < (apply_fn(params, IDS) == 0).mean() < 1


def test_arguments_are_the_modules_own_and_missing_ones_are_named():
    class Noisy(nnx.Module):
        def __call__(self, x, noise, key):  # words that mean something else in jaxviz
            return x + noise * jax.random.normal(key, x.shape)

    noise, x = jnp.array([[1.0, 2.0]]), jnp.ones((3, 2))
    apply_fn, params = jaxviz.from_nnx(Noisy(), noise=noise)
    by_hand = x + noise * jax.random.normal(jax.random.key(0), x.shape)
    chex.assert_trees_all_close(apply_fn(params, x), by_hand)
    apply_fn, params = jaxviz.from_nnx(Noisy())
    with pytest.raises(TypeError, match=r"^gradient: x must be .*\(x, noise, key\).*'noise'.*once"):
        jaxviz.gradient(apply_fn, params, x, 0)


def test_a_method_by_name():
    module = Asks(nnx.Rngs(0))
    apply_fn, params = jaxviz.from_nnx(module, method="encode")
    chex.assert_trees_all_equal(apply_fn(params, IDS), module.embed(IDS))
    with pytest.raises(TypeError, match="'decode', and Asks has no such method"):
        jaxviz.from_nnx(module, method="decode")


def test_a_linen_module_inside():
    class Bridged(nnx.Module):
        def __init__(self, rngs):
            dense = nnx.bridge.ToNNX(linen.Dense(4), rngs=rngs)
            self.dense, self.out = dense.lazy_init(jnp.ones((1, 3))), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.dense(x)))

    module, x = Bridged(nnx.Rngs(0)), jnp.ones((2, 3))
    apply_fn, params = jaxviz.from_nnx(module)
    chex.assert_trees_all_close(apply_fn(params, x), module(x), rtol=1e-6)
    names = [layer.name for layer in jaxviz.layers(apply_fn, params, x)]
    assert {"dense", "relu_0", "out"} <= set(names)


def test_a_branch_inside_a_module():
    class Either(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = (nnx.Linear(3, 2, rngs=rngs) for _ in range(2))

        def __call__(self, x, flag):
            return nnx.cond(flag, lambda m, x: m.one(x), lambda m, x: m.two(x), self, x)

    module, x = Either(nnx.Rngs(0)), jnp.ones((2, 3))
    for flag in (True, False):
        apply_fn, params = jaxviz.from_nnx(module, jnp.array(flag))
        found = jaxviz.gradient(apply_fn, params, x, 1)
        kernel = (module.one if flag else module.two).kernel[...]
        chex.assert_trees_all_close(found, jnp.tile(kernel[:, 1], (2, 1)))


def in_words(tree):
    """Keys as text, as checkpoints store them."""
    return {str(k): in_words(v) if isinstance(v, dict) else v for k, v in tree.items()}


def test_a_restored_checkpoint_is_taken_by_names():  # eleven layers: "10" sorts before "2"
    class Deep(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    module, x = Deep(nnx.Rngs(0)), jnp.array([[1.0, 2.0]])
    apply_fn, params = jaxviz.from_nnx(module)
    restored = {name: in_words(nnx.to_pure_dict(state)) for name, state in params.items()}
    chex.assert_trees_all_equal(apply_fn(restored, x), module(x))


@pytest.mark.parametrize(
    ("make", "came"),
    [
        (nnx.state, "got State of 'bias', 'kernel'"),
        (lambda module: nnx.to_pure_dict(nnx.state(module)), "got dict of 'bias', 'kernel'"),
        (lambda module: None, "got NoneType"),
        (lambda module: {"params": {"bias": jnp.ones(2)}, "state": {}}, "got none for kernel"),
        (
            lambda module: {"params": {"b": jnp.ones(2), "w": jnp.ones((3, 2))}, "state": {}},
            "got none for bias, kernel and unknown b, w",
        ),
    ],
)
def test_other_params_are_refused(make, came):
    module = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    apply_fn, _ = jaxviz.from_nnx(module)
    with pytest.raises(ValueError, match=f"{came}.*from_nnx\\(module\\)"):
        jaxviz.gradient(apply_fn, make(module), jnp.ones((1, 3)), 0)


def test_what_a_notebook_prints_of_a_model_is_short():
    apply_fn, _ = jaxviz.from_nnx(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert repr(apply_fn) == "NNXApply(method='__call__', call=None)"
