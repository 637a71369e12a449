"""The README's picture, from a run: `python -m docs.picture runs/digits docs/demo.png`.

One line of samples for each iteration shown, the same number of each label, evenly spaced.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from pe_ray.report.facts import gather
from pe_ray.report.samples import chosen, grid, samples_of

LINES, EACH, ZOOM, GAP, MARGIN = 5, 2, 2, 6, 150


def picture(run: str | Path) -> bytes:
    """PNG of the samples by iteration."""
    facts = gather(run)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 18)
    lines = []
    for iteration in chosen(len(facts.layouts), LINES):
        strips = samples_of(facts, iteration).values()
        images = [strip[place] for strip in strips for place in chosen(len(strip), EACH)]
        joined = Image.fromarray(np.squeeze(grid([images]), axis=2)).convert("RGB")
        size = (joined.width * ZOOM, joined.height * ZOOM)
        names = {0: "random draws", facts.config.schedule.iterations: "final"}
        lines.append((names.get(iteration, f"iteration {iteration}"), joined.resize(size)))
    height = lines[0][1].height + GAP
    whole = Image.new("RGB", (MARGIN + lines[0][1].width, height * len(lines) - GAP), "white")
    pen = ImageDraw.Draw(whole)
    for place, (name, joined) in enumerate(lines):
        whole.paste(joined, (MARGIN, place * height))
        pen.text((8, place * height + height // 2), name, "black", font, anchor="lm")
    sink = io.BytesIO()
    whole.quantize(64).save(sink, format="PNG", optimize=True)
    return sink.getvalue()


if __name__ == "__main__":
    run, output = sys.argv[1:]
    Path(output).write_bytes(picture(run))
