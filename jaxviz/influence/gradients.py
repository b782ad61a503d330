"""The gradient of each example's own loss by the parameters: what all of influence is made of."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.options import Check, several, text, whole
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.engine.contract import program, same_when_batched, under_trace
from jaxviz.engine.copies import wide
from jaxviz.influence.examples import (
    Model,
    batch_of_one,
    check_rows,
    default_chunk,
    labels,
    over_rows,
    prepared,
)
from jaxviz.influence.layered import Plan, leaf_gradients, plan_of, read, weight_gradients
from jaxviz.influence.parameters import replaced, taken
from jaxviz.influence.projections import Projection, projected
from jaxviz.parts.losses import cross_entropy
from jaxviz.rules.fast import is_large

Dtype = Literal["float32", "bfloat16", "int8"]

LAYERS: Check = several(text, "beginnings of paths of params, a list or tuple")


class ExampleGradients(NamedTuple):
    """One gradient an example, as it is kept; `numpy.asarray` of it is float32 `[N, D]`.

    Attributes:
      values: `[N, D]`, float32, bfloat16 or int8.
      scale: `[N]`, float32: the gradient is `values * scale`; 1 but for int8.
    """

    values: jax.Array
    scale: jax.Array

    __repr__ = shown
    _repr_html_ = shown_html

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self.float32(), dtype)

    def float32(self) -> jax.Array:
        """The gradients themselves, float32 `[N, D]`."""
        return self.values.astype(jnp.float32) * self.scale[:, None]


@public(y=labels, layers=LAYERS, dim=whole(1))
def example_gradients(
    apply_fn: Callable,
    params: Any,
    x: Any,
    y: Any,
    *,
    loss: Callable = cross_entropy,
    layers: Sequence[str] | None = None,
    projection: Projection | Literal["lo_gra"] = None,
    dim: int | None = None,
    key: jax.Array | None = None,
    chunk_size: int | None = None,
    dtype: Dtype = "float32",
) -> ExampleGradients:
    """The gradient of each example's own loss by the parameters, whole or projected.

    g_n = d loss(apply_fn(params, x_n), y_n) / d params, flat, leaf after leaf in the order of
    `jax.tree.leaves`; or P^T g_n with a random P of `dim` columns and E[P P^T] = 1, so that inner
    products are kept on average. Each example is run alone, as a batch of one: a model whose
    examples see each other (batch norm in training) must be given in its inference mode.

    Over a whole data set it is a method for `jaxviz.sweep`, whose store can be resumed:
    `sweep(functools.partial(example_gradients, projection="sjlt", dim=4096, key=key), apply_fn,
    params, (x, y), target="label", out="gradients", dtype="int8")`. The key belongs into the
    partial (None, where nothing is projected): the sweep's own is another one for each chunk.

    Args:
      apply_fn: Pure `(params, x) -> outputs`, batch first. Compiled once per function.
      params: Any pytree. Where it has a key "params", what lies beside it (running statistics) is
        no parameter.
      x: `[N, ...]` or a pytree of such.
      y: Labels `[N]`, or whatever arrays `[N, ...]` the loss takes.
      loss: `(outputs, labels) -> [N]`. Softmax cross-entropy of logits `[N, K]` in nats.
      layers: Beginnings of paths in the tree of params, `["conv1", "block2/dense"]`; "params/" may
        be left out. None is all.
      projection: "rademacher": P of signs over sqrt(dim), `P * dim` operations an example for P
        parameters. "sjlt": a sparse sign and place for each parameter, `P` operations. "lo_gra":
        each layer's inputs and outputs apart, as `lo_gra` reads them; what is in no layer is left
        out. None: whole.
      dim: Numbers an example is projected to, with `projection` alone; of "lo_gra" its rank, the
        directions of a layer's inputs, and of its outputs: `dim**2` numbers a layer at most.
      key: PRNG key of the projection: same key, same P, whatever examples, chunks, `layers`.
      chunk_size: Examples whose gradients are alive at once; None goes by the parameters' number.
      dtype: What is kept: "float32", "bfloat16", or "int8" with a scale an example (error at most
        1/254 of its largest number).

    Returns:
      `ExampleGradients`. Costs one forward and backward pass an example; no matrix P is held.

    Raises:
      ValueError: No such layer, labels out of range, a loss that gives not one number an example,
        `projection` without `dim` and `key`, or these without it.

    Example:
      >>> w, x, y = jnp.zeros((2, 2)), jnp.array([[1.0, 2.0]]), jnp.array([0])
      >>> example_gradients(lambda w, x: x @ w, w, x, y).values.tolist()
      [[-0.5, 0.5, -1.0, 1.0]]

    Reference:
      Rademacher projections: Park et al. 2023 (TRAK), arXiv:2303.14186, section 3.2; sparse ones:
      Hu et al. 2025 (GraSS), arXiv:2505.18976, one place a parameter. TRAK's package divides by
      nothing, so its inner products are `dim` times as large.
    """
    who = "example_gradients"
    check_rows(who, "y", x, y)
    key = check_projection(who, projection, dim, key)
    model, params = prepared(who, apply_fn, params, {"y": (x, y)}, loss, layers)
    if projection == "lo_gra":
        planned(who, model, params, (x, y))
    chunk_size = chunk_size or default_chunk(params, model.places)
    call = compiled(_example_gradients, (params, x, y, key), params)
    return call(model, projection, dim, chunk_size, dtype, params, x, y, key)


def check_projection(
    who: str, projection: str | None, dim: int | None, key: jax.Array | None
) -> jax.Array | None:
    """Refuses a projection without its length and key; returns a key for any batch."""
    if projection is None:
        if dim is not None or key is not None:
            raise ValueError(
                f"{who}: projection must be given where dim or key are; got None. Pass "
                'projection="rademacher" or "sjlt", or leave them out.'
            )
        return None
    if dim is None or key is None:
        missing = "dim" if dim is None else "key"
        raise ValueError(
            f"{who}: {missing} must be given with a projection; got None. Pass dim=4096, "
            "key=jax.random.key(0), say."
        )
    return same_when_batched(key)


def compiled(function: Callable, given: Any, params: Any) -> Callable:
    """A function compiled as explanations are; its arguments before params are static."""
    static = tuple(range(list(inspect.signature(function).parameters).index("params")))
    return program(function, static, under_trace(given), is_large(params))


def _example_gradients(
    model: Model,
    projection: Projection | Literal["lo_gra"],
    dim: int | None,
    chunk_size: int,
    dtype: str,
    params: Any,
    x: Any,
    y: Any,
    key: Any,
) -> ExampleGradients:
    one = feature_of(model, params, projection, dim, key)

    def kept(row):
        whole = jnp.concatenate([part.astype(jnp.float32) for part in one(row)])
        if dtype != "int8":
            return ExampleGradients(whole.astype(dtype), jnp.ones((), jnp.float32))
        scale = jnp.abs(whole).max() / 127
        steps = whole / jnp.where(scale > 0, scale, 1)
        return ExampleGradients(jnp.round(steps).astype(jnp.int8), scale)

    return over_rows(kept, (x, y), chunk_size)


def first_gradient(
    model: Model,
    projection: Projection | Literal["lo_gra"],
    dim: int,
    params: Any,
    rows: Any,
    key: Any,
) -> jax.Array:
    """`[1, D]`: what `example_gradients` gives of the first example."""
    x, y = jax.tree.map(lambda a: a[:1], rows)
    call = compiled(_example_gradients, (params, x, y, key), params)
    return call(model, projection, dim, 1, "float32", params, x, y, key).values


def feature_of(
    model: Model,
    params: Any,
    projection: Projection | Literal["lo_gra"] = None,
    dim: int | None = None,
    key: Any = None,
) -> Callable[[Any], list[jax.Array]]:
    """From one example and its label to its gradient: a vector a leaf, or one of all, projected;
    of "lo_gra" one a layer."""
    if projection == "lo_gra":
        assert dim is not None
        return lambda row: layer_features(model, params, row, dim, key)

    def feature(row):
        return projected(gradient(model, params, row), model.places, projection, dim, key)

    return feature


def planned(who: str, model: Model, params: Any, train: Any) -> Plan:
    """The layers of a model; refused where there is none."""
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a)[1:], jnp.result_type(a)), train)
    plan = plan_of(model.apply_fn, params, one[0], model.places)
    if not plan.layers:
        raise ValueError(
            f"{who}: apply_fn must have a dense layer or a convolution that reads params (layers); "
            "none is recognised. Take `influence`, which knows no layers."
        )
    return plan


def layer_features(model: Model, params: Any, row: Any, rank: int, key: Any) -> list[jax.Array]:
    """One example's gradient by each layer's weight, its inputs and outputs projected apart.

    (A P)^T (G Q) of what goes in, A, and of what comes back, G, flat: no gradient is ever whole.
    """
    x, y = row
    plan = plan_of(model.apply_fn, params, x, model.places)

    def drawn(number, size, dtype):
        if size <= rank:
            return jnp.eye(size, dtype=dtype)
        one = jax.random.fold_in(key, number)
        return jax.random.normal(one, (size, rank), dtype) / jnp.sqrt(jnp.asarray(rank, dtype))

    seen = read(plan, params, x)
    back = seen.pull(output_gradient(model, seen.outputs, y))[0]
    found = []
    for i, (a, g) in enumerate(zip(seen.inputs, back, strict=True)):
        a, g = wide((a, g))
        a = a @ drawn(2 * i, a.shape[-1], a.dtype)
        g = g @ drawn(2 * i + 1, g.shape[-1], g.dtype)
        found.append(jnp.einsum("bpi,bpo->bio", a, g).reshape(-1))
    return found


def gradient(model: Model, params: Any, row: Any) -> list[jax.Array]:
    """The gradient of one example's loss by the parameters that count, a leaf each.

    Weights of dense layers and convolutions get theirs from what goes in and what comes back, one
    product each: under `vmap`, XLA's own pullback to a kernel is a convolution of many groups.
    """
    x, y = row
    plan = plan_of(model.apply_fn, params, x, model.places)
    if not plan.layers:

        def cost(leaves):
            return loss_of(model, replaced(params, model.places, leaves), row)

        return jax.grad(cost)(taken(params, model.places))
    seen = read(plan, params, x)
    back, rest = seen.pull(output_gradient(model, seen.outputs, y))
    return leaf_gradients(plan, model.places, weight_gradients(seen.inputs, back), rest)


def output_gradient(model: Model, outputs: Any, y: Any) -> Any:
    """The gradient of one example's loss by the model's outputs, for a batch of one."""
    return jax.grad(lambda outputs: model.loss(outputs, batch_of_one(y))[0])(outputs)


def loss_of(model: Model, params: Any, row: Any) -> jax.Array:
    """The loss of one example."""
    x, y = batch_of_one(row)
    return model.loss(model.apply_fn(params, x), y)[0]


def dots(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> jax.Array:
    """Inner products of vectors that stand leaf by leaf: `a` may have axes before the last."""
    return sum((m @ n for m, n in zip(a, b, strict=True)), jnp.zeros((), a[0].dtype))
