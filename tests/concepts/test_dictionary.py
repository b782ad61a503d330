"""Dictionaries: codes against formulas by hand and SciPy, files, wrong input."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

from jaxviz.concepts import Dictionary, decode, encode, load_dictionary, save_dictionary

RNG = np.random.default_rng(0)
ATOMS = RNG.normal(size=(5, 4)).astype(np.float32)
VALUES = RNG.normal(size=(2, 3, 4)).astype(np.float32)
ENCODER = RNG.normal(size=(4, 5)).astype(np.float32)
SHIFT, BIAS, LEVEL = (RNG.normal(size=n).astype(np.float32) for n in (4, 5, 5))


def test_codes_without_an_encoder_are_non_negative_least_squares():
    atoms = np.abs(ATOMS[:3])
    codes = encode(Dictionary(jnp.asarray(atoms)), jnp.asarray(VALUES))
    expected = [[nnls(atoms.T, value)[0] for value in row] for row in VALUES]
    np.testing.assert_allclose(codes, expected, atol=1e-5)


def test_an_atom_of_zeros_has_code_zero():
    codes = encode(Dictionary(jnp.array([[1.0, 0.0], [0.0, 0.0]])), jnp.array([[2.0, 3.0]]))
    assert codes.tolist() == [[2.0, 0.0]]


def test_codes_are_linear_above_their_thresholds_and_the_largest_stay():
    pre = (VALUES - SHIFT) @ ENCODER + BIAS
    signed = Dictionary(*map(jnp.asarray, (ATOMS, ENCODER, BIAS, SHIFT)))
    np.testing.assert_allclose(encode(signed, jnp.asarray(VALUES)), pre, atol=1e-5)
    jumps = signed._replace(threshold=jnp.asarray(LEVEL))
    found = encode(jumps, jnp.asarray(VALUES))
    np.testing.assert_allclose(found, np.where(pre > LEVEL, pre, 0), atol=1e-5)
    largest = encode(jumps._replace(threshold=jnp.array(0.0), keep=jnp.array(2)), VALUES)
    kept = np.where(pre >= np.sort(pre, -1)[..., -2:-1], np.maximum(pre, 0), 0)
    np.testing.assert_allclose(largest, kept, atol=1e-5)
    np.testing.assert_allclose(decode(signed, largest), kept @ ATOMS + SHIFT, atol=1e-5)


def test_of_equal_codes_the_first_stay():
    same = Dictionary(jnp.eye(3), encoder=jnp.eye(3), keep=jnp.array(2))
    assert encode(same, jnp.ones((1, 3))).tolist() == [[1.0, 1.0, 0.0]]


def test_files_hold_what_was_there(tmp_path):
    given = Dictionary(jnp.asarray(ATOMS), threshold=jnp.array(0.5), keep=jnp.array(3))
    read = load_dictionary(save_dictionary(given, tmp_path / "d.safetensors"))
    np.testing.assert_array_equal(read.atoms, ATOMS)
    assert (float(read.threshold), int(read.keep), read.encoder) == (0.5, 3, None)
    with pytest.raises(ValueError, match=r"save_dictionary: path must end in .safetensors"):
        save_dictionary(given, tmp_path / "d.npz")
    with pytest.raises(FileNotFoundError, match="load_dictionary: there is no file"):
        load_dictionary(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=r"load_dictionary: .* is no safetensors file"):
        load_dictionary(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("function", [encode, decode])
def test_other_sizes_are_refused(function):
    with pytest.raises(ValueError, match=rf"{function.__name__}: \w+ must be \[..., \d\]"):
        function(Dictionary(jnp.asarray(ATOMS)), jnp.ones((2, 7)))
