"""A newcomer's first commands: help, completion, init."""

from __future__ import annotations

import argparse
import re
import shlex
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from pe_ray import Config, cli, save_images
from pe_ray.cli.inputs import find_address_warnings, plan_inputs
from pe_ray.planning import plan

VERBS: dict[str, argparse.ArgumentParser] = cli._make_parser().parse_args(["completion"]).verbs


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_help_and_every_verb_an_example_that_parses(verb: str) -> None:
    parser = VERBS[verb]
    assert all(action.help for action in parser._actions)
    assert parser.epilog is not None
    command = parser.epilog.splitlines()[-1]
    words = shlex.split(command.partition(">")[0])
    assert words[0] == "pe-ray"
    cli._make_parser().parse_args(words[1:])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pe-ray", "pl"], {"plan"}),
        (["pe-ray", "expand", "--num"], {"--num-samples"}),
        (["pe-ray", "audit", "runs/a", "--pri"], {"--privacy"}),
        (["pe-ray", "plan", "--num"], set()),
    ],
)
def test_bash_completes_verbs_and_options(
    capsys: pytest.CaptureFixture[str], words: list[str], expected: set[str]
) -> None:
    assert cli.main(["completion"]) == 0
    ask = f"""
COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}
_pe_ray; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    script = capsys.readouterr().out + ask
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected


FILLED = {
    "private.labels": '["0", "1"]',
    "generator.data": "PUBLIC",
    "generator.store": "STORE",
    "generator.prompt": "a photo of a {label}",
    "generator.price": "{random: 0.02, vary: 0.03}",
    "generator.max_calls": "100000",
    "generator.max_cost": "100000",
    "privacy.epsilon": "1",
    "privacy.delta": "1e-6",
    "privacy.unit": "record",
    "privacy.label_fractions": "uniform",
}


@pytest.mark.parametrize("kind", ["photos", "characters", "service"])
def test_a_starter_is_a_run_once_it_is_filled_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    for name in ("private", "public"):
        save_images(list(images), tmp_path / f"{name}.parquet", ["0", "1"] * 4)
    file, data = str(tmp_path / "mine.yaml"), str(tmp_path / "private.parquet")
    assert cli.main(["init", file, "--kind", kind, "--data", data]) == 0
    assert cli.main(["init", file, "--kind", kind]) == 2  # overwrites nothing

    assert cli.main(["plan", file]) == 2
    empty = {line.split(": ")[2] for line in capsys.readouterr().err.splitlines()[1:]}
    text = Path(file).read_text()
    assert text.count("# FILL IN") == len(empty) <= len(FILLED)
    values = {"PUBLIC": str(tmp_path / "public.parquet"), "STORE": str(tmp_path / "store")}
    for key in empty:
        value = values.get(FILLED[key], FILLED[key])
        text = re.sub(rf"(?m)^(  {key.split('.')[1]}:) # FILL IN.*", rf"\1 {value}", text)
    Path(file).write_text(text)
    assert yaml.safe_load(text)["private"]["data"] == data
    config = Config.from_yaml(file)
    assert {read.files for read in plan_inputs(config)} == {1}
    assert plan(config).epsilon == pytest.approx(1, rel=1e-2)


def test_an_address_where_nothing_answers_is_warned_of() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert find_address_warnings(address) == []
    (warning,) = find_address_warnings(address)
    assert warning.startswith(f"resources.address: {address} ")
    assert find_address_warnings("auto") == find_address_warnings(None) == []
