"""How much of what a model does survives when a layer is written in a dictionary."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxviz.calls.arrays import numbers_list
from jaxviz.calls.models import some_real
from jaxviz.calls.public import public
from jaxviz.calls.shown import shown, shown_html
from jaxviz.concepts.dictionary import Dictionary, decode, encode
from jaxviz.engine.contract import program
from jaxviz.graph.held import hold
from jaxviz.graph.layers import layer_named
from jaxviz.interventions.patched import patched
from jaxviz.parts.losses import check_labels, cross_entropy
from jaxviz.rules.fast import is_large


class LossRecovered(NamedTuple):
    """Mean losses of a model, and the share that a dictionary recovers.

    Attributes:
      recovered: (ablated - reconstructed) / (ablated - loss): 1 where the dictionary loses nothing,
        0 where it is as bad as zeros; NaN where zeros lose nothing.
      loss: Of the model as it is.
      reconstructed: Of the model with the layer decoded from its codes.
      ablated: Of the model with zeros for the layer.
    """

    recovered: float
    loss: float
    reconstructed: float
    ablated: float

    __repr__ = shown
    _repr_html_ = shown_html


@public(x=some_real, labels=numbers_list)
def loss_recovered(
    apply_fn: Callable,
    params: Any,
    x: Any,
    labels: Any,
    dictionary: Dictionary,
    *,
    layer: str,
    loss_fn: Callable | None = None,
    batch_size: int = 64,
) -> LossRecovered:
    """Runs a model with a layer's values replaced by what a dictionary makes of them.

    Args:
      apply_fn: Pure `(params, x) -> outputs`.
      params: Any pytree.
      x: `[N, ...]`, or a pytree of such.
      labels: `[N, ...]`, whatever `loss_fn` takes beside the outputs.
      dictionary: Of the layer's channels; others of the same kind compile nothing.
      layer: A name of `jaxviz.layers(apply_fn, params, x)`.
      loss_fn: `(outputs, labels) -> [N]`; None is the cross entropy of logits `[N, classes]` and
        whole labels, in nats.
      batch_size: Examples at once.

    Returns:
      A `LossRecovered`; higher recovered is better. Costs three runs of the model.

    Raises:
      ValueError: No such layer, or shapes that do not fit.

    Example:
      >>> net = lambda w, x: jax.nn.relu(x) @ w
      >>> first = Dictionary(jnp.eye(2)[:1], encoder=jnp.eye(2)[:, :1])  # knows one of two channels
      >>> x, labels = 3 * np.eye(2, dtype="f4"), np.array([0, 1])
      >>> found = loss_recovered(net, jnp.eye(2), x, labels, first, layer="relu_0")
      >>> round(found.recovered, 3)
      0.5

    Reference:
      Bricken et al. 2023, "Towards monosemanticity"; SAELens' `ce_loss_score`, zeros as there.
    """
    who = "loss_recovered"
    count = len(jax.tree.leaves(x)[0])
    if np.shape(labels)[:1] != (count,):
        raise ValueError(
            f"{who}: labels must be one for each of {count} examples; got {np.shape(labels)}."
        )
    held, arrays = hold(who, apply_fn, params)
    row = layer_named(who, held, arrays, x, layer)
    if loss_fn is None:
        outputs = jax.eval_shape(held, arrays, x)
        check_labels(who, "labels", outputs, np.asarray(labels), "loss_fn")
    if row.shape[row.channel_axis] != dictionary.atoms.shape[1]:
        raise ValueError(
            f"{who}: dictionary must have the layer's {row.shape[row.channel_axis]} channels; got "
            f"{dictionary.atoms.shape[1]}."
        )
    rebuilt = jax.tree_util.Partial(_Rebuilt(row.channel_axis), dictionary)
    models = [apply_fn, patched(apply_fn, layer, rebuilt), patched(apply_fn, layer, 0.0)]
    sums = np.zeros(3)
    run = program(_loss, (0, 1), False, is_large(arrays))
    for n, model in enumerate(models):
        held, arrays = hold(who, model, params)
        for start in range(0, count, batch_size):
            few, some = jax.tree.map(
                lambda a, s=start: a[s : s + batch_size], (x, np.asarray(labels))
            )
            sums[n] += float(run(held, loss_fn or cross_entropy, arrays, few, some))
    loss, reconstructed, ablated = (sums / count).tolist()
    lost = ablated - loss
    recovered = (ablated - reconstructed) / lost if lost else float("nan")
    return LossRecovered(recovered, loss, reconstructed, ablated)


@dataclasses.dataclass(frozen=True)
class _Rebuilt:
    """A layer's value, decoded from its codes; equal where its channels are on the same axis."""

    axis: int

    def __call__(self, dictionary: Dictionary, a: jax.Array) -> jax.Array:
        moved = jnp.moveaxis(a, self.axis, -1)
        return jnp.moveaxis(decode(dictionary, encode(dictionary, moved)), -1, self.axis)


def _loss(apply_fn, loss_fn, params, x, labels):
    found = loss_fn(apply_fn(params, x), labels)
    if found.shape != labels.shape[:1]:
        raise ValueError(
            f"loss_recovered: loss_fn must give one number for each example; got {found.shape}."
        )
    return found.sum()
