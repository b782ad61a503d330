"""The command `jaxviz`: its options and its errors; the work is in `commands*`.

Those, and JAX with them, are imported once it is clear that there is something to do.
"""

import argparse
import gc
import importlib
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import NoReturn

import jaxviz
from jaxviz.catalogue import METHODS
from jaxviz.metrics.catalogue import METRICS
from jaxviz.words import (
    DATA,
    DEFAULT_INFLUENCES,
    DEFAULT_METHODS,
    DEFAULT_METRICS,
    DIAGRAMS,
    FOLDER,
    INFLUENCES,
    NETS,
    OPTIMIZERS,
    SMALL_NETS,
    STORED,
    no_such,
)

_OVERVIEW = """\
jaxviz explains what a neural network in JAX looks at.

  jaxviz demo                               train on handwritten digits, explain, write pictures
  jaxviz train mnist_a digits               train a bundled net; everything goes to one folder
  jaxviz layers mnist_a                     print a net's layers, shapes, parameters and FLOPs
  jaxviz explain runs/mnist_a-digits        draw what that trained net looks at
  jaxviz explain --net resnet50 --images dog.jpg
                                            what a net trained on ImageNet sees in a photograph
  jaxviz explain --model net.py:make --images pictures
                                            the same for a net of your own
  jaxviz methods                            list the methods, what they cost and need
  jaxviz sweep runs/mnist_a-digits          explain every test image, into a store
  jaxviz show runs/mnist_a-digits/sweep     draw what the sweep found
  jaxviz evaluate runs/mnist_a-digits       rank methods by metrics on the test images
  jaxviz influence runs/mnist_a-digits --examples 17 23
                                            which training images made it answer so
  jaxviz report runs/mnist_a-digits         all of it as one HTML file

Each command explains itself: jaxviz demo --help"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage that hides it."""
        print(f"{self.prog}: {message}. See '{self.prog} --help'.", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: The words after `jaxviz`; None takes those of the process.

    Returns:
      The exit status: 0, or 1 when the reader of the output went away. Wrong use prints one line to
      standard error and exits with 2; a stop from the keyboard with 130.

    Example:
      >>> main(["layers", "no_such_net"])
      Traceback (most recent call last):
      ...
      SystemExit: 2
    """
    arguments = _parser().parse_args(argv)
    if arguments.module is None:
        print(_OVERVIEW)
        return 0
    if argv is None:  # the process is the command's own
        jaxviz.keep_memory()
        # Traces make many objects that stay: the collector, at its defaults, goes through them
        # again and again.
        gc.set_threshold(100_000, 50, 100)
        if not arguments.no_cache:
            _keep_compiled(arguments.name)
    ours = ("module", "name", "trace", "no_cache")
    options = {k: v for k, v in vars(arguments).items() if k not in ours}
    try:
        command = getattr(importlib.import_module(arguments.module), arguments.name)
        if (told := command(**options)) is not None:
            print(told)
        return 0
    except BrokenPipeError:  # the output was piped into `head`, say; nothing is wrong
        return 1
    except KeyboardInterrupt:
        print(f"\njaxviz {arguments.name}: stopped from the keyboard", file=sys.stderr)
        sys.exit(130)
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        if arguments.trace:
            traceback.print_exc()
        else:
            told = " ".join(str(error).split()).removeprefix(f"{arguments.name}: ")
            print(f"jaxviz {arguments.name}: {told}", file=sys.stderr)
        sys.exit(2)


def _keep_compiled(name: str) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        jaxviz.keep_compiled()
    for warning in told:
        print(f"jaxviz {name}: {warning.message}", file=sys.stderr)


def _parser() -> _Parser:
    parser = _Parser(
        prog="jaxviz",
        description=_OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jaxviz {jaxviz.__version__}")
    parser.set_defaults(module=None)
    # `required` would answer a bare `jaxviz` with an error; it gets the overview.
    sub = parser.add_subparsers(title="commands", metavar="COMMAND")

    demo = _command(
        sub, "cli.commands", "demo", "train on handwritten digits, explain, and write pictures",
        "Trains a small convolutional network on the 1,797 handwritten digits that scikit-learn "
        "ships (no download), explains some of its answers and writes pictures. Under a minute.",
    )  # fmt: skip
    demo.add_argument("--out", default="jaxviz-demo", metavar="FOLDER", help="default: %(default)s")
    demo.add_argument("--epochs", type=_count, default=15, metavar="N", help="default: %(default)s")
    _seed_option(demo)

    train = _command(
        sub, "cli.commands", "train", "train a bundled net on a bundled data set",
        "Trains a network and writes its weights, history and pictures into one folder, which "
        "'jaxviz explain' and 'jaxviz layers' read. A stopped training goes on when started again.",
    )  # fmt: skip
    train.add_argument("net", type=_one_of("net", SMALL_NETS), help=_list(SMALL_NETS))
    train.add_argument(
        "data", type=_data, help=f"{_list(DATA)}, or folder:PATH with train and test in it"
    )
    train.add_argument("--out", metavar="FOLDER", help="default: runs/NET-DATA")
    train.add_argument(
        "--epochs", type=_count, default=20, metavar="N", help="default: %(default)s"
    )
    train.add_argument(
        "--batch-size", type=_count, default=128, metavar="N", help="default: %(default)s"
    )
    train.add_argument(
        "--optimizer", type=_one_of("optimizer", OPTIMIZERS), default="adam", metavar="NAME",
        help=f"{_list(OPTIMIZERS)}; default: %(default)s",
    )  # fmt: skip
    train.add_argument(
        "--learning-rate", type=_positive, default=1e-3, metavar="X", help="default: %(default)s"
    )
    train.add_argument(
        "--validation", type=_share, default=0.1, metavar="X",
        help="share of the training images that chooses the best epoch; default: %(default)s",
    )  # fmt: skip
    train.add_argument(
        "--patience", type=_count, metavar="N",
        help="stop after N epochs without a better validation accuracy; default: never",
    )  # fmt: skip
    train.add_argument(
        "--augment", action="store_true", help="shift and mirror the images at random (not digits)"
    )
    _seed_option(train)
    _data_options(train)

    layers = _command(
        sub, "cli.commands", "layers", "print the layers of a net or a run",
        "Prints each layer with its output's shape, parameters and FLOPs for one example, and the "
        "totals. The names are those that --layer takes.",
    )  # fmt: skip
    _model(layers)
    layers.add_argument(
        "--diagram", metavar="FILE",
        help=f"also draw which layer reads which: {_list(DIAGRAMS)} (Graphviz)",
    )  # fmt: skip
    layers.add_argument(
        "--depth", type=_count, metavar="N",
        help="draw modules N deep instead of their layers; default: every layer",
    )  # fmt: skip

    explain = _command(
        sub, "cli.commands", "explain", "draw what a trained net looks at",
        "Draws each image with the five most probable classes and a map for each method: which "
        "pixels speak for the class, and which against it.",
    )  # fmt: skip
    _model_and_methods(explain)
    explain.add_argument(
        "--data", type=_data, metavar="NAME",
        help=f"test images of {_list(DATA)}, or folder:PATH, a subfolder of pictures for each "
        "class; default: what the run was trained on",
    )  # fmt: skip
    explain.add_argument(
        "--images", "--image", nargs="+", action="extend", metavar="FILE",
        help="image files instead, or folders of them; scaled, and the middle cut out, to fit",
    )  # fmt: skip
    explain.add_argument(
        "--examples", type=_count, default=8, metavar="N",
        help="how many of the data set's test images, from the first (of a folder, of each class); "
        "default: %(default)s",
    )  # fmt: skip
    explain.add_argument("--wrong", action="store_true", help="only images that the net gets wrong")
    explain.add_argument(
        "--target", metavar="CLASS", help="class to explain, name or index; default: the top one"
    )
    explain.add_argument(
        "--layer", metavar="NAME", help="also draw this layer's feature maps of the first image"
    )
    explain.add_argument(
        "--out", metavar="FOLDER", help="default: RUN/explanations or NET-explanations"
    )
    _seed_option(explain)
    _data_options(explain)

    sweep = _command(
        sub, "cli.commands_sweep", "sweep", "explain every test image, into a store",
        "Explains all test images by one or more methods and keeps maps, predictions and "
        "probabilities in a folder (zarr v3). A sweep that was stopped goes on when started again.",
    )  # fmt: skip
    _model_and_methods(sweep)
    sweep.add_argument(
        "--data", type=_data, metavar="NAME",
        help=f"{_list(DATA)}, or folder:PATH; default: what the run was trained on",
    )  # fmt: skip
    sweep.add_argument("--out", metavar="FOLDER", help="default: RUN/sweep or NET-sweep")
    sweep.add_argument(
        "--examples", type=_count, metavar="N", help="only the first N test images; default: all"
    )
    sweep.add_argument(
        "--batch-size", type=_count, default=128, metavar="N", help="default: %(default)s"
    )
    sweep.add_argument(
        "--dtype", choices=STORED, default="float32", help="of the maps; default: %(default)s"
    )
    sweep.add_argument(
        "--target", metavar="CLASS",
        help="class to explain, name or index, or 'label' for the true one; default: the top one",
    )  # fmt: skip
    _seed_option(sweep)
    _data_options(sweep)

    evaluate = _command(
        sub, "cli.commands_evaluate", "evaluate", "rank methods by metrics on the test images",
        "Judges methods by metrics on every test image: a table of means, standard errors and "
        "ranks, a heat map, and curves. An evaluation that was stopped goes on when started again.",
    )  # fmt: skip
    _model_and_methods(evaluate)
    # Metrics of places need to know where the answer is, which no data set here says.
    judges = [metric.name for metric in METRICS.values() if not metric.needs]
    evaluate.add_argument(
        "--metrics", nargs="+", type=_several("metric", judges), metavar="NAME",
        action=_Flat, default=list(DEFAULT_METRICS),
        help=f"{_list(judges)}; default: {' '.join(DEFAULT_METRICS)}",
    )  # fmt: skip
    evaluate.add_argument(
        "--data", type=_data, metavar="NAME",
        help=f"{_list(DATA)}, or folder:PATH; default: what the run was trained on",
    )  # fmt: skip
    evaluate.add_argument(
        "--out", metavar="FOLDER", help="default: RUN/evaluation or NET-evaluation"
    )
    evaluate.add_argument(
        "--examples", type=_count, metavar="N", help="only the first N test images; default: all"
    )
    evaluate.add_argument(
        "--batch-size", type=_count, default=128, metavar="N", help="default: %(default)s"
    )
    evaluate.add_argument(
        "--target", metavar="CLASS",
        help="class to explain, name or index, or 'label' for the true one; default: the top one",
    )  # fmt: skip
    _seed_option(evaluate)
    _data_options(evaluate)

    influence = _command(
        sub, "cli.commands_influence", "influence", "which training images made it answer so",
        "Draws, for each test image, the training images that helped the right answer most and "
        "those that harmed it most. All scores are kept in scores.npz, [test, training images], in "
        "the order of the run's own training images.",
    )  # fmt: skip
    influence.add_argument("model", metavar="RUN", help="folder that 'jaxviz train' wrote")
    influence.add_argument(
        "--examples", nargs="+", type=_index, required=True, metavar="N",
        help="test images, the first is 0",
    )  # fmt: skip
    influence.add_argument(
        "--methods", nargs="+", type=_several("method", INFLUENCES), metavar="NAME", action=_Flat,
        default=list(DEFAULT_INFLUENCES),
        help=f"{_list(INFLUENCES)}; magic goes through the whole training again, which takes about "
        f"five times as long as that, for many examples longer; default: "
        f"{' '.join(DEFAULT_INFLUENCES)}",
    )  # fmt: skip
    influence.add_argument(
        "--shown", dest="num_shown", type=_count, default=10, metavar="N",
        help="training images of a kind; default: %(default)s",
    )  # fmt: skip
    influence.add_argument("--out", metavar="FOLDER", help="default: RUN/influence")
    _seed_option(influence)
    _data_options(influence)

    _command(
        sub, "catalogue", "methods", "list the methods with their cost and needs",
        "Lists every method: its family, how many passes through the net it takes, and what it "
        "needs. --methods takes all but those that need what only Python can give.",
    )  # fmt: skip

    show = _command(
        sub, "cli.commands_sweep", "show", "draw what a sweep found",
        "Draws the mean map of each class, the errors that the net is most and least sure of, and "
        "the images of one class by what they were taken for.",
    )  # fmt: skip
    show.add_argument("store", help="folder that 'jaxviz sweep' wrote")
    show.add_argument(
        "--class", dest="of_class", metavar="CLASS", help="also draw the images of this class"
    )
    show.add_argument("--out", metavar="FOLDER", help="default: STORE/pictures")
    show.add_argument("--no-download", action="store_true", help="never use the network")

    report = _command(
        sub, "cli.commands_report", "report", "write what was found as one HTML file",
        "Writes one HTML file that opens from disk: confusion matrix and gallery that filter, maps "
        "side by side with their values, means, metrics, layers. Of a run: its sweep and its "
        "evaluation where there are such, else its test images are explained anew.",
    )  # fmt: skip
    report.add_argument(
        "place", metavar="PLACE",
        help="folder of a run, or what 'jaxviz sweep', 'evaluate' or 'explain' wrote",
    )  # fmt: skip
    report.add_argument("--out", default="report.html", metavar="FILE", help="default: %(default)s")
    report.add_argument("--title", metavar="TEXT", help="of the page")
    report.add_argument(
        "--methods", nargs="+", type=_several("method", METHODS), metavar="NAME", action=_Flat,
        help=f"of a run without a sweep; default: {' '.join(DEFAULT_METHODS)}",
    )  # fmt: skip
    report.add_argument(
        "--examples", type=_count, metavar="N",
        help="of a run without a sweep, the first N test images; default: 1000",
    )  # fmt: skip
    _seed_option(report)
    _data_options(report)
    return parser


def _model(parser: argparse.ArgumentParser) -> None:
    _own(parser)
    parser.add_argument(
        "model", nargs="?", metavar="RUN",
        help=f"folder of a run, or a bundled net (untrained): {_list(SMALL_NETS)}",
    )  # fmt: skip
    parser.add_argument(
        "--net", type=_one_of("net", NETS), metavar="NAME",
        help=f"instead of RUN, a bundled net with published weights: {_list(NETS)}",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="FILE",
        help="the net's, .safetensors or .pth with PyTorch's names; default: what is published, "
        "from $JAXVIZ_DATA/weights, then the cache, then a download",
    )  # fmt: skip


def _own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", dest="own", metavar="FILE:FUNCTION",
        help="instead of RUN, your own net: package.module:function or file.py:function, called "
        "without arguments, returns (apply_fn, params), (linen_module, variables), an NNX, Equinox "
        "or Keras model, or a dict of 'model' and, if wanted, 'classes', 'preprocess', "
        "'input_shape'",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", metavar="PATH",
        help="with --model: its params, a folder of Orbax or a .safetensors file",
    )  # fmt: skip
    parser.add_argument(
        "--input-shape", nargs=3, type=_count, metavar=("H", "W", "C"),
        help="with --model: of an image, where the function does not say it",
    )  # fmt: skip


def _model_and_methods(parser: argparse.ArgumentParser) -> None:
    _model(parser)
    parser.add_argument(
        "--methods", nargs="+", type=_several("method", METHODS), metavar="NAME",
        action=_Flat, default=list(DEFAULT_METHODS),
        help=f"{_list(METHODS)}; default: {' '.join(DEFAULT_METHODS)}",
    )  # fmt: skip


def _command(sub, module: str, name: str, line: str, text: str) -> argparse.ArgumentParser:
    """A command's parser; `name` is that of its function in `jaxviz.MODULE` too."""
    parser = sub.add_parser(name, help=line, description=text)
    parser.add_argument(
        "--trace", action="store_true", help="show where in the code an error arose"
    )
    parser.add_argument(
        "--no-cache", action="store_true",
        help="compile everything anew; default: keep it in $JAXVIZ_CACHE, or the user's cache",
    )  # fmt: skip
    parser.set_defaults(module=f"jaxviz.{module}", name=name)
    return parser


def _seed_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="default: %(default)s")


