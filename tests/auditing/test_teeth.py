"""The attack has teeth: sabotaged builds are refuted, the real one never is.

Each sabotage replaces one piece where it really runs (the aggregator's process, the vote tasks, the
loop); the ledger goes on claiming what an honest build would. Confidence 0.9999, so that a false
alarm in these 27 attacks has a chance below 0.3 %; in fact far below, since the bounds are strict.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from numpy.typing import NDArray

from pe_ray import Config, evolution, planning
from pe_ray.auditing.game import Verdict, judge, play, score_canaries
from pe_ray.private.record_embeddings import join_users
from pe_ray.private.votes import RawVotes, bounded_votes, nearest_samples
from pe_ray.release import aggregator, door
from pe_ray.release.aggregator import Aggregator
from pe_ray.release.ledger import Ledger
from pe_ray.release.mechanism import discrete_gaussian
from pe_ray.release.releases import Votes
from pe_ray.runtime.run_directory import RunDirectory
from pe_ray.values import NoisyHistogram, Release

# Workers can't import test modules, so what they run of this one travels by value.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

CONFIDENCE = 0.9999
Noise = Callable[..., NDArray[np.int64]]
pytestmark = pytest.mark.slow


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """One release, a population of 2,000: attacked in seconds."""
    return {
        "private": {"data": "/no/private/data", "labels": ["0", "1"], "user_column": "user"},
        "generator": {
            "kind": "rendered_text",
            "image_size": 12,
            "elastic": 0.0,
            "forms": ["outline"],
            "fit": False,
        },
        "embedder": {"kind": "pixels", "size": 12, "normalize": False},
        "schedule": {"iterations": 1, "num_samples": [2000, 50], "degrees": 0.5},
        "privacy": {
            "epsilon": 4.0,
            "delta": 1e-5,
            "unit": "record",
            "label_fractions": "uniform",
        },
        "resources": {"num_cpus": 2},
        "output": {"path": str(tmp_path / "unused")},
    }


def attacked(tree: dict[str, Any], folder: Path, restarts: int = 0) -> Verdict:
    return judge(play(Config.from_dict(tree), folder, restarts=restarts), CONFIDENCE)


class NoisyAggregator(Aggregator):
    """Draws its noise by another function."""

    def __init__(self, path: Path, noise: Noise) -> None:
        super().__init__(path)
        aggregator.discrete_gaussian = noise  # type: ignore[attr-defined]


def with_noise(noise: Noise) -> Callable[[Path], Any]:
    return lambda path: ray.remote(NoisyAggregator).options(num_cpus=0).remote(path, noise)


def halved(sigma: float, size: int, **_: Any) -> NDArray[np.int64]:
    return discrete_gaussian(sigma / 2, size)


def averaged(sigma: float, size: int, **_: Any) -> NDArray[np.int64]:
    both = discrete_gaussian(sigma, size) + discrete_gaussian(sigma, size)
    return np.rint(both / 2).astype(np.int64)


def test_the_real_build_stands_twenty_times(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    for number in range(20):
        tree["schedule"] |= {"iterations": 1 + number % 2}
        tree["schedule"]["num_samples"] = [2000, 50] if number % 2 == 0 else [1000, 1000, 50]
        verdict = attacked(tree, tmp_path / str(number), restarts=int(number < 2))
        assert not verdict.refuted, verdict
        assert verdict.claimed <= 4.0
        if number % 2 == 0:
            assert verdict.measured > 1.0, "an attack without power"
            assert verdict.measured >= verdict.assumption_free > 0


def test_halved_noise(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "create_aggregator", with_noise(halved))
    verdict = attacked(tree, tmp_path / "attack")
    assert verdict.refuted, verdict


def test_noise_drawn_twice_and_averaged(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A factor sqrt(2) only takes more canaries, and a larger sigma, so that rounding is little."""
    monkeypatch.setattr(door, "create_aggregator", with_noise(averaged))
    tree["privacy"]["epsilon"] = 2.0
    tree["schedule"]["num_samples"] = [16_000, 50]
    verdict = attacked(tree, tmp_path / "attack")
    assert verdict.refuted, verdict


def clean(release: Release, num_bins: int, partials: Sequence[ray.ObjectRef]) -> NDArray[np.int64]:
    counts = np.zeros(num_bins, dtype=np.int64)
    for partial in partials:
        Votes.add(release, counts, ray.get(partial))
    return counts


class LeakyAggregator(Aggregator):
    """Stores the noisy histogram and answers with the clean one."""

    def release(self, release: Release, num_values: int, partials: Sequence[ray.ObjectRef]) -> Any:
        noisy = super().release(release, num_values, partials)
        return replace(noisy, noisy_votes=clean(release, num_values, partials))


