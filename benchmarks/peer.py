"""The process that has torch: asked in lines of JSON, one answer for each."""

import json
import os
import pathlib
import subprocess

from benchmarks.memory import BLOCK

# glibc keeps large blocks, as `jaxviz.keep_memory` makes it on our side.
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": str(BLOCK)}  # as `memory.give_back` does


class Peer:
    """Runs peers.py, which lies beside this file, with another Python; closed by `close`."""

    def __init__(self, python, keeps=True):
        self.process = subprocess.Popen(
            [python, str(pathlib.Path(__file__).with_name("peers.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # warnings and progress bars; errors come as answers
            text=True,
            env=os.environ | (KEPT if keeps else GIVEN_BACK),
        )

    def ask(self, do, **command):
        """What the peer answers; RuntimeError with the error it met."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do} | command) + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline() or '{"error": "the process ended"}')
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    def close(self):
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
