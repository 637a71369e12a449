"""Rehearse a configuration: the same kinds and the same shape of schedule, in minutes on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pe_ray.config.kinds import Switch
from pe_ray.config.run_config import Config
from pe_ray.plugins.options import Options
from pe_ray.plugins.stand_ins import Rehearsal

_LEAST_SAMPLES = 16


def rehearse(config: Config, folder: Path) -> Config:
    """Return a small run of the same kinds on stand-ins, which are written below `folder`.

    It keeps the first iteration, the last, and those in which another generator or stage begins.

    Guarantee: it names no private record, no account, no store, no cluster and no service. So it
    spends nothing.
    """
    steps = range(1, config.schedule.iterations + 1)
    begins = {t for t in steps if config.generator_at(t) != config.generator_at(t - 1)}
    if isinstance(config.generator, Switch):  # stages may have equal generators
        begins |= {stage.start for stage in config.generator.stages[1:]}
    public = config.metrics.public
    metrics = [*config.metrics.audit, *(public.metrics if public else ())]
    least = [getattr(metric.options, "least_images", 1) for metric in metrics]
    rehearsal = Rehearsal(
        folder=folder,
        labels=config.private.labels,
        iterations=tuple(sorted({steps[0], steps[-1], *begins})),
        num_samples=max(_LEAST_SAMPLES, 2 * len(config.private.labels), *least),
    )
    return Config.from_dict(_rehearse_parts(config, rehearsal).model_dump(mode="json"))


def _rehearse_parts(part: Any, rehearsal: Rehearsal) -> Any:
    """Return a block, an option or a collection with the stand-in of every model in it."""
    if isinstance(part, Options):
        small = part.rehearsal(rehearsal)
        below = {name: _rehearse_parts(value, rehearsal) for name, value in small}
        # Others stay unset: a setting that is given differs from one that has its default.
        changes = {name: new for name, new in below.items() if new != getattr(small, name)}
        return small.model_copy(update=changes)
    if isinstance(part, dict):
        return {name: _rehearse_parts(value, rehearsal) for name, value in part.items()}
    if isinstance(part, tuple):
        return tuple(_rehearse_parts(value, rehearsal) for value in part)
    return part
