"""Which atoms of one dictionary are those of another: what stays from seed to seed."""

from typing import Any

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxviz.calls.options import refused
from jaxviz.calls.public import public
from jaxviz.concepts.dictionary import Dictionary


def _atoms(who, option, value):
    value = getattr(value, "atoms", value)
    if not isinstance(value, (np.ndarray, jax.Array)) or np.ndim(value) != 2 or not np.size(value):
        kind = ValueError if isinstance(value, (np.ndarray, jax.Array)) else TypeError
        raise refused(who, option, "atoms [K, C] or a Dictionary", value, kind=kind)
    found = np.asarray(value)
    if found.dtype.kind not in "fiuV" or hasattr(value, "mask"):
        raise refused(who, option, "an array of real numbers", value)
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        raise refused(who, option, "finite atoms [K, C]", value, kind=ValueError)
    return found


@public(a=_atoms, b=_atoms)
def matched_atoms(
    a: Dictionary | jax.Array, b: Dictionary | jax.Array, *, absolute: bool = False
) -> np.ndarray:
    """How near each atom of `a` is to its partner in `b`; the mean is their agreement.

    Partners are chosen together, so that the sum of their cosines is the largest (Hungarian
    method), each at most once. Dictionaries that a method finds from several seeds have a mean of
    1 where they are the same but for the order.

    Args:
      a: A `Dictionary`, or atoms `[K, C]`, finite.
      b: The same, of any number of atoms.
      absolute: Whether an atom may be the partner of its opposite: for signed codes (PCA).

    Returns:
      `[K]`, cosines in -1 to 1, higher is nearer; atoms of `a` that are left without a partner, as
      `b` has fewer, and atoms of zeros, have 0.

    Raises:
      ValueError: The numbers of channels differ.

    Example:
      >>> matched_atoms(np.eye(2), np.array([[0.0, 2.0], [3.0, 0.0]])).tolist()
      [1.0, 1.0]

    Reference:
      Fel et al. 2025, arXiv:2502.12892, eq. 3 (stability).
    """
    one, other = np.asarray(a), np.asarray(b)
    if one.shape[1] != other.shape[1]:
        raise ValueError(
            "matched_atoms: a and b must have the same number of channels; got "
            f"{one.shape[1]} and {other.shape[1]}. Take two dictionaries of one layer."
        )
    cosines = _units(one) @ _units(other).T
    cosines = np.abs(cosines) if absolute else cosines
    found = np.zeros(len(one))
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    found[rows] = cosines[rows, columns]
    return found.astype(np.float32)


def steadiness(atoms: Any, others: Any) -> np.ndarray:
    """`[K]`: of each atom the mean of `matched_atoms` to those of other seeds; NaN of none."""
    found = [matched_atoms(atoms, other) for other in others]
    return np.mean(found, 0) if found else np.full(len(atoms), np.nan, np.float32)


def _units(atoms: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(atoms, axis=1, keepdims=True)
    return atoms / np.where(size > 0, size, 1)
