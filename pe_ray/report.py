"""A run as one self-contained page, with sample grids and metrics; from released values only."""

from __future__ import annotations

import base64
import html
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.release.ledger import Ledger
from pe_ray.run_directory import RunDirectory, opened
from pe_ray.storage import Location, atomic_write, names
from pe_ray.synthetic.exports import png
from pe_ray.synthetic.population import fractions_of
from pe_ray.synthetic.scoring import PREFIX, read_scores
from pe_ray.synthetic.selection import denoiser
from pe_ray.synthetic.variation import layout_of
from pe_ray.synthetic.writer import read_population
from pe_ray.values import LabelLayout, NoisyHistogram

SAMPLES_PER_LABEL = 12
LABELS_SHOWN = 20


def write_report(path: str | Location) -> Location:
    """Write samples/, metrics.jsonl, tensorboard/ and report.html of a run; returns the page.

    Guarantee: reads the configuration, the ledger's releases and populations only, all of which
    are covered by the ledger's (epsilon, delta).
    """
    run, config = opened(path)
    ledger = Ledger.open(run.ledger)
    scores, grids = [], []
    for iteration in range(config.schedule.iterations + 1):
        layout = layout_of(run.population(iteration))
        if layout is None:
            break
        grid = png(sample_grid(run, config, iteration, layout))
        atomic_write(run.path / "samples" / f"iter={iteration:04d}.png", grid)
        grids.append((iteration, layout, grid))
        histogram = ledger.released(f"votes/{iteration + 1:04d}")
        if histogram is not None:
            scores.append(_concentration(config, histogram, layout))
    rows = _with_public_scores(run, config, scores)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    atomic_write(run.path / "metrics.jsonl", lines.encode())
    _write_tensorboard(run.path / "tensorboard", rows)
    atomic_write(run.report, _page(config, ledger, scores, grids).encode())
    return run.report


def sample_grid(
    run: RunDirectory, config: Config, iteration: int, layout: LabelLayout
) -> NDArray[np.uint8]:
    """One row of evenly spaced samples per label, uint8 [rows * h, columns * w, c]."""
    shape, options = config.image_shape, config.generator_at(iteration).options
    shown = [label for label, count in enumerate(layout.counts) if count][:LABELS_SHOWN]
    grid = np.zeros(
        (len(shown) * shape.height, SAMPLES_PER_LABEL * shape.width, shape.channels), np.uint8
    )
    for row, label in enumerate(shown):
        start, stop = layout.label_range(label)
        count = min(SAMPLES_PER_LABEL, stop - start)
        ids = np.linspace(start, stop - 1, count).astype(np.int64)
        images = read_population(run.population(iteration), ids, options)["image"]
        strip = np.concatenate(list(images), axis=1)
        grid[row * shape.height : (row + 1) * shape.height, : strip.shape[1]] = strip
    return grid


def _concentration(
    config: Config, histogram: NoisyHistogram, layout: LabelLayout
) -> dict[str, Any]:
    """Spread of the noisy votes: survivors and effective number of parents (inverse Simpson)."""
    release = histogram.release
    settings = config.selection.at(release.iteration)
    denoise = denoiser(settings.denoise, settings.threshold)
    survivors, effective = 0, 0.0
    for label in range(len(layout.counts)):
        start, stop = layout.label_range(label)
        weights = denoise(histogram.noisy_votes[start:stop], release.sigma)
        survivors += int((weights > 0).sum())
        if weights.sum() > 0:
            effective += float(weights.sum() ** 2 / (weights**2).sum())
    return {
        "iteration": release.iteration,
        "num_samples": layout.num_samples,
        "sigma": release.sigma,
        "noisy_votes": int(histogram.noisy_votes.sum()),
        "survivors": survivors,
        "effective_parents": round(effective, 2),
    }


