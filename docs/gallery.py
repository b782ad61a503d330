"""Makes the pictures of gallery.md: the examples' pictures, smaller.

`python docs/gallery.py FOLDER`, where FOLDER/cifar_cnn and so on are what each example was given as
`--out`. Writes docs/*.png: as they are up to 120 kB, else 900 pixels wide and of 255 colours.
"""

import pathlib
import shutil
import sys

from PIL import Image

WIDTH, MOST = 900, 120_000  # pixels, bytes
PICTURES = (
    "mnist_end_to_end/surest_mistakes",
    "deconstruct_mnist/classes",
    "six_ways/occlusion",
    "filters_and_features/classes",
    "tank_or_sky/mean_maps",
    "six_ways/maximal",
    "what_a_layer_knows/atlas",
    "what_a_layer_knows/places",
)


def main(folder):
    for name in PICTURES:
        given = pathlib.Path(folder) / f"{name}.png"
        path = pathlib.Path(__file__).parent / f"{name.replace('/', '_')}.png"
        if given.stat().st_size <= MOST:
            shutil.copyfile(given, path)
            continue
        with Image.open(given) as image:
            small = image.convert("RGB")
        if small.width > WIDTH:
            size = WIDTH, round(small.height * WIDTH / small.width)
            small = small.resize(size, Image.Resampling.LANCZOS)
        small.quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path}: {small.width}x{small.height}, {path.stat().st_size} bytes")
        if path.stat().st_size > MOST:
            sys.exit(f"{path} has more than {MOST} bytes: choose another picture.")


if __name__ == "__main__":
    main(*sys.argv[1:])
