"""Sweeps killed without warning: started again they end as if nothing had been."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxviz as jv

WORKER = Path(__file__).parent / "worker.py"
KILLS = int(os.environ.get("JAXVIZ_TEST_KILLS", "2"))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def chunks_done(folder):
    return len(list(folder.glob("rows/c/*")))


def start(out, *arguments):
    command = [sys.executable, str(WORKER), str(out), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said[-3000:]


def wait_for_chunk(out, number, process):
    while chunks_done(out) < number:
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "store"
    finish(start(out))
    return out


def test_killed_and_started_again(tmp_path, whole):
    out, dice = tmp_path / "store", random.Random(0)
    for round_ in range(KILLS):
        process = start(out)
        wait_for_chunk(out, 1 + round_ * 20 // KILLS, process)
        time.sleep(dice.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert 0 < chunks_done(out) < 24
    finish(start(out))
    assert contents(out) == contents(whole)


def test_ctrl_c_ends_after_a_chunk(tmp_path, whole):
    out = tmp_path / "store"
    process = start(out)
    wait_for_chunk(out, 2, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    # What is there is whole: every array has the chunks that are counted, and no others.
    done = {p.name for p in out.glob("rows/c/*")}
    assert {p.name for p in out.glob("maps/slow/c/*")} == done
    assert len(jv.open_sweep(out).maps["slow"]) == 4 * len(done) < 96


def together(out):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(out, process, 2, port) for process in range(2)]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX signals")
def test_two_processes_one_killed_both_started_again(tmp_path, whole):
    out = tmp_path / "store"
    first, second = together(out)
    wait_for_chunk(out, 3, first)
    second.send_signal(signal.SIGKILL)
    time.sleep(0.1)
    first.kill()
    for process in (first, second):
        process.communicate()
    assert 0 < chunks_done(out) < 24
    for process in together(out):
        finish(process)
    got, want = jv.open_sweep(out), jv.open_sweep(whole)
    assert contents(out).keys() == contents(whole).keys()
    np.testing.assert_array_equal(got.labels, want.labels)
    for name, array in want.maps.items():  # the chunks were divided between two devices
        np.testing.assert_allclose(got.maps[name], array, rtol=1e-5, atol=1e-6)
