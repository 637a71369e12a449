"""Files of a run that something else changes: none is taken for what was written."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from undisturbed import content
from verified import differing

from pe_ray import Config, InputError
from pe_ray.errors import DamagedFileError
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.files.parts import MANIFEST
from pe_ray.private.evaluation import audit
from pe_ray.release.evidence import open_run
from pe_ray.release.ledger import Ledger
from pe_ray.report import write_report

pytestmark = pytest.mark.slow

KINDS = (
    "populations/iter=0000/part-*.parquet",
    "populations/iter=0001/part-*.parquet",
    "populations/iter=0002/part-*.parquet",
    "populations/iter=0001/.manifest.json",
    "synthetic/part-*.parquet",
    "synthetic/.manifest.json",
    "histograms/iter=0001.parquet",
    "smoothed/iter=0001.parquet",
    "scores/iter=0001.json",
    "features/*.npz",
    "teacher/features.npz",
    "teacher/weights.npz",
)
"""Files of every kind that a finished run keeps, but for the ledger and what it is asked with."""


def flip(file: Path, place: float = 0.5) -> None:
    """Change one bit of a file, at a share of its length."""
    held = bytearray(file.read_bytes())
    held[int(place * len(held))] ^= 1
    file.write_bytes(held)


def held_by(run: Path) -> dict[str, bytes]:
    """Everything that a run holds but times and the places that it names."""
    more = ("smoothed", "scores", "features", "teacher")
    files = (file for folder in more for file in (run / folder).rglob("*"))
    return content(run) | {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.fixture
def tree(tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The small run with all that a run can keep."""
    images = np.random.default_rng(0).integers(0, 256, (100, 12, 12), dtype=np.uint8)
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
    labels = (np.arange(100) % 10).astype(np.int32)
    pq.write_table(pa.table({"image": column, "label": labels}), tmp_path / "public.parquet")
    frechet = {"kind": "frechet", "embedder": {"kind": "pixels", "size": 4}}
    tree["metrics"]["public"] = {"data": str(tmp_path / "public.parquet"), "metrics": [frechet]}
    tree["embedder"] = {"kind": "label_features", "num_images": 100, "features": 4, "epochs": 1}
    tree["votes"] = {"lookahead": 1, "reuse_lookahead": True, "metric": "cosine"}
    tree["selection"] = {"smooth": 2}
    tree["teacher"] = {"features": 4, "epochs": 1}
    return tree


def test_a_damaged_file_of_any_kind_is_made_again(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    config = Config.from_dict(tree)
    run = Path(str(evolve(config)))
    before, charged = held_by(run), len(Ledger.open(run / "ledger.sqlite").entries())
    for place in (0.1, 0.97):
        for kind in KINDS:  # all at once: what tells of a part may be damaged too
            flip(sorted(run.glob(kind))[0], place)
        assert held_by(run) != before
        evolve(config)
        assert held_by(run) == before
    assert len(Ledger.open(run / "ledger.sqlite").entries()) == charged


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("populations/iter=0002/part-*.parquet", "expand report audit"),
        ("populations/iter=0001/part-*.parquet", "report"),
        ("synthetic/part-*.parquet", "expand report audit"),
        ("smoothed/iter=0002.parquet", "report"),
        ("scores/iter=0002.json", "report"),
        ("teacher/features.npz", "expand audit"),
        ("teacher/weights.npz", "expand audit"),
    ],
)
def test_who_reads_a_damaged_file_names_it(
    finished: Path, tmp_path: Path, kind: str, read: str
) -> None:
    file = sorted(finished.glob(kind))[-1]
    readers: dict[str, Callable[[], object]] = {
        "expand": lambda: expand(finished, None, tmp_path / "more"),
        "report": lambda: write_report(finished),
        "audit": lambda: audit(open_run(finished)),
    }
    flip(file)
    try:
        for reader in read.split():
            with pytest.raises(DamagedFileError) as damaged:
                readers[reader]()
            assert damaged.value.file == str(file)
            assert str(damaged.value).startswith(f"{file}: ")
    finally:
        flip(file)


