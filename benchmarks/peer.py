"""The process that has torch: asked in lines of JSON, one answer for each."""

import json
import pathlib
import subprocess


class Peer:
    """Runs `script`, which lies beside this file, with another Python."""

    def __init__(self, python, script):
        self.process = subprocess.Popen(
            [python, str(pathlib.Path(__file__).with_name(script))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **command):
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())
