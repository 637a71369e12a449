"""Generator without a network: text drawn with fonts, deformed by public randomness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pe_ray.components.generators.generator_checks import refuse_unknown_labels, within
from pe_ray.components.generators.glyphs import (
    FRAME,
    QUANTUM,
    SYSTEM,
    Form,
    list_own_texts,
    load_faces,
)
from pe_ray.config.places import PathText
from pe_ray.errors import InputError
from pe_ray.plugins import GeneratorOptions, Rows
from pe_ray.plugins.seeds import Seeds, uniforms
from pe_ray.values import ImageShape

Floats = NDArray[np.float32]
Masters = NDArray[np.int16]
Starts = NDArray[np.int64]
Ints = NDArray[np.int32]
Doubles = NDArray[np.float64]

_NODES = 4  # a 4x4 grid of points is displaced,
_GRID = np.linspace(-0.975, 0.975, _NODES + 2)  # inside a ring of points that stay
_REACH = 1.1  # deformed glyphs are measured in [-reach, reach]^2; their box has length 1
_COARSE = 24  # samples a side when measuring a deformed glyph
_LEVEL = 0.1  # the measured box holds all points this close to the glyph
_CHUNK = 64  # rows rendered at a time: a few MB of temporaries at 28x28


BoxSide = Annotated[float, Field(gt=0, le=10)]
Texts = Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=1)]


class RenderedTextOptions(GeneratorOptions):
    """Options of RenderedText; ranges are [low, high] of a uniform draw."""

    least_rows: ClassVar[int] = 250

    image_size: int = Field(default=28, ge=4, le=1024)
    """Height and width, in pixels."""
    channels: Literal[1, 3] = 1
    inverted: bool = False
    """Black on white; default white on black."""
    texts: dict[str, Texts] | None = None
    """Label name -> strings to draw, equally likely. A label not named here draws its own name; a
    single letter also draws its other case, unless that is another label or no font has it."""
    fonts: PathText | None = None
    """Folder with .ttf, .otf and .ttc files, searched recursively; `system`: the installed fonts
    and matplotlib's (the same on every machine of a run); default: matplotlib's text fonts."""
    forms: tuple[Form, ...] = Field(default=("outline", "skeleton"), min_length=1)
    """outline keeps a font's thick and thin parts; skeleton draws its centre lines evenly."""
    box: tuple[BoxSide, BoxSide] = (0.72, 0.72)
    """Width and height, in image sides, of the box the text is drawn into (MNIST: 20/28)."""
    fit: bool = True
    """Scale the deformed text until it touches the box, as digit data sets normalise theirs; false
    fits the text before it is deformed."""
    stretch: float = Field(default=1.0, ge=1, le=100)
    """With fit, width and height may be scaled differently, by up to this factor, to fill the box
    (NIST's normalised characters: no bound); strokes are stretched too."""
    center: Literal["box", "mass"] = "box"
    """What is in the image's middle: the text's box or its centre of mass (MNIST); needs fit."""
    size: Annotated[tuple[float, float], within(0.01, 10)] = (0.9, 1.05)
    """Factor on the box."""
    aspect: Annotated[tuple[float, float], within(0.05, 20)] = (0.7, 1.3)
    """Factor on width over height (log-uniform)."""
    rotation: Annotated[tuple[float, float], within(-180, 180)] = (-10.0, 10.0)
    """Degrees, anticlockwise."""
    shear: Annotated[tuple[float, float], within(-2, 2)] = (-0.2, 0.4)
    """Slant to the right: width moved per height."""
    offset: Annotated[tuple[float, float], within(-1, 1)] = (-0.04, 0.04)
    """Shift to the right and down, drawn separately, in image sides."""
    stroke: Annotated[tuple[float, float], within(0, 1)] = (0.06, 0.14)
    """Width of the strokes, in image sides."""
    softness: Annotated[tuple[float, float], within(0.1, 100)] = (0.8, 2.0)
    """Width of an edge's ramp from 0 to 1, in pixels: antialiasing at 1, blur above."""
    gain: Annotated[tuple[float, float], within(0, 1)] = (0.85, 1.0)
    """Brightness of full ink."""
    elastic: float = Field(default=0.05, ge=0, le=1)
    """Largest displacement of each of 4x4 grid points, in lengths of the text's box."""
    font_change: float = Field(default=0.5, ge=0)
    """Probability, per unit of degree, that a variation draws a new font."""
    text_change: float = Field(default=0.1, ge=0)
    """Probability, per unit of degree, that a variation draws a new string."""
    placement_change: float = Field(default=1.0, ge=0, le=1)
    """Share of the degree by which a variation moves size and offset. A small one keeps the place
    that votes have found, where their ranges are wide."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.center == "mass" and not self.fit:
            raise ValueError("center: mass needs fit: true")
        return self

    @property
    def local_paths(self) -> Mapping[str, str]:
        return {} if self.fonts is None or self.fonts == SYSTEM else {"fonts": self.fonts}

    @property
    def image_shape(self) -> ImageShape:
        return ImageShape(height=self.image_size, width=self.image_size, channels=self.channels)

    @property
    def columns(self) -> Mapping[str, tuple[str, int]]:
        """font: index of font and form; text: index in the label's strings; genome: see _GENES."""
        return {"font": ("int32", 1), "text": ("int32", 1), "genome": ("float32", _NUM_GENES)}


