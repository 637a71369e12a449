"""Plain values: read from YAML, overridden by dotted keys, compared."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_ray import Config, InputError
from pe_ray.config.yaml_tree import (
    differences,
    dump_tree,
    put,
    read_stored,
    read_tree,
    set_override,
)


def test_a_key_that_a_file_gives_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("privacy: {epsilon: 1.0}\nvotes: {}\nprivacy: {epsilon: 8.0}\n")
    with pytest.raises(InputError, match="privacy is given twice"):
        read_tree(file)
    file.write_text("a: &a {x: 1}\nb: {c: &c {<<: *a, x: 2}}\nd: {<<: *c, y: 3}\n")
    assert read_tree(file)["d"] == {"x": 2, "y": 3}


@pytest.mark.parametrize("text", ["- a\n", "a: [1\n", "\x00", "just text"])
def test_a_file_without_blocks_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"^config {file}: "):
        read_tree(file)


def test_an_override_of_one_iteration_keeps_its_others(tree: dict[str, Any]) -> None:
    tree["selection"] = {"overrides": {1: {"threshold": 5, "smooth": 4}}}
    set_override(tree, "selection.overrides.1.method=rank")
    settings = Config.from_dict(tree).selection.at(1)
    assert (settings.smooth, settings.method) == (4, "rank")


def test_overrides_make_the_blocks_that_are_missing() -> None:
    tree: dict[str, Any] = {"a": {"b": 1}}
    set_override(tree, "a.c=[1, 2]")
    set_override(tree, "d.e.f=x")
    assert tree == {"a": {"b": 1, "c": [1, 2]}, "d": {"e": {"f": "x"}}}
    for wrong in ("a.b", "=1", "a.=1", "a.b.c=1", "a.b=[1"):
        with pytest.raises(InputError, match="--set"):
            set_override(tree, wrong)


def test_differences_are_dotted_keys() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(old, new) == ["a.c", "d", "e"]
    assert differences(old, old) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("No", "No"),
        ("on", "on"),
        ("true", True),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        ("+3", 3),
        ("-0.5", -0.5),
        (".5", 0.5),
        ("0", 0),
        ("0.0", 0.0),
        (".inf", math.inf),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        ("08:00", "08:00"),
    ],
)
def test_a_value_is_what_people_read(tmp_path: Path, text: str, value: Any) -> None:
    file, tree = tmp_path / "config.yaml", dict[str, Any]()
    file.write_text(f"a: {{b: [{text}]}}\nc: {text}\n")
    set_override(tree, f"d={text}")
    read = read_tree(file)
    assert read["c"] == tree["d"] == value
    assert type(read["c"]) is type(value)
    if text:
        assert read["a"]["b"] == [value]


@pytest.mark.parametrize("text", ["010", "-010", "08", "007", "0x10", "0o17", "0b11", "0_1"])
def test_a_number_that_may_be_octal_is_refused_by_key_and_value(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"privacy:\n  epsilon: {text}\n")
    with pytest.raises(InputError, match=rf"(?s)config {file}: .*{text}.*line 2.*epsilon: {text}"):
        read_tree(file)
    with pytest.raises(InputError, match=rf"^--set privacy\.epsilon={text}: "):
        set_override({}, f"privacy.epsilon={text}")


def test_a_secret_that_is_no_value_is_not_quoted() -> None:
    with pytest.raises(InputError) as caught:
        set_override({}, "generator.api_key=01234567")
    assert "01234567" not in str(caught.value)


def test_plain_numbers_and_switches_of_a_file_mean_what_they_say(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    overrides = {
        "privacy.delta": "1e-5",
        "schedule.num_samples": "1_000",
        "votes.reuse_lookahead": "yes",
        "private.labels": "[yes, no, 1:30, a, b, c, d, e, f, g]",
    }
    config = Config.from_yaml(file, [f"{key}={text}" for key, text in overrides.items()])
    assert config.privacy.delta == 1e-5
    assert config.schedule.num_samples == 1000
    assert config.votes.reuse_lookahead is True
    assert config.private.labels[:3] == ("yes", "no", "1:30")


def values(text: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
    leaf |= st.from_regex(r"[-+]?[0-9_.:eExo]{1,8}|yes|no|on|off|null|true|~|<<|=", fullmatch=True)
    return st.recursive(
        leaf,
        lambda below: st.lists(below, max_size=3) | st.dictionaries(text, below, max_size=3),
        max_leaves=8,
    )


@settings(deadline=None)
@given(values(st.text() | st.sampled_from("\x85\u2028\u2029")))
def test_what_is_written_reads_the_same_in_a_run_and_in_a_users_file(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(dump_tree({"a": value}), encoding="utf-8", newline="")
        assert repr(read_stored(file)) == repr(read_tree(file)) == repr({"a": value})


@settings(deadline=None)
@given(values(st.text(st.characters(exclude_characters="\x85\u2028\u2029", codec="utf-8"))))
def test_what_an_earlier_version_wrote_reads_the_same(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        text = yaml.safe_dump({"a": value}, sort_keys=False, allow_unicode=True)
        file.write_text(text, encoding="utf-8", newline="")
        assert repr(read_stored(file)) == repr({"a": value})


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("private.labels", [True, *"123456789"], '"true"'),
        ("private.labels", [0, *"123456789"], '"0"'),
        ("private.labels", [1.5, *"123456789"], '"1.5"'),
        ("generator.texts", {0: ["a"]}, '"0"'),
        ("generator.texts", {"0": [False]}, '"false"'),
    ],
)
def test_a_name_without_quotes_is_shown_with_them(
    tree: dict[str, Any], key: str, value: Any, hint: str
) -> None:
    put(tree, key, value, "test")
    with pytest.raises(InputError, match=rf"^config: {key}.*{hint}"):
        Config.from_dict(tree)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("privacy.epsilom", "epsilon"),
        ("votes.neighbours", "neighbors"),
        ("embedder.siize", "size"),
        ("metric", "metrics"),
        ("schedule.degrees.strat", "start"),
        ("metrics.public.max_image", "max_images"),
        ("selection.overrides.1.smoth", "smooth"),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one(
    tree: dict[str, Any], key: str, nearest: str
) -> None:
    tree["schedule"]["degrees"] = {"start": 1, "end": 2}
    tree["metrics"]["public"] = {"data": "/x", "metrics": ["frechet"]}
    tree["selection"] = {"overrides": {1: {}}}
    Config.from_dict(tree)
    put(tree, key, 1, "test")
    with pytest.raises(InputError, match=rf"^config: {key}: .*\b{nearest}\?"):
        Config.from_dict(tree)


def test_a_misspelt_key_is_reported_before_the_one_that_is_missing(tree: dict[str, Any]) -> None:
    tree["privacy"]["epsilom"] = tree["privacy"].pop("epsilon")
    with pytest.raises(InputError, match=r"privacy\.epsilom: .*epsilon\?"):
        Config.from_dict(tree)


@pytest.mark.parametrize(
    ("key", "kind", "nearest"),
    [
        ("generator", "rendred_text", "rendered_text"),
        ("embedder", "pixel", "pixels"),
        ("metrics.audit", ["frechett"], "frechet"),
        ("selection.denoise", "simplx", "simplex"),
    ],
)
def test_an_unknown_kind_gets_the_nearest_known_one(
    tree: dict[str, Any], key: str, kind: Any, nearest: str
) -> None:
    put(tree, key, kind, "test")
    with pytest.raises(InputError, match=rf"^config: {key}.*kind: .*\b{nearest}\?"):
        Config.from_dict(tree)
