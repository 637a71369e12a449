"""The command line as a script uses it, and the library as a Python user uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from tiny_unets import save_unet

from pe_ray import cli
from pe_ray.config import Config
from pe_ray.planning import plan

REPOSITORY = Path(__file__).resolve().parents[2]


def write(tree: dict[str, Any], folder: Path) -> str:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    return str(file)


LIGHT = [
    ("import pe_ray.report.run_status", "torch ray faiss matplotlib sklearn PIL pandas scipy"),
    (
        "from pe_ray import Config, Run, evolve, tune",
        "torch ray faiss diffusers transformers sklearn pandas scipy dp_accounting",
    ),
    ("import pe_ray.cli, pe_ray.release.ledger", "torch ray faiss matplotlib sklearn scipy"),
    ("import pe_ray.planning, pe_ray.cli.inputs", "torch ray faiss matplotlib sklearn scipy"),
    ("import pe_ray.report.page, pe_ray.report.comparison", "torch ray faiss sklearn scipy"),
    ("import pe_ray.release.aggregator", "torch ray.data matplotlib sklearn pandas scipy"),
    ("import pe_ray.evolution", "torch ray.data matplotlib sklearn pandas scipy"),
]


@pytest.mark.parametrize(
    "steps",
    [LIGHT, [("import pe_ray.verifying", "torch ray faiss matplotlib sklearn pandas")]],
    ids=["all", "verifying"],
)
def test_importing_is_light(steps: list[tuple[str, str]]) -> None:
    """One after the other in one process: what is absent after a step was absent before it."""
    script = f"""
import sys
for imports, absent in {steps!r}:
    exec(imports)
    if found := {{*absent.split()}} & {{*sys.modules}}:
        print(imports, found)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


LOOKS = """
import contextlib, io, sys
from pe_ray import cli

heavy = {"matplotlib", "pandas", "ray", "scipy", "sklearn", "torch"}
for verb in ("ledger", "status", "report"):
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main([verb, sys.argv[1]]) == 0
    print(verb, *sorted(heavy & {*sys.modules}))
"""


def test_verbs_that_look_at_a_run_import_what_they_show(
    ray_session: None, short: dict[str, Any], tmp_path: Path
) -> None:
    """The run has computed the epsilon of its ledger, so they need no accounting for it."""
    assert cli.main(["run", write(short, tmp_path)]) == 0
    command = [sys.executable, "-c", LOOKS, short["output"]["path"]]
    done = subprocess.run(command, capture_output=True, text=True)
    ledger, status, report = done.stdout.splitlines()
    assert (ledger, status) == ("ledger", "status"), done.stderr
    assert not {"ray", "sklearn", "torch"} & {*report.split()}


PLAN_KEYS = {"epsilon", "delta", "unit", "releases", "calls", "images", "disk_bytes"}
LEDGER_KEYS = {"epsilon", "delta", "unit", "budget_epsilon", "accounting", "releases"}
"""Scripts rely on these keys."""


