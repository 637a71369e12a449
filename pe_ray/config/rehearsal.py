"""Rehearse a configuration: the same kinds and the same shape of schedule, in minutes on a CPU."""

from __future__ import annotations

from pathlib import Path

from pe_ray.config.run_config import Config
from pe_ray.plugins.rehearsal import Rehearsal, rehearse_parts

_LEAST_SAMPLES = 16


def rehearse(config: Config, folder: Path) -> Config:
    """Return a small run of the same kinds on stand-ins, which are written below `folder`.

    It keeps the first iteration, the last, and those in which another generator begins.

    Guarantee: it names no private record, no account, no store, no cluster and no service. So it
    spends nothing.
    """
    steps = range(1, config.schedule.iterations + 1)
    begins = [t for t in steps if config.generator_at(t) != config.generator_at(t - 1)]
    public = config.metrics.public
    metrics = [*config.metrics.audit, *(public.metrics if public else ())]
    least = [getattr(metric.options, "least_images", 1) for metric in metrics]
    rehearsal = Rehearsal(
        folder=folder,
        labels=config.private.labels,
        iterations=tuple(sorted({steps[0], steps[-1], *begins})),
        num_samples=max(_LEAST_SAMPLES, 2 * len(config.private.labels), *least),
    )
    return Config.from_dict(rehearse_parts(config, rehearsal).model_dump(mode="json"))
