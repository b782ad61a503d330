"""The benchmark for a GPU, tried where there is none: its rows, its deadlines and its report."""

import functools
import pathlib
import sys

import jax
import numpy as np
import pytest


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent.parent)
    from benchmarks import gpu

    monkeypatch.setattr(gpu, "timed", functools.partial(gpu.timed, seconds=0.0))
    return gpu


@pytest.mark.parametrize("method", ["saliency", "gradcam"])
def test_the_plain_formula_is_what_our_method_gives(gpu, method):
    model, params, x, target = gpu.case(True, "cifar", 2)
    ours = gpu.ours(method, True, "cifar")(model, params, x, target)
    plain = gpu.plain(method, True, "cifar", model, 2)(params, x)
    plain = jax.image.resize(plain, ours.shape, "linear")  # of Grad-CAM; else it is that already
    np.testing.assert_allclose(ours, plain, rtol=1e-3, atol=1e-5)


def test_a_row_of_each_part_has_its_figures(gpu):
    for part, keys in {
        "methods": {"first_ms", "ms", "images_per_s", "peak_mb", "plain_ms", "plain_by_ours"},
        "kernels": {"off_ms", "on_ms", "off_by_on"},
        "chunks": {"first_ms", "ms", "images_per_s"},
    }.items():
        row, arguments = gpu.cells(part, True)[0]
        found = row(True, *arguments)
        assert keys <= found.keys()
        assert all(value >= 0 for value in found.values())


def test_a_part_is_stopped_at_its_deadline_and_keeps_what_it_said(gpu, tmp_path):
    found = {"plan": [], "rows": []}
    said = """print('{"plan": [[1], [2]], "machine": "m"}\\nnoise\\n{"row": [1], "ms": 3.5}')"""
    hear = lambda line: gpu.heard(found, "methods", line)
    assert gpu.supervise([sys.executable, "-c", said], 60, hear, tmp_path / "log") == 0
    assert found["rows"] == [{"row": [1], "ms": 3.5}]
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert gpu.supervise(sleeper, 0.1, hear, tmp_path / "log") == -9
    report = gpu.report({"methods": found | {"seconds": 1.0, "end": "stopped by the clock"}})
    assert "| 1 | 3.5 |" in report
    assert "Not reached: 2." in report
    assert "stopped by the clock" in report


def test_the_outcome_of_each_test_is_counted(gpu):
    found = {"plan": [], "rows": []}
    for line in ("a.py::test_x PASSED [ 1%]", "a.py::test_y[3-b] FAILED [ 2%]", "== 1 failed =="):
        gpu.heard(found, "tests", line)
    report = gpu.report({"tests": found | {"seconds": 2, "end": "whole"}})
    assert "1 passed, 1 failed" in report
    assert "a.py::test_y[3-b]" in report
    assert "test_x" not in report
