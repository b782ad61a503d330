"""Programs are found again by the next process, counted by JAX's own events."""

import json
import os
import subprocess
import sys
import warnings

import jax
import pytest

import jaxviz as jv
from jaxviz.engine import compiled

# What a process found in the folder and what it had to compile, and the warnings that it gave.
SCRIPT = """
import collections, json, sys, warnings
import jax, jax.numpy as jnp
import jaxviz as jv
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.split("/")[-1]]))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    kept = jv.keep_compiled({folder})
    x = jnp.arange(128.0).reshape(2, 8, 8, 1) / 128
    {work}
    total = float(sum(abs(m).sum() for m in maps))
print(json.dumps({{"kept": str(kept), "total": total, "told": [str(t.message) for t in told],
                  "limit": jax.config.jax_persistent_cache_min_compile_time_secs,
                  "hits": counts["cache_hits"], "misses": counts["cache_misses"]}}))
"""
LITTLE = "maps = [jax.jit(jnp.tanh)(x)]"
EXPLAIN = """
    w = {"a": jnp.ones((3, 3, 1, 4)), "b": jnp.ones((4, 2))}
    def net(w, x):
        maps = jax.lax.conv_general_dilated(
            x, w["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jax.nn.relu(maps).mean((1, 2)) @ w["b"]
    maps = [jv.saliency(net, w, x), jv.integrated_gradients(net, w, x, num_steps=4)]
"""


def process(work, folder="None", **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "JAXVIZ_"))}
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(folder=folder, work=work)],
        capture_output=True,
        text=True,
        check=True,
        env=kept | variables,
    )
    return json.loads(out.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The user's cache after one process."""
    home = tmp_path_factory.mktemp("home")
    return home, process(EXPLAIN, XDG_CACHE_HOME=str(home))


def test_the_second_process_compiles_nothing(cache):
    home, first = cache
    assert first["kept"] == str(home / "jaxviz" / "compiled")
    assert first["misses"] > 5
    second = process(EXPLAIN, XDG_CACHE_HOME=str(home))
    assert second["misses"] == 0
    assert second["hits"] == first["hits"] + first["misses"]
    assert second["total"] == first["total"]  # to the last bit
    assert first["told"] == second["told"] == []


def test_a_damaged_entry_is_a_warning(cache):
    home, first = cache
    entries = sorted((home / "jaxviz" / "compiled").glob("*-cache"))
    kept = [entry.read_bytes() for entry in entries]
    for entry, whole in zip(entries, kept, strict=True):
        damaged = (b"", b"no program" * 50, whole[: len(whole) // 2], b"\0" + whole[1:])
        entry.write_bytes(damaged[len(whole) % 4])
    second = process(EXPLAIN, XDG_CACHE_HOME=str(home))
    assert second["total"] == first["total"]
    assert second["told"]
    assert all("Error reading persistent compilation cache" in text for text in second["told"])
    for entry, whole in zip(entries, kept, strict=True):
        entry.write_bytes(whole)


def test_the_user_decides_from_outside(cache, tmp_path):
    home, _ = cache
    off = process(LITTLE, XDG_CACHE_HOME=str(home), JAXVIZ_CACHE="0")
    assert (off["kept"], off["hits"], off["misses"]) == ("None", 0, 0)
    there = process(LITTLE, XDG_CACHE_HOME=str(home), JAXVIZ_CACHE=str(tmp_path / "there"))
    assert there["kept"] == str(tmp_path / "there")
    assert there["misses"] > 0
    given = str(tmp_path / "theirs")
    theirs = process(LITTLE, JAX_COMPILATION_CACHE_DIR=given, JAXVIZ_CACHE="there")
    assert theirs["kept"] == given
    assert (there["limit"], theirs["limit"]) == (0.0, 1.0)  # JAX's own stayed


def test_a_folder_that_cannot_be_written_to_is_one_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    found = process(LITTLE, repr(str(tmp_path / "file" / "below")))
    assert found["kept"] == "None"
    (text,) = found["told"]
    assert text.startswith("keep_compiled: folder must be one that can be written to; ")
    assert "Not a directory" in text


@pytest.fixture
def config(monkeypatch):
    """What the call would set, without setting it for the tests that come after."""
    found = {}
    monkeypatch.setattr(
        type(jax.config), "update", lambda _, name, value: found.update({name: value})
    )
    monkeypatch.delenv("JAXVIZ_CACHE", raising=False)
    return found


def test_what_was_not_used_for_longest_goes_first(config, tmp_path):
    for age in range(5):
        entry = tmp_path / f"jit_f-{age}-cache"
        entry.write_bytes(bytes(100))
        os.utime(entry, (1e9 - age, 1e9 - age))
    (tmp_path / "mine.txt").write_bytes(bytes(1000))
    assert jv.keep_compiled(tmp_path, max_size=250) == tmp_path
    assert {p.name for p in tmp_path.iterdir()} == {"jit_f-0-cache", "jit_f-1-cache", "mine.txt"}
    assert config["jax_compilation_cache_dir"] == str(tmp_path)


@pytest.mark.parametrize(("word", "kept"), [("0", False), ("OFF", False), ("1", True), ("", True)])
def test_words_of_the_variable(word, kept, config, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVIZ_CACHE", word)
    monkeypatch.setattr(compiled, "_users_cache", lambda: tmp_path)
    assert jv.keep_compiled() == (tmp_path if kept else None)


def test_a_read_only_folder_is_a_warning(config, tmp_path, monkeypatch):
    def refused(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr("tempfile.TemporaryFile", refused)  # root may write everywhere
    with pytest.warns(UserWarning, match="Permission denied") as told:
        assert jv.keep_compiled(tmp_path) is None
    assert told[0].filename == __file__
    assert not config


def test_nothing_is_switched_on_by_importing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jax.config.jax_compilation_cache_dir is None


def test_wrong_arguments():
    with pytest.raises(ValueError, match="keep_compiled: max_size must be at least 0; got -1"):
        jv.keep_compiled(max_size=-1)
