"""The page on adapters: its examples run in order."""

import pathlib
import re

import jax
import jax.numpy as jnp

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "adapters.md"


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 4
    found = {"__name__": "adapters"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), found)
    assert jnp.array_equal(found["same"], found["first"])
    assert found["maps"].shape == (2, 32, 32)
    assert found["by_channel"].shape == (2, 3, 32, 32)
    assert found["names"][1:] == ["mlp/~/linear_0", "mlp/relu_0", "mlp/~/linear_1", "mlp"]