_GENES = (
    "size",
    "aspect",
    "rotation",
    "shear",
    "offset_x",
    "offset_y",
    "stroke",
    "softness",
    "gain",
)
"""Meaning of a genome's first numbers; [-1, 1] spans the option's range. The rest displaces the
grid points, first to the right, then down, in units of `elastic`."""
_NUM_GENES = len(_GENES) + 2 * _NODES**2
_PLACEMENT = ("size", "offset_x", "offset_y")


def _spline_table(num: int) -> Floats:
    """Return weights [num, nodes + 2] of the natural cubic spline over [-reach, reach].

    Outside the grid the spline goes on as a line. Computed here, as SciPy's takes a second to
    import (Press et al., Numerical Recipes, 3.3).
    """
    size, step = len(_GRID), _GRID[1] - _GRID[0]
    values, bends = np.eye(size), np.zeros((size, size))  # bends: second derivatives * step^2 / 6
    system = 4 * np.eye(size - 2) + np.eye(size - 2, k=1) + np.eye(size - 2, k=-1)
    bends[1:-1] = np.linalg.solve(system, np.diff(values, 2, axis=0))
    positions = np.linspace(-_REACH, _REACH, num)
    inside = np.clip(positions, _GRID[0], _GRID[-1])
    left = np.clip(np.searchsorted(_GRID, inside, side="right") - 1, 0, size - 2)
    b = ((inside - _GRID[left]) / step)[:, None]
    a, low, high = 1 - b, bends[left], bends[left + 1]
    curve = a * values[left] + b * values[left + 1] + (a**3 - a) * low + (b**3 - b) * high
    slope = np.diff(values, axis=0)[left] - (3 * a**2 - 1) * low + (3 * b**2 - 1) * high
    weights = curve + (positions - inside)[:, None] * slope / step
    return np.asarray(weights, dtype=np.float32)


