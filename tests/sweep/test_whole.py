"""A store knows what it holds: files lost, cut, changed or exchanged never become numbers."""

import json
import random
import shutil
import warnings

import jax
import numpy as np
import pytest

import jaxviz as jv

N, SIZE = 7, 2
X = np.random.default_rng(0).normal(size=(N, 3, 2)).astype(np.float32)
X[2:4] = 0  # a chunk of zeros, which zarr leaves out unless told otherwise
Y = (np.arange(N) % 3).astype(np.int32)
W = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)


@jax.jit
def net(w, x):
    return x.reshape(len(x), -1) @ w


@jax.jit
def product(w, x):
    return (x.reshape(len(x), -1) * w[None, :, 0]).reshape(x.shape)


# Two methods of one shape and type: their files can be exchanged without any reader seeing it.
def first(apply_fn, params, x, target=None):
    return product(params, x)


def second(apply_fn, params, x, target=None):
    return product(-params, x)


def run(out, w=W, batches=(X, Y), **options):
    given = {"batch_size": SIZE, "progress": False, **options}
    return jv.sweep({"first": first, "second": second}, net, w, batches, out=out, **given)


def by_hand(w=W):
    logits = X.reshape(N, -1) @ w
    return {
        "first": (X.reshape(N, -1) * w[:, 0]).reshape(X.shape),
        "second": (X.reshape(N, -1) * -w[:, 0]).reshape(X.shape),
        "outputs": logits,
        "predicted": logits.argmax(-1),
        "labels": Y,
    }


