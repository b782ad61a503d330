"""What an example costs, and how sure the model is of its label: of outputs and labels, `[N]`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxviz.calls.options import described
from jaxviz.engine.copies import is_floating, wide
from jaxviz.graph.indices import at_index, widened


def cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy of logits `[N, K]` and labels `[N]`, in nats, `[N]`.

    A traced label that is no class gives NaN.

    Example:
      >>> found = cross_entropy(jnp.zeros((1, 2)), jnp.array([0]))
      >>> bool(jnp.isclose(found[0], jnp.log(2.0)))
      True
    """
    return -at_index(jax.nn.log_softmax(_logits(outputs)), labels)


def margin(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """`log(p / (1 - p))` of the label's probability p, `[N]`: TRAK's model output.

    Example:
      >>> margin(jnp.array([[2.0, 0.5]]), jnp.array([0])).tolist()
      [1.5]
    """
    outputs, labels = _logits(outputs), widened(labels)
    classes = jnp.arange(outputs.shape[1], dtype=labels.dtype)
    others = jnp.where(classes[None] == labels[:, None], -jnp.inf, outputs)
    return at_index(outputs, labels) - jax.nn.logsumexp(others, axis=1)


def probability(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The label's probability, `[N]`."""
    return jnp.exp(-cross_entropy(outputs, labels))


def _logits(outputs):
    return wide(outputs) if is_floating(outputs) else outputs.astype(jnp.float32)


def check_labels(who: str, option: str, outputs: Any, labels: Any, loss: str = "loss") -> None:
    """Refuses what is no logits `[N, K]` with labels `[N]`, 0 to K - 1; `outputs` may be shapes.

    `option` names the labels in errors, and `loss` the option that takes another loss.
    """
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) != 2:
        raise ValueError(
            f"{who}: softmax cross-entropy needs outputs [N, K]; apply_fn returns "
            f"{jax.tree.map(lambda a: tuple(a.shape), outputs)}. Pass {loss}(outputs, labels) "
            "-> [N]."
        )
    is_array = hasattr(labels, "shape") and hasattr(labels, "dtype")
    if not is_array or labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{who}: {option} must hold labels [N], integers, for softmax cross-entropy; got "
            f"{described(labels)}. For other labels pass {loss}(outputs, labels) -> [N]."
        )
    if not isinstance(labels, Tracer) and labels.size:
        values = np.asarray(labels)
        if values.min() < 0 or values.max() >= shape[1]:
            wrong = values[(values < 0) | (values >= shape[1])][0]
            raise ValueError(
                f"{who}: {option} must hold labels in [0, {shape[1]}), the classes of apply_fn's "
                f"outputs; got {wrong}. Number the classes from 0."
            )
