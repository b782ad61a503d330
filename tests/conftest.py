"""Makes every test strict: no silent broadcasting or promotion, no network, no window."""

import contextlib
import gc
import importlib.metadata
import os
import pathlib
import socket

# Several test processes may share one GPU; each takes only what it uses. Read when JAX is imported.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# Hundreds of little programs are compiled here and run once: most of the time would go to LLVM's
# optimisation of them. `XLA_FLAGS= python -m pytest` tests what users run, several times slower.
# jaxlib 0.10 can still write fused loops the shorter way, which compiles in half of the time; later
# versions end at a flag that they do not know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)

import jax
import matplotlib
import pytest

matplotlib.use("Agg")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# What JAX and matplotlib are made of is not searched for garbage again and again.
gc.collect()
gc.freeze()
gc.set_threshold(20_000, 20, 20)

_connect = socket.socket.connect


def _refuse_network(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] != "127.0.0.1":
        raise OSError(f"tests use no network; something tried to reach {address}")
    return _connect(self, address)


socket.socket.connect = _refuse_network

# Each compiled program takes some maps of memory, of which Linux gives a process 65,530; where they
# run out, XLA's compiler ends the process. What a file compiled, the next one does not need.
_MAPS, _MANY = pathlib.Path("/proc/self/maps"), 20_000


@pytest.fixture(autouse=True, scope="module")
def _programs_are_forgotten_in_time():
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def checking_leaks():
    """`jax.checking_leaks`, whose searches of all objects are spared what was there before."""

    @contextlib.contextmanager
    def checking():
        gc.freeze()
        try:
            with jax.checking_leaks():
                yield
        finally:
            gc.unfreeze()

    return checking


def pytest_configure(config):
    # xdist begins with the files of most tests, so those of few but long ones come last and one
    # process waits for the other. In their own order the doctests, which are short, come last.
    config.option.loadscopereorder = False


# Scripts that made the stored values of other libraries; they need those libraries to run.
collect_ignore_glob = ["reference/*.py"]
