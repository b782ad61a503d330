"""The words that the command line takes, known without importing what they stand for."""

import difflib
from collections.abc import Iterable

SMALL_NETS = ("mnist_a", "mnist_b", "mnist_c", "cifar", "resnet20")
NETS = (
    *SMALL_NETS,
    *("alexnet", "vgg11", "vgg16", "vgg19", "vgg11_bn", "vgg16_bn", "vgg19_bn"),
    *("resnet18", "resnet34", "resnet50", "squeezenet1_0", "squeezenet1_1", "mobilenet_v2"),
    *("densenet121", "efficientnet_b0", "convnext_tiny", "swin_t", "swin_s"),
    *("vit_b_16", "vit_b_32"),
)
FOLDER = "folder:"  # before the path of a folder of pictures by class
DATA = ("digits", "mnist", "fashion_mnist", "cifar10")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
DIAGRAMS = (".png", ".svg", ".pdf", ".dot")
OPTIMIZERS = ("adam", "nadam", "sgd")  # of optax
STORED = ("float32", "float16", "bfloat16", "int8")
DEFAULT_METHODS = ("saliency", "integrated_gradients", "smooth_grad", "grad_cam")
DEFAULT_METRICS = ("deletion", "insertion")
INFLUENCES = ("magic", "ek_fac", "trak", "trac_in")  # of jaxviz.influence
DEFAULT_INFLUENCES = ("ek_fac", "trac_in")

_FEW = 40  # names that an error lists


def no_such(what: str, given: str, known: Iterable[str]) -> str:
    """What to say of a name that is not there: the nearest ones, and all if they are few."""
    known = list(known)
    few = len(known) <= _FEW
    near = difflib.get_close_matches(given, known, n=1 if few else 5)
    hint = f", did you mean {' or '.join(near)}?" if near else "."
    return f"no {what} {given!r}{hint} There are" + (
        f": {', '.join(known)}" if few else f" {len(known)}"
    )
