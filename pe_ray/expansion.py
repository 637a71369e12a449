"""Any number of further variations of a run's final population: post-processing, free."""

from __future__ import annotations

import json
from pathlib import Path

from pe_ray.cluster import connected
from pe_ray.config import ResourcesConfig
from pe_ray.errors import InputError
from pe_ray.run_directory import opened
from pe_ray.synthetic.population import Population
from pe_ray.synthetic.variation import layout_of, write_final
from pe_ray.synthetic.writer import atomic_write


def expand(
    run_path: str | Path,
    num_samples: int,
    output: str | Path,
    resources: ResourcesConfig | None = None,
) -> Path:
    """Stream `num_samples` variations of the final population to `output`, or continue that.

    Row i stems from sample i mod |S_T|. Raises InputError where the run is not finished or the
    output folder holds something else.
    """
    if num_samples < 1:
        raise InputError("--num-samples: must be at least 1")
    run, config = opened(run_path)
    config = config.model_copy(update={"resources": resources or ResourcesConfig()})
    iteration = config.schedule.iterations
    layout = layout_of(run.population(iteration))
    if layout is None:
        raise InputError(f"run {run.path}: not finished; run the same `pe-ray run` command first")
    population = Population(iteration=iteration, layout=layout, directory=run.population(iteration))
    directory = Path(output).resolve()
    request = {"run": config.fingerprint, "num_samples": num_samples}
    note = directory / "_expansion.json"
    if note.exists():
        if json.loads(note.read_bytes()) != request:
            raise InputError(f"--output: {directory} holds another expansion; give a new folder")
    elif directory.exists() and any(directory.iterdir()):
        raise InputError(f"--output: {directory} is not empty; give a new folder")
    else:
        atomic_write(note, json.dumps(request).encode())
    with connected(config.resources):
        write_final(config, directory, population, num_samples, vary=True)
    return directory
