"""Captions: what is drawn, paraphrased, stored and selected, and what is refused."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from image_service import LABELS, NAMES, SEEDS, VARIED, Service, made, spent, status
from PIL import Image
from tiny_captions import SHADES, Shades, ShadesOptions
from tiny_diffusion import generator, save_pipeline
from verified import differing

from pe_ray import Config, InputError, evolve, expand
from pe_ray.components.generators.caption_options import CaptionOptions, LanguageModelOptions
from pe_ray.components.generators.captions import Captions
from pe_ray.components.generators.diffusers_generator import Diffusers
from pe_ray.components.generators.tiny_language_model import save_language_model
from pe_ray.files.parts import list_parts
from pe_ray.files.storage import resolve_place
from pe_ray.planning import plan, require_affordable
from pe_ray.plugins.seeds import row_seeds
from pe_ray.release.ledger import Ledger
from pe_ray.synthetic.population_files import population_part, population_schema

pytestmark = pytest.mark.usefixtures("one_thread")

TEMPLATES = [f"a {shade} square" for shade in SHADES]
MANY = np.arange(400, dtype=np.int64)
LISTS = {"cat": ["a cat", "two cats", "кошка"], "dog": ["a dog"]}


def captions(**given: Any) -> Captions:
    return Captions(ShadesOptions(captions=CaptionOptions(**given)), NAMES)


def test_draws_are_of_the_labels_own_captions_and_of_all_of_them() -> None:
    drawn, labels = captions(lists=LISTS), (MANY % 2).astype(np.int32)
    seeds = row_seeds(1, "random", 0, MANY)
    texts = np.array(drawn.draw(labels, seeds))
    assert set(texts[labels == 1]) == {"a dog"}
    counts = Counter(texts[labels == 0].tolist())
    assert set(counts) == set(LISTS["cat"])
    assert min(counts.values()) > 40  # of 200, a third each
    order = np.random.default_rng(0).permutation(400)[:37]
    assert np.array_equal(drawn.draw(labels[order], seeds[order]), texts[order])


def test_without_a_model_the_degree_is_the_share_that_is_drawn_anew() -> None:
    made_of, labels = captions(templates=TEMPLATES), np.zeros(400, dtype=np.int32)
    seeds, before = row_seeds(1, "variation", 1, MANY), [TEMPLATES[0]] * 400
    assert made_of.paraphrase(before, labels, 0.0, seeds) == before
    after = np.array(made_of.paraphrase(before, labels, 0.6, seeds))
    assert 0.3 < (after != TEMPLATES[0]).mean() < 0.5  # two of three draws are others
    everyone = Counter(made_of.paraphrase(before, labels, 1.0, seeds))
    assert min(everyone.values()) > 90
    assert np.array_equal(
        made_of.paraphrase(before[:9], labels[:9], 0.6, seeds[:9]), after[:9].tolist()
    )


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"lists": {"cat": []}}, "lists"),
        ({"templates": ["two\nlines"]}, "templates"),
        ({"templates": [" blank at an end"]}, "templates"),
        ({"templates": ["x" * 301]}, "max_characters"),
        ({"lists": {"cat": ["a \ud800 cat"]}}, "cat"),
        ({"templates": [""]}, "templates"),
        ({"paraphrase": {"kind": "model", "checkpoint": "a", "instructions": ["x"]}}, "caption"),
    ],
)
def test_captions_that_cannot_be_stored_or_asked_for_are_refused(
    given: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        CaptionOptions(**given)


def test_what_labels_make_of_captions_is_checked_too() -> None:
    with pytest.raises(InputError, match=r"^generator\.captions\.lists: 'bird'"):
        captions(lists={"bird": ["a bird"]})
    with pytest.raises(InputError, match=r"^generator\.captions\.templates: "):
        Captions(ShadesOptions(captions=CaptionOptions(max_characters=20)), ("x" * 20,))
    with pytest.raises(ValueError, match="captions"):
        ShadesOptions(captions=CaptionOptions(), prompts={"cat": "a cat"})


def tree_of(folder: Path, **generator: Any) -> dict[str, Any]:
    """A run on bright private squares."""
    rng = np.random.default_rng(3)
    for number in range(60):
        pixels = rng.integers(220, 240, (8, 8), dtype=np.uint8)
        (folder / "data" / "square").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "data" / "square" / f"{number}.png")
    return {
        "private": {"data": str(folder / "data"), "labels": ["square"]},
        "generator": {"kind": "tiny_captions:Shades", **generator},
        "embedder": {"kind": "pixels", "size": 4},
        "votes": {"lookahead": 2, "reuse_lookahead": True},
        "schedule": {"iterations": 2, "num_samples": 60, "degrees": [0.3, 0.1]},
        "privacy": {
            **{"epsilon": "inf", "delta": 1e-5, "unit": "record"},
            "label_fractions": "uniform",
        },
        "output": {"path": str(folder / "run"), "rows_per_part": 25},
    }


def stored(run: Path, iteration: int) -> list[str]:
    folder = resolve_place(str(run / "populations" / f"iter={iteration:04d}"), "test")
    files = [Path(str(folder)) / part.file for part in list_parts(folder)]
    return [text for file in files for text in pq.read_table(file)["caption"].to_pylist()]


def test_votes_select_captions_and_a_run_continues_with_them(
    ray_session: None, tmp_path: Path
) -> None:
    """Bright records choose bright squares, so the caption that draws them takes over."""
    tree = tree_of(tmp_path, captions={"templates": TEMPLATES})
    run = tmp_path / "run"
    evolve(Config.from_dict(tree))
    shares = [Counter(stored(run, t))["a bright square"] / 60 for t in range(3)]
    assert shares[0] < 0.5 < 0.7 < shares[2]
    assert set(stored(run, 2)) <= set(TEMPLATES)
    assert not differing(run)
    last, ledger = stored(run, 2), Ledger.open(run / "ledger.sqlite").entries()
    shutil.rmtree(run / "populations" / "iter=0002")
    shutil.rmtree(run / "synthetic")
    evolve(Config.from_dict(tree))
    assert stored(run, 2) == last
    assert Ledger.open(run / "ledger.sqlite").entries() == ledger
    expand(run, num_samples=90, output=tmp_path / "more")
    tables = [pq.read_table(file) for file in sorted((tmp_path / "more").glob("*.parquet"))]
    assert sum(len(table) for table in tables) == 90


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_pipeline(tmp_path_factory.mktemp("checkpoint") / "sd", "sd")


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_language_model(tmp_path_factory.mktemp("language"))


SHORT = ["a cat", "an owl", "two dogs"]


@pytest.mark.parametrize("variation", ["text", "image"])
def test_diffusers_draws_from_each_rows_caption(checkpoint: str, variation: str) -> None:
    given = CaptionOptions(templates=SHORT, variation=variation)
    drawn: Diffusers = generator(checkpoint, captions=given)
    labels = np.zeros(8, dtype=np.int32)
    seeds, later = (row_seeds(1, "random", t, np.arange(8)) for t in (0, 1))
    rows = {**drawn.random(labels, seeds), "label": labels}
    assert len(set(rows["caption"].tolist())) > 1
    varied = drawn.vary(rows, 1.0 if variation == "text" else 0.5, later)
    for text in SHORT:  # each image is the one of a run with that prompt alone
        alone = generator(checkpoint, prompt=text)
        first = alone.random(labels, seeds)["image"]
        second = alone.random(labels, later)["image"]
        if variation == "image":
            second = alone.vary(rows, 0.5, later)["image"]
        for found, wanted in ((rows, first), (varied, second)):
            of = found["caption"] == text
            assert np.abs(found["image"][of].astype(int) - wanted[of]).max(initial=0) <= 1
    some = np.array([6, 1])
    again = drawn.vary({name: v[some] for name, v in rows.items()}, 1.0, later[some])
    whole = drawn.vary(rows, 1.0, later)
    assert again["caption"].tolist() == whole["caption"][some].tolist()


def test_a_paraphrase_that_the_model_would_cut_off_is_dropped(
    checkpoint: str, language_model: str
) -> None:
    asked = {"kind": "model", "checkpoint": language_model, "max_tokens": 90}
    given = CaptionOptions(templates=SHORT, paraphrase=asked)
    reads = generator(checkpoint, captions=given)._reads
    before, labels = SHORT * 8, np.zeros(24, dtype=np.int32)
    seeds = row_seeds(1, "variation", 1, np.arange(24))
    written = captions(templates=SHORT, paraphrase=asked).paraphrase(before, labels, 0.5, seeds)
    fitting = np.array([reads(text) for text in written])
    assert 0 < fitting.sum() < 24
    kept = Captions(ShadesOptions(captions=given), NAMES, reads)
    found = kept.paraphrase(before, labels, 0.5, seeds)
    assert found == np.where(fitting, written, before).tolist()
    with pytest.raises(InputError, match="tokens"):
        generator(checkpoint, captions=CaptionOptions(templates=["x" * 60]))


@pytest.mark.parametrize("chat", [False, True])
def test_a_models_paraphrase_depends_on_its_row_alone(chat: bool, tmp_path: Path) -> None:
    folder = save_language_model(tmp_path, chat=chat)
    made_of = captions(
        templates=SHORT,
        paraphrase={"kind": "model", "checkpoint": folder, "max_tokens": 12},
    )
    texts = [f"{text} {'x' * (number % 5) * 9}".strip() for number, text in enumerate(SHORT * 7)]
    labels, seeds = np.zeros(21, dtype=np.int32), row_seeds(1, "variation", 1, np.arange(21))
    whole = made_of.paraphrase(texts, labels, 0.5, seeds)
    assert len(set(whole)) == 21
    assert whole != texts
    for some in ([3], [20, 0, 7], list(range(17))[::-1]):
        given = [texts[row] for row in some]
        again = made_of.paraphrase(given, labels[some], 0.5, seeds[some])
        assert again == [whole[row] for row in some]
    assert made_of.paraphrase(texts, labels, 0.1, seeds) != whole  # another instruction
    assert made_of.paraphrase(texts, labels, 0.5, seeds + np.uint64(1)) != whole


def test_tokens_are_drawn_by_the_models_probabilities(language_model: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pe_ray.components.generators.language_model import LanguageModel

    given = LanguageModelOptions(
        kind="model", checkpoint=language_model, max_tokens=1, temperature=0.5
    )
    num = 3000
    drawn = LanguageModel(given).write(["hi"] * num, row_seeds(1, "random", 0, np.arange(num)))
    tokenizer = AutoTokenizer.from_pretrained(language_model)
    network = AutoModelForCausalLM.from_pretrained(language_model)
    with torch.inference_mode():
        top = network(torch.tensor([tokenizer("hi").input_ids])).logits[0, -1].topk(50)
    shares: dict[str, float] = {}  # several tokens are half a letter, and read alike
    for token, share in zip(top.indices, torch.softmax(top.values / 0.5, 0), strict=True):
        text = tokenizer.decode([token])
        shares[text] = shares.get(text, 0.0) + float(share)
    likely = {text: share for text, share in shares.items() if share > 0.005}
    assert len(likely) > 3
    counts = Counter(drawn)
    for text, share in likely.items():
        assert abs(counts[text] - num * share) < 4.5 * (num * share * (1 - share)) ** 0.5


def test_a_checkpoint_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    for name in ("no/such", str(tmp_path)):
        with pytest.raises(InputError, match=r"^generator\.captions\.paraphrase\.checkpoint: "):
            captions(paraphrase={"kind": "model", "checkpoint": name})


def test_an_answer_that_the_model_has_no_room_for_is_refused(language_model: str) -> None:
    asked = {"kind": "model", "checkpoint": language_model, "max_tokens": 500}
    with pytest.raises(InputError, match=r"^generator\.captions\.paraphrase\.max_tokens: "):
        captions(paraphrase=asked)
    made_of = captions(paraphrase=asked | {"max_tokens": 200}, max_characters=1000)
    long = ["x" * 400]
    assert made_of.paraphrase(long, np.zeros(1, np.int32), 0.5, SEEDS[:1]) == long


def test_a_chat_service_is_asked_once_for_each_paraphrase(service: Service, tmp_path: Path) -> None:
    given = CaptionOptions(paraphrase=service.chat(tmp_path / "chat"), variation="image")
    api = made(service, tmp_path / "images", captions=given)
    rows = {**api.random(LABELS, SEEDS), "label": LABELS}
    assert rows["caption"].tolist() == [f"a photo of {NAMES[label]}" for label in LABELS]
    varied = api.vary(rows, 0.9, VARIED)
    assert varied["caption"].tolist() == [f"{text}, again" for text in rows["caption"].tolist()]
    asked = [call for call in service.calls if call.endpoint == "chat/completions"]
    assert len(asked) == 4
    assert all("Wholly: a photo of" in call.body.decode() for call in asked)
    edits = [call.fields["prompt"] for call in service.calls if call.endpoint == "edits"]
    assert all("again" in prompt for prompt in edits)
    assert spent(tmp_path / "chat") == (4, 0.004)
    service.calls.clear()
    again = made(service, tmp_path / "images", captions=given).vary(rows, 0.9, VARIED)
    assert not service.calls
    assert np.array_equal(again["image"], varied["image"])


def test_captions_of_a_service_may_be_redrawn_from_text(service: Service, tmp_path: Path) -> None:
    api = made(service, tmp_path, captions=CaptionOptions(), on_refusal="keep")
    rows = {**api.random(LABELS, SEEDS), "label": LABELS}
    service.calls.clear()
    service.faults.append(status(400, "content_policy_violation"))
    varied = api.vary(rows, 0.5, VARIED)
    assert {call.endpoint for call in service.calls} == {"generations"}
    kept = [np.array_equal(*pair) for pair in zip(varied["image"], rows["image"], strict=True)]
    assert sum(kept) == 1
    assert spent(tmp_path) == (7, 0.14)


def test_refusals_keep_the_caption_and_caps_end_the_run(service: Service, tmp_path: Path) -> None:
    asked = service.chat(tmp_path, max_calls=3)
    made_of = captions(paraphrase=asked)
    service.faults.append(status(400, "content_filter"))
    before = ["a cat"] * 4
    with pytest.raises(InputError, match=r"^generator\.captions\.paraphrase\.max_calls: "):
        made_of.paraphrase(
            before + before, np.zeros(8, np.int32), 0.5, row_seeds(1, "random", 0, MANY[:8])
        )
    # All that arrived count, but for the refused one: 2 if the cap was met before that was known.
    assert len(service.calls) - 1 == spent(tmp_path)[0]
    assert spent(tmp_path)[0] in (2, 3)
    more = captions(paraphrase=asked | {"max_calls": 100})
    after = more.paraphrase(
        before + before, np.zeros(8, np.int32), 0.5, row_seeds(1, "random", 0, MANY[:8])
    )
    assert Counter(after) == {"a cat, again": 7, "a cat": 1}


def test_the_plan_bills_paraphrases(service: Service, tmp_path: Path) -> None:
    asked = service.chat(tmp_path / "chat", max_calls=359)
    config = Config.from_dict(tree_of(tmp_path, captions={"paraphrase": asked}))
    planned = plan(config)
    (bill,) = planned.bills
    assert (bill.field, bill.calls, bill.cost) == (
        "generator.captions.paraphrase",
        360,
        pytest.approx(0.36),
    )
    with pytest.raises(InputError, match=r"^generator\.captions\.paraphrase\.max_calls"):
        require_affordable(planned)
    assert not service.calls


def test_a_caption_of_any_characters_survives_a_population() -> None:
    options = ShadesOptions(captions=CaptionOptions(max_characters=20))
    texts = ["", "é́ 猫 🐈", "x" * 20]
    rows = {
        **{"id": np.arange(3), "label": np.zeros(3, np.int32), "parent": np.full(3, -1)},
        "degree": np.full(3, np.nan, np.float32),
        **Shades(options, NAMES)._captions.add_to(
            {"image": np.zeros((3, 8, 8, 1), np.uint8)}, texts
        ),
    }

    table = pq.read_table(io.BytesIO(population_part(rows, options)))
    assert table["caption"].to_pylist() == texts
    assert table.schema.names == population_schema(options).names
