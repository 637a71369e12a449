"""Image services: what is sent, what is planned, and what every fault of a service leads to."""

from __future__ import annotations

import base64
import threading
import time
import traceback
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from image_service import (
    KEY,
    LABELS,
    SEEDS,
    VARIED,
    Service,
    answer,
    answered,
    body,
    data_uri,
    digest,
    error,
    fal,
    half_a_body,
    made,
    png,
    silent,
    spent,
    status,
)
from PIL import Image

from pe_ray import Config, InputError, cli
from pe_ray.evolution import evolve
from pe_ray.expansion import expand
from pe_ray.planning import plan
from pe_ray.plugins.seeds import row_seeds


def test_prompts_images_and_strengths_are_sent(service: Service, tmp_path: Path) -> None:
    generator = made(
        service,
        tmp_path,
        image_size=64,
        prompts={"dog": "a hound"},
        random={"model": "m1", "size": 256, "parameters": {"quality": "low"}},
        vary={"model": "m2", "size": 512, "endpoint": "edits", "strengths": ["A {prompt}", "B"]},
        concurrency=1,
    )
    drawn = generator.random(LABELS, SEEDS) | {"label": LABELS}
    assert drawn["image"].shape == (4, 64, 64, 3)
    sent = [call.fields for call in service.calls]
    prompts = ["a photo of cat", "a hound", "a hound", "a photo of cat"]
    assert [fields["prompt"] for fields in sent] == prompts
    common = {"model": "m1", "size": "256x256", "n": "1", "quality": "low"}
    assert all(common.items() <= fields.items() for fields in sent)
    expected = Image.fromarray(service.drawn[2]).resize((64, 64), Image.Resampling.LANCZOS)
    assert np.array_equal(drawn["image"][2], np.asarray(expected))
    for degree, prompt in ((0.0, "A a hound"), (0.49, "A a hound"), (0.5, "B"), (1.0, "B")):
        service.calls.clear()
        generator.vary(drawn, degree, VARIED + np.uint64(degree * 100))
        assert service.calls[1].fields["prompt"] == prompt
        assert service.calls[1].fields["model"] == "m2"
        uploaded = service.calls[1].image
        assert uploaded is not None
        larger = Image.fromarray(drawn["image"][1]).resize((512, 512), Image.Resampling.LANCZOS)
        assert np.array_equal(uploaded, np.asarray(larger))


def test_variations_need_no_prompt_and_grey_is_sent_as_rgb(
    service: Service, tmp_path: Path
) -> None:
    vary = {"model": "tiny", "size": 256, "endpoint": "variations"}
    generator = made(service, tmp_path, vary=vary, channels=1, image_size=32)
    drawn = generator.random(LABELS, SEEDS) | {"label": LABELS}
    assert drawn["image"].shape == (4, 32, 32, 1)
    assert generator.vary(drawn, 0.3, VARIED)["image"].shape == (4, 32, 32, 1)
    call = service.calls[-1]
    assert call.endpoint == "variations"
    assert "prompt" not in call.fields
    assert call.image is not None
    assert call.image.shape == (256, 256, 3)


def test_calls_are_made_at_once_but_no_more_than_asked(service: Service, tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=60)  # fewer than three at once would break it

    def meet(_: Any) -> bool:
        together.wait()
        return False

    service.faults = [meet] * 12
    seeds = row_seeds(1, "random", 0, np.arange(12))
    made(service, tmp_path, concurrency=3).random(np.zeros(12, np.int32), seeds)
    assert service.most_at_once == 3


@pytest.mark.parametrize(
    ("fault", "paid"),
    [
        (status(429, "rate_limit_exceeded"), 0),
        (status(500), 1),
        (status(503), 1),
        (half_a_body, 1),
        (silent(1.0), 1),
    ],
)
def test_what_may_pass_is_tried_again_and_counted(
    service: Service, tmp_path: Path, fault: Any, paid: int
) -> None:
    service.faults = [fault, fault]
    drawn = made(service, tmp_path, timeout=0.5).random(LABELS[:1], SEEDS[:1])
    assert digest(drawn["image"][0]) == digest(service.drawn[0])
    assert len(service.calls) == 3
    assert spent(tmp_path)[0] == 1 + 2 * paid


