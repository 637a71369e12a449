"""Embeddings are the same whoever makes them and in whatever parts, and none is made twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import run_in

from pe_ray import Config
from pe_ray.files.parts import MANIFEST, list_parts
from pe_ray.run_context import RunContext
from pe_ray.synthetic import embedding
from pe_ray.synthetic.embedding import embed, embed_while_varying
from pe_ray.synthetic.population import Population, apportion
from pe_ray.synthetic.variation import draw_population

VOTES = [
    {"lookahead": 0},
    {"lookahead": 3},
    {"lookahead": 2, "reuse_lookahead": True},
]


def drawn(run: RunContext, *, embed_next: bool = False) -> Population:
    layout = apportion(run.config.schedule.sizes[0], (0.1,) * 10)
    return draw_population(run, layout, embed_next=embed_next)


def content(*folders: Path) -> dict[str, bytes]:
    return {
        f"{folder.name}/{file.name}": file.read_bytes()
        for folder in folders
        for file in sorted(folder.glob("part-*"))  # manifests hold times
    }


def times(folder: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("part-*")}


@pytest.mark.parametrize("votes", VOTES)
def test_embedded_while_made_is_embedded_from_files(
    ray_session: None,
    tree: dict[str, Any],
    tmp_path: Path,
    votes: dict[str, Any],
) -> None:
    config = Config.from_dict(tree | {"votes": votes})
    later = run_in(tmp_path / "later", config)
    embed(later, drawn(later)).parts()
    at_once = run_in(tmp_path / "at_once", config)
    population = drawn(at_once, embed_next=True)
    made = times(at_once.directory.path)
    embed(at_once, population).parts()
    assert times(at_once.directory.path) == made  # nothing was left to make
    found, expected = (
        content(run.directory.embedding(1), run.directory.lookahead(1)) for run in (at_once, later)
    )
    assert found == expected
    assert len(list_parts(later.directory.embedding(1))) == 3
    kept = any("lookahead" in str(file) for file in later.directory.path.rglob("part-*"))
    assert kept == votes.get("reuse_lookahead", False)


def test_only_missing_parts_are_embedded_again(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    config = Config.from_dict(tree | {"votes": {"lookahead": 2, "reuse_lookahead": True}})
    run = run_in(tmp_path, config)
    population = drawn(run)
    target, kept = run.directory.embedding(1), run.directory.lookahead(1)
    embed(run, population).parts()
    whole = content(target, kept)
    lost = target / list_parts(target)[1].file
    for file in (lost, target / MANIFEST, kept / MANIFEST):
        file.unlink()
    before = times(target)
    embed(run, population).parts()
    assert before == {name: time for name, time in times(target).items() if name != str(lost)}
    assert content(target, kept) == whole


def test_parts_and_batches_do_not_reach_an_embedding(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for rows, batch in ((17, 256), (40, 7), (1, 1)):
        tree["output"]["rows_per_part"], tree["resources"]["batch_size"] = rows, batch
        config = Config.from_dict(tree)
        run = run_in(tmp_path / str(rows), config)
        found.append([np.load(file) for file, *_ in embed(run, drawn(run)).parts()])
    first, *others = map(np.concatenate, found)
    assert first.shape == (40, 36)
    for other in others:
        assert np.array_equal(other, first)


def test_another_generators_lookahead_is_not_drawn_beside(tree: dict[str, Any]) -> None:
    thick = {"kind": "rendered_text", "image_size": 12, "stroke": [0.2, 0.3]}
    stages = [{"start": 0, "generator": tree["generator"]}, {"start": 2, "generator": thick}]
    tree["generator"] = {"kind": "switch", "stages": stages}
    for lookahead, beside in ((1, [True, False]), (0, [True, True])):
        config = Config.from_dict(tree | {"votes": {"lookahead": lookahead}})
        given = [embed_while_varying(run_in(Path("unused"), config), t) for t in (1, 2)]
        assert [made is not None for made in given] == beside


def test_values_that_are_not_finite_are_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    config = Config.from_dict(tree | {"votes": {}, "embedder": {"kind": "outside:NoNumbers"}})
    worker = embedding.EmbeddingWorker(run_in(tmp_path, config), 1, tmp_path)
    with pytest.raises(ValueError, match="non-finite"):
        worker.write({"image": np.zeros((3, 12, 12, 1), np.uint8)}, 0, 3)
    assert not list(tmp_path.rglob("part-*"))
