"""Fits the power laws of `parametrizations.natural_spectrum` to free photographs.

pip install scikit-image scikit-learn; python tests/reference/natural_spectrum.py

Three squares of each of six colour photographs (fewer where they coincide): NASA's Eileen Collins,
a cat, a cup of coffee and a rocket of scikit-image, a temple and a flower of scikit-learn. A line
for brightness, each colour, and grey: strength at one cycle along the image, power, and by what
factor the fit is off at most.
"""

import itertools

import numpy as np
from skimage import data
from skimage.transform import resize
from sklearn.datasets import load_sample_images

SIDE = 256
EDGES = np.array([0.75, 1.5, 2.5, 4, 6, 9, 13, 19, 28, 40, 56, 80, 112, 128.1])  # cycles
ROOT = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
APART = np.linalg.inv(ROOT / np.linalg.norm(ROOT, axis=0).max())


def squares(photograph):
    """The square at either end and in the middle, of logits `[4, SIDE, SIDE]`: colours and grey."""
    side = min(photograph.shape[:2])
    rest = np.array(photograph.shape[:2]) - side
    for i, j in {(0, 0), tuple(rest), tuple(rest // 2)}:
        square = photograph[i : i + side, j : j + side] / 255
        share = 0.02 + 0.96 * resize(square, (SIDE, SIDE), order=1, anti_aliasing=True)
        logits = np.log(share / (1 - share))
        yield np.concatenate([np.moveaxis(logits @ APART.T, -1, 0), logits.mean(-1)[None]])


def main():
    pictures = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    pictures += load_sample_images().images
    found = np.array([square for picture in pictures for square in squares(picture)])
    energy = (np.abs(np.fft.fft2(found)) ** 2).mean(0) / SIDE**4
    waves = np.fft.fftfreq(SIDE) * SIDE
    cycles = np.hypot(waves[:, None], waves[None])
    bins = [(cycles >= a) & (cycles < b) for a, b in itertools.pairwise(EDGES)]
    along = np.log([cycles[where].mean() for where in bins])
    for name, one in zip(("brightness", "first", "second", "grey"), energy, strict=True):
        strength = np.log([one[where].mean() for where in bins]) / 2
        power, start = np.polyfit(along, strength, 1)
        off = np.exp(np.abs(start + power * along - strength).max())
        print(f"{name:10} {np.exp(start):.2f} {-power:.2f} {off:.2f}, {len(found)} squares")


if __name__ == "__main__":
    main()
