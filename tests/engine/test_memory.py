"""Large blocks come back from the process itself once memory is kept."""

import platform
import subprocess
import sys

import pytest

from jaxviz.engine import memory

# Ten blocks of 64 MB, one after the other; the kernel counts the pages that it had to hand out.
SCRIPT = """
import ctypes, resource, runpy, sys
if sys.argv[1] == "keep":
    assert runpy.run_path(sys.argv[2])["keep_memory"]()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = libc.malloc(ctypes.c_size_t(2**26))
    ctypes.memset(block, 1, 2**26)
    libc.free(ctypes.c_void_p(block))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_kept_blocks_are_handed_out_again_without_new_pages():
    faults = {
        way: int(subprocess.check_output([sys.executable, "-c", SCRIPT, way, memory.__file__]))
        for way in ("plain", "keep")
    }
    assert faults["keep"] < faults["plain"] / 5