def _data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-folder", metavar="FOLDER",
        help="where its files are; default: $JAXVIZ_DATA, then the cache, then a download",
    )  # fmt: skip
    parser.add_argument("--no-download", action="store_true", help="never use the network")


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)


def _one_of(what: str, known: Iterable[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(no_such(what, text, known))
        return text

    return check


def _data(text: str) -> str:
    if text == FOLDER:
        raise argparse.ArgumentTypeError(f"must say which folder, {FOLDER}PATH; got {text!r}")
    return text if text.startswith(FOLDER) else _one_of("data set", DATA)(text)


def _several(what: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    check = _one_of(what, known)

    def checked(text: str) -> list[str]:
        if found := [check(word) for word in text.split(",") if word]:
            return found
        raise argparse.ArgumentTypeError(f"must name a {what}; got {text!r}")

    return checked


class _Flat(argparse.Action):
    """Words, each of which may be several with commas between."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, [word for words in values or () for word in words])


def _number(text: str, kind: Callable, fits: Callable, wanted: str):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"must be {wanted}; got {text!r}")
    return value


def _count(text: str) -> int:
    return _number(text, int, lambda n: n >= 1, "a whole number, 1 or more")


def _index(text: str) -> int:
    return _number(text, int, lambda n: n >= 0, "a whole number, 0 or more")


def _seed(text: str) -> int:
    wanted = "a whole number, 0 to 4294967295"
    return _number(text, int, lambda n: 0 <= n < 2**32, wanted)


def _positive(text: str) -> float:
    return _number(text, float, lambda x: 0 < x < float("inf"), "a number above 0")


def _share(text: str) -> float:
    return _number(text, float, lambda x: 0 < x < 1, "a number between 0 and 1")
