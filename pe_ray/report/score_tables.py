"""Numbers by iteration: metrics.jsonl and tensorboard/.

The spread of the votes is worked out here, from the noisy histograms. Quality metrics of released
populations against public images are in small files of the run, one for each scored iteration.
"""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.files.storage import Location, atomic_write, names
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


def rows_of(facts: Facts) -> list[Row]:
    """One row per iteration that has anything to tell, in order.

    Row t: the votes of iteration t, which are on S_(t-1), and the quality metrics of S_t.
    """
    rows: dict[int, Row] = {}
    for histogram, layout in _histograms(facts):
        iteration = histogram.release.iteration
        rows[iteration] = _spread(histogram, layout, _weights(facts, histogram, layout))
    for iteration in range(len(facts.layouts)):
        scores = read_scores(facts.run.scores(iteration))
        if scores:
            rows[iteration] = rows.get(iteration, {"iteration": iteration}) | scores
    return [rows[iteration] for iteration in sorted(rows)]


def write_scores(facts: Facts) -> list[Row]:
    """Write metrics.jsonl and tensorboard/ anew; returns the rows."""
    rows = rows_of(facts)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    atomic_write(facts.run.path / "metrics.jsonl", lines.encode())
    _write_tensorboard(facts.run.path / "tensorboard", rows)
    return rows


def metric_names(rows: list[Row]) -> list[str]:
    """Keys of quality metrics (finite numbers not made here), in order of appearance."""
    names: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("iteration", *VOTE_SCORES) and is_number(value):
                names[name] = None
    return list(names)


def is_number(value: Any) -> bool:
    """Whether `value` can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def spreads_of(facts: Facts) -> list[tuple[int, list[tuple[float, float]]]]:
    """(iteration, [(share of samples, share of votes)]) of the first, a middle and the last votes.

    Heaviest samples first, all labels together, after denoising.
    """
    found = list(_histograms(facts))
    chosen = sorted({0, len(found) // 2, len(found) - 1}) if found else []
    curves = []
    for place in chosen:
        histogram, layout = found[place]
        weights = np.sort(_weights(facts, histogram, layout))[::-1]
        total = weights.sum()
        if total <= 0:
            continue
        shares = np.concatenate([[0.0], np.cumsum(weights) / total])
        points = np.unique(np.linspace(0, len(weights), 51).astype(int))
        curve = [(float(point / len(weights)), float(shares[point])) for point in points]
        curves.append((histogram.release.iteration, curve))
    return curves


def _histograms(facts: Facts) -> list[tuple[NoisyHistogram, LabelLayout]]:
    """Released votes and the layout of the population that they are on."""
    found = ((facts.votes(t + 1), layout) for t, layout in enumerate(facts.layouts))
    return [(histogram, layout) for histogram, layout in found if histogram is not None]


def _weights(facts: Facts, histogram: NoisyHistogram, layout: LabelLayout) -> NDArray[np.float64]:
    """Denoised votes, float64 [num_samples], as the selection draws parents by them."""
    iteration = histogram.release.iteration
    settings = facts.config.selection.at(iteration)
    denoiser = make_denoiser(settings)
    votes = read_smoothed(facts.run.smoothed(iteration)) or unsmoothed(histogram, layout)
    parts = []
    for label, sigma in enumerate(votes.sigmas):
        start, stop = layout.label_range(label)
        if stop > start:
            parts.append(denoiser.weigh(votes.votes[start:stop], sigma))
    return np.concatenate(parts)


def _spread(histogram: NoisyHistogram, layout: LabelLayout, weights: NDArray[np.float64]) -> Row:
    """One row; effective parents: inverse Simpson index of each label's weights, summed."""
    effective = 0.0
    for label in range(len(layout.counts)):
        start, stop = layout.label_range(label)
        own = weights[start:stop]
        if own.sum() > 0:
            effective += float(own.sum() ** 2 / (own**2).sum())
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


def _write_tensorboard(directory: Location, rows: list[Row]) -> None:
    """Scalars by iteration, written once per report (older event files are replaced)."""
    from tensorboardX import SummaryWriter

    for old in names(directory):
        if old.startswith("events."):
            (directory / old).unlink()
    with tempfile.TemporaryDirectory() as aside:
        with SummaryWriter(aside) as board:
            for row in rows:
                for name, value in row.items():
                    if name != "iteration" and is_number(value):
                        full = f"votes/{name}" if name in VOTE_SCORES else name
                        board.add_scalar(full, value, row["iteration"])
        for file in Path(aside).iterdir():
            atomic_write(directory / file.name, file.read_bytes())
