"""Each channel has teeth: a seeded leak shows in it, and honest noise stays within the claim.

Private Evolution on points of a plane: votes, noise, selection and variation as in a run, without
Ray. Records that vote and held-out ones are drawn alike, unless a test shifts the latter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pe_ray.auditing.bounds import tradeoff
from pe_ray.auditing.drawn_records import find_nearest
from pe_ray.auditing.membership import (
    Trace,
    allow_by_claim,
    bound_epsilon,
    judge_channels,
    measure_scores,
    predict_members,
    score_votes,
    share_nearer,
    share_out,
    weigh_units,
)
from pe_ray.release.accounting import epsilon_of
from pe_ray.release.mechanism import discrete_gaussian
from pe_ray.values import LabelLayout, Release

RECORDS, SAMPLES, ITERATIONS, SIGMA, DELTA = 2000, 2000, 2, 8.0, 1e-5
RELEASES = [
    Release(key=f"votes/{t}", kind="votes", iteration=t, votes_per_unit=1, sigma=SIGMA)
    for t in range(ITERATIONS)
]
ALLOWED = allow_by_claim(RELEASES)
CHANNELS = ("counts", "survival", "children", "lineage", "images")
Array = NDArray[Any]


@dataclass
class Game:
    """The scores of all records, and who of them voted."""

    scores: dict[str, Array]
    member: Array
    weights: Array
    points: Array

    def measure(self, channel: str, *, weighted: bool = True) -> dict[str, float]:
        weights = self.weights if weighted else np.ones(len(self.member))
        scores = self.scores[channel]
        told = np.isfinite(scores)
        found = measure_scores(scores[told], self.member[told], weights[told])
        assert found is not None
        return found


def play(
    seed: int,
    *,
    noise: float = SIGMA,
    weigh: Callable[..., Array] = lambda noisy, votes, first: noisy,
    finish: Callable[..., Array] = lambda samples, voted: samples,
    shift: float = 0.0,
) -> Game:
    """Run it. noise: what is really added to the votes that are published. weigh: what selection
    sees, of the noisy votes, the true ones and, from S_1 on, each sample's share in those of its
    ancestor in S_0. finish: makes the final set of S_T and all records, those that voted first.
    shift: of held-out records."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(2 * RECORDS, 2)).astype(np.float32)
    points[RECORDS:] += np.float32(shift)
    member = np.arange(len(points)) < RECORDS
    samples = rng.normal(scale=2, size=(SAMPLES, 2)).astype(np.float32)
    ancestors = np.arange(SAMPLES)
    chosen, published, parents = [], [], []
    for t in range(ITERATIONS):
        chosen.append(find_nearest(points, [samples])[1])
        votes = np.bincount(chosen[-1][member], minlength=SAMPLES)
        drawn = [discrete_gaussian(s, SAMPLES, entropy=rng.bytes) for s in (SIGMA, noise) if s]
        noisy = votes + drawn[-1] if noise else votes
        published.append((noisy, votes))
        # Where less noise is published, selection still sees all of it.
        families = np.bincount(ancestors, minlength=SAMPLES)[ancestors]
        first = published[0][1][ancestors] / families if t else None
        seen = weigh(votes + drawn[0], votes, first)
        weights = np.maximum(seen, 0) + 1e-9
        places = (np.arange(SAMPLES) + rng.random()) / SAMPLES * weights.sum()
        parents.append(np.searchsorted(weights.cumsum(), places).clip(max=SAMPLES - 1))
        ancestors = ancestors[parents[-1]]
        samples = samples[parents[-1]] + rng.normal(scale=0.3, size=(SAMPLES, 2))
        samples = samples.astype(np.float32)
    traces = [
        Trace(
            layout=LabelLayout(counts=(SAMPLES // 2, SAMPLES // 2)),
            sigma=SIGMA,
            noisy_votes=noisy,
            children=np.bincount(parents[t], minlength=SAMPLES),
            descendants=np.bincount(
                parents[t][parents[1]] if t == 0 else parents[t], minlength=SAMPLES
            ),
            votes=votes,
        )
        for t, (noisy, votes) in enumerate(published)
    ]
    order = rng.permutation(len(points))
    bins = [share_out(ids[:, None], order) for ids in chosen]
    scores = score_votes(traces, bins, member)
    scores["images"] = -find_nearest(points, [finish(samples, points)])[0]
    weights = weigh_units(predict_members(points, member), member)
    return Game(scores, member, weights, points)


def survivors_only(noisy: Array, votes: Array, first: Array | None) -> Array:
    """Samples without a vote die, whatever their noisy count says."""
    return np.where(votes > 0, np.maximum(noisy, 1), 0)


def descendants_only(noisy: Array, votes: Array, first: Array | None) -> Array:
    """S_1 is selected by what its ancestors' true votes were."""
    return noisy if first is None else first


def copied(samples: Array, points: Array) -> Array:
    return np.concatenate([samples[:-700], points[:700]])


LEAKS: dict[str, dict[str, Any]] = {
    "counts": {"noise": SIGMA / 4},
    "survival": {"weigh": survivors_only},
    "children": {"weigh": lambda noisy, votes, first: votes},
    "lineage": {"weigh": descendants_only},
    "images": {"finish": copied},
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_a_leak_in_a_channel_shows_in_it(channel: str) -> None:
    game = play(1, **LEAKS[channel])
    assert game.measure(channel)["low"] > ALLOWED["auc"]


def test_honest_noise_stays_within_the_claim() -> None:
    games = [play(seed) for seed in range(6)]
    for channel in CHANNELS:
        found = [game.measure(channel) for game in games]
        assert not any(some["low"] > ALLOWED["auc"] for some in found)
        if channel == "images":
            assert all(some["low"] <= 0.5 <= some["high"] for some in found)
    counts = np.mean([game.measure("counts")["auc"] for game in games])
    assert counts == pytest.approx(ALLOWED["auc"], abs=0.025), "the claim's own best attack"


def test_counts_leak_to_no_other_channel() -> None:
    game = play(2, noise=0.0)
    assert game.measure("counts")["auc"] == 1
    for channel in ("survival", "children", "lineage", "images"):
        assert game.measure(channel)["low"] <= ALLOWED["auc"]


def test_a_shift_of_the_held_out_records_is_no_leak() -> None:
    games = [play(seed, shift=0.5) for seed in (3, 4, 5)]
    game = games[0]
    alone = measure_scores(predict_members(game.points, game.member), game.member, game.weights**0)
    assert alone is not None
    assert alone["low"] > 0.55, "the control shows the shift"
    for channel in CHANNELS:
        assert game.measure(channel)["low"] <= ALLOWED["auc"]
    plain, weighted = (
        np.mean([game.measure("images", weighted=how)["auc"] for game in games])
        for how in (False, True)
    )
    assert abs(weighted - 0.5) < abs(plain - 0.5)


def test_the_area_is_that_of_scikit_learn_with_ties_and_weights() -> None:
    rng = np.random.default_rng(4)
    member = rng.random(500) < 0.4
    scores, weights = rng.integers(0, 9, 500) + 2.0 * member, rng.random(500) + 0.1
    found = measure_scores(scores, member, weights)
    assert found is not None
    area = roc_auc_score(member, scores, sample_weight=weights)
    assert found["auc"] == pytest.approx(area, rel=1e-12)
    assert found["low"] < area < found["high"]
    cut = 9.5  # held-out ones end at 8
    sure = weights[member & (scores > cut)].sum() / weights[member].sum()
    assert found["hits_at_0.01"] >= sure
    assert "hits_at_0.001" not in found, "300 held-out ones can't tell"


def test_too_few_units_measure_nothing() -> None:
    member = np.arange(100) < 19
    assert measure_scores(np.arange(100.0), member, np.ones(100)) is None


def test_what_the_claim_allows_is_reached_by_its_best_attack() -> None:
    rng = np.random.default_rng(5)
    one = [Release(key="votes/1", kind="votes", iteration=1, votes_per_unit=1, sigma=1.0)]
    noise = discrete_gaussian(1.0, 400_000, entropy=rng.bytes)
    member = np.arange(400_000) < 200_000
    allowed = allow_by_claim(one)
    assert roc_auc_score(member, noise + member) == pytest.approx(allowed["auc"], abs=0.003)
    assert allowed["hits_at_0.01"] == 1 - tradeoff(one, 1.0)(0.01)


def test_epsilon_is_bounded_by_the_claim_unless_it_is_broken() -> None:
    epsilon = epsilon_of(RELEASES, DELTA)
    for leak, above in (({}, False), (LEAKS["children"], True)):
        game = play(6, **leak)
        scores = game.scores["children"]
        told = np.isfinite(scores)
        bound = bound_epsilon(scores[told], game.member[told], RELEASES, DELTA, 0.01)
        assert bound is not None
        assert (bound > epsilon) == above


def test_verdicts_name_the_channel_and_the_label() -> None:
    game = play(7, **LEAKS["images"])
    labels = {"left": game.points[:, 0] < 0, "none": game.points[:, 0] > 1e9}
    claimed = (epsilon_of(RELEASES, DELTA), DELTA)
    judged = judge_channels(game.scores, game.member, game.weights, labels, RELEASES, claimed)
    assert {name for name, found in judged.items() if found["above"]} == {"images", "together"}
    assert judged["images"]["by_label"]["left"]["low"] > ALLOWED["auc"]
    assert judged["images"]["by_label"]["none"] is None


def test_images_nearer_to_records_that_voted_are_told_from_chance() -> None:
    rng = np.random.default_rng(8)
    wins = rng.integers(0, 5, 400).astype(float)
    outside = 0
    for _ in range(300):
        found = share_nearer(rng.permutation(wins), 200)
        outside += not found["low"] <= found["share"] <= found["high"]
    assert outside <= 5, "0.3 of 300 at 99.9 %"
    wins[:200] += 2
    assert share_nearer(wins, 200)["share"] > share_nearer(wins, 200)["high"]
