"""Lineages: each image is the stored one, and each ancestor is the parent of the next."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pe_ray.release.ledger import Ledger
from pe_ray.report.facts import gather
from pe_ray.report.lineage import trace_lineages
from pe_ray.synthetic.population_files import read_parents


def table(run: Path, iteration: int) -> pa.Table:
    files = sorted((run / "populations" / f"iter={iteration:04d}").glob("part-*.parquet"))
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files])


def test_lineages_follow_the_parents(finished: Path) -> None:
    lineages = trace_lineages(gather(finished))
    ledger = Ledger.open(finished / "ledger.sqlite")
    tables = [table(finished, iteration) for iteration in range(4)]
    votes = [ledger.released(f"votes/{t:04d}") for t in (1, 2, 3)]
    assert list(lineages) == sorted(set(tables[3]["label"].to_pylist()))
    for label, ancestors in lineages.items():
        assert [ancestor.iteration for ancestor in ancestors] == [0, 1, 2, 3]
        for before, after in pairwise(ancestors):
            row = tables[after.iteration].slice(after.sample, 1).to_pylist()[0]
            assert row["id"] == after.sample
            assert row["label"] == label
            assert row["parent"] == before.sample
            assert row["degree"] == after.degree
            assert row["image"] == after.image.tobytes()
        for ancestor in ancestors[:3]:
            released = votes[ancestor.iteration]
            assert released is not None
            assert ancestor.noisy_votes == released.noisy_votes[ancestor.sample]
        assert ancestors[3].noisy_votes is None
        last = tables[3].to_pandas()
        released = votes[2]
        assert released is not None
        best = released.noisy_votes[last[last.label == label].parent].max()
        assert ancestors[2].noisy_votes == best


def test_parents_are_read_across_parts(finished: Path) -> None:
    directory = finished / "populations" / "iter=0002"
    parents = table(finished, 2)["parent"].to_numpy()
    assert np.array_equal(read_parents(directory, 0, 60), parents)
    assert np.array_equal(read_parents(directory, 15, 36), parents[15:36])
    assert read_parents(directory, 5, 5).size == 0
    assert (read_parents(finished / "populations" / "iter=0000", 0, 60) == -1).all()