class RenderedText:
    """Text in a font, under a random affine map and elastic displacement, with random strokes.

    An image is computed from a signed distance field of its text, so stroke width and blur are
    continuous and cheap. `degree` is the furthest that a gene moves, as a share of half its range:
    0 changes nothing, 1 is about as wide as the initial draw. Size and offset move by
    `placement_change` of it.
    """

    Options: ClassVar[type[GeneratorOptions]] = RenderedTextOptions

    def __init__(self, options: RenderedTextOptions, label_names: Sequence[str]) -> None:
        given = options.texts or {}
        refuse_unknown_labels("texts", given, label_names)
        by_label = list({**list_own_texts(tuple(label_names), options.fonts), **given}.values())
        texts = tuple(text for texts in by_label for text in texts)
        if not all(text.strip() for text in texts):
            raise InputError("generator.texts: give a string for the label whose name is blank")
        self._options = options
        self._num_texts = np.array([len(texts) for texts in by_label])
        self._first_text = np.cumsum(self._num_texts) - self._num_texts
        self._cells = min(256, max(64, 2 * options.image_size))
        self._faces = load_faces(options.fonts, texts, options.forms, self._cells)
        self._table = _spline_table(4096)
        self._coarse = _spline_table(_COARSE)
        self._steps = np.ones(_NUM_GENES)
        self._steps[[_GENES.index(name) for name in _PLACEMENT]] = options.placement_change

    def random(self, labels: Ints, seeds: Seeds) -> Rows:
        """Draw text, font and genome uniformly over their ranges."""
        drawn = uniforms(seeds, 2 + _NUM_GENES)
        text = np.floor(drawn[:, 0] * self._num_texts[labels]).astype(np.int32)
        font = self._draw_font(self._first_text[labels] + text, drawn[:, 1])
        genome = (2.0 * drawn[:, 2:] - 1.0).astype(np.float32)
        return self._render_rows(labels, text, font, genome)

    def vary(self, rows: Rows, degree: float, seeds: Seeds) -> Rows:
        """Move each gene by a uniform step, reflected at the ends of its range."""
        labels, text, font = rows["label"], rows["text"], rows["font"]
        drawn = uniforms(seeds, 4 + _NUM_GENES)
        new_text = drawn[:, 0] < degree * self._options.text_change
        fresh = np.floor(drawn[:, 1] * self._num_texts[labels]).astype(np.int32)
        varied_text = np.where(new_text, fresh, text)
        # The row's font may not have a string that is new to the row.
        new_font = (drawn[:, 2] < degree * self._options.font_change) | (varied_text != text)
        drawn_font = self._draw_font(self._first_text[labels] + varied_text, drawn[:, 3])
        moved = rows["genome"] + degree * self._steps * (2.0 * drawn[:, 4:] - 1.0)
        genome = (np.abs((moved - 1.0) % 4.0 - 2.0) - 1.0).astype(np.float32)
        return self._render_rows(labels, varied_text, np.where(new_font, drawn_font, font), genome)

    def _draw_font(self, texts: NDArray[np.int64], drawn: Doubles) -> Ints:
        position = np.floor(drawn * self._faces.num_faces[texts]).astype(np.int64)
        return np.asarray(self._faces.table[texts, position])

    def _render_rows(self, labels: Ints, text: Ints, font: Ints, genome: Floats) -> Rows:
        options = self._options
        masters, starts = self._faces.get_masters(self._first_text[labels] + text, font)
        side = options.image_size
        image = np.empty((len(labels), side, side), dtype=np.uint8)
        for begin in range(0, len(labels), _CHUNK):
            rows = slice(begin, begin + _CHUNK)
            image[rows] = self._render(masters, starts[rows], genome[rows])
        if options.inverted:
            image = 255 - image
        image = np.repeat(image[..., None], options.channels, axis=3)
        return {"image": image, "text": text, "font": font, "genome": genome}

    def _decode(self, genome: Floats) -> dict[str, Doubles]:
        """Return the genes in the units of their options, each [n]."""
        genes = {}
        for index, name in enumerate(_GENES):
            low, high = getattr(self._options, name.removesuffix("_x").removesuffix("_y"))
            share = (genome[:, index].astype(np.float64) + 1.0) / 2.0
            if name == "aspect":
                genes[name] = low * np.exp(share * math.log(high / low))
            else:
                genes[name] = low + share * (high - low)
        return genes

    def _render(self, masters: Masters, starts: Starts, genome: Floats) -> NDArray[np.uint8]:
        """Return images [n, side, side].

        All operations are elementwise or one small product per row, so a row's bits depend on the
        row alone.
        """
        side = self._options.image_size
        genes = self._decode(genome)
        across, down = self._displace(genes, genome)
        scale_x, scale_y, center_x, center_y = self._place(masters, starts, genes, across, down)
        pixels = np.arange(side) + 0.5 - side / 2
        at_x = pixels - genes["offset_x"][:, None] * side
        at_y = pixels - genes["offset_y"][:, None] * side
        weights_x = self._interpolate(at_x / scale_x[:, None] + center_x[:, None])
        weights_y = self._interpolate(at_y / scale_y[:, None] + center_y[:, None])
        turned = weights_x.transpose(0, 2, 1)
        x = np.asarray(weights_y @ across @ turned, dtype=np.float32)
        y = np.asarray(weights_y @ down @ turned, dtype=np.float32)
        field = self._sample(masters, starts, x, y)
        # ink = 0.5 + (distance inside the stroke's edge) / softness, in pixels
        gain = 255.0 * genes["gain"]
        slope = gain * scale_y * QUANTUM / genes["softness"]
        field *= _per_row(slope)
        field += _per_row(slope * 0.5 * genes["stroke"] * side / (scale_y * QUANTUM))
        if self._options.stretch > 1:
            field /= _measure_steepness(field, gain / genes["softness"], scale_x / scale_y)
        field += _per_row(0.5 * gain)
        np.clip(field, np.float32(0), _per_row(gain), out=field)
        field += np.float32(0.5)
        return field.astype(np.uint8)

    def _displace(self, genes: Mapping[str, Doubles], genome: Floats) -> tuple[Floats, Floats]:
        """Return x and y, [n, 6, 6], of a deformed glyph's grid points in its master, in cells.

        A glyph is deformed by shear * rotation * stretch, so points are mapped back by the inverse.
        Its own lengths are in units of its box.
        """
        moves = np.zeros((len(genome), 2, len(_GRID), len(_GRID)))
        inner = genome[:, len(_GENES) :].reshape(-1, 2, _NODES, _NODES)
        moves[:, :, 1:-1, 1:-1] = inner * np.float64(self._options.elastic)
        x, y = _GRID + moves[:, 0], _GRID[:, None] + moves[:, 1]
        angle = np.deg2rad(genes["rotation"])[:, None, None]
        x = x + genes["shear"][:, None, None] * y
        x, y = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
        stretch = np.sqrt(genes["aspect"])[:, None, None]
        cells = self._cells / FRAME
        middle = (self._cells - 1) / 2
        across = (x / stretch) * cells + middle
        down = (y * stretch) * cells + middle
        return across.astype(np.float32), down.astype(np.float32)

    def _place(
        self,
        masters: Masters,
        starts: Starts,
        genes: Mapping[str, Doubles],
        across: Floats,
        down: Floats,
    ) -> tuple[Doubles, Doubles, Doubles, Doubles]:
        """Return pixels per box length, x and y, and the glyph's point in the image's middle."""
        side = self._options.image_size
        width, height = (genes["size"] * share * side for share in self._options.box)
        if not self._options.fit:
            middle = np.zeros(len(starts))
            scale = np.minimum(width, height)
            return scale, scale, middle, middle
        coarse = self._coarse
        x, y = coarse @ across @ coarse.T, coarse @ down @ coarse.T
        last = np.float32(self._cells - 1)
        column = np.clip(x + np.float32(0.5), 0, last).astype(np.int32)
        row = np.clip(y + np.float32(0.5), 0, last).astype(np.int32)
        field = masters[starts[:, None, None] + row * self._cells + column] * np.float32(QUANTUM)
        left, right = _measure_extent(field.max(axis=1))
        top, bottom = _measure_extent(field.max(axis=2))
        stroke = genes["stroke"] * side
        thinnest = 0.02  # a straight line has no width except its stroke's
        inner_x = np.maximum(right - left, thinnest)
        inner_y = np.maximum(bottom - top, thinnest)
        room_x, room_y = np.maximum(width - stroke, 1.0), np.maximum(height - stroke, 1.0)
        # Strokes are `stroke` high; the stretch decides how wide they are.
        stretch = self._options.stretch
        scale_y = np.minimum(room_y / inner_y, stretch * room_x / inner_x)
        scale_x = np.minimum(width / (inner_x + stroke / scale_y), stretch * scale_y)
        if self._options.center == "box":
            return scale_x, scale_y, (left + right) / 2, (top + bottom) / 2
        at = np.linspace(-_REACH, _REACH, _COARSE)
        reach = (stroke / 2 / scale_y)[:, None, None]
        ink = np.clip(0.5 + (field.astype(np.float64) + reach) / 0.1, 0.0, 1.0)
        mass = np.maximum(ink.sum(axis=(1, 2)), 1e-9)
        return (
            scale_x,
            scale_y,
            (ink.sum(axis=1) * at).sum(axis=1) / mass,
            (ink.sum(axis=2) * at).sum(axis=1) / mass,
        )

    def _interpolate(self, positions: Doubles) -> Floats:
        """Return spline weights [n, side, nodes + 2] at positions [n, side]."""
        last = len(self._table) - 1
        index = np.clip((positions / _REACH + 1.0) * (last / 2) + 0.5, 0, last).astype(np.int64)
        return self._table[index]

    def _sample(self, masters: Masters, starts: Starts, x: Floats, y: Floats) -> Floats:
        """Return the masters' values at cells x and y [n, side, side], bilinear, in quanta."""
        cells = self._cells
        last = np.float32(cells - 1.001)
        x, y = np.clip(x, 0, last), np.clip(y, 0, last)
        column, row = x.astype(np.int32), y.astype(np.int32)
        x -= column
        y -= row
        corner = row * np.int32(cells)
        corner += column
        place = corner + starts[:, None, None]
        upper = np.take(masters, place).astype(np.float32)
        upper += (np.take(masters, place + 1) - upper) * x
        place += cells
        lower = np.take(masters, place).astype(np.float32)
        lower += (np.take(masters, place + 1) - lower) * x
        lower -= upper
        lower *= y
        lower += upper
        return lower


