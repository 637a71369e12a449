"""What a run has made, for Python programs: its sets, its ledger, and what may be done with them.

The objects here hold paths, and read the files when they are asked. They are path-like: `open`,
`pathlib.Path` and every function that takes a path take them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.config import Config
from pe_ray.config.blocks import ResourcesConfig
from pe_ray.errors import InputError
from pe_ray.files.storage import GivenPath, Location

if TYPE_CHECKING:
    from pe_ray.run_context import RunContext

Arrays = tuple[NDArray[np.uint8], NDArray[np.int32]]


class _Folder:
    """A folder that stands for what it holds."""

    __slots__ = ()
    path: Location

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Location:
        return self.path / name


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet(_Folder):
    """Labelled synthetic images in the folder `path`.

    labels: names of all labels, in order. Each method reads the whole set into memory. Sets of
    millions are read as a stream instead, from their files (docs/expand.md).
    """

    path: Location
    labels: tuple[str, ...]
    _read: Callable[[], Arrays] = field(repr=False, compare=False)

    def to_numpy(self) -> Arrays:
        """Return images, uint8 [n, h, w, c], and labels, int32 [n]: positions in `labels`.

        DamagedFileError where a file isn't what was written.
        """
        return self._read()

    def to_pandas(self) -> Any:
        """Return a DataFrame: `image`, arrays uint8 [h, w, c], and `label`, categories by name."""
        import pandas as pd

        images, labels = self._read()
        names = pd.Categorical.from_codes(labels, pd.Index(self.labels))
        return pd.DataFrame({"image": list(images), "label": names})

    def to_dataset(self) -> Any:
        """Return a `datasets.Dataset` of `image` and `label`, a ClassLabel; needs that package."""
        import datasets

        from pe_ray.files.png import encode_png
        from pe_ray.synthetic.export_formats import LabelledImages, make_table

        images, labels = self._read()
        pngs = [encode_png(image) for image in images]
        return datasets.Dataset(
            make_table(LabelledImages(first=0, pngs=pngs, labels=labels, names=self.labels))
        )

    def to_torch(self) -> Any:
        """Return a `TensorDataset`: images, uint8 [n, c, h, w], labels, int64 [n]; needs torch."""
        import torch

        images, labels = self._read()
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return torch.utils.data.TensorDataset(pixels, torch.from_numpy(labels).long())


@dataclass(frozen=True, slots=True)
class Run(_Folder):
    """The run in the folder `path`, finished or not: what `evolve`, `tune` and `open` return.

    path: of a run directory, local or in a store. resources: what `expand` and `audit_privacy` use;
    those of the run where `evolve` or `tune` returned this.

    >>> import tempfile
    >>> from pe_ray import Config, evolve
    >>> config = Config.from_dict({
    ...     "private": {"data": "sklearn:digits", "labels": list("0123456789")},
    ...     "generator": {"kind": "rendered_text", "image_size": 12},
    ...     "embedder": "pixels",
    ...     "schedule": {"iterations": 1, "num_samples": 30, "degrees": 0.5},
    ...     "privacy": {
    ...         "epsilon": 1.0, "delta": 1e-4, "unit": "record", "label_fractions": "uniform"
    ...     },
    ...     "output": {"path": f"{tempfile.mkdtemp()}/run"},
    ... })
    >>> run = evolve(config)
    >>> images, labels = run.synthetic.to_numpy()
    >>> images.shape, run.ledger["epsilon"] <= 1.0
    ((30, 12, 12, 1), True)
    >>> more = run.expand(50, f"{tempfile.mkdtemp()}/more")
    >>> len(more.to_pandas())
    50
    >>> Run.open(run.path) == run
    True
    """

    path: Location
    resources: ResourcesConfig = field(default=ResourcesConfig(), compare=False)

    @classmethod
    def open(cls, path: GivenPath, resources: ResourcesConfig | None = None) -> Run:
        """Open the run in the folder `path`.

        Raises InputError where `path` is no run directory, and where its configuration names
        plugins that this process has not imported.
        """
        from pe_ray.release.evidence import open_run

        return cls(open_run(path).directory.path, resources or ResourcesConfig())

    def _open(self) -> RunContext:
        from pe_ray.release.evidence import open_run

        return open_run(self.path, self.resources)

    @property
    def config(self) -> Config:
        """What the run was made from, with `resources` as they are here."""
        return self._open().config

    def population(self, iteration: int) -> ImageSet:
        """Return S_iteration; 0 is the set before the first votes.

        Its files also have the columns id, parent and degree. InputError where it is not complete.
        """
        from pe_ray.synthetic.population import read_layout
        from pe_ray.synthetic.population_files import read_population

        run = self._open()
        if not 0 <= iteration <= len(run.iterations):
            raise InputError(f"iteration: {iteration} is not in 0, ..., {len(run.iterations)}")
        folder = run.directory.population(iteration)
        layout = read_layout(folder)
        if layout is None:
            raise InputError(f"iteration: {iteration} is not complete yet; continue the run first")
        ids = np.arange(layout.num_samples, dtype=np.int64)
        options = run.config.generator_at(iteration).options

        def read() -> Arrays:
            rows = read_population(folder, ids, options)
            return rows["image"], rows["label"]

        return ImageSet(path=folder, labels=run.labels, _read=read)

    @property
    def synthetic(self) -> ImageSet:
        """The final set, in label order. InputError where the run is not finished."""
        from pe_ray.synthetic.export import find_final_set

        run = self._open()
        return _open_set(run, find_final_set(run))

    @property
    def ledger(self) -> dict[str, Any]:
        """What was released and what it costs, as `pe-ray ledger --json` prints it."""
        from pe_ray.release.ledger import Ledger, describe_ledger

        return describe_ledger(Ledger.open(self._open().directory.ledger))

    @property
    def search(self) -> dict[str, Any] | None:
        """How the search that made the run ended: its trials, the best of them; None: no search."""
        from pe_ray.tuning.outcomes import read_search

        return read_search(self.path)

    def report(self) -> Location:
        """Write report.html, samples and metrics of the run so far; return the page's path."""
        from pe_ray.report import write_report

        return write_report(self.path)

    def expand(
        self,
        num_samples: int | None,
        output: GivenPath,
        form: str = "parquet",
        *,
        per_label: Mapping[str, int] | None = None,
        drop_failed: bool = False,
        drop_near_duplicates: float = 0.0,
    ) -> ImageSet:
        """Stream further variations of the final set to `output`; return them. They cost nothing.

        None for `num_samples` writes the final set itself, shuffled. The other arguments are those
        of `pe-ray expand` (docs/expand.md). The same call continues after an interruption.
        """
        from pe_ray.expansion import expand

        folder = expand(
            self.path,
            num_samples,
            output,
            self.resources,
            form,
            per_label=per_label,
            drop_failed=drop_failed,
            drop_near_duplicates=drop_near_duplicates,
        )
        return _open_set(self._open(), folder)

    def audit(self) -> dict[str, float]:
        """Score the final set on private records by `metrics.audit`; keep the scores secret.

        Guarantee: none. The scores are computed on private records without noise.
        """
        from pe_ray.private.evaluation import audit

        return audit(self._open())

    def audit_privacy(
        self, num_records: int | None = None, *, lookahead: bool = True
    ) -> dict[str, Any]:
        """Compare records that voted with held-out ones (docs/metrics.md); keep the score secret.

        num_records: most of either kind, 5,000 by default. lookahead: draw the variations of
        `votes.lookahead` again, at a run's cost.

        Guarantee: none. The score is computed on private records without noise.
        """
        from pe_ray.auditing.privacy_score import score_privacy

        return score_privacy(self._open(), num_records, lookahead=lookahead)


def _open_set(run: RunContext, folder: Location) -> ImageSet:
    """Return an exported set."""
    from pe_ray.synthetic.export import read_set

    return ImageSet(path=folder, labels=run.labels, _read=partial(read_set, run, folder))
