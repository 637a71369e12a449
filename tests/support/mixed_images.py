"""Class folders with images of many kinds, some of which can't be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

GOOD = {
    "cat/plain.png": ("RGB", (6, 5)),
    "cat/plain-2.png": ("RGB", (6, 5)),
    "cat/grey.png": ("L", (5, 6)),
    "cat/palette.gif": ("P", (7, 7)),
    "dog/seen.webp": ("RGB", (9, 4)),
    "dog/deep.png": ("I;16", (6, 5)),
}
"""Name -> Pillow's mode, and (height, width)."""


def save_good(folder: Path) -> None:
    """Write the images of GOOD, all of them different."""
    for number, (name, (mode, (height, width))) in enumerate(GOOD.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        if mode == "I;16":
            image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        elif mode != "RGB":
            image = image.convert(mode)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)


def save_bad(folder: Path) -> set[str]:
    """Add files of each kind that can't be used; return the names of all."""
    whole = (folder / "cat/plain.png").read_bytes()
    (folder / "cat/cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cat/text.jpg").write_bytes(b"no image")
    (folder / "dog/empty.png").write_bytes(b"")
    (folder / "dog/gone.png").symlink_to(folder / "nowhere.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "dog/float.tiff")
    (folder / "dog/phone.heic").write_bytes(b"heic")
    (folder / "dog/raw.dng").write_bytes(b"dng")
    (folder / "horse").mkdir()
    Image.new("RGB", (3, 3), "red").save(folder / "horse/red.png")
    (folder / "horse/cut.png").write_bytes(whole[:40])
    return {
        *("cat/cut.png", "cat/text.jpg", "dog/empty.png", "dog/gone.png", "dog/float.tiff"),
        *("dog/phone.heic", "dog/raw.dng", "horse", "horse/cut.png"),
    }
