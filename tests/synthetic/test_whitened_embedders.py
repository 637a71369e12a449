"""Whitening in a run: on public images or the generator's, never on the private ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import run_in
from tiny_public import save_public

from pe_ray import Config, InputError
from pe_ray.planning import plan
from pe_ray.plugins import build
from pe_ray.plugins.plugin_digest import digest_plugin
from pe_ray.synthetic.learnt_embedder import locate_whitened
from pe_ray.synthetic.scoring import public_tables


def options_of(config: Config) -> Any:
    return run_in(Path(config.output.path), config).embedder.options


def test_it_is_fitted_once_and_again_for_other_images(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    public = save_public(tmp_path / "public", ["a", "b"], 60)
    whiten = {"data": str(public), "num_images": 100, "dims": 9}
    tree["embedder"]["whiten"] = whiten
    config = Config.from_dict(tree)
    assert [table.name_field("data") for table, _ in public_tables(config)] == [
        "embedder.whiten.data"
    ]
    found = options_of(config)
    content = Path(found.file).read_bytes()
    times = Path(found.file).stat().st_mtime_ns
    assert options_of(config) == found
    assert Path(found.file).stat().st_mtime_ns == times
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 1), dtype=np.uint8)
    whitened = run_in(Path(config.output.path), config).embedder
    vectors = build("embedder", whitened.kind, whitened.options).embed(images)
    assert vectors.shape == (5, 9) == (5, config.embedder.dim(config.image_shape))
    for change in ({"dims": 8}, {"data": "population"}):
        tree["embedder"]["whiten"] = whiten | change
        assert Path(options_of(Config.from_dict(tree)).file).read_bytes() != content
    drawn = plan(Config.from_dict(tree)).random_calls
    tree["embedder"].pop("whiten")
    assert drawn == plan(Config.from_dict(tree)).random_calls + 100


@pytest.mark.parametrize("public", [True, False])
def test_seeds_share_what_public_images_fit(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, public: bool
) -> None:
    """So the private records' cached embeddings serve the next seed."""
    data = str(save_public(tmp_path / "public", ["a"], 100)) if public else "population"
    tree["embedder"]["whiten"] = {"data": data, "num_images": 100, "dims": 4}
    digests = set()
    for seed in (0, 1):
        tree["schedule"]["seed"] = seed
        found = run_in(tmp_path / f"run-{seed}", Config.from_dict(tree)).embedder
        digests.add(digest_plugin("embedder", found.kind, found.options))
    assert (len(digests) == 1) is public


def test_votes_and_a_teacher_share_a_whitening_of_the_same_size(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    """Whether its size is written or left to the default. So private images are embedded once."""
    whiten = {"data": str(save_public(tmp_path / "public", ["a"], 300))}
    embedder = {"kind": "gradients", "whiten": whiten}
    tree |= {"embedder": embedder, "teacher": {"features": 256, "embedder": embedder}}
    config = Config.from_dict(tree)
    run = run_in(tmp_path / "run", config)
    assert locate_whitened(config, run.directory, config.teacher.whitened) == run.embedder


def test_a_stored_configuration_is_read_as_it_was(tree: dict[str, Any]) -> None:
    tree["teacher"] = {
        "features": 32,
        "embedder": {"kind": "gradients", "whiten": {"data": "population"}},
    }
    config = Config.from_dict(tree)
    assert Config.from_dict(config.tree()).fingerprint == config.fingerprint
    assert config.teacher.whitened.dim(config.image_shape) == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedder": {"kind": "pixels", "whiten": {}}}, r"embedder\.whiten\.data"),
        ({"embedder": {"kind": "pixels", "whiten": {"data": "p", "dim": 3}}}, r"whiten.*dims"),
        (
            {"embedder": {"kind": "label_features", "whiten": {"data": "population"}}},
            "embedder.whiten: label_features is whitened already",
        ),
        (
            {"embedder": {"kind": "pixels", "whiten": {"data": "sklearn:digits"}}},
            r"embedder\.whiten\.data: is private\.data",
        ),
        ({"teacher": {"embedder": {"kind": "gradients"}}}, r"teacher\.embedder\.whiten: needed"),
        ({"teacher": {"embedder": "label_features"}}, r"teacher\.embedder: label_features is for"),
        (
            {
                "teacher": {
                    "features": 9,
                    "embedder": {"kind": "pixels", "whiten": {"data": "population", "dims": 8}},
                }
            },
            r"teacher\.embedder\.whiten\.dims: are the teacher's",
        ),
        (
            {
                "metrics": {
                    "audit": [
                        {
                            "kind": "frechet",
                            "embedder": {"kind": "pixels", "whiten": {"data": "population"}},
                        }
                    ]
                }
            },
            "whiten is learnt by each run",
        ),
    ],
)
def test_where_it_can_not_be_is_said(
    tree: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Config.from_dict(tree | change)