@pytest.mark.parametrize("after", [lambda: "1", lambda: formatdate(time.time() + 2, usegmt=True)])
def test_the_service_says_how_long_to_wait_and_all_workers_do(
    service: Service, tmp_path: Path, after: Any
) -> None:
    service.faults = [lambda handler: status(429, Retry_After=after())(handler)]
    other = made(service, tmp_path)
    made(service, tmp_path).random(LABELS[:1], SEEDS[:1])
    other.random(LABELS[1:2], SEEDS[1:2])
    gap = service.calls[1].at - service.calls[0].at
    assert gap > 0.95
    assert len(service.calls) == 3


VERIFY = "Your organization must be verified to use this model"
FAL = {"loc": ["body", "prompt"], "msg": "flagged", "type": "content_policy_violation"}
AZURE = {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}, "message": "filtered"}
LITELLM = {"code": "400", "type": None, "message": "litellm.ContentPolicyViolationError: no"}


@pytest.mark.parametrize(
    ("fault", "field", "message"),
    [
        (status(401, "", f"Incorrect key: {KEY}"), ".api_key_env (PE_RAY_TEST_KEY)", "(key)"),
        (status(403, "", VERIFY), ".api_key_env (PE_RAY_TEST_KEY)", VERIFY),
        (status(429, "insufficient_quota", "no credit left"), "", "429: no credit left"),
        (status(400, "invalid", f"size? {KEY}"), "", "400: size? (key)"),
        (error(404, {"error": "no such model"}), "", "404: no such model"),
        (error(422, {"detail": "size too small"}), "", "422: size too small"),
        (error(422, {"detail": [{"loc": [], "msg": "strength?"}]}), "", "422: strength?"),
        (error(400, {"name": "bad_request", "errors": ["size?"]}), "", "400: size?"),
        (status(302, Location="http://127.0.0.1:9/elsewhere"), "", "302"),
        (status(429, Retry_After="7200"), "", "7,200 s"),
        (status(400, "moderation_blocked", "unsafe"), ".prompt", "unsafe"),
        (status(400, "content_filter", "filtered"), ".prompt", "filtered"),
        (error(400, {"error": AZURE}), ".prompt", "filtered"),
        (error(400, {"error": LITELLM}), ".prompt", "ContentPolicyViolationError"),
        (error(403, {"name": "content_moderation", "errors": ["no"]}), ".prompt", "403: no"),
        (error(422, {"detail": [FAL]}), ".prompt", "422: flagged"),
    ],
)
def test_what_will_not_pass_is_one_error_and_free(
    service: Service, tmp_path: Path, fault: Any, field: str, message: str
) -> None:
    service.faults = [fault]
    with pytest.raises(InputError) as caught:
        made(service, tmp_path, concurrency=1).random(LABELS, SEEDS)
    text = str(caught.value)
    assert text.startswith(f"generator{field}: ")
    assert message in text
    assert len(service.calls) == 1
    assert spent(tmp_path)[0] == 0
    assert "\n" not in text
    assert KEY[:12] not in "".join(traceback.format_exception(caught.value))
    assert made(service, tmp_path).random(LABELS, SEEDS)["image"].shape[0] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (answer(np.zeros((512, 512, 3), np.uint8)), "512x512"),
        (answer(np.zeros((256, 128, 3), np.uint8)), "128x256"),
        (answered(url="http://example.org/y.png"), "https"),
        (answered(url="gone"), ""),
        (b"<html>busy</html>", "busy"),
        (b'{"error": "no GPU"}', "no GPU"),
        (b'{"data": []}', ""),
        (b'{"data": [{"b64_json": "bm90IGFuIGltYWdl"}]}', ""),
        (b"\x89PNG\r\n\x1a\n", "8 bytes"),
    ],
)
def test_what_cannot_be_used_ends_the_run_after_one_paid_call(
    service: Service, tmp_path: Path, content: bytes, message: str
) -> None:
    service.faults = [body(content)] * 3
    with pytest.raises(InputError, match=r"generator: .*answered with .*" + message):
        made(service, tmp_path, concurrency=1).random(LABELS, SEEDS)
    assert len(service.calls) == 1
    assert spent(tmp_path)[0] == 1
    service.faults = []
    made(service, tmp_path).random(LABELS, SEEDS)
    assert spent(tmp_path)[0] == 5  # it is asked again after the options were corrected


def test_data_uris_and_line_breaks_are_decoded(service: Service, tmp_path: Path) -> None:
    image = np.full((256, 256, 3), 7, np.uint8)
    lines = base64.encodebytes(png(image)).decode()
    forms = [{"b64_json": lines}, {"b64_json": data_uri(image)}, {"url": data_uri(image)}]
    service.faults = [*(body(answered(**form)) for form in forms), body(png(image))]
    drawn = made(service, tmp_path, concurrency=1).random(LABELS, SEEDS)["image"]
    assert np.array_equal(drawn, np.stack([image] * 4))


