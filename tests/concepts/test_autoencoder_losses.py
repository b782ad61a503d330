"""Losses of autoencoders: SAELens' and overcomplete's numbers and gradients on the same weights."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxviz.concepts.autoencoder_losses import (
    Fixed,
    Weights,
    atoms_of,
    finished,
    kept_within,
    losses,
    nested_widths,
)
from jaxviz.concepts.dictionary import decode, encode
from jaxviz.concepts.few import at_places, few_largest, read_at, write_at
from jaxviz.concepts.largest import largest

PEERS = dict(np.load(pathlib.Path(__file__).parents[1] / "reference" / "autoencoder_peers.npz"))
KEEP = 3


def fixed(kind, **options):
    usual = {
        **{"transcodes": False, "auxiliary": "dead", "auxiliary_weight": 1.0, "bandwidth": 0.5},
        **{"prefixes": (0.25, 0.5), "relaxation": 1.0, "dead_after": 1},
    }
    return Fixed(kind, **usual | options)


def weights(kind):
    names = ["encoder", "encoder_bias", "bias", "decoder"]
    names += {"gated": ["magnitude", "magnitude_bias"], "jump_relu": ["log_threshold"]}.get(
        kind, []
    )
    return Weights(**{name: jnp.asarray(PEERS[name]) for name in names})


@pytest.mark.parametrize(
    "kind", ["top_k", "batch_top_k", "matryoshka", "standard", "gated", "jump_relu"]
)
def test_losses_codes_and_gradients_are_sae_lens_and_what_is_finished_decodes_so(kind):
    options = fixed(kind, auxiliary_weight=0.2 if kind == "jump_relu" else 1.0)
    limit = jnp.asarray(0.7 if kind in ("standard", "gated", "jump_relu") else KEEP, jnp.float32)
    a, dead = jnp.asarray(PEERS["a"]), jnp.asarray(PEERS["dead"])
    moments = jnp.asarray(PEERS["points"][0]), jnp.float32(2.5)
    names = [name for name, value in weights(kind)._asdict().items() if value is not None]

    @jax.jit
    def both(given):
        def loss(given):
            found, codes, _ = losses(options, given, a, a, limit, KEEP, dead, dead.any(), None)
            return found.total(), codes

        # Made ready for values (a - mean) * scale, it must decode as it does in training.
        done = finished(options, given, limit, 0.0, moments, moments, None)
        again = decode(done, encode(done, a / moments[1] + moments[0][None]))
        return *jax.value_and_grad(loss, has_aux=True)(given), done, again

    (loss, codes), slopes, done, again = both(weights(kind))
    prefix = f"sae_lens/{kind}"
    np.testing.assert_allclose(loss, PEERS[prefix], rtol=1e-6)
    np.testing.assert_allclose(codes, PEERS[f"{prefix}/codes"], rtol=1e-5, atol=1e-6)
    for name in names:
        expected = PEERS[f"{prefix}/{name}"]
        np.testing.assert_allclose(
            getattr(slopes, name), expected, atol=1e-5 * np.abs(expected).max(), err_msg=name
        )
    np.testing.assert_allclose(np.linalg.norm(done.atoms, axis=1), 1, rtol=1e-5)
    if kind not in ("batch_top_k", "matryoshka"):  # these have one threshold when they are done
        atoms, bias = PEERS["decoder"], PEERS["bias"]
        norm = np.linalg.norm(atoms, axis=1) if kind == "top_k" else 1.0
        decoded = (np.asarray(codes) / norm) @ atoms + bias
        expected = decoded / np.asarray(moments[1]) + np.asarray(moments[0])
        np.testing.assert_allclose(again, expected, atol=2e-5)


def test_losses_are_overcompletes_times_the_channels():
    a = jnp.asarray(PEERS["a"])
    none = jnp.zeros(len(PEERS["dead"]), bool)
    unit = PEERS["decoder"] / np.linalg.norm(PEERS["decoder"], axis=1, keepdims=True)
    plain = weights("standard")._replace(bias=np.zeros(8, "f4"), decoder=unit)
    codes = np.maximum(PEERS["a"] @ PEERS["encoder"] + PEERS["encoder_bias"], 0)

    options = fixed("archetypal", auxiliary="unused", auxiliary_weight=0.1)
    archetypal = Weights(
        jnp.asarray(PEERS["encoder"]),
        jnp.asarray(PEERS["encoder_bias"]),
        np.zeros(8, "f4"),
        mixture=jnp.asarray(PEERS["mixture"]),
        residue=jnp.asarray(PEERS["residue"]),
        log_scale=np.float32(0),
    )

    @jax.jit
    def both(plain, archetypal, points):
        more = jnp.float32(KEEP), KEEP, none, none[0]
        inside = kept_within(options, archetypal)
        of_plain, *_ = losses(fixed("standard"), plain, a, a, jnp.float32(0.7), *more[1:], None)
        of_other, *_ = losses(options, inside, a, a, *more, points)
        return of_plain, of_other.total(), atoms_of(inside, points)

    found, total, atoms = both(plain, archetypal, PEERS["points"])
    mean = ((codes @ unit - PEERS["a"]) ** 2).mean()
    np.testing.assert_allclose(np.asarray(found.reconstruction) / 8, mean, rtol=1e-6)
    # Its penalty is summed over the batch, though its squares are averaged: 12 times ours.
    theirs = PEERS["overcomplete/standard"] - mean
    np.testing.assert_allclose(theirs, 12 * np.asarray(found.sparsity), rtol=1e-6)
    np.testing.assert_allclose(atoms, PEERS["overcomplete/archetypal/atoms"], atol=1e-5)
    np.testing.assert_allclose(total / 8, PEERS["overcomplete/archetypal"], rtol=1e-6)


def test_the_largest_are_those_of_a_sort():
    values = np.random.default_rng(0).normal(size=(5, 33)).astype(np.float32)
    values[:, 3::4] = np.round(values[:, 3::4])  # some equal ones, zeros of both signs
    values[0, :3] = -np.inf
    both = jax.jit(
        lambda values, count: (largest(values, count), largest(values, count, exact=True))
    )
    for count in (0, 1, 7, 33, 40):
        order = np.argsort(-values, axis=-1, kind="stable")
        rank = np.argsort(order, axis=-1)
        together, exactly = both(values, count)
        np.testing.assert_array_equal(exactly, rank < count)
        border = np.sort(values, -1)[:, ::-1][:, min(max(count, 1), 33) - 1, None]
        expected = (values >= border) & (count > 0)
        np.testing.assert_array_equal(together, expected)


@pytest.mark.parametrize("count", [2, 4, 20])  # of few blocks, one by one, and sorted
def test_few_codes_read_and_write_as_all_of_them(count):
    """The choice is that of a sort, the first of equal ones first; products are those of zeros."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    values = np.maximum(draw(6, 33), 0)
    values[:, 3::4] = np.round(values[:, 3::4])
    values[0], values[1, 5:] = 1, 0
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    found, places = few_largest(values, count)
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(found, np.take_along_axis(values, order, 1))
    values[3, 7] = np.nan
    assert 7 in few_largest(values, count)[1][3]  # is not hidden

    a, encoder, atoms, slope = draw(6, 5), draw(5, 33), draw(33, 7), draw(6, 7)
    chosen = at_places(jnp.ones_like(found), places, 33)

    def few(encoder, atoms):
        return (write_at(read_at(a, encoder, places), places, atoms) * slope).sum()

    dense = lambda encoder, atoms: (((a @ encoder) * chosen) @ atoms * slope).sum()
    ours, theirs = (jax.jit(jax.value_and_grad(f, (0, 1)))(encoder, atoms) for f in (few, dense))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_largest_of_numbers_that_differ_in_64_bits_alone():
    values = 1 + 1e-12 * np.random.default_rng(0).permutation(9).reshape(1, 9)
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(functools.partial(largest, exact=True))(values, 4))
    np.testing.assert_array_equal(found, values > np.sort(values)[:, -5:-4])


def test_the_codes_of_top_k_where_integers_have_64_bits():
    a, dead = jnp.asarray(PEERS["a"]), jnp.asarray(PEERS["dead"])
    limit = jnp.float32(KEEP)

    @jax.jit
    def codes(a, dead):
        options = fixed("top_k"), weights("top_k"), a, a, limit, KEEP, dead, dead.any(), None
        return losses(*options)[1]

    with jax.enable_x64(True):
        found = codes(a, dead)
    np.testing.assert_allclose(found, codes(a, dead), rtol=1e-6)


def test_widths_inside_one_another():
    assert nested_widths((1 / 16, 1 / 8, 1 / 4, 1 / 2), 32) == (2, 4, 8, 16)
    assert nested_widths((0.01, 0.02, 0.99), 4) == (1,)
