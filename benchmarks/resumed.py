"""A whole evaluation by the command line, killed and started again: same bytes, images a second.

    python benchmarks/resumed.py RUN --out FOLDER [--examples 1000] [--killed-at 3]

RUN is a folder of a run on MNIST. `jaxviz evaluate` judges eight methods by six metrics: once to
the end; and once killed (SIGKILL) when `--killed-at` batches are kept, and started again. Prints
images a second of the first, which compiles what no run before has kept, processor seconds an image
of it, and whether all files of the two stores are the same. `--examples 10000` is the test set.
"""

import argparse
import pathlib
import resource
import shutil
import subprocess
import sys
import time

METHODS = (
    *("gradient", "input_x_gradient", "guided_backprop", "integrated_gradients", "lrp"),
    *("deep_lift", "grad_cam", "occlusion"),
)
METRICS = ("deletion", "insertion", "pixel_flipping", "srg", "sparseness", "complexity")


def started(asked, out):
    """The command's process."""
    words = ["evaluate", asked.run, "--data", "mnist", "--target", "label", "--no-download"]
    words += ["--methods", *METHODS, "--metrics", *METRICS, "--examples", str(asked.examples)]
    words += ["--batch-size", str(asked.batch_size), "--out", str(out)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "jaxviz", *words], **quiet)


def ended(process):
    _, told = process.communicate()
    if process.returncode:
        raise SystemExit(told.decode()[-2000:])


def kept(out):
    return len(list((out / "scores" / "rows" / "c").glob("*")))


def files_of(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of a run on MNIST")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--killed-at", type=int, default=3, help="batches")
    asked = parser.parse_args()
    outs = whole, broken = asked.out / "whole", asked.out / "killed"
    for out in outs:
        shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    ended(started(asked, whole))
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = used.ru_utime + used.ru_stime
    print(
        f"{asked.examples} digits, {len(METHODS)} methods, {len(METRICS)} metrics: {seconds:.0f} s,"
        f" {asked.examples / seconds:.1f} images a second, {busy / asked.examples * 1e3:.0f} ms of"
        " a processor an image",
        flush=True,
    )
    process = started(asked, broken)
    while kept(broken) < asked.killed_at and process.poll() is None:
        time.sleep(0.1)
    process.kill()
    process.wait()
    had, start = kept(broken), time.perf_counter()
    ended(started(asked, broken))
    seconds = time.perf_counter() - start
    one, other = (files_of(out / "scores") for out in outs)
    print(f"killed with {had} of {kept(whole)} batches, resumed in {seconds:.0f} s:", end=" ")
    if one != other:
        differ = [k for k in one.keys() | other.keys() if one.get(k) != other.get(k)]
        raise SystemExit(f"{len(differ)} of {len(one)} files differ, such as {sorted(differ)[0]}")
    print(f"all {len(one)} files are the same, to the byte")


if __name__ == "__main__":
    main()
