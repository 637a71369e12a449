"""A run directory and its ledger, compared: each shows where the other isn't the newest.

A file of the run proves the releases that it was made from. A ledger that lacks one of them was
restored from an older copy. To continue with it would draw and publish a second answer that nobody
counts.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.config import Config
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.config.yaml_tree import digest_tree, read_stored
from pe_ray.errors import DamagedFileError, InputError
from pe_ray.files.digests import read_with_digest
from pe_ray.files.storage import (
    GivenPath,
    Location,
    io_errors_as_input_errors,
    list_names,
    resolve_place,
)
from pe_ray.release.ledger import Ledger
from pe_ray.release.releases import GENERATOR, LABEL_COUNTS, votes_key
from pe_ray.run_context import RunContext
from pe_ray.runtime.run_directory import (
    LEDGER,
    WEIGHTS_FILE,
    RunDirectory,
    find_ledger,
    made_in,
    write_config,
)


def open_run(path: GivenPath, resources: ResourcesConfig | None = None) -> RunContext:
    """Open an existing run directory, with `resources`, or with their defaults.

    The ledger of a run in a store is the copy that lies in the store. Raises InputError where
    `path` is no run directory, or its config.yaml isn't the one that the ledger recorded. Ledgers
    of the former version recorded none.

    Guarantee: neither this nor what is done with the RunContext imports a plugin that is not built
    in, unless this process has loaded it before or `plugins.trust_plugins` holds.
    """
    place = resolve_place(path, "run")
    with io_errors_as_input_errors("run", place):
        if not {"config.yaml", LEDGER} <= list_names(place):
            raise InputError(
                f"run {path}: not a run directory (no config.yaml and ledger.sqlite); give the "
                "folder that was its output.path"
            )
        directory = RunDirectory(place, find_ledger(place))
        config = Config.from_run(directory.config)
        if resources is not None:
            config = config.model_copy(update={"resources": resources})
        ledger = Ledger.open(directory.ledger)
        with plugins.only_known():  # answers are read by their kind
            for entry in ledger.entries():
                plugins.load("release", entry.release.kind)
        recorded = ledger.config_digest
        if recorded not in (None, digest_tree(read_stored(directory.config))):
            raise InputError(
                f"{directory.config}: isn't the configuration that {LEDGER} belongs to; restore it "
                "from a copy, or repeat the `pe-ray run` command"
            )
        return RunContext(config=config, directory=directory, embedder=config.embedder)


def record_config(ledger: Ledger, directory: RunDirectory, config: Config) -> None:
    """Write the run's config.yaml, after its digest into the ledger."""
    ledger.bind_config(digest_tree(config.tree()))
    write_config(directory, config)


def require_newest(
    ledger: Ledger, directory: RunDirectory, config: Config, prefix: str = ""
) -> None:
    """Raise InputError where a file in `directory` was made from a release that `ledger` lacks.

    prefix: of the run's keys in the ledger. A histogram must equal the ledger's answer. Of other
    files, and of one that is damaged, only the presence is looked at. So a run whose files were
    deleted proves nothing.
    """
    with io_errors_as_input_errors("output.path", directory.path):
        proofs = list(_list_proofs(directory, config, prefix))
        histograms = set(map(directory.histogram, range(1, config.schedule.iterations + 1)))
        votes = {file: _read_histogram(file) for _, file in proofs if file in histograms}
    for key, file in proofs:
        stored = ledger.stored(key)
        told = votes.get(file)
        if stored is None or not (told is None or np.array_equal(stored, told)):
            refuse_older(directory, key, file)


def refuse_older(directory: RunDirectory, key: str, file: Location) -> NoReturn:
    """Raise InputError for a ledger that lacks what `file` was made from."""
    raise InputError(
        f"{directory.ledger_field}: its ledger lacks a release ({key}) that {file} was made from; "
        "give the newer ledger, since what was spent is spent"
    )


def _list_proofs(
    directory: RunDirectory, config: Config, prefix: str
) -> Iterator[tuple[str, Location]]:
    """Yield (key, file) for each release that a file or folder of the run was made from."""
    last = config.schedule.iterations
    populations = made_in(directory.path / "populations")
    if config.privacy.label_fractions == "dp" and populations:
        yield LABEL_COUNTS, directory.population(0)
    if config.private_sums is not None:
        sums = directory.generator_sums
        made = [sums] if sums.name in made_in(sums.parent) else []
        for file in (*made, *([directory.population(0)] if populations else [])):
            yield f"{prefix}{GENERATOR}", file
    for names, place in (
        (made_in(directory.path / "histograms"), directory.histogram),
        (made_in(directory.path / "smoothed"), directory.smoothed),
        (populations, directory.population),
    ):
        for iteration in range(1, last + 1):
            if (file := place(iteration)).name in names:
                yield votes_key(iteration, prefix), file
    final = [directory.synthetic] if made_in(directory.synthetic) else []
    if WEIGHTS_FILE in made_in(directory.teacher):
        final.append(directory.teacher / WEIGHTS_FILE)
    for file in final:
        yield votes_key(last, prefix), file
        if config.teacher:
            yield f"{prefix}teacher", file


def _read_histogram(file: Location) -> NDArray[Any] | None:
    """Return the votes in a file; None where its digest says that it is damaged.

    It is written again then. A file of the former version has no digest.
    """
    try:
        table = pq.read_table(io.BytesIO(read_with_digest(file)), columns=["noisy_votes"])
        return np.asarray(table["noisy_votes"])
    except DamagedFileError:
        return None
    except (pa.ArrowException, KeyError):
        raise InputError(
            f"{file}: is damaged; delete it, it is written again from the ledger"
        ) from None
