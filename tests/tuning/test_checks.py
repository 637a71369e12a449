"""What a search can't use is refused before anything is spent, and its plan says what it costs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tiny_public import save_parquet
from tiny_search import STAND_IN, final
from weighed import save_weights

from pe_ray import InputError, cli
from pe_ray.config.yaml_tree import dump_tree
from pe_ray.release.ledger import Ledger
from pe_ray.runtime.run_directory import claim_directory, on_disk, write_config
from pe_ray.tuning import tune as tune_module
from pe_ray.tuning.budget import accounting_of, shared_releases
from pe_ray.tuning.checks import check_search
from pe_ray.tuning.search import Search
from pe_ray.tuning.space import ray_space
from pe_ray.tuning.trial import Job, trial_config
from pe_ray.tuning.tune import check_directory, tune


def service(max_calls: int, folder: Path) -> dict[str, Any]:
    """A generator that calls out; nothing listens there."""
    return {
        "kind": "image_api",
        "base_url": "http://localhost:9/v1",
        "api_key_env": None,
        "store": str(folder / "store"),
        "image_size": 64,
        "prompt": "a digit",
        "random": {"model": "m", "size": 256},
        "vary": {"model": "m", "size": 256, "endpoint": "variations"},
        "on_refusal": "keep",
        "price": {"random": 0.0, "vary": 0.0},
        "max_calls": max_calls,
        "max_cost": 1.0,
        "concurrency": 1,
    }


def test_a_bad_record_ends_a_search_before_anything_is_spent(
    ray_session: None, searched: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "data.parquet"
    pq.write_table(pa.table({"image": [b"none"], "label": ["3"]}), file)
    searched["private"] |= {"data": str(file), "cache": str(tmp_path / "cache")}
    with pytest.raises(InputError, match="shard 0, row 0"):
        tune(Search.from_dict(searched))
    assert Ledger.open(final(searched) / "ledger.sqlite").spent() == 0.0
    for path in final(searched).rglob("*"):
        assert path.is_dir() or b"row 0" not in path.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"votes.neighbours": [1]}}, "votes.neighbours: there is no such key"),
        ({"space": {"privacy.unit": ["user"]}}, "tuning.space.privacy.unit: can't be searched"),
        ({"space": {"private.user_column": ["who"]}}, "private.user_column: can't be searched"),
        ({"space": {"votes.neighbors": [0]}}, "votes.neighbors"),
        ({"space": {}}, "tuning.space"),
        ({"strategy": "public"}, "public_data: needed"),
        ({"strategy": "select"}, "tuning.strategy"),
        ({"objective": {"kind": "score"}}, "tuning.objective"),
        (
            {"objective": {"kind": "public", "mode": "max", "metric": {"kind": "classifier"}}},
            "tuning.objective.reference",
        ),
        (
            {
                "objective": {"kind": "moments", "share": 0.9},
                "strategy": {"kind": "proxy", "proxy_share": 0.5},
            },
            "proxy_share",
        ),
        ({"strategy": {"kind": "compose", "full_trials": 2}}, "too small for one trial"),
        ({"max_concurrent": 2, "strategy": {"kind": "compose", "full_trials": 1}}, "full_trials"),
        ({"trials": 3}, "tuning.trials: there is no such key"),
        ({"space": {"teacher.share": [0.5]}}, "teacher.share: can't be searched: trials have none"),
        ({"generator": 1}, "allows 1 calls"),
    ],
)
def test_bad_input_is_refused_before_anything_is_spent(
    searched: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if "too small" in message:  # less than the sampler's finite randomness can promise
        searched["privacy"] |= {"epsilon": 50.0, "delta": 1e-13}
    if "generator" in changes:
        searched["generator"] = service(changes["generator"], tmp_path)
    searched["tuning"] |= {key: value for key, value in changes.items() if key != "generator"}
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        tune(Search.from_dict(searched))
    assert not final(searched).exists()


def test_trials_have_no_teacher_to_label_what_all_vote_for(searched: dict[str, Any]) -> None:
    searched["teacher"] = {"features": 4}
    searched["votes"] = {**searched.get("votes", {}), "across_labels": True}
    with pytest.raises(InputError, match=r"votes\.across_labels: .*trials have none"):
        tune(Search.from_dict(searched))
    assert not final(searched).exists()


def test_a_folder_with_a_population_is_no_searchs_place(
    ray_session: None, searched: dict[str, Any]
) -> None:
    """A run that was killed before its first votes: its ledger was never charged."""
    config = Search.from_dict(searched).config
    with claim_directory(config) as run:
        Ledger.create(run.ledger, config.privacy.budget, config.fingerprint)
        write_config(run, config)
    with pytest.raises(InputError, match="belongs to another configuration"):
        tune(Search.from_dict(searched))


def test_a_search_is_not_continued_with_other_files(
    ray_session: None, searched: dict[str, Any], tmp_path: Path
) -> None:
    first, second = (save_weights(tmp_path / name, 0) for name in "ab")
    data = save_parquet(tmp_path / "data", [*"0123456789"], 1)
    searched["private"] |= {"data": str(data), "where": {"label": "none"}}
    searched["embedder"] = {"kind": "weighed:Weighed", "checkpoint": str(first)}
    searched["tuning"]["space"] = {"embedder.checkpoint": [str(first), str(second)]}
    with pytest.raises(InputError, match=r"^private\.where: keeps no record"):
        tune(Search.from_dict(searched))
    save_weights(second, 1)
    with pytest.raises(InputError, match=r"^private\.where: keeps no record"):
        tune(Search.from_dict(searched))  # nothing was made yet
    trial = final(searched) / "tuning" / "trials" / "one"
    trial.mkdir(parents=True)
    (trial / "trial.json").write_text("{}")
    save_weights(second, 2)
    with pytest.raises(InputError, match=r"^tuning\.space\.embedder\.checkpoint: .*b "):
        tune(Search.from_dict(searched))
    assert not Ledger.open(final(searched) / "ledger.sqlite").charged


def test_trials_prove_what_the_ledger_must_hold(
    ray_session: None, searched: dict[str, Any]
) -> None:
    search = Search.from_dict(searched)
    tuning = final(searched) / "tuning"
    settings = {"votes.neighbors": 1, "selection.denoise": "threshold"}
    config = trial_config(Job(search=search, folder=tuning / "trials"), settings)
    trial = Path(config.output.path)
    trial.mkdir(parents=True)
    write_config(on_disk(trial), config)
    (tuning / "config.yaml").write_text(dump_tree(search.values()))
    path = final(searched) / "ledger.sqlite"
    budget = search.config.privacy.budget
    ledger = Ledger.create(path, budget, search.fingerprint, accounting_of(search))

    def refuse() -> None:
        held = path.read_bytes()
        for attempt in (check_directory, tune):
            with pytest.raises(InputError, match="give the newer ledger"):
                attempt(search)
        assert path.read_bytes() == held

    (shared,) = shared_releases(search)
    refuse()
    ledger.reserve(shared)
    ledger.commit(shared.key, np.arange(40))
    check_directory(search)
    made = trial / "populations" / "iter=0001"
    made.mkdir(parents=True)
    (made / "part-00000.parquet").touch()
    refuse()
    first = replace(shared, key=f"trial/{trial.name}/votes/0001", kind="votes", sigma=30.0)
    ledger.reserve(first)
    ledger.commit(first.key, np.arange(20))
    check_directory(search)


@pytest.mark.slow
def test_a_searchs_first_mistake_is_mended_in_place(
    ray_session: None, searched: dict[str, Any]
) -> None:
    kind = searched["generator"]
    searched["generator"] = {
        "kind": "switch",
        "stages": [
            {"start": 0, "generator": kind},
            {"start": 1, "generator": kind | {"fonts": "/nowhere"}},
        ],
    }
    with pytest.raises(InputError, match=r"generator\.fonts: /nowhere"):
        tune(Search.from_dict(searched))
    assert not Ledger.open(final(searched) / "ledger.sqlite").charged
    searched["generator"] = kind
    assert tune(Search.from_dict(searched)).trials


@pytest.mark.parametrize(
    ("tuning", "metrics", "message"),
    [
        (
            {"reference": {"data": "/no", "labels": STAND_IN}},
            {},
            r"objective\.reference\.data",
        ),
        ({"score": "nosuch"}, {}, r"objective\.score: name one of accuracy"),
        ({}, {"data": "/nowhere", "metrics": [{"kind": "frechet"}]}, r"metrics\.public\.data"),
        ({"space": "fonts"}, {}, r"tuning\.space: with .*generator\.fonts: /nowhere"),
    ],
)
def test_what_trials_need_is_tried_before_anything_is_spent(
    ray_session: None,
    searched: dict[str, Any],
    tmp_path: Path,
    tuning: dict[str, Any],
    metrics: dict[str, Any],
    message: str,
) -> None:
    public = save_parquet(tmp_path / "public", STAND_IN)
    reference = {"data": str(public), "labels": STAND_IN}
    searched["tuning"] |= {
        "objective": {"kind": "public", "mode": "max", "metric": {"kind": "classifier"}}
        | {"reference": reference}
        | {key: value for key, value in tuning.items() if key != "space"},
    }
    if "space" in tuning:
        searched["tuning"]["space"] = {"generator.fonts": [None, "/nowhere"]}
    if metrics:
        searched["metrics"] = {"public": metrics}
    with pytest.raises(InputError, match=message):
        tune(Search.from_dict(searched))
    assert not Ledger.open(final(searched) / "ledger.sqlite").charged


@pytest.mark.parametrize(
    ("objective", "mode"),
    [
        ({"metric": "classifier"}, "max"),
        ({"metric": "frechet"}, "min"),
        ({"metric": "precision_recall"}, "max"),
        ({"metric": "precision_recall", "score": "recall/pixels"}, "max"),
        ({"metric": "frechet", "mode": "max"}, "max"),
        ({"metric": "tiny_tuning:Silent", "mode": "min"}, "min"),
        ({"metric": "tiny_tuning:Silent"}, None),
        ({"metric": "frechet", "score": "nosuch"}, None),
    ],
)
def test_a_metric_says_which_score_is_good(
    searched: dict[str, Any], objective: dict[str, Any], mode: str | None
) -> None:
    reference = {"data": "/public", "labels": STAND_IN}
    searched["tuning"]["objective"] = {"kind": "public", "reference": reference} | objective
    if mode is None:
        with pytest.raises(InputError, match=r"^tuning\.objective\.mode: needed"):
            Search.from_dict(searched)
        return
    search = Search.from_dict(searched)
    assert search.objective.mode == mode
    assert search.objective.better == {"min": "lower", "max": "higher"}[mode]


def test_a_range_is_tried_between_its_ends(searched: dict[str, Any]) -> None:
    searched["tuning"]["space"] = {"selection.smooth": {"low": 1, "high": 8}}
    with pytest.raises(InputError, match=r"tuning\.space: with .*selection\.smooth"):
        tune(Search.from_dict(searched))
    searched["tuning"]["space"]["selection.smooth"]["integer"] = True
    check_search(Search.from_dict(searched))


def test_a_logarithmic_range_of_whole_numbers_is_drawn_evenly_in_its_logarithm(
    searched: dict[str, Any],
) -> None:
    wide = {"low": 1, "high": 999, "log": True, "integer": True}
    searched["tuning"]["space"] = {"selection.smooth": wide}
    search = Search.from_dict(searched)
    drawn = [ray_space(search)["selection.smooth"].sample() for _ in range(3000)]
    assert all(isinstance(number, int) and 1 <= number <= 999 for number in drawn)
    for top in (9, 99):  # a third each of 1..9, 10..99, 100..999; five standard deviations
        share = sum(number <= top for number in drawn) / len(drawn)
        assert share == pytest.approx(math.log10(top + 1) / 3, abs=0.045)


def test_a_search_is_bound_to_what_a_run_is_bound_to(
    searched: dict[str, Any], tmp_path: Path
) -> None:
    searched["private"]["cache"] = str(tmp_path / "cache")
    first = Search.from_dict(searched).fingerprint
    searched["metrics"] = {"audit": [{"kind": "classifier"}]}
    searched["private"]["cache"] = str(tmp_path / "elsewhere")
    assert Search.from_dict(searched).fingerprint == first


@pytest.mark.slow
def test_the_ledger_of_an_unfinished_search_can_be_read(
    ray_session: None,
    searched: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def dies(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tune_module, "_finish", dies)
    with pytest.raises(KeyboardInterrupt):
        tune(Search.from_dict(searched))
    capsys.readouterr()
    assert cli.main(["ledger", str(final(searched)), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epsilon"] > 0
    assert cli.main(["report", str(final(searched))]) == 2


@pytest.mark.parametrize(
    ("strategy", "share", "noise"),
    [("public", 0.0, 1.0), ("proxy", 0.2, 1.2), ("compose", 0.5, 1.5)],
)
def test_the_plan_shows_what_a_search_costs(
    searched: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    strategy: str,
    share: float,
    noise: float,
) -> None:
    public = save_parquet(tmp_path / "public", STAND_IN, each=1)
    searched["tuning"]["public_data"] = {"data": str(public), "labels": STAND_IN}
    metric = {"kind": "frechet"}
    objective = {"kind": "public", "mode": "min", "metric": metric}
    searched["tuning"]["objective"] = objective | {"reference": searched["tuning"]["public_data"]}
    searched["tuning"]["strategy"] = strategy
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(searched))
    assert cli.main(["plan", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["strategy"] == strategy
    assert shown["search_share"] == pytest.approx(share, abs=0.01)
    assert shown["noise"] == pytest.approx(noise, abs=0.1)
    assert cli.main(["plan", str(file)]) == 0
    assert f"search      {strategy}: {share:.0%} of mu^2" in capsys.readouterr().out
    assert not final(searched).exists()
