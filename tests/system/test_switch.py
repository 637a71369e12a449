"""Generators that change by iteration: who makes what, and what can't follow what."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pe_ray import Config, InputError
from pe_ray.cli import main
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.files.parts import list_parts
from pe_ray.planning import plan, worker_seconds
from pe_ray.private.evaluation import audit
from pe_ray.release.evidence import open_run
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import begin
from pe_ray.report import write_report

THIN = {"kind": "rendered_text", "image_size": 12, "stroke": [0.06, 0.08]}
THICK = {"kind": "rendered_text", "image_size": 12, "stroke": [0.2, 0.3]}


def switch(*stages: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": "switch",
        "stages": [{"start": start, "generator": made} for start, made in stages],
    }


def populations(run: Path) -> list[dict[str, bytes]]:
    folders = sorted((run / "populations").iterdir())
    return [{part.file: (at / part.file).read_bytes() for part in list_parts(at)} for at in folders]


def ink(run: Path, iteration: int) -> float:
    images = pq.read_table(run / "populations" / f"iter={iteration:04d}", partitioning=None)
    return float(np.mean([np.frombuffer(image.as_py(), np.uint8) for image in images["image"]]))


def again(tree: dict[str, Any], generator: dict[str, Any], run: Path, folder: Path) -> Path:
    """A run with another generator, given the releases of `run`."""
    changed = {**tree, "generator": generator, "output": {**tree["output"], "path": str(folder)}}
    folder.mkdir()
    shutil.copy(run / "ledger.sqlite", folder / "ledger.sqlite")
    config = Config.from_dict(changed)
    with begin(folder / "ledger.sqlite") as database:
        database.execute("UPDATE budget SET fingerprint = ?", (config.fingerprint,))
    return evolve(config)


def test_iterations_before_the_switch_are_the_first_generators(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["schedule"] |= {"iterations": 3, "degrees": [0.5, 0.4, 0.3]}
    tree["generator"] = THIN
    run = evolve(Config.from_dict(tree))
    plain = populations(run)
    switched_run = again(tree, switch((0, THIN), (2, THICK)), run, tmp_path / "switched")
    switched = populations(switched_run)
    assert switched[:2] == plain[:2]
    assert switched[2] != plain[2]
    assert ink(switched_run, 2) > 1.5 * ink(switched_run, 1)
    for stage in ("populations/iter=0002", "populations/iter=0003", "synthetic"):
        shutil.rmtree(switched_run / stage)
    same = {**tree, "generator": switch((0, THIN), (2, THICK))}
    same["output"] = {**tree["output"], "path": str(switched_run)}
    assert evolve(Config.from_dict(same)) == switched_run
    assert populations(switched_run) == switched


@pytest.mark.slow
def test_rendered_text_then_a_diffusion_model(
    ray_session: None, tree: dict[str, Any], checkpoint: Callable[[str], str], tmp_path: Path
) -> None:
    tree["generator"] = switch(
        (0, {"kind": "rendered_text", "image_size": 32, "channels": 3}),
        (
            1,
            {
                "kind": "stable_diffusion",
                "checkpoint": checkpoint("sd"),
                "image_size": 32,
                "vary": {"steps": 4},
            },
        ),
    )
    tree["schedule"] |= {"iterations": 1, "num_samples": 20, "degrees": 0.25}
    tree["votes"] = {"lookahead": 1, "reuse_lookahead": True}
    run = evolve(Config.from_dict(tree))
    columns = [
        set(pq.read_schema(next(at.glob("part-*"))).names)
        for at in sorted((run / "populations").iterdir())
    ]
    own = {"font", "text", "genome"}
    assert own <= columns[0]
    assert columns[1] == columns[0] - own
    write_report(run)
    assert len(list((run / "samples").glob("*.png"))) == 2
    assert audit(open_run(run))
    more = expand(run, 25, tmp_path / "more")
    assert sum(part.stop - part.start for part in list_parts(more)) == 25


def test_the_plan_times_each_generator(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["generator"] = switch((0, THIN), (1, THICK))
    config = Config.from_dict(tree)
    made = plan(config)
    assert made.calls == (40, 80, 80)
    assert made.random_calls + made.variation_calls == sum(made.calls)
    seconds = worker_seconds(config, made.calls)
    assert seconds is not None
    assert 0 < seconds < 60
    config = config.model_copy(
        update={"resources": config.resources.model_copy(update={"gpus_per_worker": 1.0})}
    )
    assert worker_seconds(config, made.calls) is None


def test_a_later_generator_that_cant_be_built_costs_nothing(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["generator"] = switch((0, THIN), (2, THICK | {"fonts": "/nowhere"}))
    with pytest.raises(InputError, match=r"generator\.fonts: /nowhere"):
        evolve(Config.from_dict(tree))
    assert not Ledger.open(tmp_path / "run" / "ledger.sqlite").charged
    tree["generator"] = THIN | {"fonts": "/nowhere"}
    tree["privacy"]["label_fractions"] = "dp"
    with pytest.raises(InputError, match=r"generator\.fonts: /nowhere"):
        evolve(Config.from_dict(tree))
    assert not Ledger.open(tmp_path / "run" / "ledger.sqlite").charged


def test_a_switch_is_bound_like_any_setting(tree: dict[str, Any]) -> None:
    plain = Config.from_dict(tree)
    tree["generator"] = switch((0, THIN), (1, THICK))
    config = Config.from_dict(tree)
    assert config.fingerprint != plain.fingerprint
    assert Config.from_dict(config.model_dump(mode="json")) == config
    assert config.generator_at(0).options.stroke == (0.06, 0.08)
    assert config.generator_at(2).options.stroke == (0.2, 0.3)


DIFFUSION = {"kind": "stable_diffusion", "checkpoint": "a/b", "image_size": 32}
COLOUR = {"kind": "rendered_text", "image_size": 32, "channels": 3}


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (switch(), "stages"),
        (switch((1, THIN)), "first must start at 0"),
        (switch((0, THIN), (2, THICK), (2, THIN)), "start after the one before"),
        (switch((0, THIN), (3, THICK)), "no iteration after 2"),
        (switch((0, THIN), (1, COLOUR)), "another shape"),
        (switch((0, DIFFUSION), (1, COLOUR)), "needs the column 'font'"),
        (switch((0, COLOUR), (2, {**DIFFUSION, "vary": {"steps": 3}})), "does no step"),
        (switch((0, THIN), (1, {"kind": "unheard_of"})), "'unheard_of' is not known"),
        ({"kind": "switch", "stage": []}, "stage"),
    ],
)
def test_what_cannot_follow_is_refused(
    tree: dict[str, Any], generator: dict[str, Any], message: str
) -> None:
    tree["generator"] = generator
    with pytest.raises(InputError, match=message):
        Config.from_dict(tree)


def test_degrees_are_checked_where_their_generator_runs(tree: dict[str, Any]) -> None:
    few = {**DIFFUSION, "vary": {"steps": 2}}
    tree["generator"] = switch((0, COLOUR), (2, few))
    tree["schedule"]["degrees"] = [0.1, 0.5]  # 0.1 is for the rendered text alone
    Config.from_dict(tree)
    tree["generator"] = switch((0, few), (1, {**few, "vary": {"steps": 20}}))
    tree["schedule"]["degrees"] = [0.1, 0.1]
    Config.from_dict(tree)
    tree["selection"] = {"initial_variation_fold": 1}
    with pytest.raises(InputError, match=r"degree 0\.1 does no step"):
        Config.from_dict(tree)


def test_the_command_line_plans_a_switch(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    tree["generator"] = switch((0, THIN), (1, THICK))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["plan", str(tmp_path / "config.yaml")]) == 0
    assert "worker seconds of generation" in capsys.readouterr().out


def test_what_changes_no_output_is_not_bound_in_a_stage_either(tree: dict[str, Any]) -> None:
    def fingerprint(start: int = 1, **changes: Any) -> str:
        given = {"kind": "nearest_image", "data": "public", "image_size": 8} | changes
        stages = [
            {"start": 0, "generator": given | {"data": "public"}},
            {"start": start, "generator": given},
        ]
        tree["schedule"]["degrees"] = 3
        tree["generator"] = {"kind": "switch", "stages": stages}
        return Config.from_dict(tree).fingerprint

    assert fingerprint(cache="elsewhere") == fingerprint()
    assert fingerprint(data="other") != fingerprint()
    assert fingerprint(start=2) != fingerprint()
