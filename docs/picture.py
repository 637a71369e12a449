"""Draw the README's picture from a run: `python -m docs.picture runs/digits docs/demo.png`.

One line of samples for each iteration shown, the same number of each label, evenly spaced.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from pe_ray.files.storage import expand_home
from pe_ray.report.facts import gather
from pe_ray.report.samples import join_images, pick_evenly, read_samples

LINES, EACH, ZOOM, GAP, MARGIN = 5, 2, 2, 6, 150


def draw(run: str | Path) -> bytes:
    """Return a PNG of samples by iteration."""
    facts = gather(run)
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 18)
    lines = []
    for iteration in pick_evenly(range(len(facts.layouts)), LINES):
        samples = read_samples(facts, iteration).values()
        images = [image for by_label in samples for image in pick_evenly(by_label, EACH)]
        joined = Image.fromarray(np.squeeze(join_images([images]), axis=2)).convert("RGB")
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
    expand_home(output).write_bytes(draw(run))
