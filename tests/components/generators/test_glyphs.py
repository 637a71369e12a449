"""Fonts: which are found, which can draw a text, and that each is opened once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.ttLib import TTCollection, TTFont
from tiny_text import BUNDLE, assert_same, draw, make, seeds

from pe_ray.errors import InputError


def test_a_text_is_drawn_from_its_font_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFont

    first = draw(make(), 300)

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("a font was opened again")

    monkeypatch.setattr(ImageFont, "truetype", opened)
    again = make()  # in the same process: they share the faces
    assert_same(draw(again, 300), first)
    with pytest.raises(AssertionError, match="opened again"):
        make(["Q"]).random(np.zeros(1, dtype=np.int32), seeds(1))


def test_symbol_fonts_are_left_out_of_the_bundle() -> None:
    names = [path.name for path in make()._faces._paths]
    assert len(names) == 21
    assert not any(name.startswith(("cmsy", "cmex", "cmmi", "LastResort")) for name in names)


def copy_fonts(folder: Path, *names: str) -> str:
    nested = folder / "nested"
    nested.mkdir(parents=True)
    for name in names:
        shutil.copy(BUNDLE / name, nested)
    return str(folder)


def test_fonts_of_a_folder(tmp_path: Path) -> None:
    fonts = copy_fonts(tmp_path / "both", "DejaVuSans.ttf", "STIXNonUni.ttf", "cmr10.ttf")
    generator = make(fonts=fonts, forms=("skeleton",))
    rows = draw(generator, 60)
    assert set(rows["font"]) == {0, 2}, "STIXNonUni has no digits"
    assert (rows["image"] > 100).mean(axis=(1, 2, 3)).min() > 0.01


def test_collections_of_fonts_are_read(tmp_path: Path) -> None:
    collection = TTCollection()
    collection.fonts = [TTFont(BUNDLE / name) for name in ("cmr10.ttf", "DejaVuSans.ttf")]
    folder = tmp_path / "collection"
    folder.mkdir()
    collection.save(folder / "both.ttc")
    alone = copy_fonts(tmp_path / "alone", "cmr10.ttf")
    assert_same(draw(make(fonts=str(folder)), 20), draw(make(fonts=alone), 20))


def test_a_font_without_a_character_is_skipped_for_that_text_only(tmp_path: Path) -> None:
    fonts = copy_fonts(tmp_path / "f", "DejaVuSans.ttf", "cmr10.ttf")
    generator = make(["a", "Ж"], fonts=fonts, font_change=10.0)
    rows = draw(generator, 200, 2)
    varied = generator.vary(rows, 0.5, seeds(200, 1))
    for made in (rows["font"], varied["font"]):
        assert len(set(made[rows["label"] == 0])) == 4
        assert len(set(made[rows["label"] == 1])) == 2


def test_system_fonts_are_the_bundle_and_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    (tmp_path / "bitmap.pcf.gz").write_bytes(b"no outline")
    shutil.copy(BUNDLE / "cmr10.ttf", tmp_path / "Installed.ttf")
    found = [str(path) for path in (*tmp_path.iterdir(), BUNDLE / "DejaVuSans.ttf")]
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: found)
    generator = make(["a", "b"], fonts="system", forms=("skeleton",))
    names = [path.name for path in generator._faces._paths]
    assert set(names) == {path.name for path in make()._faces._paths} | {
        "Installed.ttf",
        "broken.ttf",
    }
    assert names == sorted(names)
    assert (generator._faces.num_faces == len(names) - 1).all(), "the broken one draws nothing"


def test_a_folder_without_usable_fonts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"generator\.fonts"):
        make(fonts=str(tmp_path))
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    with pytest.raises(InputError, match=r"generator\.fonts: can't open .*broken\.ttf"):
        make(fonts=str(tmp_path))
