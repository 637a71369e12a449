"""Guess from published values which units voted, and tell how often the guesses are right.

A unit is a record, or a user with all records. Some voted, the others were held out. Whoever
guesses knows all records but those of the unit in question, as the claim's attacker does. So a
channel's score is what exceeds the votes of all others. It can't confuse membership with a popular
sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pe_ray.auditing.bounds import measured_epsilon, refutes_independent, tradeoff
from pe_ray.auditing.drawn_records import Floats, Ids, Members
from pe_ray.values import LabelLayout, Release

CONFIDENCE = 0.999
FALSE_ALARMS = (0.01, 0.001)
"""Rates of held-out units taken for voters, at which hits are counted."""
LEAST_UNITS = 20
"""Units of either kind without which nothing is measured."""
_WIDTH = 3.2905  # standard deviations on either side of an interval, at this confidence
_DRAWS = 200  # of the bootstrap
_GUESSED = (0.5, 0.05, 0.01)  # shares of all units that are guessed to have voted, for epsilon
_MOST_WEIGHT = 10.0
_LEAST_VARIANCE = 1e-3  # of counts about their line


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What was published about the samples of S_(t-1), and the un-noised votes for them.

    noisy_votes, children (in S_t), descendants (in S_T), votes: int64 [num_samples].
    """

    layout: LabelLayout
    sigma: float
    noisy_votes: Ids
    children: Ids
    descendants: Ids
    votes: Ids


def share_out(bins: Sequence[Ids], order: Ids) -> tuple[Ids, Ids]:
    """Leave each sample to the first unit, in `order`, that names it: none shares its noise.

    bins: of each unit. Returns (units, samples).
    """
    owner = np.repeat(order, [len(bins[unit]) for unit in order])
    named = np.concatenate([bins[unit] for unit in order])
    samples, first = np.unique(named, return_index=True)
    return owner[first], samples


def score_votes(
    traces: Sequence[Trace], bins: Sequence[tuple[Ids, Ids]], member: Members
) -> dict[str, Floats]:
    """Score what speaks for each unit's having voted, by channel; float64 [units].

    bins: by iteration, (units, samples that they vote for if they vote). A unit that has none in
    any iteration gets NaN.

    counts: sum of (noisy votes - others' votes) / sigma^2, the log likelihood ratio of the claim up
    to a constant. survival (has children), children, lineage (descendants in S_T): what exceeds a
    straight line through all samples of a label at the others' votes, weighted alike.
    """
    channels = ("counts", "survival", "children", "lineage")
    scores = {name: np.zeros(len(member)) for name in channels}
    for trace, (owner, found) in zip(traces, bins, strict=True):
        others = trace.votes[found] - member[owner]
        excess: dict[str, Floats] = {
            "counts": (trace.noisy_votes[found] - others) / (trace.sigma**2 or 1.0)
        }
        published = {
            "survival": (trace.children > 0).astype(np.float64),
            "children": trace.children.astype(np.float64),
            "lineage": trace.descendants.astype(np.float64),
        }
        for name, values in published.items():
            at_none, slope, weight = (fitted[found] for fitted in _fit_lines(values, trace))
            excess[name] = weight * (values[found] - at_none - slope * others)
        for name, terms in excess.items():
            scores[name] = scores[name] + np.bincount(owner, terms, minlength=len(member))
    named = np.isin(np.arange(len(member)), np.concatenate([owner for owner, _ in bins]))
    return {name: np.where(named, values, np.nan) for name, values in scores.items()}


def _fit_lines(values: Floats, trace: Trace) -> Floats:
    """Fit values = a + b votes + noise of variance v, in each label, by least squares.

    Returns a, b and b / v of each sample, [3, num_samples]. With b / v, what a unit's vote explains
    is weighted as in a log likelihood ratio.
    """
    lines = np.zeros((3, len(values)))
    for label, count in enumerate(trace.layout.counts):
        some = slice(*trace.layout.label_range(label))
        votes = np.stack([np.ones(count), trace.votes[some]], axis=1)
        fitted = np.linalg.lstsq(votes, values[some])[0]
        variance = np.mean((values[some] - votes @ fitted) ** 2) if count else 0.0
        lines[:, some] = [[fitted[0]], [fitted[1]], [fitted[1] / max(variance, _LEAST_VARIANCE)]]
    return lines