def test_verify_names_a_damaged_file_of_any_kind(finished: Path) -> None:
    assert differing(finished) == set()
    for kind in KINDS:
        file = sorted(finished.glob(kind))[0]
        flip(file)
        try:
            assert differing(finished) == {str(file.relative_to(finished))}
        finally:
            flip(file)


@pytest.fixture(scope="module")
def kept() -> dict[str, Path]:
    return {}


@pytest.fixture
def finished(
    ray_session: None,
    tree: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
    kept: dict[str, Path],
) -> Path:
    """A run of this module; what a test damages it repairs."""
    if "run" not in kept:
        place = tmp_path_factory.mktemp("finished") / "run"
        tree["output"]["path"] = str(place)
        shutil.copy(tree["metrics"]["public"]["data"], place.parent / "public.parquet")
        tree["metrics"]["public"]["data"] = str(place.parent / "public.parquet")
        kept["run"] = Path(str(evolve(Config.from_dict(tree))))
    return kept["run"]


class Stopped(Exception):
    """Stands for a kill."""


def test_what_a_killed_start_left_is_not_trusted_either(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before a manifest, so only the parts' marks tell; embeddings too."""
    tree.pop("teacher")
    tree["embedder"] = {"kind": "pixels", "size": 6}
    config = Config.from_dict(tree)
    run = Path(str(evolve(config)))
    before = held_by(run)
    ledger = (run / "ledger.sqlite").read_bytes()
    shutil.rmtree(run)
    run.mkdir()
    (run / "ledger.sqlite").write_bytes(ledger)

    from pe_ray.runtime import stages

    kept_commit = stages.commit

    def stop(directory: Path, *arguments: Any) -> None:
        if directory == run / doomed:
            raise Stopped
        kept_commit(directory, *arguments)

    for doomed in ("embeddings/iter=0001", "populations/iter=0001", "synthetic"):
        with monkeypatch.context() as patched:
            patched.setattr(stages, "commit", stop)
            with pytest.raises(Stopped):
                evolve(config)
        parts = sorted((run / doomed).glob("part-*"))
        assert len(parts) == 3
        for part, place in zip(parts, (0.05, 0.5, 0.99), strict=True):
            flip(part, place)
    evolve(config)
    assert held_by(run) == before


def test_no_flip_in_a_part_is_silent(finished: Path, tmp_path: Path) -> None:
    """500 flips all over a part of the final set, and of S_T."""
    from pe_ray.files.parts import require_whole

    rng = random.Random(0)
    for folder in ("synthetic", "populations/iter=0002"):
        copied = tmp_path / folder
        shutil.copytree(finished / folder, copied)
        part = sorted(copied.glob("part-*"))[0]
        whole = part.read_bytes()
        for _ in range(500):
            held = bytearray(whole)
            held[rng.randrange(len(held))] ^= 1 << rng.randrange(8)
            part.write_bytes(held)
            with pytest.raises(DamagedFileError):
                require_whole(copied)
        part.write_bytes(whole)
        require_whole(copied)


def test_a_run_of_a_version_without_digests_still_opens(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    shutil.copytree(finished, run)
    for manifest in run.rglob(MANIFEST):
        stated = json.loads(manifest.read_bytes())
        del stated["digest"]
        for part in stated["parts"]:
            del part["digest"]
        manifest.write_text(json.dumps(stated, indent=1))
    for digest in run.rglob(".*.sha256"):
        digest.unlink()
    expand(run, 30, tmp_path / "more")
    write_report(run)
    part = sorted(run.glob("populations/iter=0002/part-*"))[0]
    part.write_bytes(b"PAR1" + bytes(part.stat().st_size - 4))
    with pytest.raises(InputError) as damaged:
        write_report(run)
    assert str(part) in str(damaged.value)
