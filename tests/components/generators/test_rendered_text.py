"""RenderedText: rows depend on nothing but themselves, and variation does what degree says."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from tiny_text import DIGITS, assert_same, draw, make, seeds, take

from pe_ray.components.generators.rendered_text import _GENES, RenderedText, RenderedTextOptions
from pe_ray.errors import InputError

MIXED: dict[str, Any] = {
    "image_size": 20,
    "channels": 3,
    "inverted": True,
    "fit": False,
    "texts": {"1": ("1", "l", "I"), "7": ("7", "seven")},
    "text_change": 0.5,
}
STRETCHED: dict[str, Any] = {"stretch": 4.0, "box": (0.6, 1.0), "elastic": 0.2}
STYLES: list[dict[str, Any]] = [{}, {"center": "mass", "box": (0.6, 0.9)}, MIXED, STRETCHED]


@pytest.mark.parametrize("options", STYLES)
def test_rows_have_the_declared_shape(options: dict[str, Any]) -> None:
    declared = RenderedTextOptions(**options)
    generator = make(**options)
    rows = draw(generator, 31)
    varied = generator.vary(rows, 0.4, seeds(31, 1))
    shape = declared.image_shape
    for made in (rows, varied):
        assert made["image"].shape == (31, shape.height, shape.width, shape.channels)
        assert made["image"].dtype == np.uint8
        for name, (dtype, width) in declared.columns.items():
            assert made[name].dtype == np.dtype(dtype)
            assert made[name].shape == ((31,) if width == 1 else (31, width))
    nothing = generator.vary(take(rows, slice(0, 0)), 0.4, seeds(0))
    assert nothing["image"].shape == (0, shape.height, shape.width, shape.channels)


@pytest.mark.parametrize("options", STYLES)
def test_a_row_does_not_depend_on_its_batch(options: dict[str, Any]) -> None:
    generator = make(**options)
    rows, keys = draw(generator, 203), seeds(203, 1)
    whole = generator.vary(rows, 0.4, keys)
    order = np.random.default_rng(0).permutation(203)
    assert_same(generator.vary(take(rows, order), 0.4, keys[order]), take(whole, order))
    drawn = generator.random(rows["label"][order], seeds(203)[order])
    assert_same(drawn, take({name: rows[name] for name in drawn}, order))
    for start, size in ((0, 1), (1, 1), (5, 3), (60, 9), (100, 70)):
        part = slice(start, start + size)
        assert_same(generator.vary(take(rows, part), 0.4, keys[part]), take(whole, part))
        drawn = generator.random(rows["label"][part], seeds(203)[part])
        assert_same(drawn, take({name: rows[name] for name in drawn}, part))


def test_a_fresh_process_draws_the_same() -> None:
    code = (
        "import hashlib, numpy as np\n"
        "from pe_ray.components.generators.rendered_text import RenderedText, RenderedTextOptions\n"
        "from pe_ray.plugins.seeds import row_seeds\n"
        "keys = row_seeds(0, 'random', 0, np.arange(40))\n"
        "names = [str(digit) for digit in range(10)]\n"
        "labels = (np.arange(40) % 10).astype(np.int32)\n"
        "rows = RenderedText(RenderedTextOptions(), names).random(labels[::-1], keys[::-1])\n"
        "print(hashlib.sha256(rows['image'][::-1].tobytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout


def test_importing_the_module_is_light() -> None:
    code = (
        "import sys, pe_ray.components.generators.rendered_text\n"
        "import pe_ray.components.embedders.pixels\n"
        "print({'PIL', 'scipy', 'matplotlib', 'torch', 'ray'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_seeds_matter_and_nothing_else_does() -> None:
    generator = make()
    labels = np.full(20, 4, dtype=np.int32)
    one, two = generator.random(labels, seeds(20)), generator.random(labels, seeds(20, 1))
    assert (one["image"] != two["image"]).any(axis=(1, 2, 3)).all()
    assert_same(one, make().random(labels, seeds(20)))
    rows = {**one, "label": labels}
    varied = [generator.vary(rows, 0.3, seeds(20, step)) for step in (2, 3)]
    assert (varied[0]["image"] != varied[1]["image"]).any(axis=(1, 2, 3)).all()
    blank = generator.vary({**rows, "image": np.zeros_like(rows["image"])}, 0.3, seeds(20, 2))
    assert_same(blank, varied[0])


@pytest.mark.parametrize("options", STYLES)
def test_degree_zero_changes_nothing(options: dict[str, Any]) -> None:
    generator = make(**options)
    rows = draw(generator, 60)
    same = generator.vary(rows, 0.0, seeds(60, 1))
    assert_same(same, {name: rows[name] for name in same})


def test_variations_stray_further_with_degree() -> None:
    generator = make()
    rows = draw(generator, 400)
    start = rows["image"].astype(np.float64)
    distances = []
    for degree in (0.05, 0.15, 0.3, 0.6, 1.0):
        image = generator.vary(rows, degree, seeds(400, 1))["image"].astype(np.float64)
        distances.append(np.sqrt(((image - start) ** 2).mean(axis=(1, 2, 3))).mean())
    fresh = generator.random(rows["label"], seeds(400, 2))["image"].astype(np.float64)
    assert np.all(np.diff(distances) > 0)
    assert distances[-1] <= np.sqrt(((fresh - start) ** 2).mean(axis=(1, 2, 3))).mean() * 1.05


def test_size_and_offset_move_by_their_share_of_the_degree() -> None:
    generator = make(placement_change=0.2)
    rows = draw(generator, 200)
    moved = np.abs(generator.vary(rows, 0.5, seeds(200, 1))["genome"] - rows["genome"]).max(axis=0)
    places = [_GENES.index(name) for name in ("size", "offset_x", "offset_y")]
    others = np.delete(np.arange(len(moved)), places)
    assert moved[places] == pytest.approx(0.1 * np.ones(3), rel=0.1)
    assert moved[others] == pytest.approx(0.5 * np.ones(len(others)), rel=0.1)


def test_ranges_hold_after_many_variations() -> None:
    options = RenderedTextOptions(texts={"1": ("1", "l")}, font_change=1.0, text_change=1.0)
    generator = RenderedText(options, DIGITS)
    rows = draw(generator, 300)
    for step in range(30):
        varied = generator.vary(rows, 0.7 if step % 2 else 5.0, seeds(300, 1 + step))
        rows = {**varied, "label": rows["label"]}
    genome = rows["genome"]
    assert np.abs(genome).max() <= 1
    # Reflection keeps the initial, uniform law.
    assert genome.std() == pytest.approx(1 / np.sqrt(3), rel=0.03)
    genes = generator._decode(genome)
    for name, values in genes.items():
        low, high = getattr(options, name.removesuffix("_x").removesuffix("_y"))
        assert values.min() >= low - 1e-6
        assert values.max() <= high + 1e-6
        assert values.max() - values.min() > 0.9 * (high - low)
    assert set(rows["text"][rows["label"] == 1]) == {0, 1}
    assert set(rows["text"][rows["label"] != 1]) == {0}


def test_a_single_letter_is_drawn_in_both_cases_unless_they_are_two_labels() -> None:
    def strings(names: list[str], **options: Any) -> list[set[int]]:
        rows = draw(make(names, **options), 60 * len(names), len(names))
        return [set(rows["text"][rows["label"] == label]) for label in range(len(names))]

    assert strings(["A", "b", "7", "cat", "\u00df"]) == [{0, 1}, {0, 1}, {0}, {0}, {0}]  # SS is two
    assert strings(["A", "a", "B"]) == [{0}, {0}, {0, 1}]
    assert strings(["A", "B"], texts={"A": ("A",)}) == [{0}, {0, 1}]
    assert strings(["\u10d0", "A"]) == [{0}, {0, 1}]  # no font here has Georgian capitals
    both = make(["A"])
    for text, single in enumerate((make(["A", "a"]), make(["a", "A"]))):
        rows = draw(both, 40, 1)
        rows = take(rows, rows["text"] == text)
        alone = {**rows, "text": np.zeros_like(rows["text"])}
        again = seeds(len(rows["label"]))
        left, right = both.vary(rows, 0.0, again), single.vary(alone, 0.0, again)
        assert np.array_equal(left["image"], right["image"])


def test_every_label_and_font_draws_something() -> None:
    generator = make(texts={"3": ("3", "cat")})
    rows = draw(generator, 10)
    num_fonts = int(generator._faces.num_faces.min())
    assert num_fonts == 2 * 21  # matplotlib's text faces, in two forms
    for font in range(num_fonts):
        for text in (0, 1):
            chosen = np.where(rows["label"] == 3, text, 0).astype(np.int32)
            fonts = np.full(10, font, dtype=np.int32)
            made = generator.vary({**rows, "font": fonts, "text": chosen}, 0.0, seeds(10))
            image = made["image"][..., 0] > 100
            share = image.mean(axis=(1, 2))
            assert share.min() > 0.02
            assert share.max() < 0.55
            edge = image[:, [0, -1]].any() or image[:, :, [0, -1]].any()
            assert not edge, "the default box leaves a margin"


def test_labels_can_be_told_apart() -> None:
    generator = make()
    rows = draw(generator, 3000)
    other = generator.random(rows["label"], seeds(3000, 9))["image"].reshape(3000, -1) / 255.0
    flat = rows["image"].reshape(3000, -1) / 255.0
    apart = (other**2).sum(axis=1)[:, None] + (flat**2).sum(axis=1) - 2 * other @ flat.T
    found = rows["label"][apart.argmin(axis=1)]
    assert (found == rows["label"]).mean() > 0.88


def test_fit_fills_the_box() -> None:
    plain: dict[str, Any] = {
        "size": (1.0, 1.0),
        "offset": (0.0, 0.0),
        "softness": (1.0, 1.0),
        "gain": (1.0, 1.0),
    }
    rows = draw(make(image_size=40, box=(0.5, 0.8), **plain), 300)
    ink = rows["image"][..., 0] > 127
    heights, widths = ink.any(axis=2).sum(axis=1), ink.any(axis=1).sum(axis=1)
    assert heights.max() <= 34
    assert widths.max() <= 22
    touches = (np.abs(heights - 32) <= 2) | (np.abs(widths - 20) <= 2)
    assert touches.mean() > 0.95
    middle = (np.arange(40) * ink.any(axis=2)).sum(axis=1) / heights
    assert np.abs(middle - 19.5).max() < 1.5


def test_stretch_fills_both_sides_of_the_box() -> None:
    plain: dict[str, Any] = {"size": (1, 1), "offset": (0, 0), "softness": (1, 1), "gain": (1, 1)}
    names, box = ["l", "8", "W"], (0.5, 0.8)
    rows = draw(make(names, image_size=40, box=box, stretch=8, stroke=(0.1, 0.1), **plain), 300, 3)
    ink = rows["image"][..., 0] > 127
    heights, widths = ink.any(axis=2).sum(axis=1), ink.any(axis=1).sum(axis=1)
    assert (np.abs(heights - 32) <= 3).mean() > 0.9
    assert (np.abs(widths - 20) <= 3).mean() > 0.9
    # Edges stay as sharp as they were: few pixels are neither ink nor paper.
    grey = ((rows["image"] > 60) & (rows["image"] < 195)).mean(axis=(1, 2, 3))
    assert grey.mean() < 0.1


def test_centre_of_mass() -> None:
    options: dict[str, Any] = {"center": "mass", "offset": (0.0, 0.0), "box": (0.6, 0.6)}
    image = draw(make(["L", "7", "p"], **options), 90, 3)["image"][..., 0].astype(np.float64)
    mass = image.sum(axis=(1, 2))
    at = np.arange(28) - 13.5
    assert np.abs((image.sum(axis=1) * at).sum(axis=1) / mass).mean() < 0.4
    assert np.abs((image.sum(axis=2) * at).sum(axis=1) / mass).mean() < 0.4


def test_strokes_follow_their_option() -> None:
    thin = draw(make(stroke=(0.04, 0.04)), 200)["image"].mean()
    thick = draw(make(stroke=(0.14, 0.14)), 200)["image"].mean()
    assert 1.6 < thick / thin < 3


def test_inverted_and_channels() -> None:
    white, black = draw(make(), 20)["image"], draw(make(inverted=True, channels=3), 20)["image"]
    assert np.array_equal(255 - white, black[..., :1])
    assert np.array_equal(black[..., 0], black[..., 2])


def test_a_large_image_of_a_long_text() -> None:
    image = draw(make(["cat", "private evolution"], image_size=96), 6, 2)["image"]
    assert image.shape == (6, 96, 96, 1)
    assert (image > 100).mean(axis=(1, 2, 3)).min() > 0.02


def test_dots_survive_thinning() -> None:
    rows = draw(make([".", "i", "o i"], texts={"i": ("i",)}, forms=("skeleton",), fit=False), 90, 3)
    image = rows["image"][..., 0] > 60
    assert image.any(axis=(1, 2)).all()
    letter = image[rows["label"] == 1].any(axis=2)
    parts = (np.diff(letter.astype(np.int8), axis=1) == 1).sum(axis=1)
    assert (parts == 2).mean() > 0.4, "an i has a dot"


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["漢"], {}, r"generator\.fonts: no font in matplotlib's bundle can draw '漢'"),
        (["a"], {"fonts": "/nonexistent"}, r"generator\.fonts: /nonexistent is not a folder"),
        (["a"], {"texts": {"b": ("b",)}}, r"generator\.texts: 'b' is not a label"),
        ([" "], {}, r"generator\.texts"),
    ],
)
def test_bad_input_names_the_option(
    names: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make(names, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (1.0, 0.5)},
        {"stroke": (-0.1, 0.1)},
        {"rotation": (float("nan"), 1.0)},
        {"box": (0.0, 1.0)},
        {"texts": {"1": ()}},
        {"texts": {"1": (" ",)}},
        {"forms": ()},
        {"center": "mass", "fit": False},
        {"unknown": 1},
    ],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RenderedTextOptions(**options)


def test_labels_are_not_altered() -> None:
    generator = make()
    rows = draw(generator, 10)
    before: dict[str, NDArray[Any]] = {name: values.copy() for name, values in rows.items()}
    for values in rows.values():
        values.setflags(write=False)
    generator.vary(rows, 0.5, seeds(10, 1))
    assert_same(rows, before)