def test_links_are_fetched_once_without_a_key(service: Service, tmp_path: Path) -> None:
    image = np.full((256, 256, 3), 7, np.uint8)
    link = body(answered(b64_json=None, url=service.url.replace("/v1", "/image.png")))
    service.faults, service.linked = [link], png(image)
    for _ in range(2):
        drawn = made(service, tmp_path).random(LABELS[:1], SEEDS[:1])["image"]
        assert np.array_equal(drawn[0], image)
    assert len(service.calls) == len(service.asked_for_links) == 1
    assert KEY not in repr(service.asked_for_links)
    service.faults, service.linked = [link], b""
    with pytest.raises(InputError, match=r"generator: .*404"):
        made(service, tmp_path).random(LABELS[:1], SEEDS[1:2])
    away = body(answered(url="http://127.0.0.1:9/image.png"))
    service.faults = [away]
    with pytest.raises(InputError, match=r"generator: .*link"):
        made(service, tmp_path, attempts=1).random(LABELS[:1], SEEDS[2:3])
    with pytest.raises(
        InputError, match=r"generator: .*link"
    ):  # the answer is kept, not paid again
        made(service, tmp_path, attempts=1).random(LABELS[:1], SEEDS[2:3])
    assert len(service.calls) == 3


def test_seed_strength_and_any_size_are_sent(service: Service, tmp_path: Path) -> None:
    call = {"model": "tiny", "size": "384x256", "send_seed": True}
    vary = call | {"endpoint": "edits", "send_strength": True}
    generator = made(service, tmp_path, image_size="96x64", random=call, vary=vary)
    drawn = generator.random(LABELS, SEEDS) | {"label": LABELS}
    assert drawn["image"].shape == (4, 64, 96, 3)
    assert {call.fields["seed"] for call in service.calls} == {str(int(s) >> 33) for s in SEEDS}
    service.calls.clear()
    generator.vary(drawn, 0.4, VARIED)
    sent = service.calls[0]
    assert sent.image is not None
    assert sent.image.shape == (256, 384, 3)
    assert (sent.fields["size"], sent.fields["strength"]) == ("384x256", "0.4")
    assert sent.fields["prompt"] in ("a photo of cat", "a photo of dog")


def test_fal(service: Service, tmp_path: Path) -> None:
    generator = fal(service, tmp_path, concurrency=1, on_refusal="keep")
    drawn = generator.random(LABELS, SEEDS) | {"label": LABELS}
    assert np.array_equal(drawn["image"], np.stack(service.drawn))
    first = service.calls[0]
    assert first.endpoint == "fal-ai/tiny"
    assert first.headers["authorization"] == f"Key {KEY}"
    assert first.fields["image_size"] == str({"width": 256, "height": 256})
    assert first.fields["seed"] == str(int(SEEDS[0]) >> 33)
    painted = {"images": [{"url": data_uri(drawn["image"][0])}], "has_nsfw_concepts": [True]}
    service.faults = [error(422, {"detail": [FAL]}), error(200, painted)]
    varied = generator.vary(drawn, 0.4, VARIED)["image"]
    assert np.array_equal(varied[:2], drawn["image"][:2])
    assert np.array_equal(varied[2:], np.stack(service.drawn[4:]))
    last = service.calls[-1]
    assert (last.endpoint, last.fields["strength"]) == ("fal-ai/tiny/image-to-image", "0.4")
    assert last.image is not None
    assert np.array_equal(last.image, drawn["image"][3])
    assert np.array_equal(
        fal(service, tmp_path, on_refusal="keep").vary(drawn, 0.4, VARIED)["image"], varied
    )
    assert len(service.calls) == 8
    assert spent(tmp_path)[0] == 7  # a painted answer was paid for, a refused call was not


def test_attempts_end(service: Service, tmp_path: Path) -> None:
    service.faults = [status(500)] * 99
    with pytest.raises(InputError, match=r"3 times .*500"):
        made(service, tmp_path, attempts=3, concurrency=1).random(LABELS, SEEDS)
    assert len(service.calls) == 3


