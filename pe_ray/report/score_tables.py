"""Numbers by iteration: metrics.jsonl and tensorboard/.

How the votes are spread is computed here, from the noisy histograms. The run has scored the quality
of released populations against public images.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.files.storage import Location, atomic_write, list_names
from pe_ray.report.facts import Facts
from pe_ray.synthetic.denoising import make_denoiser
from pe_ray.synthetic.scoring import read_scores
from pe_ray.synthetic.smoothing import read_smoothed, unsmoothed
from pe_ray.values import LabelLayout, NoisyHistogram

Row = dict[str, Any]

VOTE_SCORES = (
    "num_samples",
    "sigma",
    "noisy_votes",
    "survivors",
    "effective_parents",
    "top_tenth_share",
)
"""Keys of a row that come from the histograms; all others are quality metrics."""


def list_scores(facts: Facts) -> list[Row]:
    """Return one row for each iteration that has votes or quality metrics, in order.

    Row t: the votes of iteration t, which are on S_(t-1), and the quality metrics of S_t.
    """
    rows: dict[int, Row] = {}
    for iteration, layout in enumerate(facts.layouts, start=1):
        histogram = facts.read_votes(iteration)
        if histogram is not None:
            weights = denoise_votes(facts, histogram, layout)
            rows[iteration] = describe_votes(histogram, layout, weights)
    for iteration in range(len(facts.layouts)):
        scores = read_scores(facts.run.scores(iteration))
        if scores:
            rows[iteration] = rows.get(iteration, {"iteration": iteration}) | scores
    return [rows[iteration] for iteration in sorted(rows)]


def write_scores(facts: Facts) -> list[Row]:
    """Write metrics.jsonl and tensorboard/ again; return the rows."""
    rows = list_scores(facts)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    atomic_write(facts.run.path / "metrics.jsonl", lines.encode())
    _write_tensorboard(facts.run.path / "tensorboard", rows)
    return rows


def list_metrics(rows: Sequence[Row]) -> list[str]:
    """Return the keys of quality metrics that are finite numbers, in order of appearance."""
    others = ("iteration", *VOTE_SCORES)
    found = [k for row in rows for k, value in row.items() if k not in others and is_number(value)]
    return list(dict.fromkeys(found))


def is_number(value: Any) -> bool:
    """Return whether `value` can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def denoise_votes(
    facts: Facts, histogram: NoisyHistogram, layout: LabelLayout
) -> NDArray[np.float64]:
    """Return the weights by which the selection drew parents, float64 [num_samples]."""
    iteration = histogram.release.iteration
    denoiser = make_denoiser(facts.config.selection.at(iteration))
    votes = read_smoothed(facts.run.smoothed(iteration)) or unsmoothed(histogram, layout)
    starts = layout.starts
    return np.concatenate(
        [
            denoiser.weigh(votes.votes[starts[label] : starts[label + 1]], sigma)
            for label, sigma in enumerate(votes.sigmas)
            if layout.counts[label]
        ]
    )


def describe_votes(
    histogram: NoisyHistogram, layout: LabelLayout, weights: NDArray[np.float64]
) -> Row:
    """Return one row; effective parents: inverse Simpson index of each label's weights, summed."""
    labels = np.split(weights, layout.starts[1:-1])
    effective = sum(float(w.sum() ** 2 / (w**2).sum()) for w in labels if w.sum() > 0)
    heaviest = np.sort(weights)[::-1][: max(1, -(-len(weights) // 10))].sum()
    return {
        "iteration": histogram.release.iteration,
        "num_samples": layout.num_samples,
        "sigma": histogram.release.sigma,
        "noisy_votes": int(histogram.noisy_votes.sum()),
        "survivors": int((weights > 0).sum()),
        "effective_parents": round(effective, 2),
        "top_tenth_share": round(float(heaviest / weights.sum()), 4) if weights.sum() > 0 else None,
    }


def _write_tensorboard(directory: Location, rows: Sequence[Row]) -> None:
    """Write scalars by iteration in place of the event files of earlier reports."""
    from tensorboardX import SummaryWriter

    for old in list_names(directory):
        if old.startswith("events."):
            (directory / old).unlink()
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as board:
            for row in rows:
                for name, value in row.items():
                    if name != "iteration" and is_number(value):
                        full = f"votes/{name}" if name in VOTE_SCORES else name
                        board.add_scalar(full, value, row["iteration"])
        for file in Path(folder).iterdir():
            atomic_write(directory / file.name, file.read_bytes())
