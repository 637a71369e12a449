"""Pixel diffusion generators: rows apart from batches, degrees and classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_unets import LABELS, NAMES, SEEDS, STEPS

from pe_ray import InputError
from pe_ray.components.generators.improved_diffusion import (
    ImprovedDiffusionGenerator,
    ImprovedDiffusionOptions,
)
from pe_ray.components.generators.unet_pipeline import UNetGenerator, UNetOptions
from pe_ray.plugins import Rows
from pe_ray.plugins.seeds import row_seeds


def generators(improved: dict[str, Any], pipeline: str, classed: str) -> dict[str, Any]:
    return {
        "improved": ImprovedDiffusionGenerator(ImprovedDiffusionOptions(**improved), NAMES),
        "unet": UNetGenerator(UNetOptions(checkpoint=pipeline, steps=5), NAMES),
        "classed": UNetGenerator(UNetOptions(checkpoint=classed, steps=5), NAMES),
    }


def levels_apart(one: Rows, other: Rows) -> int:
    return int(np.abs(one["image"].astype(int) - other["image"].astype(int)).max())


@pytest.mark.parametrize("kind", ["improved", "unet", "classed"])
def test_a_row_depends_on_its_seed_and_not_on_its_batch(
    improved: dict[str, Any], pipeline: str, classed: str, kind: str
) -> None:
    generator = generators(improved, pipeline, classed)[kind]
    drawn = {**generator.random(LABELS, SEEDS), "label": LABELS}
    varied = generator.vary(drawn, 2, STEPS)
    for rows in ([4], [2, 0], [3, 3, 1]):
        alone = generator.random(LABELS[rows], SEEDS[rows])
        some = {name: values[rows] for name, values in drawn.items()}
        assert levels_apart(alone, some) <= 1
        again = generator.vary(some, 2, STEPS[rows])
        assert levels_apart(again, {"image": varied["image"][rows]}) <= 1
    assert levels_apart(varied, drawn) > 10
    other = generator.vary(drawn, 2, STEPS[::-1])
    assert levels_apart(varied, other) > 10


@pytest.mark.parametrize("kind", ["improved", "unet", "classed"])
def test_the_more_steps_skipped_the_closer(
    improved: dict[str, Any], pipeline: str, classed: str, kind: str
) -> None:
    generator = generators(improved, pipeline, classed)[kind]
    rng = np.random.default_rng(0)
    drawn = {**generator.random(LABELS, SEEDS), "label": LABELS}
    drawn["image"] = rng.integers(0, 256, drawn["image"].shape, dtype=np.uint8)
    apart = []
    for degree in range(5):
        varied = generator.vary(drawn, degree, STEPS)["image"]
        apart.append(np.abs(varied.astype(float) - drawn["image"]).mean())
    assert apart[0] / 2 > apart[2] / 2 > apart[4]
    assert apart[2] > apart[3] > apart[4]


def test_classes_are_drawn_per_label_and_kept(improved: dict[str, Any]) -> None:
    quick = {**improved, "timestep_respacing": "2"}
    options = ImprovedDiffusionOptions(**quick, classes={"cat": (281, 282), "dog": (207,)})
    generator = ImprovedDiffusionGenerator(options, NAMES)
    labels = np.repeat(np.array([0, 1], dtype=np.int32), 12)
    seeds = row_seeds(0, "random", 0, np.arange(24, dtype=np.int64))
    drawn = generator.random(labels, seeds)
    assert set(drawn["class_id"][:12]) == {281, 282}
    assert set(drawn["class_id"][12:]) == {207}
    assert drawn["class_id"].dtype == np.int32
    varied = generator.vary({**drawn, "label": labels}, 1, seeds)
    assert np.array_equal(varied["class_id"], drawn["class_id"])
    other = {**drawn, "label": labels, "class_id": drawn["class_id"] + 1}
    assert levels_apart(generator.vary(other, 0, seeds), generator.vary(drawn, 0, seeds)) > 1
    anywhere = ImprovedDiffusionGenerator(ImprovedDiffusionOptions(**quick), NAMES)
    ids = anywhere.random(labels, seeds)["class_id"]
    assert len(set(ids)) > 15
    assert ids.min() < 300 < 700 < ids.max() < 1000


@pytest.mark.parametrize(
    "classes",
    [
        {"cat": (0,), "dog": (2,)},
        {"cat": (0,)},
        {"cat": (0,), "dog": ()},
        {"cat": (0,), "dog": (1,), "owl": (1,)},
    ],
)
def test_wrong_classes_are_refused(classed: str, classes: Any) -> None:
    with pytest.raises(InputError, match=r"generator\.classes"):
        UNetGenerator(UNetOptions(checkpoint=classed, classes=classes), NAMES)


def test_a_model_without_classes_has_no_column(pipeline: str, improved: dict[str, Any]) -> None:
    options = UNetOptions(checkpoint=pipeline, steps=2)
    assert options.columns == {}
    assert set(UNetGenerator(options, NAMES).random(LABELS, SEEDS)) == {"image"}
    with pytest.raises(InputError, match="classes"):
        UNetGenerator(UNetOptions(checkpoint=pipeline, classes={"cat": (1,), "dog": (0,)}), NAMES)
    plain = {**improved, "class_cond": False, "classes": {"cat": [1]}}
    with pytest.raises(InputError, match="classes"):
        ImprovedDiffusionGenerator(ImprovedDiffusionOptions(**plain), NAMES)


@pytest.mark.slow
def test_a_compiled_network_makes_the_same_images(
    traced: None, improved: dict[str, Any], pipeline: str
) -> None:
    for made, options in (
        (ImprovedDiffusionGenerator, ImprovedDiffusionOptions(**improved)),
        (UNetGenerator, UNetOptions(checkpoint=pipeline, steps=3)),
    ):
        plain = made(options, NAMES).random(LABELS, SEEDS)
        compiled = made(options.model_copy(update={"compile": True}), NAMES)
        assert levels_apart(compiled.random(LABELS, SEEDS), plain) <= 1
        assert (
            levels_apart(compiled.random(LABELS[:2], SEEDS[:2]), {"image": plain["image"][:2]}) <= 1
        )


@pytest.mark.parametrize("degree", [-1, 5, 0.5, float("nan")])
def test_degrees_are_whole_numbers_of_steps(improved: dict[str, Any], degree: float) -> None:
    with pytest.raises(ValueError, match="0 to 4"):
        ImprovedDiffusionOptions(**improved).check_degree(degree)