def check(sweep, rows=None):
    """All that can be read of a sweep is right; `rows` are those that have to be there."""
    want = by_hand()
    if rows is not None:
        np.testing.assert_array_equal(sweep.rows, rows)
    for name, array in want.items():
        got = sweep.maps[name] if name in sweep.maps else getattr(sweep, name)
        np.testing.assert_allclose(got, array[sweep.rows], rtol=1e-5, atol=1e-6)
    for name in ("first", "second"):
        flat = want[name][sweep.rows].reshape(len(sweep.rows), -1)
        np.testing.assert_allclose(sweep.summaries[name].total, flat.sum(1), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The store, and one of the same net with other weights."""
    folder = tmp_path_factory.mktemp("stores")
    run(folder / "one")
    run(folder / "other", w=W + 1)
    return folder


def files_of(store):
    return sorted(p.relative_to(store) for p in store.rglob("*") if p.is_file())


def damage(store, other, dice):
    """Does one thing to one to three files or folders; returns what."""
    kind = dice.choice(["delete", "cut", "flip", "swap", "folder", "foreign", "copy"])
    for _ in range(dice.randint(1, 3)):
        one, two = dice.sample(files_of(store), 2)
        content = (store / one).read_bytes()
        if kind == "delete":
            (store / one).unlink()
        elif kind == "cut":
            (store / one).write_bytes(content[: dice.randint(0, max(len(content) - 1, 0))])
        elif kind == "flip" and content:
            bit = dice.randrange(8 * len(content))
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            (store / one).write_bytes(flipped)
        elif kind in ("swap", "copy"):
            if kind == "swap":
                (store / one).write_bytes((store / two).read_bytes())
            (store / two).write_bytes(content)
        elif kind == "folder":
            shutil.rmtree((store / one).parent)
            break
        elif (other / one).exists():
            (store / one).write_bytes((other / one).read_bytes())
    return f"{kind} {one}"


def resumed(store, **options):
    """What the resumed sweep gives, and what it says of rows that it made again."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return run(store, **options), [str(w.message) for w in said]


def made_with(store):
    """What a store says of its sweep, but for the versions, which decide nothing; else None."""
    try:
        group = json.loads((store / "zarr.json").read_bytes())
        return {k: v for k, v in group["attributes"]["jaxviz_sweep"].items() if k != "versions"}
    except (OSError, ValueError, KeyError):
        return None


def opened(out):
    """Opens and reads all; the sentence that refuses it, None where all of its rows are right."""
    try:
        check(jv.open_sweep(out))
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("seed", range(8))
def test_random_damage_is_said_and_mended_or_refused(tmp_path, stores, seed):
    dice = random.Random(seed)
    for number in range(25):
        store = tmp_path / str(number)
        shutil.copytree(stores / "one", store)
        what = damage(store, stores / "other", dice)
        refused = opened(store)
        assert refused is None or refused.startswith("open_sweep: "), (what, refused)
        if made_with(store) != made_with(stores / "one"):
            assert refused is not None, what
            with pytest.raises(ValueError, match=r"^sweep: "):
                resumed(store)
            continue
        sweep, said = resumed(store)
        check(sweep, rows=np.arange(N))
        if refused is not None and "is done yet" not in refused:
            assert len(said) == 1, what
            assert "were made again" in said[0]
        again, said = resumed(store)
        check(again, rows=np.arange(N))
        assert not said, what


def test_lost_chunks_are_named_and_made_again(tmp_path, stores):
    store = tmp_path / "store"
    shutil.copytree(stores / "one", store)
    before = {p: (store / p).read_bytes() for p in files_of(store)}
    for number in (0, 3):
        (store / f"maps/second/c/{number}/0/0").unlink()
    with pytest.raises(ValueError, match=r"open_sweep: rows 0 to 1, 6 of .*Run its sweep again"):
        jv.open_sweep(store)
    sweep, said = resumed(store)
    assert [s for s in said if "rows 0 to 1, 6 of" in s] == said
    check(sweep, rows=np.arange(N))
    assert {p: (store / p).read_bytes() for p in files_of(store)} == before


def test_exchanged_maps_are_found_when_they_are_read_and_the_others_are_right(tmp_path, stores):
    store = tmp_path / "store"
    shutil.copytree(stores / "one", store)
    one, two = (store / f"maps/{name}/c/2/0/0" for name in ("first", "second"))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    sweep = jv.open_sweep(store)
    with pytest.raises(ValueError, match="maps/first of rows 4 to 5 of"):
        sweep.maps["first"][:]
    np.testing.assert_allclose(sweep.maps["first"][:4], by_hand()["first"][:4], rtol=1e-6)


def test_rows_that_are_not_counted_are_left_out_and_told(tmp_path, stores):
    store = tmp_path / "store"
    shutil.copytree(stores / "one", store)
    (store / "rows/c/1").unlink()
    check(jv.open_sweep(store), rows=[0, 1, 4, 5, 6])
    sweep, said = resumed(store)
    check(sweep, rows=np.arange(N))
    assert not said


def test_a_store_of_before_the_digests_is_made_anew(tmp_path, stores):
    store = tmp_path / "store"
    shutil.copytree(stores / "one", store)
    shutil.rmtree(store / "digests")
    with pytest.raises(ValueError, match="open_sweep: nothing tells whether"):
        jv.open_sweep(store)
    sweep, said = resumed(store)
    check(sweep, rows=np.arange(N))
    assert "rows 0 to 6" in said[0]


def test_a_store_of_an_older_version_is_made_anew(tmp_path, stores):
    store = tmp_path / "store"
    shutil.copytree(stores / "one", store)
    about = json.loads((store / "zarr.json").read_text())
    del about["attributes"]["jaxviz_sweep"]["programs"]
    (store / "zarr.json").write_text(json.dumps(about))
    digests = json.loads((store / "digests/zarr.json").read_text())
    del digests["attributes"]["version"]
    (store / "digests/zarr.json").write_text(json.dumps(digests))
    with pytest.raises(ValueError, match="open_sweep: nothing tells whether"):
        jv.open_sweep(store)
    check(resumed(store)[0], rows=np.arange(N))
    sweep, said = resumed(store)
    check(sweep, rows=np.arange(N))
    assert not said


@pytest.mark.parametrize("file", ["zarr.json", "digests/zarr.json"])
def test_attributes_that_are_none_are_no_store_of_ours(tmp_path, stores, file):
    store = tmp_path / "store"
    shutil.copytree(stores / "one", store)
    told = json.loads((store / file).read_text())
    (store / file).write_text(json.dumps(told | {"attributes": ["of", "others"]}))
    with pytest.raises(ValueError, match=r"^open_sweep: "):
        jv.open_sweep(store)


def test_a_folder_where_a_file_belongs_is_told(tmp_path, stores):
    store = tmp_path / "store"
    shutil.copytree(stores / "one", store)
    (store / "labels/c/1").unlink()
    (store / "labels/c/1").mkdir()
    with pytest.raises(ValueError, match=r"^open_sweep: rows 2 to 3"):
        jv.open_sweep(store)
    with pytest.raises(ValueError, match=r"^sweep: .* must take what is written to it"):
        run(store)


@pytest.mark.parametrize("shape", [None, [], [7], "7", [7, -1], {}])
def test_an_array_whose_shape_was_changed_is_made_again(tmp_path, stores, shape):
    store = tmp_path / "store"
    shutil.copytree(stores / "one", store)
    kept = json.loads((store / "outputs/zarr.json").read_text())
    (store / "outputs/zarr.json").write_text(json.dumps({**kept, "shape": shape}))
    check(resumed(store)[0], rows=np.arange(N))


@pytest.mark.parametrize("kind", ["arrays", "batches"])
def test_chunks_of_no_row_of_the_set_do_not_count(tmp_path, stores, kind):
    store = tmp_path / "store"
    pairs = [(X[n : n + SIZE], Y[n : n + SIZE]) for n in range(0, N, SIZE)]
    batches = (X, Y) if kind == "arrays" else pairs
    run(store, batches=batches)
    shutil.copy(store / "rows/c/0", store / "rows/c/9")
    with pytest.raises(ValueError, match="rows 18 to 19 of"):
        jv.open_sweep(store)
    check(resumed(store, batches=batches)[0], rows=np.arange(N))
    check(jv.open_sweep(store), rows=np.arange(N))


def test_a_store_that_lost_its_own_name_is_refused(tmp_path, stores):
    store = tmp_path / "store"
    shutil.copytree(stores / "one", store)
    (store / "zarr.json").unlink()
    with pytest.raises(ValueError, match=r"open_sweep: .* holds no sweep"):
        jv.open_sweep(store)
    with pytest.raises(ValueError, match=r"sweep: .* no zarr\.json of a sweep"):
        run(store)


def test_no_place_to_write_is_told_before_any_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    called = []

    def method(apply_fn, params, x, target=None):
        if not isinstance(x, jax.core.Tracer):  # of rows, not of its program
            called.append(len(x))
        return x

    for out in ("file/store", "file/sweep.npz"):
        with pytest.raises(ValueError, match="sweep: out must be a place to write to"):
            jv.sweep(method, net, W, X, out=tmp_path / out, progress=False)
    assert not called


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_npz_file_is_refused_or_right(tmp_path, seed):
    out = tmp_path / "sweep.npz"
    run(out)
    whole, dice = out.read_bytes(), random.Random(seed)
    check(jv.open_sweep(out), rows=np.arange(N))
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[dice.randrange(len(whole))] ^= 1 << dice.randrange(8)
        out.write_bytes(dice.choice([damaged, whole[: dice.randrange(len(whole))]]))
        assert (refused := opened(out)) is None or refused.startswith("open_sweep: ")
