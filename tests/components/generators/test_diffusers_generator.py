"""Diffusers on tiny Stable Diffusion: rows, prompts, sharing, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_diffusion import generator

from pe_ray import Config, InputError
from pe_ray.components.generators.diffusers_generator import Diffusers, DiffusersOptions
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.files.parts import list_parts
from pe_ray.plugins import Rows
from pe_ray.plugins.seeds import row_seeds

pytestmark = pytest.mark.usefixtures("one_thread")

Checkpoint = Callable[[str], str]

LABELS = np.array([0, 2, 1, 1, 0, 2, 2, 0], dtype=np.int32)
IDS = np.arange(len(LABELS), dtype=np.int64)
DRAWS, STEPS = row_seeds(1, "random", 0, IDS), row_seeds(1, "variation", 1, IDS)
ROUNDING = 1  # of 255 levels, in fp32


def drawn(made: Diffusers, which: slice | list[int] = slice(None)) -> Rows:
    return {**made.random(LABELS[which], DRAWS[which]), "label": LABELS[which]}


def apart(left: Rows, right: Rows) -> int:
    return int(np.abs(left["image"].astype(int) - right["image"]).max())


@pytest.mark.parametrize("kind", ["sd", "ancestral", "lcm", "consistency", "xl"])
def test_a_row_depends_on_its_seed_alone(checkpoint: Checkpoint, kind: str) -> None:
    made = generator(checkpoint(kind))
    whole = drawn(made)
    varied = made.vary(whole, 0.5, STEPS)
    assert whole["image"].dtype == np.uint8
    assert whole["image"].std() > 10
    assert apart(varied, whole) > 20
    for which in ([0], [0, 1, 2, 3], [5, 0, 7], list(range(8))[::-1]):
        part = drawn(made, which)
        assert apart(part, {"image": whole["image"][which]}) <= ROUNDING
        parents = {name: values[which] for name, values in whole.items()}
        again = made.vary(parents, 0.5, STEPS[which])
        assert apart(again, {"image": varied["image"][which]}) <= ROUNDING
    others = made.vary(whole, 0.5, DRAWS)
    assert (np.abs(others["image"].astype(int) - varied["image"]).max(axis=(1, 2, 3)) > 20).all()


def test_seeds_that_share_32_bits_start_from_different_noise(checkpoint: Checkpoint) -> None:
    made = generator(checkpoint("sd"))
    seeds = np.array([7, 7 + 2**32], dtype=np.uint64)
    first, second = made.random(np.zeros(2, dtype=np.int32), seeds)["image"].astype(int)
    assert np.abs(first - second).max() > 20


def test_degree_is_the_share_of_steps_done(checkpoint: Checkpoint) -> None:
    made = generator(checkpoint("sd"), vary={"steps": 10})
    calls: list[int] = []
    made._vary.unet.register_forward_hook(lambda *_: calls.append(1))
    rows = drawn(made, [0])
    for degree, steps in ((1.0, 10), (0.5, 5), (0.19, 1)):
        calls.clear()
        made.vary(rows, degree, STEPS[:1])
        assert len(calls) == steps


def test_weights_are_shared_unless_variations_have_their_own(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shared = generator(checkpoint("sd"))
    assert shared._vary.unet is shared._random.unet
    assert shared._vary.vae is shared._random.vae
    before = drawn(shared)
    shared.vary(before, 0.5, STEPS)
    assert apart(drawn(shared), before) == 0  # a scheduler in common keeps no state between calls
    own = generator(checkpoint("sd"), vary={"steps": 4, "checkpoint": checkpoint("ancestral")})
    assert own._vary.unet is not own._random.unet
    assert apart(drawn(own), before) == 0
    assert apart(own.vary(before, 0.5, STEPS), shared.vary(before, 0.5, STEPS)) > 20


def test_prompts(checkpoint: Checkpoint) -> None:
    made = generator(checkpoint("sd"), prompt="one {label}", prompts={"dog": "a dog"})
    rows = drawn(made)
    assert set(rows) == {"image", "label"}
    for label, prompt in enumerate(["one cat", "a dog", "one owl"]):
        alone, of = drawn(generator(checkpoint("sd"), prompt=prompt)), label == LABELS
        assert apart({"image": alone["image"][of]}, {"image": rows["image"][of]}) <= ROUNDING
        assert apart({"image": alone["image"][~of]}, {"image": rows["image"][~of]}) > ROUNDING


def test_guidance_counts(checkpoint: Checkpoint) -> None:
    plain = drawn(generator(checkpoint("sd"), random={"steps": 3, "guidance": 0}))
    guided = drawn(generator(checkpoint("sd"), random={"steps": 3, "guidance": 30}))
    assert apart(plain, guided) > 0


@pytest.mark.slow
def test_compiled_networks_make_the_same_images(traced: None, checkpoint: Checkpoint) -> None:
    plain, made = generator(checkpoint("sd")), generator(checkpoint("sd"), compile=True)
    rows = drawn(plain)
    assert apart(drawn(made), rows) <= ROUNDING
    for which in (slice(None), slice(0, 3)):
        some = {name: values[which] for name, values in rows.items()}
        assert (
            apart(made.vary(some, 0.5, STEPS[which]), plain.vary(some, 0.5, STEPS[which]))
            <= ROUNDING
        )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_is_close_and_used(checkpoint: Checkpoint, precision: str) -> None:
    exact = drawn(generator(checkpoint("sd")))
    made = generator(checkpoint("sd"), precision=precision)
    assert precision[:2] in str(made._random.unet.dtype).replace("bfloat", "bf").replace(
        "float", "fp"
    )
    rough = drawn(made)
    assert 0 < np.abs(rough["image"].astype(int) - exact["image"]).mean() < 5


def test_a_safety_checker_is_not_loaded(checkpoint: Checkpoint) -> None:
    made = generator(checkpoint("checked"))
    assert made._random.safety_checker is made._vary.safety_checker is None


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"vary": {"revision": "main"}}, "revision"),
        ({"prompts": {"cat": ["a cat"]}}, "prompts"),
        ({"image_size": 36}, "image_size"),
    ],
)
def test_bad_options(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        DiffusersOptions(checkpoint="owner/name", **options)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"degrees": [0.5, 0.05]}, "degree 0.05 does no step of generator.vary.steps = 10"),
        ({"degrees": 1.5}, "at most 1"),
        ({"degrees": 0.0}, "above 0"),
    ],
)
def test_degrees_are_checked_before_a_run(
    tree: dict[str, Any], schedule: dict[str, Any], message: str
) -> None:
    tree["generator"] = {"kind": "stable_diffusion", "checkpoint": "a/b", "vary": {"steps": 10}}
    tree["schedule"] |= schedule
    with pytest.raises(InputError, match=message):
        Config.from_dict(tree)


def test_a_consistency_model_needs_steps_to_pick_from(checkpoint: Checkpoint) -> None:
    made = generator(checkpoint("consistency"), vary={"steps": 8})
    with pytest.raises(InputError, match=r"schedule\.degrees"):
        made.vary(drawn(made), 0.125, STEPS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "/nowhere"}, r"generator\.checkpoint: /nowhere .*hub id"),
        ({"checkpoint": "owner/name"}, "hf download owner/name"),
        ({"vary": {"checkpoint": "/nowhere"}}, r"generator\.vary\.checkpoint"),
        ({"prompts": {"cow": "a cow"}}, r"generator\.prompts: 'cow'"),
        ({"prompts": {"cat": " "}}, "prompt|tokenizer"),
        ({"prompt": "a very, very, very, very long prompt"}, "prompt .*24"),
    ],
)
def test_bad_names_and_prompts(
    checkpoint: Checkpoint,
    options: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message):
        generator(**{"checkpoint": checkpoint("sd"), **options})


@pytest.mark.slow
def test_a_run_and_its_expansion(
    ray_session: None, tree: dict[str, Any], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    tree["generator"] = {
        "kind": "stable_diffusion",
        "checkpoint": checkpoint("sd"),
        "prompts": {"3": "a three"},
        "image_size": 32,
        "random": {"steps": 2},
        "vary": {"steps": 4},
    }
    tree["schedule"] = {"iterations": 1, "num_samples": 20, "degrees": 0.5}
    tree["resources"]["batch_size"] = 8
    run = evolve(Config.from_dict(tree))
    folder = expand(run, 25, tmp_path / "more")
    assert sum(part.stop - part.start for part in list_parts(folder)) == 25
