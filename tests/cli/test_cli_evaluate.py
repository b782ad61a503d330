"""`jaxviz evaluate`: a table, a heat map and kept scores, by the words of the command line."""

import numpy as np
import pytest

import jaxviz as jv
from jaxviz.cli import main

WORDS = "evaluate mnist_a --data digits --methods saliency,grad_cam --examples 6 --batch-size 4"


def test_a_table_a_heat_map_and_scores_that_a_second_start_finds(tmp_path, capsys):
    pytest.importorskip("sklearn")
    command = f"{WORDS} --metrics deletion sparseness --target label --out {tmp_path}".split()
    assert main(command) == 0
    said = capsys.readouterr().out
    table = (tmp_path / "table.txt").read_text()
    assert "2 methods, 2 metrics, 6 examples" in table
    assert table in said
    assert "6 images in" in said
    assert (tmp_path / "ranks.png").stat().st_size > 5000
    kept = jv.open_sweep(tmp_path / "scores")
    assert np.asarray(kept.maps["grad_cam.of.deletion.score"]).shape == (6,)
    stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "scores").rglob("c/*") if p.is_file()}
    assert main(command) == 0
    assert {p: p.stat().st_mtime_ns for p in stamp} == stamp
    assert table in capsys.readouterr().out
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "--out", str(page), "--title", "<b>"]) == 0
    assert "mean rank" in page.read_text()
    assert "&lt;b&gt;" in page.read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"{WORDS} --metrics deletoin", "no metric 'deletoin', did you mean deletion?"),
        (f"{WORDS} --metrics pointing_game", "no metric 'pointing_game'"),  # there are no masks
        ("evaluate --net alexnet", "alexnet comes with no data set. Add --data NAME"),
        (f"{WORDS} --target eleven", "no class 'eleven'"),
        ("report /no/such/folder", "there is no folder /no/such/folder"),
        ("report / --examples 3", "are for a run without a sweep"),
        ("report / --out page.txt", "must be a file ending in .html; got page.txt"),
        ("report /", "/ must be a run, or what 'jaxviz sweep', 'evaluate' or 'explain' wrote"),
    ],
)
def test_wrong_words_are_told_in_a_line(words, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