def _with_public_scores(
    run: RunDirectory, config: Config, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows by iteration, with the scores of S_iteration; S_0 has a row of scores alone."""
    by_iteration = {row["iteration"]: row for row in rows}
    for iteration in range(config.schedule.iterations + 1):
        scores = read_scores(run.scores(iteration))
        if scores:
            row = by_iteration.get(iteration, {"iteration": iteration})
            by_iteration[iteration] = row | scores
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]


def _write_tensorboard(directory: Location, scores: list[dict[str, Any]]) -> None:
    """Scalars by iteration, written once per report (older event files are replaced)."""
    from tensorboardX import SummaryWriter

    for old in names(directory):
        if old.startswith("events."):
            (directory / old).unlink()
    with tempfile.TemporaryDirectory() as aside:
        with SummaryWriter(aside) as board:
            for score in scores:
                for name in ("noisy_votes", "survivors", "effective_parents", "sigma"):
                    if name in score:
                        board.add_scalar(f"votes/{name}", score[name], score["iteration"])
                for name in (name for name in score if name.startswith(PREFIX)):
                    board.add_scalar(name, score[name], score["iteration"])
        for file in Path(aside).iterdir():
            atomic_write(directory / file.name, file.read_bytes())


_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}
td,th{padding:.3rem .8rem;border-bottom:1px solid #ccc;text-align:right}
th:first-child,td:first-child{text-align:left}
img{image-rendering:pixelated;width:100%;max-width:42rem;border:1px solid #ccc}
pre{background:#f5f5f5;padding:1rem;overflow-x:auto}
.claim{border-left:4px solid #2457a6;padding:.2rem 1rem;background:#f2f6fc}
"""


def _page(
    config: Config,
    ledger: Ledger,
    scores: list[dict[str, Any]],
    grids: list[tuple[int, LabelLayout, bytes]],
) -> str:
    budget, spent = ledger.budget, ledger.spent()
    unit = budget.unit
    title = "Differentially private synthetic images"
    if math.isinf(spent):
        title = "Synthetic images without privacy"
        claim = "No noise was added: this run protects nobody and must not be published."
    else:
        claim = (
            f"(epsilon = {spent:.6g}, delta = {budget.delta:g})-differential privacy for adding or "
            f"removing one {unit}: everything here was computed from the releases below."
        )
    releases = _table(
        ["release", "mechanism", "sigma (votes)", "L2 sensitivity", "state"],
        [
            [
                entry.release.key,
                "discrete Gaussian",
                f"{entry.release.sigma:g}",
                f"{entry.release.sensitivity:g}",
                entry.state,
            ]
            for entry in ledger.entries()
        ],
    )
    votes = _table(
        ["iteration", "samples", "noisy votes", "survivors", "effective parents"],
        [
            [
                str(score["iteration"]),
                f"{score['num_samples']:,}",
                f"{score['noisy_votes']:,}",
                f"{score['survivors']:,}",
                f"{score['effective_parents']:,.1f}",
            ]
            for score in scores
        ],
    )
    counted = ledger.released("label_counts")
    fractions = ""
    if counted is not None:
        shares = ", ".join(f"{share:.3f}" for share in fractions_of(counted))
        fractions = f"<p>Released label fractions: {shares}</p>"
    pictures = "".join(_picture(config, *grid) for grid in grids)
    settings = html.escape(yaml.safe_dump(config.tree(), sort_keys=False, allow_unicode=True))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>pe_ray run</title><style>{_STYLE}</style></head><body>
<h1>{title}</h1>
<p class="claim">{html.escape(claim)}</p>
<h2>What was released</h2>
<p>Each private {unit} votes for its nearest synthetic samples; noise is added to the histogram of
votes before anything else sees it. The private records influence nothing but these releases.</p>
{releases}{fractions}
<h2>How the votes were spread</h2>
<p>From the noisy histograms. Survivors have votes left after denoising; effective parents is the
inverse Simpson index of the weights, summed over labels.</p>
{votes}
<h2>Samples</h2>
<p>One row per label, evenly spaced samples.</p>
{pictures}
<h2>Configuration</h2>
<pre>{settings}</pre>
</body></html>
"""


def _picture(config: Config, iteration: int, layout: LabelLayout, grid: bytes) -> str:
    names = [name for name, n in zip(config.private.labels, layout.counts, strict=True) if n]
    shown = html.escape(", ".join(names[:LABELS_SHOWN]))
    title = "Random draws" if iteration == 0 else f"Iteration {iteration}"
    data = base64.b64encode(grid).decode()
    return (
        f"<h3>{title}: {layout.num_samples:,} samples</h3>"
        f'<img src="data:image/png;base64,{data}" alt="Samples, one row per label: {shown}">'
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"