def test_a_service_that_is_not_there_costs_nothing(service: Service, tmp_path: Path) -> None:
    options = {"base_url": "http://127.0.0.1:9/v1", "attempts": 2}
    with pytest.raises(InputError, match=r"2 times .*ConnectError"):
        made(service, tmp_path, **options).random(LABELS, SEEDS)
    assert spent(tmp_path)[0] == 0


def test_an_error_stops_the_other_calls(service: Service, tmp_path: Path) -> None:
    service.faults = [status(401)] * 99
    seeds = row_seeds(1, "random", 0, np.arange(50))
    with pytest.raises(InputError, match="api_key_env"):
        made(service, tmp_path, concurrency=2).random(np.zeros(50, np.int32), seeds)
    assert len(service.calls) <= 4


def test_a_refused_variation_is_kept_if_so_configured(service: Service, tmp_path: Path) -> None:
    refusal = status(400, "content_policy_violation", "no")
    generator = made(service, tmp_path, concurrency=1, on_refusal="keep")
    drawn = generator.random(LABELS, SEEDS) | {"label": LABELS}
    service.faults = [lambda _: False, refusal]
    varied = generator.vary(drawn, 0.5, VARIED)["image"]
    assert np.array_equal(varied[1], drawn["image"][1])
    assert not np.array_equal(varied[2], drawn["image"][2])
    assert np.array_equal(generator.vary(drawn, 0.5, VARIED)["image"], varied)
    assert len(service.calls) == 8
    assert spent(tmp_path)[0] == 7
    strict = made(service, tmp_path, concurrency=1)
    with pytest.raises(InputError, match=r"generator\.prompt: .*edits"):
        strict.vary(drawn, 0.5, VARIED)  # as it was stored
    service.faults = [refusal]
    with pytest.raises(InputError, match=r"generator\.prompt: .*edits"):
        strict.vary(drawn, 0.9, VARIED)
    service.faults = [refusal]
    with pytest.raises(InputError, match=r"generator\.prompt: .*generations"):
        generator.random(LABELS, SEEDS + np.uint64(1))