def _per_row(values: Doubles) -> Floats:
    """Return values [n] in the shape that multiplies images."""
    return values.astype(np.float32)[:, None, None]


def _measure_steepness(field: Floats, edge: Doubles, ratio: Doubles) -> Floats:
    """Return the slope [n, side, side] of a stretched field, relative to `edge` (per pixel, [n]).

    It lies between 1 (along y) and 1/ratio (along x). Dividing by it makes all edges equally sharp.
    """
    down, across = np.gradient(field, axis=(1, 2))
    steepness = np.sqrt(across * across + down * down) * _per_row(1.0 / edge)
    low, high = np.minimum(1.0, 1.0 / ratio), np.maximum(1.0, 1.0 / ratio)
    return np.asarray(np.clip(steepness, _per_row(low), _per_row(high), out=steepness))


def _measure_extent(profile: Floats) -> tuple[Doubles, Doubles]:
    """Return the ends, [n] each, of the glyph along an axis.

    profile: the largest field value at each position. Its crossings of -level are interpolated
    between samples, and the level is subtracted again.
    """
    above = profile.astype(np.float64) + _LEVEL
    num = profile.shape[1]
    rows = np.arange(len(profile))
    ends = []
    for ordered in (above, above[:, ::-1]):
        inner = np.argmax(ordered > 0, axis=1)
        outer = np.maximum(inner - 1, 0)
        here, before = ordered[rows, inner], ordered[rows, outer]
        rise = here - before
        back = np.where(rise > 0, here / np.where(rise > 0, rise, 1.0), 0.0)
        position = inner - np.clip(back, 0.0, 1.0)
        ends.append(position * (2 * _REACH / (num - 1)) - _REACH + _LEVEL)
    return ends[0], -ends[1]
