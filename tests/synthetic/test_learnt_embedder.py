"""The embedder that a run learns: from public images alone, once, the same wherever it is made."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import run_in
from tiny_public import save_parquet
from undisturbed import content

from pe_ray import Config, InputError
from pe_ray.components.embedders.label_features import LearntFeatures, LearntFeaturesOptions
from pe_ray.evolution import evolve
from pe_ray.plugins import load
from pe_ray.release import door
from pe_ray.release.ledger import Ledger
from pe_ray.tuning.search import Search


@pytest.fixture
def learning(tree: dict[str, Any]) -> dict[str, Any]:
    tree["embedder"] = {"kind": "label_features", "num_images": 200, "features": 6, "epochs": 1}
    tree["selection"] = {"denoise": "simplex", "smooth": 8}
    return tree


@pytest.mark.slow
def test_a_run_stopped_anywhere_learns_what_its_replay_learns(
    ray_session: None,
    learning: dict[str, Any],
    tmp_path: Path,
    private_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = save_parquet(tmp_path / "data", [*"0123456789"], 5)  # of a file, what would be cached
    learning["private"]["data"] = str(data)
    votes = door.Door.votes

    def dies(self: door.Door, embedding: Any) -> Any:
        if embedding.iteration == 2:
            raise KeyboardInterrupt
        return votes(self, embedding)

    with monkeypatch.context() as patched:
        patched.setattr(door.Door, "votes", dies)
        with pytest.raises(KeyboardInterrupt):
            evolve(Config.from_dict(learning))
    run = evolve(Config.from_dict(learning))
    first, features = content(run), [*(run / "features").glob("*.npz")]
    assert len(features) == 1
    assert not list(private_cache.rglob("*.npz"))  # private embeddings are of this run alone
    smoothed = {file.name: file.read_bytes() for file in (run / "smoothed").glob("iter*")}
    assert len(smoothed) == 2
    learnt = features[0].read_bytes()
    shutil.copy(run / "ledger.sqlite", tmp_path / "kept.sqlite")
    shutil.rmtree(run)
    run.mkdir()
    shutil.copy(tmp_path / "kept.sqlite", run / "ledger.sqlite")
    learning["resources"] = {"num_cpus": 2, "workers": 2, "batch_size": 7}
    evolve(Config.from_dict(learning))  # all is released: learnt again for the averages alone
    assert features[0].read_bytes() == learnt
    assert {file.name: file.read_bytes() for file in (run / "smoothed").glob("iter*")} == smoothed
    assert content(run) == first


def test_it_learns_before_it_reads_a_record(ray_session: None, learning: dict[str, Any]) -> None:
    """And a mistake that is found after it is mended in place."""
    data = learning["private"]["data"]
    learning["private"]["data"] = "/nowhere"
    with pytest.raises(InputError, match=r"private\.data: /nowhere does not exist"):
        evolve(Config.from_dict(learning))
    run = Path(learning["output"]["path"])
    assert len(list((run / "features").glob("*.npz"))) == 1
    assert not Ledger.open(run / "ledger.sqlite").charged
    learning["private"]["data"] = data
    learning["schedule"]["iterations"], learning["schedule"]["degrees"] = 1, 0.5
    evolve(Config.from_dict(learning))


def learnt(config: Config) -> LearntFeaturesOptions:
    options: LearntFeaturesOptions = run_in(Path(config.output.path), config).embedder.options
    return options


@pytest.mark.slow
def test_another_generator_has_another_embedder(
    ray_session: None, learning: dict[str, Any]
) -> None:
    files = set()
    for change in ({}, {"image_size": 10}, {"rotation": [0, 5]}):
        learning["generator"] |= change
        for key, value in (("features", 6), ("features", 7), ("epochs", 2)):
            learning["embedder"][key] = value
            made = learnt(Config.from_dict(learning))
            files.add(made.file)
        learning["embedder"] |= {"features": 6, "epochs": 1}
    assert len(files) == 9


@pytest.mark.slow
def test_what_shares_a_label_lies_near(ray_session: None, learning: dict[str, Any]) -> None:
    """On images that it never saw, larger than those that it learnt from."""
    learning["generator"]["image_size"] = 24
    learning["embedder"] |= {"num_images": 3000, "features": 32, "size": 16}
    config = Config.from_dict(learning)
    embedder = LearntFeatures(learnt(config))
    kind = config.generator_at(0)
    text = load("generator", kind.kind)(kind.options, config.private.labels)
    labels = (np.arange(600) % 10).astype(np.int32)
    images = text.random(labels, np.arange(600, dtype=np.uint64))["image"]
    features = embedder.embed(images)
    assert np.linalg.norm(features, axis=1) == pytest.approx(np.ones(600), abs=1e-5)
    pixels = load("embedder", "pixels")(load("embedder", "pixels").Options(size=14, blur=1.0))

    def shared(vectors: np.ndarray) -> float:
        likeness = vectors @ vectors.T
        np.fill_diagonal(likeness, -np.inf)
        return float((labels[likeness.argmax(axis=1)] == labels).mean())

    assert shared(features) > shared(pixels.embed(images)) > 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"private": {"label_column": None, "labels": ["0"]}}, "at least two private.labels"),
        ({"votes": {"metric": "inner_product"}}, "votes.metric: l2 or cosine"),
        ({"embedder": {"features": 1}}, "embedder.features"),
        (
            {"metrics": {"audit": [{"kind": "frechet", "embedder": {"kind": "label_features"}}]}},
            "label_features is learnt by each run for its votes; name another",
        ),
        (
            {
                "generator": {
                    "kind": "nearest_image",
                    "data": "/public",
                    "image_size": 8,
                    "embedder": {"kind": "label_features"},
                }
            },
            "label_features is learnt by each run for its votes; name another",
        ),
    ],
)
def test_where_it_can_not_be_used_is_said(
    learning: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    learning["metrics"] = {}
    for block, values in change.items():
        learning[block] = learning[block] | values if block != "generator" else values
    with pytest.raises(InputError, match=re.escape(message)):
        Config.from_dict(learning)


def test_moments_of_a_search_need_an_embedder_that_all_trials_share(
    learning: dict[str, Any],
) -> None:
    learning["tuning"] = {
        "strategy": "compose",
        "space": {"votes.neighbors": [1, 2]},
        "objective": {"kind": "moments"},
    }
    with pytest.raises(InputError, match=r"tuning\.objective\.embedder: needed"):
        Search.from_dict(learning)
    learning["tuning"]["objective"]["embedder"] = {"kind": "pixels"}
    Search.from_dict(learning)


def test_a_row_does_not_depend_on_the_rows_beside_it(
    ray_session: None, learning: dict[str, Any]
) -> None:
    """To the last bit: else a private record would move the votes of others."""
    learning["embedder"]["num_images"] = 1000
    embedder = LearntFeatures(learnt(Config.from_dict(learning)))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (150, 12, 12, 1), dtype=np.uint8)
    images[::3] = 0
    whole = embedder.embed(images)
    for size in (1, 2, 63, 64, 65, 149):
        rows = rng.permutation(150)[:size]
        assert np.array_equal(embedder.embed(images[rows]), whole[rows])
