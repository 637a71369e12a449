"""Config: what is checked between blocks, and what a run is bound to."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pe_ray import Config, InputError
from pe_ray.config.yaml_tree import put


def test_placement_binds_no_run(tree: dict[str, Any]) -> None:
    plain = Config.from_dict(tree)
    tree["private"]["node_label"] = "records=private"
    placed = Config.from_dict(tree)
    assert placed.fingerprint == plain.fingerprint
    assert placed.tree() == plain.tree()
    tree["private"]["node_label"] = "records"
    with pytest.raises(InputError, match=r"private\.node_label"):
        Config.from_dict(tree)


@pytest.mark.parametrize("name", ["epsilon", "delta", "unit", "label_fractions"])
def test_no_privacy_setting_has_a_default(tree: dict[str, Any], name: str) -> None:
    del tree["privacy"][name]
    with pytest.raises(InputError, match=rf"privacy\.{name}"):
        Config.from_dict(tree)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("private.labels", ["0"] * 10),
        ("private.labels", [*"012345678", ""]),
        ("private.label_column", None),
        ("privacy.unit", "user"),
        ("privacy.label_fractions", [0.5, 0.5]),
        ("privacy.label_fractions", [0.2] * 10),
        ("privacy.label_fractions", [-0.1, 0.2, *[0.1125] * 8]),
        ("schedule.num_samples", 9),
        ("schedule.degrees", [0.5]),
        ("schedule.noise", [1.0]),
        ("schedule.noise", [1.0, 1e7]),
        ("selection.overrides", {3: {"smooth": 2}}),
        ("selection.overrides", {1: {"smooth": 0}}),
        ("votes.neighbors", 41),
        ("votes.reuse_lookahead", True),
        ("teacher.features", 1024),
        ("private.nonsense", 1),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(
    tree: dict[str, Any], key: str, value: Any
) -> None:
    Config.from_dict(tree)
    tree["votes"]["lookahead"] = 0
    if key == "teacher.features":
        tree["private"]["labels"] = [str(label) for label in range(600)]
        tree["schedule"]["num_samples"] = 600
    put(tree, key, value, "test")
    expected = {"privacy.unit": "private.user_column", "private.label_column": "private.labels"}
    with pytest.raises(InputError, match=rf"^config: {expected.get(key, key)}"):
        Config.from_dict(tree)


def test_a_run_is_bound_to_what_changes_its_output(tree: dict[str, Any]) -> None:
    plain = Config.from_dict(tree)
    free = {
        "private.cache": "/elsewhere",
        "private.node_label": "a=b",
        "metrics.audit": ["cnn"],
        "metrics.audit_data": "/other",
        "metrics.audit_where": {"split": "test"},
        "metrics.public": {"data": "/public", "metrics": ["frechet"]},
        "resources.workers": 3,
    }
    for key, value in free.items():
        changed = copy.deepcopy(tree)
        put(changed, key, value, "test")
        assert Config.from_dict(changed).bound() == plain.bound()
    for key, value in {"votes.neighbors": 2, "embedder.size": 7, "output.rows_per_part": 9}.items():
        changed = copy.deepcopy(tree)
        put(changed, key, value, "test")
        assert Config.from_dict(changed).fingerprint != plain.fingerprint


def test_options_of_generators_that_change_no_output_are_free_in_every_stage(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    def bound(cache: str) -> dict[str, Any]:
        shown = {"kind": "nearest_image", "data": str(tmp_path / "public"), "image_size": 12}
        stages = [
            {"start": 0, "generator": {**shown, "channels": 1, "cache": cache}},
            {"start": 2, "generator": {**shown, "channels": 1}},
        ]
        changed = {**tree, "generator": {"kind": "switch", "stages": stages}}
        changed["schedule"] = {**tree["schedule"], "degrees": [4, 2]}
        return Config.from_dict(changed).bound()

    assert bound("/a") == bound("/b")
    assert bound("/a")["generator"]["stages"][0]["generator"]["kind"] == "nearest_image"


def test_overrides_hold_what_differs_and_no_more(tree: dict[str, Any]) -> None:
    tree["selection"] = {"smooth": 8, "overrides": {2: {"method": "rank"}}}
    config = Config.from_dict(tree)
    assert config.selection.at(1).method == "systematic"
    assert config.selection.at(2).method == "rank"
    assert config.selection.at(2).smooth == 8
    stored = config.tree()
    assert stored["selection"]["overrides"] == {"2": {"method": "rank"}}
    assert Config.from_dict(stored).selection.at(2) == config.selection.at(2)


@pytest.mark.parametrize(
    ("key", "default", "other"),
    [
        ("schedule.expand_degree", None, 0.5),
        ("privacy.label_count_share", 0.05, 0.1),
        ("embedder.center", False, True),
        ("embedder.projection", None, 8),
        ("embedder.projection_seed", 0, 1),
        ("embedder.metric", "l2", "cosine"),
    ],
)
def test_a_run_of_an_earlier_version_opens_where_removed_keys_have_their_defaults(
    tree: dict[str, Any], tmp_path: Path, key: str, default: Any, other: Any
) -> None:
    file = tmp_path / "config.yaml"
    plain, old = Config.from_dict(tree), Config.from_dict(tree).tree()
    put(old, key, default, "test")
    file.write_text(yaml.safe_dump(old))
    assert Config.from_run(file).bound() == plain.bound()
    with pytest.raises(InputError, match=f"{key}: there is no such key"):
        Config.from_yaml(file)
    put(old, key, other, "test")
    file.write_text(yaml.safe_dump(old))
    with pytest.raises(InputError, match=f"{key}: there is no such key"):
        Config.from_run(file)


def test_removed_options_of_plugins_are_dropped_wherever_the_plugin_is(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    old = {"kind": "pixels", "size": 8, "projection": None, "projection_seed": 0, "center": False}
    tree["metrics"] = {"audit": [{"kind": "frechet", "embedder": old}]}
    tree["generator"] = {
        "kind": "stable_diffusion",
        "checkpoint": "a/b",
        "safety_checker": False,
        "local_files_only": False,
        "vary": {"steps": 10, "negative_prompt": None},
    }
    file.write_text(yaml.safe_dump(tree))
    config = Config.from_run(file)
    assert config.metrics.audit[0].options.embedder.options.size == 8
    assert config.generator_at(0).options.vary.steps == 10


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, {"kind": "threshold", "threshold": "auto"}),
        ({"threshold": 4}, {"kind": "threshold", "threshold": 4.0}),
        ({"denoise": "threshold", "threshold": 4}, {"kind": "threshold", "threshold": 4.0}),
        ({"denoise": {"kind": "threshold"}, "threshold": 4}, {"kind": "threshold", "threshold": 4}),
        ({"denoise": "simplex", "threshold": "auto"}, {"kind": "simplex"}),
        ({"denoise": {"kind": "none"}}, {"kind": "none"}),
    ],
)
def test_a_denoiser_is_a_kind_and_its_options(
    tree: dict[str, Any], selection: dict[str, Any], expected: dict[str, Any]
) -> None:
    tree["selection"] = selection
    config = Config.from_dict(tree)
    assert config.tree()["selection"]["denoise"] == expected
    assert Config.from_dict(config.tree()).selection == config.selection


def test_a_threshold_of_one_iteration(tree: dict[str, Any]) -> None:
    tree["selection"] = {"denoise": "simplex", "overrides": {2: {"threshold": 3}}}
    selection = Config.from_dict(tree).selection
    assert selection.at(1).denoise.kind == "simplex"
    assert selection.at(2).denoise.options.threshold == 3
    for wrong in ({"threshold": "soft"}, {"denoise": {"kind": "simplex", "threshold": 1}}):
        tree["selection"] = wrong
        with pytest.raises(InputError, match=r"selection\..*threshold"):
            Config.from_dict(tree)


def test_a_configuration_that_version_0_1_0_wrote_opens() -> None:
    file = Path(__file__).parents[1] / "data" / "config_0.1.0.yaml"
    config = Config.from_run(file)
    assert config.selection.at(1).denoise.kind == "threshold"
    assert config.selection.at(2).denoise.kind == "simplex"
    assert config.metrics.audit[1].options.embedder.kind == "pixels"
    with pytest.raises(InputError, match="there is no such key"):
        Config.from_yaml(file)


def test_faults_between_blocks_are_named_together(tree: dict[str, Any]) -> None:
    tree["privacy"] |= {"unit": "user", "label_fractions": [0.5, 0.5]}
    tree["schedule"]["num_samples"] = 9
    tree["metrics"]["public"] = {"data": tree["private"]["data"], "metrics": ["frechet"]}
    with pytest.raises(InputError) as caught:
        Config.from_dict(tree)
    fields = {str(fault).split(": ")[1] for fault in caught.value.args}
    assert fields >= {
        "private.user_column",
        "privacy.label_fractions",
        "schedule.num_samples",
        "metrics.public.data",
    }
