"""Numbers by iteration: metrics.jsonl and tensorboard/.

How the votes are spread is computed here, from the noisy histograms. The run has scored the quality
of released populations against public images.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pe_ray.config import Config
from pe_ray.config.kinds import better_scores
from pe_ray.files.storage import Location, atomic_write, list_names
from pe_ray.report.facts import Facts
from pe_ray.synthetic.denoising import weigh_labels
from pe_ray.synthetic.scoring import read_scores
from pe_ray.synthetic.smoothing import read_smoothed, unsmoothed
from pe_ray.values import LabelLayout, NoisyHistogram

_EVENTS = "events.out.tfevents.1"  # the library's own names tell the host

Row = dict[str, Any]
"""iteration, figures of its votes, and quality metrics, whose names begin with public/."""


def list_scores(facts: Facts) -> list[Row]:
    """Return one row for each iteration that has votes or quality metrics, in order.

    Row t: the votes of iteration t, which are on S_(t-1), and the quality metrics of S_t.
    """
    rows: dict[int, Row] = {}
    for iteration, layout in enumerate(facts.layouts, start=1):
        histogram = facts.read_votes(iteration)
        if histogram is not None:
            rows[iteration] = describe_votes(facts, histogram, layout)
    for iteration in range(len(facts.layouts)):
        scores = read_scores(facts.run.scores(iteration))
        if scores:
            rows[iteration] = rows.get(iteration, {"iteration": iteration}) | scores
    last = facts.config.schedule.iterations
    if last in rows:
        rows[last] |= read_scores(facts.run.teacher_scores) or {}
    return [rows[iteration] for iteration in sorted(rows)]


def describe_votes(facts: Facts, histogram: NoisyHistogram, layout: LabelLayout) -> Row:
    """Return one row.

    above_noise: samples with over two sigma of noisy votes; noise alone gives so many to 2.3 %.
    effective_parents: inverse Simpson index of each label's weights, summed.
    """
    release = histogram.release
    settings = facts.config.selection.at(release.iteration)
    votes = read_smoothed(facts.run.smoothed(release.iteration)) or unsmoothed(histogram, layout)
    labels = [weights for _, weights in weigh_labels(settings, votes, layout)]
    effective = sum(float(w.sum() ** 2 / (w**2).sum()) for w in labels if w.sum() > 0)
    weights = np.sort(np.concatenate(labels))[::-1]
    heaviest, total = weights[: -(-len(weights) // 10)].sum(), weights.sum()
    return {
        "iteration": release.iteration,
        "num_samples": layout.num_samples,
        "sigma": release.sigma,
        "noisy_votes": int(histogram.noisy_votes.sum()),
        "above_noise": int((histogram.noisy_votes > 2 * release.sigma).sum()),
        "survivors": int((weights > 0).sum()),
        "effective_parents": round(effective, 2),
        "top_tenth_share": round(float(heaviest / total), 4) if total > 0 else None,
    }


def write_scores(facts: Facts) -> list[Row]:
    """Write metrics.jsonl and tensorboard/ again; return the rows."""
    rows = list_scores(facts)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    atomic_write(facts.run.path / "metrics.jsonl", lines.encode())
    _write_tensorboard(facts.run.path / "tensorboard", rows)
    return rows


def last_scores(facts: Facts) -> dict[str, float]:
    """Return the quality metrics of the last population that was scored, and of the teacher."""
    for iteration in reversed(range(len(facts.layouts))):
        scores = read_scores(facts.run.scores(iteration))
        if scores:
            is_last = iteration == facts.config.schedule.iterations
            return scores | ((is_last and read_scores(facts.run.teacher_scores)) or {})
    return {}


def name_better(config: Config, names: Iterable[str]) -> dict[str, str]:
    """Return `lower` or `higher` for the quality metrics of a run that say which is better."""
    public = config.metrics.public
    return better_scores(public.metrics if public else (), names)


def list_metrics(rows: Sequence[Row]) -> list[str]:
    """Return the names of all quality metrics, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row if name.startswith("public/")))


def _write_tensorboard(directory: Location, rows: Sequence[Row]) -> None:
    """Write scalars by iteration in place of the event files of earlier reports."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    sink, now = io.BytesIO(), time.time()
    writer = RecordWriter(sink)
    writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
    for row in rows:
        values = [
            Summary.Value(
                tag=name if name.startswith("public/") else f"votes/{name}", simple_value=value
            )
            for name, value in row.items()
            if name != "iteration" and value is not None
        ]
        event = Event(wall_time=now, step=row["iteration"], summary=Summary(value=values))
        writer.write(event.SerializeToString())
    atomic_write(directory / _EVENTS, sink.getvalue())
    for old in list_names(directory) - {_EVENTS}:
        if old.startswith("events."):
            (directory / old).unlink()