def test_fal_is_asked_for_its_models(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = fal(service, tmp_path)._options
    monkeypatch.setattr("pe_ray.components.generators.fal._MODELS", f"{service.url}/models")
    service.models = {"fal-ai/tiny": None, "fal-ai/tiny/image-to-image": "deprecated"}
    (warning,) = options.find_warnings()
    assert warning.endswith("model 'fal-ai/tiny/image-to-image' is deprecated")
    monkeypatch.setattr("pe_ray.components.generators.fal._MODELS", "http://127.0.0.1:9/")
    (warning,) = options.find_warnings()
    assert warning.startswith("models not checked")
    assert not service.calls


@pytest.mark.parametrize("value", [None, " ", "two words", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_named_by_its_variable(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("PE_RAY_TEST_KEY")
    else:
        monkeypatch.setenv("PE_RAY_TEST_KEY", value)
    with pytest.raises(InputError, match="PE_RAY_TEST_KEY") as caught:
        made(service, tmp_path)
    assert value in (None, " ") or value not in str(caught.value)


def test_no_other_key_of_the_machine_is_sent(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-key")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin-key")
    made(service, tmp_path / "store").random(LABELS, SEEDS)
    assert service.calls[0].headers["authorization"] == f"Bearer {KEY}"
    service.calls.clear()
    with pytest.raises(InputError, match="api_key_env"):
        made(service, tmp_path / "other", api_key_env=None).random(LABELS, SEEDS)
    assert "authorization" not in service.calls[0].headers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "http://example.org/v1"}, "base_url"),
        ({"base_url": "https://me:secret@example.org/v1"}, "base_url"),
        ({"base_url": "example.org"}, "base_url"),
        ({"random": {"model": "m", "size": "wide"}}, "random.size"),
        ({"image_size": "96x64"}, "vary.size"),
        ({"random": {"model": "m", "size": 256, "parameters": {"n": 4}}}, "random.parameters"),
        ({"max_calls": None}, "max_calls"),
        ({"prompts": {"bird": "x"}}, "prompts: 'bird'"),
    ],
)
def test_bad_options(
    service: Service, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        made(service, tmp_path, **changes)


def paid_tree(tree: dict[str, Any], service: Service, store: Path) -> dict[str, Any]:
    private = {"data": tree["private"]["data"], "labels": tree["private"]["labels"]}
    tree["private"] = private
    tree["generator"] = {"kind": "image_api", **service.options(store, on_refusal="keep")}
    tree["schedule"] = {"iterations": 2, "num_samples": 10, "degrees": [0.6, 0.2]}
    return tree


def test_the_plan_shows_calls_and_cost_and_makes_none(
    ray_session: None,
    service: Service,
    tree: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tree = paid_tree(tree, service, tmp_path / "store")
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert cli.main(["plan", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "cost        image_api: 50 calls, 1.40; caps: 1,000 calls, 100.00\n" in shown
    assert cli.main(["plan", str(file), "--set", "generator.max_calls=49"]) == 0
    assert "NOT ENOUGH" in capsys.readouterr().out
    assert not service.calls
    assert not (tmp_path / "store").exists()
    assert "warning" not in shown
    service.models = {"tiny": "2026-12-01"}
    assert cli.main(["plan", str(file), "--set", "generator.vary.model=old"]) == 0
    shown = capsys.readouterr().out
    assert f"warning     {service.url}: model 'old' is not in the service's list\n" in shown
    assert "model 'tiny' will be shut down on 2026-12-01\n" in shown
    assert cli.main(["plan", str(file), "--set", "generator.api_key_env=NO_KEY_HERE"]) == 0
    assert "warning     models not checked" in capsys.readouterr().out
    for cap in ("generator.max_calls=49", "generator.max_cost=1.39"):
        assert cli.main(["run", str(file), "--set", cap]) == 2
        assert "the run takes 50 and 1.40" in capsys.readouterr().err
    assert not service.calls
    generator = tree["generator"]
    free = {"kind": "rendered_text", "image_size": 256, "channels": 3}
    stages = [{"start": 0, "generator": free}, {"start": 2, "generator": generator}]
    tree["generator"] = {"kind": "switch", "stages": stages}
    (bill,) = plan(Config.from_dict(tree)).bills
    assert (bill.calls, bill.cost) == (20, pytest.approx(0.6))


def canary(folder: Path, names: list[str]) -> np.ndarray:
    """A folder of private images, one of them striking; returns that one."""
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for name in names:
        for number in range(3):
            below = folder / name
            below.mkdir(parents=True, exist_ok=True)
            other = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            (below / f"record-{number}.png").write_bytes(png(other))
    (folder / names[0] / "canary-7f3a.png").write_bytes(png(image))
    return image


@pytest.mark.slow
def test_the_service_sees_synthetic_images_only(
    ray_session: None, service: Service, tree: dict[str, Any], tmp_path: Path
) -> None:
    tree = paid_tree(tree, service, tmp_path / "store")
    names = tree["private"]["labels"]
    image = canary(tmp_path / "private", names)
    tree["private"]["data"] = str(tmp_path / "private")
    tree["generator"]["api_key_env"] = "PE_RAY_SESSION_KEY"
    service.faults = [status(429), status(500), half_a_body]
    run = evolve(Config.from_dict(tree))
    seen = len(service.calls)
    assert seen == 50 + 3
    uploads = [call.image for call in service.calls if call.image is not None]
    assert len(uploads) >= 40
    drawn = {digest(each) for each in service.drawn}
    assert all(digest(upload) in drawn for upload in uploads)
    stored = (tmp_path / "private" / names[0] / "canary-7f3a.png").read_bytes()
    for call in service.calls:
        everything = call.body + repr(call.headers).encode()
        for part in (b"canary-7f3a", stored[60:120], image.tobytes()[:64]):
            assert part not in everything
    assert spent(tmp_path / "store")[0] == 50 + 2  # all but the 429
    for folder in (run, tmp_path / "store"):
        for file in folder.rglob("*"):
            assert not file.is_file() or KEY.encode() not in file.read_bytes(), file
    first = {p.name: p.read_bytes() for p in (run / "populations/iter=0002").glob("*.parquet")}
    for stage in ("populations", "synthetic"):
        for file in sorted((run / stage).rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
    tree["generator"] |= {"max_calls": 60, "concurrency": 1}  # not bound
    assert evolve(Config.from_dict(tree)) == run
    second = {p.name: p.read_bytes() for p in (run / "populations/iter=0002").glob("*.parquet")}
    assert second == first
    assert len(service.calls) == seen
    with pytest.raises(InputError, match=r"generator.max_calls: .* of at most 60"):
        expand(run, 30, tmp_path / "more")
    tree["generator"]["max_calls"] = 90
    evolve(Config.from_dict(tree))
    expand(run, 30, tmp_path / "more")
    assert spent(tmp_path / "store")[0] == 52 + 30
