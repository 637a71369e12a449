"""Class Gaussians: what a record adds, what comes back from the sums, and a run that draws."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pe_ray import Config, InputError
from pe_ray.auditing.game import play
from pe_ray.components.generators.gaussians import (
    ClassMoments,
    Coefficients,
    CoefficientsOptions,
    Gaussians,
    GaussiansOptions,
    shrink,
)
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.files.parts import list_parts
from pe_ray.plugins.seeds import row_seeds
from pe_ray.release.evidence import open_run, require_newest
from pe_ray.release.ledger import Ledger
from pe_ray.synthetic.population_files import read_population
from pe_ray.tuning.checks import check_search
from pe_ray.tuning.search import Search

MOMENTS = ClassMoments(num_labels=2, dim=4)


@pytest.mark.parametrize("channels", [1, 3])
def test_no_image_has_coefficients_longer_than_one(channels: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.choice(np.array([0, 255], dtype=np.uint8), (50, 9, 7, channels))
    images[0], images[1] = 0, 255
    embedder = Coefficients(CoefficientsOptions(side=7))
    found = embedder.embed(images).astype(np.float64)
    lengths = np.linalg.norm(found, axis=1)
    assert lengths.max() <= 1 + 1e-6
    assert lengths[:2] == pytest.approx([1, 1], abs=1e-6)
    assert np.array_equal(embedder.embed(images[3:4]), found[3:4].astype(np.float32))


@pytest.mark.parametrize("length", [0.0, 0.3, 1.0, 7.0])
def test_a_record_adds_a_vector_of_norm_one_at_most(length: float) -> None:
    points = np.random.default_rng(0).standard_normal((20, 4))
    points *= length / np.linalg.norm(points, axis=1, keepdims=True)
    vectors = MOMENTS.map_records(points, np.zeros(20, dtype=np.int32))
    assert vectors.shape == (20, MOMENTS.num_values)
    norms = np.linalg.norm(vectors, axis=1)
    assert norms.max() <= 1 + 1e-12
    if length >= 1:
        assert norms == pytest.approx(np.ones(20))
    assert not vectors[:, MOMENTS.num_values // 2 :].any()  # of the other label


def test_without_noise_the_estimates_are_the_moments() -> None:
    rng = np.random.default_rng(1)
    points = rng.standard_normal((400, 4)) * [0.08, 0.04, 0.02, 0.04] + [0.3, 0, 0, -0.2]
    labels = (np.arange(400) % 2).astype(np.int32)
    points[labels == 1] *= [1, -1, 2, 0.5]
    means, roots = MOMENTS.estimate(MOMENTS.map_records(points, labels).sum(axis=0), 0.0)
    for label in range(2):
        own = points[labels == label]
        assert means[label] == pytest.approx(own.mean(axis=0), abs=1e-9)
        covariance = roots[label].T @ roots[label]
        assert covariance == pytest.approx(np.cov(own, rowvar=False, bias=True), abs=1e-9)


def test_nothing_but_noise_gives_usable_gaussians() -> None:
    sums = 50 * np.random.default_rng(2).standard_normal(MOMENTS.num_values)
    means, roots = MOMENTS.estimate(sums, 50.0)
    assert np.isfinite(roots).all()
    assert np.linalg.norm(means, axis=1).max() <= 1 + 1e-9


def test_shrinking_is_nearer_to_the_truth_than_what_was_seen() -> None:
    rng = np.random.default_rng(3)
    truth = np.diag([40.0, -30.0, *[0.0] * 38])
    noise = rng.standard_normal((40, 40))
    seen = truth + (noise + noise.T) / 2  # diagonal 1, off it 1 / sqrt(2)
    assert np.linalg.norm(shrink(seen, 1.0) - truth) < 0.5 * np.linalg.norm(seen - truth)
    assert shrink(truth, 0.0) == pytest.approx(truth)
    assert not shrink(seen - truth, 1.2).any()


def drawing(options: GaussiansOptions, folder: Path) -> Gaussians:
    """A generator with sums of images that are dark (label 0) or bright on the left (label 1)."""
    rng = np.random.default_rng(4)
    images = rng.integers(60, 100, (300, 8, 8, 1)).astype(np.uint8)
    labels = (np.arange(300) % 2).astype(np.int32)
    images[labels == 1, :, :4] += 120
    sums = options.private_sums(2)
    embedder = Coefficients(sums.embedder.options)
    features = embedder.embed(images).astype(np.float64)
    file = folder / "sums.npz"
    total = sums.statistic.map_records(features, labels).sum(axis=0)
    np.savez(file, sums=total, sigma=np.array(0.0))
    return Gaussians(options.with_sums(str(file)), ["dark", "bright"])


def test_draws_show_their_label_and_variations_keep_the_distribution(tmp_path: Path) -> None:
    generator = drawing(GaussiansOptions(image_size=8, coefficients=4), tmp_path)
    labels = (np.arange(600) % 2).astype(np.int32)
    seeds = row_seeds(0, "random", 0, np.arange(600))
    rows = {**generator.random(labels, seeds), "label": labels}
    left = rows["image"][:, :, :4].mean(axis=(1, 2, 3))
    assert (left[labels == 1] > left[labels == 0].max()).all()
    again = row_seeds(0, "variation", 1, np.arange(600))
    far = []
    for degree in (0.0, 0.3, 1.0):
        varied = generator.vary(rows, degree, again)["image"].astype(float)
        far.append(np.abs(varied - rows["image"]).mean())
        spread, before = (v[labels == 1].std(axis=0).mean() for v in (varied, rows["image"]))
        assert spread == pytest.approx(before, rel=0.15)
    assert far[0] == 0
    assert far[0] < far[1] < far[2]
    with pytest.raises(ValueError, match="degree"):
        GaussiansOptions(image_size=8, coefficients=4).check_degree(1.5)


@pytest.fixture
def gaussian_run(short: dict[str, Any]) -> dict[str, Any]:
    short["generator"] = {
        "kind": "gaussians",
        "image_size": 12,
        "coefficients": 4,
        "share": 0.4,
    }
    short["privacy"]["epsilon"] = 20.0
    return short


def test_a_run_draws_from_one_charged_release(
    ray_session: None, gaussian_run: dict[str, Any], tmp_path: Path
) -> None:
    config = Config.from_dict(gaussian_run)
    run = evolve(config)
    ledger = Ledger.open(run / "ledger.sqlite")
    releases = [entry.release for entry in ledger.entries()]
    assert [(r.key, r.kind, r.iteration) for r in releases] == [
        ("generator", "sums", 0),
        ("votes/0001", "votes", 1),
    ]
    shares = [r.votes_per_unit / r.sigma**2 for r in releases]
    assert shares[0] / sum(shares) == pytest.approx(0.4, rel=0.01)
    assert ledger.spent() <= 20.0

    def images(iteration: int) -> np.ndarray:
        folder = run / "populations" / f"iter={iteration:04d}"
        return read_population(folder, np.arange(40), config.generator_at(0).options)["image"]

    first, last = images(0), images(1)
    sums = run / "generator" / "sums.npz"
    released = sums.read_bytes()
    # Lost and damaged files come back from the ledger, and nothing is charged again.
    sums.write_bytes(b"damaged")
    shutil.rmtree(run / "populations" / "iter=0000")
    shutil.rmtree(run / "populations" / "iter=0001")
    evolve(config)
    assert sums.read_bytes() == released
    assert np.array_equal(images(0), first)
    assert np.array_equal(images(1), last)
    assert len(ledger.entries()) == 2
    more = expand(run, 60, tmp_path / "more")
    assert sum(part.stop - part.start for part in list_parts(more)) == 60
    sums.unlink()
    with pytest.raises(InputError, match=r"sums\.npz"):
        expand(run, 50, tmp_path / "others")
    opened = open_run(run)
    bare = Ledger.create(tmp_path / "older.sqlite", config.privacy.budget, config.fingerprint)
    with pytest.raises(InputError, match=r"lacks a release \(generator\)"):
        require_newest(bare, opened.directory, config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator": {"coefficients": 13}}, "coefficients: at most image_size"),
        (
            {"generator": {"share": 0.95}, "fractions": "dp"},
            r"generator\.share: must be below 0.95",
        ),
        ({"generator": {"share": 0.6}, "teacher": {}}, r"teacher\.share: must be below 0.4"),
        ({"embedder": "label_features"}, "embedder: label_features is learnt before"),
        ({"generator": {"image_size": 64, "coefficients": 32}}, "coefficients: too many"),
    ],
)
def test_what_cannot_draw_from_sums_is_refused(
    gaussian_run: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    gaussian_run["generator"] |= changes.get("generator", {})
    gaussian_run["privacy"]["label_fractions"] = changes.get("fractions", "uniform")
    gaussian_run["teacher"] = changes.get("teacher")
    gaussian_run["embedder"] = changes.get("embedder", "pixels")
    with pytest.raises(InputError, match=message):
        Config.from_dict(gaussian_run)


def test_two_generators_cannot_both_draw_from_sums(gaussian_run: dict[str, Any]) -> None:
    given = gaussian_run["generator"]
    stages = [
        {"start": 0, "generator": given},
        {"start": 1, "generator": {**given, "coefficients": 5}},
    ]
    gaussian_run["generator"] = {"kind": "switch", "stages": stages}
    with pytest.raises(InputError, match="only one"):
        Config.from_dict(gaussian_run)


def test_a_search_and_an_attack_refuse_a_release_that_they_do_not_plan(
    gaussian_run: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"generator\.kind: .* attack"):
        play(Config.from_dict(gaussian_run), tmp_path / "attack")
    gaussian_run["tuning"] = {"strategy": "compose", "space": {"votes.neighbors": [1, 2]}}
    gaussian_run["tuning"] |= {"objective": {"kind": "moments", "dim": 1}, "num_trials": 2}
    with pytest.raises(InputError, match=r"generator\.kind: .* search"):
        check_search(Search.from_dict(gaussian_run))
