"""Texts in fonts as distance fields ("masters"), made once per process, on first use."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pe_ray.errors import InputError

Form = Literal["outline", "skeleton"]
Drawn = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]

FRAME = 1.5  # side of a master, in lengths of its glyph's box
SYSTEM = "system"
"""In place of a folder of fonts: those installed on this machine, and matplotlib's."""
_SUFFIXES = (".ttf", ".otf", ".ttc")  # a collection counts as its first font
QUANTUM = 2.0**-15  # of a master's int16 values, in lengths of its glyph's box


@cache
def _thinning_tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return whether each of both sub-passes removes the centre of 3x3 pixels.

    Pixels are numbered as bits of an index below 512, row by row, the first one highest.
    """
    pixels = ((np.arange(512)[:, None] >> np.arange(8, -1, -1)) & 1).reshape(512, 3, 3)
    ring = ((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))  # clockwise from north
    around = np.stack([pixels[:, y, x] for y, x in ring], axis=1)
    rises = ((around == 0) & (np.roll(around, -1, axis=1) == 1)).sum(axis=1)
    inked = around.sum(axis=1)
    border = (pixels[:, 1, 1] == 1) & (rises == 1) & (inked >= 2) & (inked <= 6)
    north, east, south, west = around[:, 0], around[:, 2], around[:, 4], around[:, 6]
    first = border & (north * east * south == 0) & (east * south * west == 0)
    second = border & (north * east * west == 0) & (north * south * west == 0)
    return first.astype(np.uint8), second.astype(np.uint8)


def _thin(ink: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the skeleton of a mask (Zhang and Suen, CACM 1984), at least a pixel of each part."""
    from scipy import ndimage

    (window,) = ndimage.find_objects(ink.astype(np.uint8))
    padded = np.pad(ink[window].astype(np.uint8), 1)
    thin, changed = padded[1:-1, 1:-1], True
    while changed:
        changed = False
        for removable in _thinning_tables():
            rows = (padded[:, :-2] << 2 | padded[:, 1:-1] << 1 | padded[:, 2:]).astype(np.uint16)
            removed = removable.take(rows[:-2] << 6 | rows[1:-1] << 3 | rows[2:])
            thin ^= removed
            changed |= bool(removed.any())
    skeleton = np.zeros_like(ink)
    skeleton[window] = thin
    # The method removes 2x2 squares, and with them dots.
    parts, num_parts = ndimage.label(ink, np.ones((3, 3)))
    lost = sorted(set(range(1, num_parts + 1)) - set(parts[skeleton].tolist()))
    if lost:
        depth = ndimage.distance_transform_edt(ink)
        for row, column in ndimage.maximum_position(depth, parts, lost):
            skeleton[row, column] = True
    return skeleton


