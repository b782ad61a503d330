"""Sweeps killed without warning: started again they end as if nothing had been."""

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxviz as jv

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import worker  # noqa: E402

sys.path.pop(0)
SIGKILL = int(signal.SIGKILL)
KILLS = int(os.environ.get("JAXVIZ_TEST_KILLS", "1"))


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def chunks_done(folder):
    return len(list(folder.glob("rows/c/*")))


def start(out, *arguments, stop=""):
    """The job as a process of its own; `stop` is told in the worker."""
    told = "import sys, worker; worker.main(*sys.argv[1:])"  # a store tells the module of its net
    command = [sys.executable, "-c", told, str(out), *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    env |= {"STOP": stop} if stop else {}
    if arguments:
        env["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )


def finish(process, code=0):
    said, _ = process.communicate(timeout=240)
    assert process.returncode == code, said[-3000:]
    return said


# What is not killed runs in this process, which is another one than all the killed ones.
@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "store"
    worker.main(out)
    return out


def test_killed_and_started_again(tmp_path, whole):
    out, dice = tmp_path / "store", random.Random(0)
    for _ in range(KILLS):
        before = chunks_done(out)
        # Far enough to have something done, and never to the end.
        at, delay = dice.randint(0, (20 - before) // 2), dice.random() * 0.05
        finish(start(out, stop=f"{SIGKILL}:{at}:{delay}"), -SIGKILL)
        if chunks_done(out) > 18:
            break
    assert chunks_done(out) < 24
    worker.main(out)
    assert contents(out) == contents(whole)


def test_ctrl_c_ends_after_a_chunk(tmp_path):
    out = tmp_path / "store"
    said = start(out, stop=f"{int(signal.SIGINT)}:8:0.01").communicate(timeout=240)[0]
    assert "KeyboardInterrupt" in said
    # What is there is whole: every array has the chunks that are counted, and no others.
    done = {p.name for p in out.glob("rows/c/*")}
    assert {p.name for p in out.glob("maps/slow/c/*")} == done
    assert 8 <= len(done) < 24
    assert len(jv.open_sweep(out).maps["slow"]) == 4 * len(done)


def together(out, stop=""):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return start(out, 0, 2, port), start(out, 1, 2, port, stop=stop)


def test_two_processes_one_killed_both_started_again(tmp_path, whole):
    out = tmp_path / "store"
    first, second = together(out, stop=f"{SIGKILL}:7:0.02")
    finish(second, -SIGKILL)
    first.kill()  # it may wait for the other one
    first.communicate()
    assert 0 < chunks_done(out) < 24
    for process in together(out):
        finish(process)
    got, want = jv.open_sweep(out), jv.open_sweep(whole)
    assert contents(out).keys() == contents(whole).keys()
    np.testing.assert_array_equal(got.labels, want.labels)
    for name, array in want.maps.items():  # the chunks were divided between two devices
        np.testing.assert_allclose(got.maps[name], array, rtol=1e-5, atol=1e-6)
