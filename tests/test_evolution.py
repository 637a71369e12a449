"""A whole run: it continues after any kill, releases once, and repeats byte for byte."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from tiny_networks import save_clip
from verified import differing

from pe_ray import Config, InputError, evolution, plugins
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.files.parts import read_manifest
from pe_ray.private.evaluation import audit
from pe_ray.release.evidence import open_run
from pe_ray.release.ledger import Ledger
from pe_ray.release.ledger_sql import begin
from pe_ray.synthetic.population import read_layout
from pe_ray.synthetic.teacher import Teacher

KILLER = """
import os, signal, sys
import pe_ray.release.door as door, pe_ray.evolution as evolution
from pe_ray.config import Config
from pe_ray.runtime import stages as stage
from pe_ray.synthetic import embedding

left = int(sys.argv[2])

def counted(step):
    def call(*arguments, **named):
        global left
        for half in range(2):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            if half == 0:
                result = step(*arguments, **named)
        return result
    return call

for name in ("draw_population", "denoise", "select_parents", "vary", "learn_features",
             "solve_teacher", "export", "record_config"):
    setattr(evolution, name, counted(getattr(evolution, name)))
for name in ("cast_votes", "create_aggregator", "sum_records"):
    setattr(door, name, counted(getattr(door, name)))
door.Door.ask = counted(door.Door.ask)
embedding.Embedding.parts = counted(embedding.Embedding.parts)
stage.commit = counted(stage.commit)
evolution.evolve(Config.from_yaml(sys.argv[1]))
print("steps left", left)
"""


def digests(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for part in ("populations", "histograms", "smoothed", "synthetic")
        for file in sorted((folder / part).rglob("*.parquet"))
    }


def replayed(tree: dict[str, Any], run: Path, elsewhere: Path) -> dict[str, str]:
    """What an uninterrupted run yields given the same releases: only the ledger is kept."""
    kept = elsewhere / "kept.sqlite"
    shutil.copy(run / "ledger.sqlite", kept)
    shutil.rmtree(run)
    run.mkdir()
    shutil.copy(kept, run / "ledger.sqlite")
    evolve(Config.from_dict(tree))
    return digests(run)


def test_a_run_and_its_replay_are_equal_byte_for_byte(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = evolve(Config.from_dict(tree))
    first, ledger = digests(run), Ledger.open(run / "ledger.sqlite")
    assert [entry.state for entry in ledger.entries()] == ["committed"] * 2
    assert 0.9 < ledger.spent() <= 1.0
    assert evolve(Config.from_dict(tree)) == run
    assert digests(run) == first
    tree["resources"]["workers"] = 2
    tree["resources"]["batch_size"] = 5
    assert replayed(tree, run, tmp_path) == first
    tree["resources"] |= {"gpus_per_worker": 0.5, "workers": 1}  # an actor instead of tasks
    assert replayed(tree, run, tmp_path) == first
    assert "Dataset" not in capfd.readouterr().err  # Ray Data tells nothing of its own
    assert not list((run / "embeddings").glob("*"))


def test_a_charged_release_stays_though_calibration_changes(
    ray_session: None, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evolve(Config.from_dict(tree))
    before = Ledger.open(run / "ledger.sqlite").entries()[0]
    with begin(run / "ledger.sqlite") as database:
        database.execute("DELETE FROM releases WHERE key = 'votes/0002'")
    for stage in ("populations/iter=0002", "synthetic"):
        shutil.rmtree(run / stage)
    (run / "histograms" / "iter=0002.parquet").unlink()
    planned = evolution.plan_releases
    monkeypatch.setattr(
        evolution,
        "plan_releases",
        lambda config: tuple(replace(r, sigma=r.sigma * 1.01) for r in planned(config)),
    )
    evolve(Config.from_dict(tree))
    first, second = Ledger.open(run / "ledger.sqlite").entries()
    assert first == before
    assert second.release.sigma == pytest.approx(1.01 * first.release.sigma)


def test_reused_lookahead_draws_are_the_children(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree["votes"] = {"lookahead": 2, "reuse_lookahead": True}
    tree["selection"] = {"keep_selected": True, "next_variation_fold": 2}
    run = evolve(Config.from_dict(tree))
    first, manifest = digests(run), read_manifest(run / "populations" / "iter=0002")
    assert manifest is not None
    assert 0 < manifest["reused_draws"] <= manifest["variations"]
    assert not list((run / "lookahead").glob("*"))
    # Without the kept images the same draws are made again, from the same seeds.
    vary = evolution.vary

    def vary_without_draws(run: Any, *arguments: Any, **named: Any) -> Any:
        shutil.rmtree(run.directory.path / "lookahead", ignore_errors=True)
        return vary(run, *arguments, **named)

    monkeypatch.setattr(evolution, "vary", vary_without_draws)
    assert replayed(tree, run, tmp_path) == first


AGAIN = """
import sys
from pathlib import Path
from pe_ray import Config, InputError, evolve, expand

config = Config.from_yaml(sys.argv[1])
run = evolve(config)
expand(run, 50, sys.argv[2], config.resources)
next((run / "synthetic").glob("*.parquet")).unlink()
try:
    evolve(config)
except InputError as error:
    print(error)
