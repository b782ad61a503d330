"""Images with channels first, which every picture takes."""

import io
from types import SimpleNamespace

import numpy as np

from jaxviz.plot import (
    atlas_page,
    explanation_sheet,
    map_projections,
    save_gif,
    stitched,
    top_projections,
)


def test_images_with_channels_first_make_the_same_picture():
    rng = np.random.default_rng(0)
    images, maps = rng.uniform(size=(1, 3, 8, 8)), rng.normal(size=(1, 3, 8, 8))
    drawn = []
    for turned in (lambda a: a, lambda a: np.moveaxis(a, 1, -1)):
        file = io.BytesIO()
        figure = explanation_sheet(turned(images), {"map": turned(maps)})
        figure.savefig(file, format="rgba", dpi=40)
        drawn.append(file.getvalue())
    assert drawn[0] == drawn[1]


def test_pages_of_images_with_channels_first_are_the_same(tmp_path):
    rng = np.random.default_rng(0)
    images, patches = rng.uniform(size=(2, 3, 8, 8)), rng.uniform(size=(2, 4, 3, 3, 3))
    frames, maps = rng.uniform(size=(2, 1, 3, 8, 8)), rng.uniform(size=(8, 8, 1))
    scores, names = np.ones(2), ["unit"]

    def drawn(turned, name):
        top = SimpleNamespace(patches=turned(images), projections=turned(images), scores=scores)
        save_gif(tmp_path / name, turned(frames))
        yield (tmp_path / name).read_bytes()
        for figure in (
            stitched(turned(images)),
            atlas_page(turned(images), turned(patches), np.ones(2)),
            top_projections({"map": top}),
            map_projections(turned(images)[0], {"layer": (maps, turned(images)[:1], names)}),
        ):
            file = io.BytesIO()
            figure.savefig(file, format="rgba", dpi=40)
            yield file.getvalue()

    first = list(drawn(lambda a: a, "first.gif"))
    assert first == list(drawn(lambda a: np.moveaxis(a, -3, -1), "last.gif"))
