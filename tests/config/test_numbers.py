"""Numbers in a configuration: every one has a bound, and none but epsilon may be infinite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.generate import schema
from pe_ray import Config, InputError
from pe_ray.config.yaml_tree import put
from pe_ray.plugins import MetricOptions
from pe_ray.tuning.search import Search

CHECKED_BY_THEIR_BLOCK = {
    *("num_samples", "degrees", "noise", "label_fractions", "start", "end", "low", "high"),
    *("box", "size", "aspect", "rotation", "shear", "offset", "stroke", "softness", "gain", "view"),
    "image_size",
}
FREE = {"threshold", "where", "audit_where", "parameters", "scale"}
"""Votes may be added to, a LoRA subtracted; others are values of columns and of a service."""


def unbounded(node: Any, name: str = "") -> set[str]:
    """Return the names of numbers in a JSON schema that have no least value."""
    if isinstance(node, list):
        return set().union(*(unbounded(each, name) for each in node))
    if not isinstance(node, dict):
        return set()
    is_number = node.get("type") in ("integer", "number") and "enum" not in node
    found = {name} if is_number and not {"minimum", "exclusiveMinimum"} & node.keys() else set()
    for key, below in node.items():
        names = below if key in ("properties", "$defs") else {name: below}
        found |= set().union(*(unbounded(each, inner) for inner, each in names.items()))
    return found


def test_every_number_has_a_least_value() -> None:
    assert unbounded({"type": "integer"}, "a") == {"a"}
    assert unbounded({"properties": {"a": {"anyOf": [{"type": "number"}]}}}) == {"a"}
    assert unbounded(schema()) <= CHECKED_BY_THEIR_BLOCK | FREE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "key",
    [
        "schedule.degrees",
        "schedule.noise",
        "privacy.delta",
        "selection.threshold",
        "teacher.share",
        "resources.cpus_per_worker",
        "resources.gpus_per_worker",
        "resources.stall_seconds",
        "embedder.blur",
        "generator.stretch",
        "generator.elastic",
        "generator.font_change",
        "generator.text_change",
        "generator.softness",
    ],
)
def test_a_number_is_finite(tree: dict[str, Any], key: str, value: float) -> None:
    put(tree, key, [value, value] if key == "generator.softness" else value, "test")
    with pytest.raises(InputError, match=rf"^config: {key}"):
        Config.from_dict(tree)


def test_epsilon_alone_may_be_infinite(tree: dict[str, Any]) -> None:
    tree["privacy"]["epsilon"] = float("inf")
    Config.from_dict(tree)
    for wrong in (float("nan"), float("-inf")):
        tree["privacy"]["epsilon"] = wrong
        with pytest.raises(InputError, match=r"privacy\.epsilon: "):
            Config.from_dict(tree)


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("classifier", {"size": 0}),
        ("classifier", {"size": -1}),
        ("classifier", {"max_images": 0}),
        ("classifier", {"max_images": 1}),
        ("cnn", {"epochs": 0}),
        ("cnn", {"seed": -1}),
        ("kid", {"max_images": 0}),
        ("precision_recall", {"neighbors": 0}),
        ("precision_recall", {"max_images": 3}),
    ],
)
def test_a_metrics_number_is_refused_by_its_key(
    tree: dict[str, Any], kind: str, option: dict[str, int]
) -> None:
    tree["metrics"] = {"audit": [{"kind": kind, **option}]}
    with pytest.raises(InputError, match=rf"^config: metrics\.audit\.0\.{next(iter(option))}: "):
        Config.from_dict(tree)


def test_class_numbers_and_resolutions_are_not_negative(tree: dict[str, Any]) -> None:
    tree["generator"] = {"kind": "unet", "checkpoint": "/x", "classes": {"0": [-1]}}
    with pytest.raises(InputError, match=r"^config: generator\.classes\.0\.0: "):
        Config.from_dict(tree)


@pytest.fixture
def one_label(tree: dict[str, Any]) -> dict[str, Any]:
    tree["private"] |= {"labels": ["all"], "label_column": None}
    tree["metrics"] = {"audit": ["frechet"]}
    return tree


@pytest.mark.parametrize("kind", ["classifier", "cnn"])
@pytest.mark.parametrize("block", ["audit", "public"])
def test_a_metric_that_tells_labels_apart_needs_two(
    one_label: dict[str, Any], kind: str, block: str
) -> None:
    Config.from_dict(one_label)
    given = {"audit": ["frechet", kind], "public": {"data": "/x", "metrics": ["frechet", kind]}}
    one_label["metrics"] = {block: given[block]}
    where = {"audit": r"metrics\.audit\.1", "public": r"metrics\.public\.metrics\.1"}[block]
    with pytest.raises(InputError, match=rf"^config: {where}: {kind} needs .*2 labels"):
        Config.from_dict(one_label)


def test_a_public_reference_without_labels_is_refused_before_the_run(
    tree: dict[str, Any],
) -> None:
    tree["metrics"]["public"] = {"data": "/x", "label_column": None, "metrics": ["frechet"]}
    Config.from_dict(tree)
    tree["metrics"]["public"]["metrics"] = ["classifier"]
    with pytest.raises(InputError, match=r"^config: metrics\.public\.metrics\.0: classifier "):
        Config.from_dict(tree)


@pytest.mark.parametrize(
    ("schedule", "public", "enough"),
    [
        ({}, {}, True),
        ({"num_samples": [30, 40, 40]}, {}, False),
        ({"num_samples": [40, 30, 40]}, {}, False),
        ({"num_samples": [40, 30, 40]}, {"every": 2}, True),
        ({"num_samples": [40, 40, 30]}, {"every": 5}, False),
        ({}, {"max_images": 35}, False),
    ],
)
def test_a_metric_gets_the_images_that_it_needs(
    tree: dict[str, Any], schedule: dict[str, Any], public: dict[str, int], enough: bool
) -> None:
    tree["schedule"] |= schedule
    precision = {"kind": "precision_recall", "neighbors": 35}
    tree["metrics"]["public"] = {"data": "/x", "metrics": [precision], **public}
    if enough:
        Config.from_dict(tree)
    else:
        with pytest.raises(InputError, match=r"^config: metrics\.public\.metrics\.0: .*36 images"):
            Config.from_dict(tree)


@pytest.mark.parametrize(("kept", "enough"), [(None, True), (36, True), (35, False)])
@pytest.mark.parametrize("block", ["audit", "public"])
def test_a_metric_of_the_final_set_gets_what_the_teacher_keeps(
    tree: dict[str, Any], block: str, kept: int | None, enough: bool
) -> None:
    tree["teacher"] = {"features": 4, "keep": kept}
    metrics = [{"kind": "precision_recall", "neighbors": 35}]
    tree["metrics"] = {block: metrics if block == "audit" else {"data": "/x", "metrics": metrics}}
    if enough:
        Config.from_dict(tree)
    else:
        with pytest.raises(InputError, match=rf"^config: metrics\.{block}.*36 images"):
            Config.from_dict(tree)


def test_a_finished_run_opens_though_a_metric_of_it_would_be_refused(
    one_label: dict[str, Any], tmp_path: Path
) -> None:
    one_label["metrics"] = {"audit": ["classifier"]}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(one_label))
    assert Config.from_run(file).metrics.audit[0].kind == "classifier"
    with pytest.raises(InputError, match=r"metrics\.audit\.0"):
        Config.from_yaml(file)


@pytest.mark.parametrize("kind", ["classifier", "cnn"])
def test_a_searchs_metric_needs_two_labels_as_well(one_label: dict[str, Any], kind: str) -> None:
    reference = {"data": "/elsewhere", "labels": ["all"], "label_column": None}
    one_label["tuning"] = {
        "strategy": "compose",
        "space": {"votes.neighbors": [1, 2]},
        "objective": {"kind": "public", "metric": "kid", "mode": "min", "reference": reference},
    }
    Search.from_dict(one_label)
    one_label["tuning"]["objective"]["metric"] = kind
    with pytest.raises(InputError, match=rf"^tuning\.objective\.metric: {kind} needs .*2 labels"):
        Search.from_dict(one_label)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("num_trails", "num_trials"),
        ("strategy.full_trails", "full_trials"),
        ("objective.dimm", "dim"),
    ],
)
def test_an_unknown_key_of_a_search_gets_the_nearest_known_one(
    tree: dict[str, Any], key: str, nearest: str
) -> None:
    tree["tuning"] = {
        "strategy": {"kind": "compose", "full_trials": 3},
        "space": {"votes.neighbors": [1, 2]},
        "objective": {"kind": "moments"},
    }
    Search.from_dict(tree)
    put(tree["tuning"], key, 2, "test")
    with pytest.raises(InputError, match=rf"^config: tuning\..*{key}: .*\b{nearest}\?"):
        Search.from_dict(tree)


def test_a_metric_from_outside_states_its_needs_or_none() -> None:
    assert (MetricOptions().least_labels, MetricOptions().least_images) == (0, 1)
