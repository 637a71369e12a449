"""Embeddings are the same whoever makes them and in whatever parts, and none is made twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pe_ray import Config
from pe_ray.files.parts import parts_of
from pe_ray.runtime import stages as stage
from pe_ray.synthetic import embedding
from pe_ray.synthetic.embedding import embed, embedding_beside
from pe_ray.synthetic.population import Population, apportion, initial_offspring
from pe_ray.synthetic.variation import make_population

VOTES = [
    {"lookahead": 0},
    {"lookahead": 3},
    {"lookahead": 2, "reuse_lookahead": True},
]


def drawn(config: Config, folder: Path, then: Any = None) -> Population:
    layout = apportion(config.schedule.sizes[0], (0.1,) * 10)
    offspring = initial_offspring(layout, 0)
    return make_population(config, folder / "population", 0, offspring, None, None, then)


def content(*folders: Path) -> dict[str, bytes]:
    return {
        f"{folder.name}/{file.name}": file.read_bytes()
        for folder in folders
        for file in sorted(folder.glob("part-*"))  # manifests hold times
    }


@pytest.mark.parametrize("votes", VOTES)
def test_embedded_while_made_is_embedded_from_files(
    ray_session: None,
    tree: dict[str, Any],
    tmp_path: Path,
    votes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Config.from_dict(tree | {"votes": votes})
    plain = drawn(config, tmp_path / "plain")
    target, kept = tmp_path / "later" / "e", tmp_path / "later" / "kept"
    embed(config, target, 1, plain, kept)
    beside = tmp_path / "beside"
    then = embedding_beside(config, beside / "e", 1, beside / "population", beside / "kept")
    both = drawn(config, beside, then)
    monkeypatch.setattr(stage, "_make", None)  # nothing is left to make
    embed(config, beside / "e", 1, both, beside / "kept")
    assert content(beside / "e", beside / "kept") == content(target, kept)
    assert len(parts_of(target)) == 3
    assert bool(list(kept.glob("*"))) == votes.get("reuse_lookahead", False)


def test_only_missing_parts_are_embedded_again(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.from_dict(tree | {"votes": {"lookahead": 2, "reuse_lookahead": True}})
    population = drawn(config, tmp_path)
    target, kept = tmp_path / "e", tmp_path / "kept"
    embed(config, target, 1, population, kept)
    whole = content(target, kept)
    for lost in (target / parts_of(target)[1].file, target / ".manifest.json"):
        lost.unlink()
    (kept / ".manifest.json").unlink()
    made, asked = stage._make, []

    def counted(requests: Any, *given: Any) -> Any:
        asked.extend(request["start"] for request in requests)
        return made(requests, *given)

    monkeypatch.setattr(stage, "_make", counted)
    embed(config, target, 1, population, kept)
    assert asked == [17]
    assert content(target, kept) == whole


def test_parts_and_batches_do_not_reach_an_embedding(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for rows, batch in ((17, 256), (40, 7), (1, 1)):
        tree["output"]["rows_per_part"], tree["resources"]["batch_size"] = rows, batch
        config = Config.from_dict(tree)
        folder = tmp_path / str(rows)
        made = embed(config, folder / "e", 1, drawn(config, folder), folder / "kept")
        found.append([np.load(folder / "e" / part.file) for part in parts_of(made.directory)])
    first, *others = map(np.concatenate, found)
    assert first.shape == (40, 36)
    for other in others:
        assert np.array_equal(other, first)


def test_another_generators_lookahead_is_not_drawn_beside(tree: dict[str, Any]) -> None:
    thick = {"kind": "rendered_text", "image_size": 12, "stroke": [0.2, 0.3]}
    stages = [{"start": 0, "generator": tree["generator"]}, {"start": 2, "generator": thick}]
    tree["generator"] = {"kind": "switch", "stages": stages}
    folder = Path("unused")
    for lookahead, beside in ((1, [True, False]), (0, [True, True])):
        config = Config.from_dict(tree | {"votes": {"lookahead": lookahead}})
        given = [embedding_beside(config, folder, t, folder, folder) for t in (1, 2)]
        assert [made is not None for made in given] == beside


def test_values_that_are_not_finite_are_refused(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def embed(self, images: np.ndarray) -> np.ndarray:
            return np.full((len(images), 2), np.nan, dtype=np.float32)

    monkeypatch.setattr(embedding, "loaded", lambda *_: Broken())
    config = Config.from_dict(tree | {"votes": {}})
    worker = embedding.EmbeddingWorker(config, 1, str(tmp_path), str(tmp_path), None)
    with pytest.raises(ValueError, match="non-finite"):
        worker.write({"image": np.zeros((3, 12, 12, 1), np.uint8)}, 0, 3)
    assert not list(tmp_path.glob("part-*"))
