"""The page on inputs: its examples run."""

import pathlib
import re

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "inputs.md"


def test_the_examples_of_the_page_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 5
    found = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), found)
    assert found["worth"].shape == found["near"].shape == found["per_token"].shape == (1, 4)
    assert found["fair"].values.shape == (1, 3)
    assert found["lost"]["numbers"].shape == (1, 3)
    assert found["shares"].map["numbers"][0, 2] == 0
    assert found["map_of_places"].shape == (1, 4, 4)
