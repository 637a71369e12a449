"""The attack as a picture: scores, error rates against the claim, distances to the final set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pe_ray import plugins
from pe_ray.auditing.bounds import tradeoff
from pe_ray.auditing.game import Game, Verdict, score_canaries
from pe_ray.components.nearest import NearestSearch
from pe_ray.files.images import decode_image
from pe_ray.synthetic.population import final_population
from pe_ray.synthetic.population_files import read_population

MOST_COMPARED = 4096


def nearest_distances(game: Game) -> NDArray[np.float64]:
    """Return the distance of each canary record (the first 4,096) to its nearest of S_T, [n].

    A black-box look: it uses the final samples alone. Weak evidence either way. Included canaries
    that lie nearer show that votes had an effect, which they are meant to have; equal distances
    don't show that nothing leaked, since the histograms say far more.
    """
    config, canaries = game.run.config, game.canaries
    embedder = plugins.load("embedder", game.run.embedder.kind)(game.run.embedder.options)
    population = final_population(game.run)
    count = population.layout.num_samples
    ids = np.unique(np.linspace(0, count - 1, MOST_COMPARED).astype(np.int64))
    options = config.generator_at(population.iteration).options
    samples = embedder.embed(read_population(population.directory, ids, options)["image"])
    cells = pq.read_table(canaries.file)["image"].slice(0, MOST_COMPARED).to_pylist()
    images = np.stack([decode_image(cell, config.image_shape.channels) for cell in cells])
    search = NearestSearch(embedder.embed(images), 1, config.votes.metric)
    search.add(samples, 0)
    return np.asarray(search.distances[:, 0])


def write_figure(game: Game, verdict: Verdict, file: Path) -> Path:
    """Write the picture of an attack as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    claims, scores, errors, distances = figure.subplots(1, 4)
    coins = game.canaries.coins
    _claims(claims, verdict)
    values = score_canaries(game, "histograms")
    grid = np.linspace(values.min(), values.max(), 60)
    for included, name in ((True, "included"), (False, "left out")):
        scores.hist(values[coins == included], bins=grid, alpha=0.6, label=name)
    scores.set(title="scores of canaries", xlabel="likelihood ratio of the claim", yticks=[])
    scores.legend()
    heights = np.unique(values)
    falls = np.searchsorted(np.sort(values[coins]), heights) / max(1, coins.sum())
    alarms = 1 - np.searchsorted(np.sort(values[~coins]), heights) / max(1, (~coins).sum())
    errors.plot(alarms, falls, label="seen")
    claim = tradeoff(game.releases, 1.0)
    rates = np.linspace(0, 1, 201)
    errors.plot(rates, [claim(rate) for rate in rates], "k--", label="least that the claim allows")
    errors.set(title="errors of guesses", xlabel="false alarms", ylabel="misses")
    errors.legend()
    found = nearest_distances(game)
    there = coins[game.canaries.owner[: len(found)]]
    for included, name in ((True, "included"), (False, "left out")):
        some = np.sort(found[there == included])
        distances.step(some, np.linspace(0, 1, len(some)), label=name)
    distances.set(title="black box: distance to the final set", xlabel="nearest sample", yticks=[])
    distances.legend()
    figure.savefig(file, dpi=110)
    return file


def _claims(axes: Any, verdict: Verdict) -> None:
    bars = {
        "claimed": verdict.claimed,
        "measured": verdict.measured,
        "measured,\nassumption-free": verdict.assumption_free,
    }
    axes.bar(
        list(bars), list(bars.values()), color=["0.6", "C3" if verdict.refuted else "C2", "C0"]
    )
    title = f"epsilon at delta {verdict.delta:g}, confidence {verdict.confidence:g}"
    axes.set(title=title)