class Faces:
    """Fonts and the masters of texts drawn with them.

    A face is a font in one form; face = font * len(forms) + form.
    """

    def __init__(
        self, folder: str | None, texts: tuple[str, ...], forms: tuple[Form, ...], cells: int
    ) -> None:
        self._texts, self._forms, self._cells = texts, forms, cells
        self._paths = _list_fonts(folder)
        drawable = [_find_drawable(path, texts, folder) for path in self._paths]
        able = np.array([[text in found for found in drawable] for text in texts])
        able = np.repeat(able, len(forms), axis=1)
        self.num_faces = able.sum(axis=1)
        if not self.num_faces.all():
            text = texts[int(self.num_faces.argmin())]
            named = {None: "matplotlib's bundle", SYSTEM: "this machine's font folders"}
            where = named.get(folder, f"folder {folder}")
            raise InputError(f"generator.fonts: no font in {where} can draw {text!r}")
        self.table = np.argsort(~able, axis=1, kind="stable").astype(np.int32)
        """Faces that can draw each text: row t, first num_faces[t] entries."""
        self._places = np.full((len(texts), len(self._paths) * len(forms)), -1, dtype=np.int64)
        self._drawn: tuple[tuple[int, int], Drawn] | None = None
        self._num_masters = 0
        self._masters = np.empty((64, cells * cells), dtype=np.int16)

    def get_masters(
        self, texts: NDArray[np.int64], faces: NDArray[np.int32]
    ) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
        """Return all masters made so far, flat, and where that of each (text, face) starts."""
        pairs = np.unique(np.stack([texts, faces], axis=1), axis=0)
        for text, face in pairs[self._places[pairs[:, 0], pairs[:, 1]] < 0]:
            if self._num_masters == len(self._masters):
                self._masters = np.concatenate([self._masters, np.empty_like(self._masters)])
            self._masters[self._num_masters] = self._make_master(int(text), int(face)).ravel()
            self._places[text, face] = self._num_masters
            self._num_masters += 1
        return self._masters.reshape(-1), self._places[texts, faces] * self._cells**2

    def _make_master(self, text: int, face: int) -> NDArray[np.int16]:
        """Return minus the distance to the centre of the text's strokes, in quanta; [cells, cells].

        skeleton: the distance to the thinned mask. outline: the signed distance to the edge, less
        half the width of the thinner strokes.
        """
        from scipy.ndimage import distance_transform_edt as distance

        font, form = divmod(face, len(self._forms))
        coverage, ink, skeleton = self._draw_thinned(text, font)
        if self._forms[form] == "skeleton":
            field = -distance(~skeleton)
        else:
            edge = np.where(ink, distance(ink) - 0.5, 0.5 - distance(~ink))
            # The edge runs through a pixel that is half covered.
            signed = np.where(np.abs(edge) <= 0.5, coverage - 0.5, edge)
            field = signed - np.percentile(signed[skeleton], 20)
        per_length = 2 * self._cells / FRAME
        blocks = field.reshape(self._cells, 2, self._cells, 2).mean(axis=(1, 3)) / per_length
        return np.asarray(np.clip(np.rint(blocks / QUANTUM), -32767, 32767), dtype=np.int16)

    def _draw_thinned(self, text: int, font: int) -> Drawn:
        """Return coverage, mask and skeleton, which the font's other form often asks for next."""
        if self._drawn is None or self._drawn[0] != (text, font):
            coverage = self._draw(self._paths[font], self._texts[text])
            ink = coverage > 0.5
            self._drawn = ((text, font), (coverage, ink, _thin(ink)))
        return self._drawn[1]

    def _draw(self, path: Path, text: str) -> NDArray[np.float64]:
        """Return the text's coverage in [0, 1], box centred, at twice the master's resolution."""
        from PIL import Image, ImageDraw, ImageFont

        side = 2 * self._cells
        image = Image.new("L", (side, side))
        canvas = ImageDraw.Draw(image)
        size = 100.0
        for _ in range(2):  # the second time at the size that fills the box
            drawn = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
            left, top, right, bottom = canvas.textbbox((0, 0), text, font=drawn)
            size *= side / FRAME / max(right - left, bottom - top)
        canvas.text(((side - left - right) / 2, (side - top - bottom) / 2), text, 255, drawn)
        coverage = np.asarray(image, dtype=np.float64) / 255
        if coverage.max() <= 0.5:
            raise InputError(f"generator.fonts: {path} draws nothing for {text!r}; remove it")
        return coverage


def _list_fonts(folder: str | None) -> list[Path]:
    """Return font files in a fixed order."""
    import matplotlib

    bundle = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    # The bundle's other fonts hold symbols, some of them at the places of ASCII.
    faces = ("DejaVu*", "STIXGeneral*", "cmr10*", "cmb10*", "cmss10*", "cmti10*", "cmtt10*")
    found = [path for face in faces for path in bundle.glob(f"{face}.ttf")]
    bundled = sorted(path for path in found if "Display" not in path.name)
    if folder is None:
        return bundled
    if folder == SYSTEM:
        from matplotlib.font_manager import findSystemFonts

        installed = sorted(Path(path) for path in findSystemFonts())
        by_name = {path.name: path for path in installed if path.suffix.lower() in _SUFFIXES}
        by_name |= {path.name: path for path in bundled}
        return [by_name[name] for name in sorted(by_name)]
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"generator.fonts: {folder} is not a folder")
    files = [path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES]
    return sorted(files, key=lambda path: path.relative_to(root).as_posix())


@lru_cache(maxsize=4)
def list_own_texts(label_names: tuple[str, ...], fonts: str | None) -> dict[str, tuple[str, ...]]:
    """Return each label's name and, of a letter, its other case.

    Left out is a case that is another label, or that no font has (few have Georgian capitals).
    """
    cases = {name: name.swapcase() for name in label_names if len(name) == 1}
    others = tuple(case for case in cases.values() if len(case) == 1 and case not in label_names)
    paths = _list_fonts(fonts) if others else []
    drawn = {text for path in paths for text in _find_drawable(path, others, fonts)}
    return {
        name: (name, cases[name]) if cases.get(name) in drawn else (name,) for name in label_names
    }


def _find_drawable(path: Path, texts: tuple[str, ...], folder: str | None) -> set[str]:
    """Return the texts whose characters the font has all, blank ones only as spaces.

    A font that can't be opened is an error. Of the machine's own fonts, which the user did not
    choose, such a font draws nothing.
    """
    from matplotlib.ft2font import FT2Font, LoadFlags

    try:
        font = FT2Font(str(path))
    except RuntimeError as error:
        if folder == SYSTEM:
            return set()
        raise InputError(f"generator.fonts: can't open {path}; remove it") from error

    def has(character: str) -> bool:
        code = ord(character)
        if not font.get_char_index(code):
            return False
        return bool(font.load_char(code, flags=LoadFlags.NO_HINTING).height > 0)

    return {text for text in texts if all(has(c) for c in text if not c.isspace())}


load_faces = lru_cache(maxsize=4)(Faces)
"""Makes faces that all generators of one process share."""