def predict_members(features: NDArray[Any], member: Members) -> Floats:
    """Return each unit's chance of having voted, by a linear classifier fitted to other units."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    chances = cross_val_predict(model, features, member, cv=folds, method="predict_proba")
    return np.asarray(chances[:, 1])


def weigh_units(chances: Floats, member: Members) -> Floats:
    """Return weights under which held-out units are distributed like those that voted.

    The odds of `chances`, for held-out units (inverse propensity weighting).
    """
    share = member.mean()
    odds = chances / (1 - chances) * (1 - share) / share
    return np.where(member, 1.0, np.clip(odds, 1 / _MOST_WEIGHT, _MOST_WEIGHT))


def measure_scores(scores: Floats, member: Members, weights: Floats) -> dict[str, float] | None:
    """Return the area under the ROC curve with its interval, and hits at few false alarms.

    The interval is the bootstrap's, with normal quantiles. None where there are too few units.
    """
    if min(member.sum(), (~member).sum()) < LEAST_UNITS:
        return None
    num = len(scores)
    again = np.random.default_rng(0).multinomial(num, np.full(num, 1 / num), size=_DRAWS)
    drawn = np.concatenate([np.ones((1, num)), again]) * weights
    distinct, group = np.unique(scores, return_inverse=True)
    order = np.argsort(group, kind="stable")
    edges = np.searchsorted(group[order], np.arange(len(distinct)))
    voted = np.add.reduceat((drawn * member)[:, order], edges, axis=1)
    held = np.add.reduceat((drawn * ~member)[:, order], edges, axis=1)
    voted /= voted.sum(axis=1, keepdims=True)
    held /= held.sum(axis=1, keepdims=True)
    areas = (voted * (held.cumsum(axis=1) - held / 2)).sum(axis=1)
    half = _WIDTH * areas[1:].std()
    found = {
        "auc": float(areas[0]),
        "low": max(0.0, float(areas[0] - half)),
        "high": min(1.0, float(areas[0] + half)),
    }
    hits, alarms = voted[0, ::-1].cumsum(), held[0, ::-1].cumsum()
    for rate in FALSE_ALARMS:
        if rate * (~member).sum() >= 1:
            found[f"hits_at_{rate:g}"] = min(1.0, float(hits[alarms <= rate].max(initial=0.0)))
    return found


def allow_by_claim(releases: Sequence[Release]) -> dict[str, float]:
    """Return the most that any attack on `releases` may reach, whatever it looks at."""
    if not all(release.sigma for release in releases):
        return {"auc": 1.0, **{f"hits_at_{rate:g}": 1.0 for rate in FALSE_ALARMS}}
    misses = tradeoff(releases, 1.0)
    grid = np.linspace(0.0, 1.0, 1001) ** 2  # f is steep near 0
    area = np.trapezoid([misses(alarms) for alarms in grid.tolist()], grid)
    allowed = {f"hits_at_{rate:g}": 1 - misses(rate) for rate in FALSE_ALARMS}
    return {"auc": 1 - float(area), **allowed}


def bound_epsilon(
    scores: Floats, member: Members, releases: Sequence[Release], delta: float, alpha: float
) -> float | None:
    """Return a lower bound on epsilon at confidence 1 - alpha; None where nothing is claimed.

    It is that of bounds.refutes_independent, at cuts that don't depend on who voted.
    """
    if not all(release.sigma for release in releases):
        return None
    measured = 0.0
    for share in _GUESSED:
        guessed = scores >= np.quantile(scores, 1 - share)
        refuted = partial(
            refutes_independent,
            included=int(member.sum()),
            misses=int((member & ~guessed).sum()),
            excluded=int((~member).sum()),
            false_alarms=int((~member & guessed).sum()),
            alpha=alpha / len(_GUESSED),
        )
        measured = max(measured, measured_epsilon(releases, delta, refuted))
    return measured


def judge_channels(
    scores: Mapping[str, Floats],
    member: Members,
    weights: Floats,
    labels: Mapping[str, Members],
    releases: Sequence[Release],
    claimed: tuple[float, float],
) -> dict[str, Any]:
    """Return what each channel tells, and all of them together; see docs/metrics.md.

    scores: NaN for units that a channel says nothing of. labels: the units of each label. claimed:
    (epsilon, delta). `above` says that a channel tells more than the claim allows.
    """
    epsilon, delta = claimed
    each = np.stack(list(scores.values()), axis=1)
    told, together = np.isfinite(each).all(axis=1), np.full(len(member), np.nan)
    together[told] = predict_members(each[told], member[told])
    judged, allowed = {}, allow_by_claim(releases)["auc"]
    for name, values in {**scores, "together": together}.items():
        told = np.isfinite(values)
        alpha = (1 - CONFIDENCE) / (len(scores) + 1)
        found = measure_scores(values[told], member[told], weights[told])
        assert found is not None, "too few units are refused before"
        bound = bound_epsilon(values[told], member[told], releases, delta, alpha)
        judged[name] = {
            **found,
            "epsilon": bound,
            "above": found["low"] > allowed or (bound or 0.0) > epsilon,
            "by_label": {
                label: measure_scores(
                    values[some & told], member[some & told], weights[some & told]
                )
                for label, some in labels.items()
            },
        }
    return judged


def share_nearer(wins: Floats, num: int) -> dict[str, float]:
    """Return the share that the first `num` of 2 `num` records have in all wins.

    The interval is what a random choice of `num` among these records gives.
    """
    total = wins.sum()
    half = _WIDTH * math.sqrt(num / 2 * wins.var(ddof=1)) / total
    share = float(wins[:num].sum() / total)
    return {"share": share, "low": 0.5 - half, "high": 0.5 + half}