def test_run_ledger_report_audit(
    ray_session: None, tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = write(tree, tmp_path), tree["output"]["path"]
    assert cli.main(["plan", config, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert set(planned) >= PLAN_KEYS
    assert cli.main(["run", config]) == 0
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert Path(printed["report"]) == Path(run, "report.html")
    assert Path(printed["synthetic"]) == Path(run, "synthetic")
    assert printed["spent"] == (
        f"epsilon {planned['epsilon']:.6g}, delta 0.0001, adding or removing one record "
        "(from the ledger)"
    )
    assert cli.main(["ledger", run, "--json"]) == 0
    spent = json.loads(capsys.readouterr().out)
    assert spent["epsilon"] == planned["epsilon"] <= 1.0
    assert set(spent) >= LEDGER_KEYS
    assert spent["delta"] == 1e-4
    assert spent["unit"] == "record"
    for released, expected in zip(spent["releases"], planned["releases"], strict=True):
        assert released["state"] == "committed"
        assert {key: released[key] for key in expected} == expected
    page = Path(run, "report.html").read_text()
    assert "differential privacy" in page
    assert len(list(Path(run, "samples").glob("*.png"))) == 3
    assert "://" not in page
    assert len(Path(run, "metrics.jsonl").read_text().splitlines()) == 2
    held = sum(path.stat().st_size for path in Path(run).rglob("*") if path.is_file())
    assert held <= planned["disk_bytes"]
    before = {path for path in Path(run).rglob("*")}
    assert cli.main(["audit", run, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert 0 <= scores["accuracy_train_synthetic"] <= 1
    more = ["--metric", "frechet", "--metric", "{kind: classifier, size: 6}", "--json"]
    assert cli.main(["audit", run, *more]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert set(scores) == {"frechet_distance/pixels", "accuracy_train_synthetic"}
    for wrong in ("frechett", "{kind: classifier, sze: 6}", "[", "{kind: kid}"):
        assert cli.main(["audit", run, "--metric", wrong]) == 2
        assert "--metric" in capsys.readouterr().err or wrong == "{kind: kid}"
    assert before == {path for path in Path(run).rglob("*")}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("privacy.epsilon=-1", "privacy.epsilon: "),
        ("privacy.delta=0", "privacy.delta: "),
        ("votes.neighbours=3", "votes.neighbours: "),
        ("generator.kind=unheard_of", "kind: 'unheard_of' "),
        ("generator.fount=serif", "generator.fount: "),
        ("schedule.num_samples=[10, 20]", "num_samples: "),
        ("schedule.num_samples=5", "schedule.num_samples: "),
        ("schedule.num_samples=9223372036854775808", "num_samples: "),
        ("schedule.noise=1.0e-200", "noise: "),
        ("private={data: &a [*a], labels: [a]}", "config: "),
        ("private.data=/nowhere", "private.data: /nowhere "),
        ("privacy.unit=user", "private.user_column: "),
        ("output.path=s3://bucket/run", "output.ledger: "),
        ("embedder={kind: inception, weights: absent}", "embedder.weights: "),
        ("nonsense", "--set nonsense: "),
        ("=1", "--set =1: "),
        ("privacy.epsilon=[1", "--set privacy.epsilon=[1: "),
        ("privacy.epsilon.more=1", "--set privacy.epsilon.more=1: "),
        ("privacy.epsilon=one", "privacy.epsilon: "),
        ("metrics.public={data: /nowhere, metrics: [{kind: frechet}]}", "metrics.public.data: "),
        ("metrics.public={data: /nowhere, metrics: []}", "metrics.public.metrics: "),
        ("votes.neighbors=1000000000", "votes.neighbors: "),
        ("votes.lookahead=1000000000", "votes.lookahead: "),
        ("schedule.degrees=-1", "degrees: "),
        ("resources.gpus_per_worker=64", "resources: "),
        ("resources.cpus_per_worker=4096", "resources: "),
        ("selection.threshold=.nan", "selection.threshold: "),
        ("selection.overrides={1: {foo: 1}}", "config: selection.overrides.1.foo: "),
        ("schedule.degrees={start: 1}", "config: schedule.degrees.end: "),
        ("privacy.label_fractions=even", "config: privacy.label_fractions: "),
        ("metrics.audit=[{kind: x}]", "config: metrics.audit.0.kind: 'x' "),
        ("votes={lookahead: 1, neighbors: 2, lookahead: 0}", "--set votes={lookahead: 1, "),
        ("output.path=PRIVATE/run", "output.path: "),
        ("generator.kind=unheard", "stable_diffusion, unet or module:Class"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    ray_session: None,
    tree: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    field: str,
) -> None:
    if "PRIVATE" in change:
        tree["private"]["data"] = str(tmp_path / "data")
        change = change.replace("PRIVATE", tree["private"]["data"])
    assert cli.main(["run", write(tree, tmp_path), "--set", change]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("pe-ray: ")
    assert field in error


def test_every_fault_of_a_configuration_is_a_line(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree["privacy"]["epsilom"] = tree["privacy"].pop("epsilon")
    tree["schedule"]["degrees"] = {"strat": 0.5, "end": "x"}
    tree["private"]["labels"] = list(range(10))
    tree["votes"] = {"neighbors": 0}
    del tree["embedder"]
    assert cli.main(["plan", write(tree, tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert {tuple(line.split(": ")[:3]) for line in lines} == {
        ("pe-ray", "config", key)
        for key in (
            "embedder",
            "private.labels.0",
            "privacy.epsilom",
            "schedule.degrees.end",
            "schedule.degrees.strat",
            "votes.neighbors",
        )
    }


@pytest.mark.parametrize("verb", ["status", "report", "ledger", "audit", "compare", "expand"])
def test_a_configuration_given_as_a_run_is_one_line(
    tree: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    config = write(tree, tmp_path)
    more = ["--output", str(tmp_path / "more")] if verb == "expand" else []
    assert cli.main([verb, config, *more]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"pe-ray: run {config}: ")
    assert "output.path" in error


def test_expand_takes_resources_and_nothing_else(
    ray_session: None, short: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", write(short, tmp_path)]) == 0
    run = short["output"]["path"]
    more = ["expand", run, "--num-samples", "50", "--output", f"{tmp_path}/more"]
    assert cli.main([*more, "--set", "votes.neighbors=2"]) == 2
    assert "resources.key=value" in capsys.readouterr().err
    assert cli.main([*more, "--set", "resources.batch_sizes=7"]) == 2
    assert "resources.batch_sizes: " in capsys.readouterr().err
    assert cli.main([*more, "--set", "resources.batch_size=7"]) == 0
    labels = pq.read_table(tmp_path / "more")["label"].to_pylist()
    assert sorted(labels) == sorted([*range(10)] * 5)  # of 40 samples in label order


def test_the_plan_counts_calls_as_the_paper_does(tree: dict[str, Any]) -> None:
    tree["schedule"] = {"iterations": 20, "num_samples": 50_000, "degrees": 0.5}
    tree["votes"] = {"lookahead": 8}
    made = plan(Config.from_dict(tree))
    assert made.random_calls == 50_000
    assert made.variation_calls == 9_000_000


@pytest.mark.parametrize("file", sorted(REPOSITORY.glob("pipelines/*.yaml")), ids=lambda f: f.name)
def test_pipelines_are_valid(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the checkpoint that one of them has to have trained before."""
    monkeypatch.chdir(tmp_path)
    save_unet(tmp_path / "models" / "natural32", sample_size=32)
    config = Config.from_yaml(file)
    assert Config.from_dict(config.model_dump(mode="json")).fingerprint == config.fingerprint


def test_the_cats_are_those_of_the_paper() -> None:
    config = Config.from_yaml(REPOSITORY / "pipelines" / "cats.yaml")
    made = plan(config)
    assert [release.sensitivity for release in made.releases] == [1.0] * 17
    assert all(2 <= release.sigma < 2.01 for release in made.releases)
    assert made.random_calls == 200
    assert made.variation_calls == 17 * 200 * (8 + 1)
    assert (config.image_shape.height, config.image_shape.channels) == (512, 3)


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_is_gone_ends_a_command_without_a_word(
    tree: dict[str, Any], tmp_path: Path, buffered: bool
) -> None:
    """Whether the output breaks off on its way or at the end."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pe_ray", "plan", write(tree, tmp_path)],
        env=os.environ | ({} if buffered else {"PYTHONUNBUFFERED": "1"}),
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


ENDS = """
import os, signal, sys
from pe_ray import cli
cli.look_verbs._status = lambda options: eval(sys.argv[1])
raise SystemExit(cli.main(["status", "run"]))
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os._exit(1)", 1),  # as Ray's libraries end a driver whose GCS is gone
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("sys.exit()", 1),
        ("sys.exit(3)", 1),
    ],
)
def test_no_end_is_silent(end: str, status: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDS, end], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("pe-ray: ")
    assert line.endswith("the same command continues")


def test_an_end_with_its_own_words_gets_no_others(tmp_path: Path) -> None:
    for end in ("None", "1 / 0"):
        done = subprocess.run([sys.executable, "-c", ENDS, end], capture_output=True, text=True)
        assert "pe-ray: " not in done.stderr


def test_a_ray_that_does_not_start_is_one_line(
    tree: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def time_out(*_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.\nSee the logs.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", time_out)
    assert cli.main(["run", write(tree, tmp_path)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pe-ray: Ray did not start")
    assert last.endswith("the same command continues")