"""


def test_what_is_complete_is_found_so_without_ray(
    ray_session: None, short: dict[str, Any], tmp_path: Path
) -> None:
    expand(evolve(Config.from_dict(short)), 50, tmp_path / "more")
    short["resources"] = {"address": "127.0.0.1:1"}  # where nothing answers
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(short))
    command = [sys.executable, "-c", AGAIN, str(file), str(tmp_path / "more")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith("resources.address: "), done.stderr


@pytest.mark.slow
def test_killed_at_every_state_change_it_continues(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    """Drivers of one Ray, which takes a third of the time of each starting its own."""
    import ray

    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    tree["votes"]["reuse_lookahead"] = True
    tree["selection"] = {"smooth": 4}
    tree["teacher"] = {"features": 4, "epochs": 1}
    file, script = tmp_path / "config.yaml", tmp_path / "killer.py"
    file.write_text(yaml.safe_dump(tree))
    script.write_text(KILLER)
    run = Path(tree["output"]["path"])
    seen: dict[str, list[int]] = {}
    for step in range(200):
        done = subprocess.run(
            [sys.executable, str(script), str(file), str(step)],
            env=environment,
            capture_output=True,
            text=True,
        )
        if (run / "ledger.sqlite").exists():
            ledger = Ledger.open(run / "ledger.sqlite")
            assert ledger.spent() <= 1.0
            for entry in ledger.entries():
                stored = ledger.stored(entry.release.key)
                if stored is not None:
                    votes = stored.tolist()
                    assert seen.setdefault(entry.release.key, votes) == votes
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr[-2000:]
    assert step >= 3
    assert set(seen) == {"votes/0001", "votes/0002", "teacher"}
    killed = digests(run)
    assert replayed(tree, run, tmp_path) == killed


@pytest.mark.slow
def test_resources_do_not_reach_a_networks_votes(
    ray_session: None, tree: dict[str, Any], tmp_path: Path
) -> None:
    """Without noise the votes decide alone, so the last bit of an embedding may count."""
    tree["privacy"]["epsilon"] = float("inf")
    tree["embedder"] = {"kind": "clip", "checkpoint": str(save_clip(tmp_path / "clip"))}
    tree["votes"] |= {"metric": "cosine"}
    first = digests(evolve(Config.from_dict(tree)))
    tree["resources"]["workers"] = 2
    tree["resources"]["batch_size"] = 5
    tree["output"]["path"] = str(tmp_path / "again")
    assert digests(evolve(Config.from_dict(tree))) == first


def test_every_option_of_the_main_path_runs(ray_session: None, tree: dict[str, Any]) -> None:
    tree["privacy"]["label_fractions"] = "dp"
    tree["votes"] = {"metric": "cosine", "neighbors": 3}
    tree["schedule"] |= {"num_samples": [30, 20, 50], "noise": 0.5}
    tree["selection"] = {
        "initial_variation_fold": 1,
        "keep_selected": True,
        "next_variation_fold": 2,
        "overrides": {2: {"denoise": "simplex", "method": "rank"}},
    }
    run = evolve(Config.from_dict(tree))
    ledger = Ledger.open(run / "ledger.sqlite")
    label_counts, first, second = (entry.release for entry in ledger.entries())
    assert label_counts.sensitivity == 1
    assert first.sensitivity == pytest.approx(3**0.5)
    assert first.sigma == pytest.approx(2 * second.sigma, rel=1e-4)
    manifest = read_manifest(run / "populations" / "iter=0002")
    assert manifest is not None
    assert manifest["num_rows"] == 50
    assert differing(run) == set()


def test_a_teacher_labels_the_final_set_its_expansion_and_the_audit(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree["privacy"] |= {"epsilon": 30.0, "label_fractions": "dp"}
    tree["schedule"] = {"iterations": 1, "num_samples": 200, "degrees": 0.5}
    tree["teacher"] = {"features": 12, "share": 0.4}
    config = Config.from_dict(tree)
    run = evolve(config)
    ledger = Ledger.open(run / "ledger.sqlite")
    label_counts, *votes, teacher = (entry.release for entry in ledger.entries())
    assert (teacher.key, teacher.kind, teacher.sensitivity) == ("teacher", "sums", 1)
    spent = [(release.sensitivity / release.sigma) ** 2 for release in (label_counts, teacher)]
    total = sum(spent) + sum((release.sensitivity / release.sigma) ** 2 for release in votes)
    assert [share / total for share in spent] == pytest.approx([0.05, 0.4], rel=1e-3)
    assert ledger.spent() <= 30
    labels_of = Teacher(open_run(run)).predict
    made = {}
    for name, folder in (("final", run / "synthetic"), ("more", expand(run, 250, tmp_path / "x"))):
        table = pq.read_table(folder, partitioning=None)
        pngs = [cell["bytes"] for cell in table["image"].to_pylist()]
        images = [np.asarray(Image.open(io.BytesIO(png))) for png in pngs]
        made[name] = np.array(table["label"])
        assert (made[name] == labels_of(np.stack(images)[..., None])).all()
    drawn_for = read_layout(run.joinpath("populations", "iter=0001")).labels(0, 200)
    assert 0.1 < (made["final"] == drawn_for).mean() < 1.0
    assert differing(run) == set()
    seen: list[Any] = []
    scorer = plugins.load("metric", "classifier")
    monkeypatch.setattr(scorer, "score", lambda self, x, y, *rest: seen.append(y) or {})
    audit(open_run(run))
    assert (seen[0] == made["final"]).all()
    (run / "teacher" / "weights.npz").unlink()
    with pytest.raises(InputError, match="not finished"):
        expand(run, 250, tmp_path / "y")
    audit(open_run(run))  # the final set has its labels
    assert (seen[1] == made["final"]).all()
    evolve(config)
    assert (labels_of(np.stack(images)[..., None]) == made["more"]).all()
    assert len(ledger.entries()) == 3
