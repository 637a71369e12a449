"""Write clip art as grey things on black: public images for `pipelines/fashion.yaml`.

    python -m benchmarks.dpimagebench.clip_art FOLDER FILE.parquet

FOLDER: PNG files with transparency, at any depth; Debian's package openclipart-png has 8,000 that
are in the public domain, in /usr/share/openclipart/png. A picture is cut to what it shows, scaled
to 60 pixels and put in the middle of 64. One that is dark is inverted, so that it can be seen on
black. Pictures of more than 50 million pixels are left out.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pe_ray import InputError
from pe_ray.files.storage import expand_home

SIDE, SHOWN, MOST_PIXELS, DARK = 64, 60, 50_000_000, 110


def draw_on_black(file: Path) -> Image.Image | None:
    """Return the picture, grey, 64 x 64; None if it shows nothing or is too large."""
    with Image.open(file) as stored:
        if stored.width * stored.height > MOST_PIXELS:
            return None
        picture = stored.convert("RGBA")
    box = picture.getchannel("A").getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    scale = SHOWN / max(picture.size)
    sides = [max(1, round(side * scale)) for side in picture.size]
    picture = picture.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
    grey, alpha = (np.asarray(part, dtype=np.float32) for part in picture.convert("LA").split())
    if np.average(grey, weights=alpha + 1e-6) < DARK:
        grey = 255 - grey
    whole = Image.new("L", (SIDE, SIDE))
    shown = Image.fromarray(np.rint(grey * alpha / 255).astype(np.uint8))
    whole.paste(shown, ((SIDE - sides[0]) // 2, (SIDE - sides[1]) // 2))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=expand_home)
    parser.add_argument("file", type=expand_home)
    given = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # only the size of larger ones is read
    contents, names = [], []
    for file in sorted(given.folder.rglob("*.png")):
        picture = draw_on_black(file)
        if picture is not None:
            sink = BytesIO()
            picture.save(sink, "PNG")
            contents.append(sink.getvalue())
            names.append(file.relative_to(given.folder).parts[0])
    if not contents:
        raise InputError(f"{given.folder}: shows nothing; give a folder of PNG files")
    given.file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": contents, "label": names}), given.file)
    print(f"{given.file}: {len(contents)} pictures")


if __name__ == "__main__":
    main()
