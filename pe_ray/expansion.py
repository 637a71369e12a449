"""Any number of further variations of a run's final population: post-processing, free."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pe_ray.config.blocks import ResourcesConfig
from pe_ray.config.extras import require_extras
from pe_ray.errors import InputError
from pe_ray.files.image_batches import evenly_spaced
from pe_ray.files.parts import require_whole
from pe_ray.files.storage import Location, resolve_place
from pe_ray.release.evidence import open_run
from pe_ray.run import Run
from pe_ray.runtime.cluster import connect_to_ray
from pe_ray.runtime.named_files import require_same_files
from pe_ray.runtime.run_directory import claim_output, others_cant_write, require_disk
from pe_ray.synthetic.export import encode_png, export, load_format
from pe_ray.synthetic.population import Population, final_population
from pe_ray.synthetic.population_files import read_population
from pe_ray.synthetic.teacher import load_teacher

NOTE = ".expansion.json"
"""What an expansion's folder was made for."""
_MEASURED_IMAGES = 64


@others_cant_write()
def expand(
    run_path: str | Location,
    num_samples: int | None,
    output: str | Location,
    resources: ResourcesConfig | None = None,
    form: str = "parquet",
) -> Location:
    """Stream `num_samples` variations of the final population to `output`, or continue that.

    Every sample of S_T gets as many, but for the last |S_T| rows at most, whose samples are evenly
    spaced. None for num_samples writes the final population itself.
    form: parquet; webdataset (tar shards); or folder (an image folder per label). Raises InputError
    where the run is not finished, its final set is damaged, a file of its generator is another, the
    output folder holds something else, or the disk is too small.
    """
    if num_samples is not None and num_samples < 1:
        raise InputError("--num-samples: must be at least 1")
    run = open_run(run_path)
    config = run.config.model_copy(update={"resources": resources or ResourcesConfig()})
    require_extras(config)
    run = replace(run, config=config)
    population = final_population(run)
    require_whole(run.directory.synthetic)
    load_teacher(run)
    generator = config.generator_at(config.schedule.iterations).model_dump(mode="json")
    require_same_files(run.directory.path, config, {"generator": generator})
    directory = resolve_place(output, "--output")
    load_format(form)
    request = {"run": config.fingerprint, "num_samples": num_samples, "format": form}
    if form == "parquet":
        request["image"] = "struct"  # of a former version: binary, and no set mixes the two
    claim_output(directory, config, NOTE, request)
    num_rows = population.layout.num_samples if num_samples is None else num_samples
    require_disk(directory, round(num_rows * _measure_row(run, population)), "--output")
    with connect_to_ray(config.resources):
        export(run, population, directory, num_variations=num_samples, form=form)
    return directory


def _measure_row(run: Run, population: Population) -> float:
    """Return the mean bytes of some images as PNG; formats add a little of their own."""
    ids = evenly_spaced(population.layout.num_samples, _MEASURED_IMAGES)
    options = run.config.generator_at(population.iteration).options
    rows = read_population(population.directory, ids, options)
    return float(np.mean([len(encode_png(image)) for image in rows["image"]]))