def test_the_clean_histogram_leaked_into_selection(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every histogram that is published is noisy: it takes the parents to see it."""
    monkeypatch.setattr(
        door,
        "create_aggregator",
        lambda path: ray.remote(LeakyAggregator).options(num_cpus=0).remote(path),
    )
    write = RunDirectory.write_histogram

    def published(run: RunDirectory, histogram: NoisyHistogram, layout: Any) -> None:
        stored = Ledger.open(run.ledger).released(histogram.release.key)
        assert stored is not None
        write(run, stored, layout)

    monkeypatch.setattr(RunDirectory, "write_histogram", published)
    tree["schedule"]["num_samples"] = [2000, 4000]
    # Children are not independent; the bound that needs no independence ends near 3.8 here.
    tree["privacy"]["epsilon"] = 1.0
    verdict = attacked(tree, tmp_path / "attack")
    assert verdict.refuted, verdict
    for bound in verdict.bounds:
        assert (bound.epsilon > verdict.claimed) == (bound.statistic == "parents"), bound


def per_label(
    parts: Any, layout: Any, settings: Any, limit: int, on_gpu: bool, *pieces: Any
) -> RawVotes:
    """Users' votes bounded within each label: the mistake of the reference implementation."""
    choices = nearest_samples(pieces, parts, layout, settings, on_gpu=on_gpu)
    labels = np.concatenate([piece.labels for piece in pieces])
    users = join_users(pieces)
    assert users is not None
    found = [
        bounded_votes(choices[labels == label], users[labels == label], limit)
        for label in np.unique(labels)
    ]
    return RawVotes(
        ids=np.concatenate([votes.ids for votes in found]),
        counts=np.concatenate([votes.counts for votes in found]),
        votes_per_unit=limit,
    )


def test_user_votes_bounded_per_label_only(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cast(
        records: Any, parts: Any, layout: Any, settings: Any, limit: int, *_: Any
    ) -> list[ray.ObjectRef]:
        task = ray.remote(num_cpus=1)(per_label)
        return [
            task.remote(tuple(parts), layout, settings, limit, False, *pieces)
            for pieces in records.partitions
        ]

    tree["privacy"]["unit"] = "user"
    tree["private"]["labels"] = [str(digit) for digit in range(8)]
    tree["schedule"]["num_samples"] = [6000, 50]
    honest = attacked(tree, tmp_path / "honest")
    assert not honest.refuted, honest
    monkeypatch.setattr(door, "cast_votes", cast)
    verdict = attacked(tree, tmp_path / "attack")
    assert verdict.refuted, verdict


class RedrawingAggregator(Aggregator):
    """Charges as it should, but draws for every call."""

    def release(self, release: Release, num_values: int, partials: Sequence[ray.ObjectRef]) -> Any:
        super().release(release, num_values, partials)
        drawn = discrete_gaussian(release.sigma, num_values)
        return NoisyHistogram(
            release=release, noisy_votes=clean(release, num_values, partials) + drawn
        )


def test_a_resumed_run_that_redraws(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        door,
        "create_aggregator",
        lambda path: ray.remote(RedrawingAggregator).options(num_cpus=0).remote(path),
    )
    for look in ("released", "stored"):  # the loop's look, not the actor's
        monkeypatch.setattr(Ledger, look, lambda self, key: None)
    verdict = attacked(tree, tmp_path / "attack", restarts=3)
    assert verdict.refuted, verdict


def test_the_sensitivity_of_neighbours_forgotten(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise for one vote, though every record gives nine."""
    tree["votes"] = {"neighbors": 9}
    tree["schedule"]["num_samples"] = [8000, 50]
    planned = planning.plan_releases

    def forgetful(config: Config) -> tuple[Release, ...]:
        votes = config.votes.model_copy(update={"neighbors": 1})
        return planned(config.model_copy(update={"votes": votes}))

    honest = attacked(tree, tmp_path / "honest")
    assert not honest.refuted, honest
    monkeypatch.setattr(evolution, "plan_releases", forgetful)
    monkeypatch.setattr(door, "Votes", SimpleNamespace(limit=lambda config: 1))
    verdict = attacked(tree, tmp_path / "attack")
    assert verdict.refuted, verdict


def seeded(sigma: float, size: int, **_: Any) -> NDArray[np.int64]:
    return discrete_gaussian(sigma, size, entropy=np.random.default_rng(0).bytes)


def test_seeded_noise(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacker knows the seed, as whoever reads the configuration would, and subtracts."""
    monkeypatch.setattr(door, "create_aggregator", with_noise(seeded))
    tree["privacy"]["epsilon"] = 1.0
    game = play(Config.from_dict(tree), tmp_path / "attack", restarts=0)
    cleaned = [
        [drawn - seeded(release.sigma, len(drawn)) for drawn in starts]
        for release, starts in zip(game.releases, game.histograms, strict=True)
    ]
    scores = score_canaries(replace(game, histograms=cleaned), "histograms")
    verdict = judge(game, CONFIDENCE, {"histograms": scores})
    assert verdict.refuted, verdict
    assert verdict.assumption_free > verdict.claimed
