"""Places: private data are known however they are written; no URI holds credentials."""

from __future__ import annotations

import copy
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter

from pe_ray import Config, InputError, plugins
from pe_ray.components.generators.diffusers_generator import VarySettings
from pe_ray.config.blocks import MetricsConfig, OutputConfig, PrivateConfig, PublicMetricsConfig
from pe_ray.config.kinds import EmbedderPlugin, GeneratorPlugin
from pe_ray.config.places import apart, lies_in, refuse_credentials
from pe_ray.config.run_config import read_resources
from pe_ray.config.yaml_tree import dump_tree, put, read_tree, set_override
from pe_ray.plugins.registry import BUILT_IN
from pe_ray.tuning.search import Search


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("private.data", "s3://AKIA123:hunter2@bucket/data"),
        ("output.path", "s3://key:hunter2@bucket/run"),
        ("metrics.audit_data", "https://host/file.parquet?X-Amz-Signature=hunter2"),
        ("embedder.weights", "https://hunter2@host/weights.pt"),
        ("resources.address", "ray://user:hunter2@host:10001"),
        ("private.cache", "gs://bucket/x?access_token=hunter2"),
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_quoted(
    tree: dict[str, Any], field: str, value: str
) -> None:
    block, key = field.split(".")
    tree[block][key] = value
    with pytest.raises(InputError, match=rf"{field}: holds credentials") as caught:
        Config.from_dict(tree)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


OPENAI = "sk-proj-4f8Kq2ZsT1vXyB7nR0dLmWc9"
SECRETS = {
    "generator.api_key_env": OPENAI,
    "generator.other_env": "hunter2-in-small-letters",
    "embedder.checkpoint": OPENAI,
    "generator.random.parameters.api_key": "hunter2",
    "generator.random.parameters.hf_token": "hunter2",
    "generator.headers.Authorization": "Bearer hunter2",
    "embedder.options.passwords.password": ["hunter2"],
    "embedder.secret": 12345678,
    "generator.prompts.a": "hf_AbCdEfGhIjKlMnOpQrStUvWx",
    "private.where.key": "AKIAIOSFODNN7EXAMPLE",
    "generator.prompt": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "private.labels": ["xoxb-123456789012-abcdef"],
    "resources.address": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc",
    "generator.fonts": "-----BEGIN PRIVATE KEY-----",
}


@pytest.mark.parametrize("field", SECRETS)
def test_a_secret_is_refused_by_name_or_form_and_not_quoted(
    tree: dict[str, Any], field: str
) -> None:
    put(tree, field, SECRETS[field], "test")
    with pytest.raises(InputError, match=rf"^config: {field}: (holds cred|must be)") as caught:
        Config.from_dict(tree)
    told = str(caught.value)
    secret = SECRETS[field]
    texts = secret if isinstance(secret, list) else [str(secret)]
    assert not any(text in told for text in (*texts, "hunter2"))


def test_a_search_holds_no_secret(tree: dict[str, Any]) -> None:
    tuning = {"space": {"generator.random.parameters.api_key": ["hunter2", "hunter3"]}}
    with pytest.raises(InputError, match=r"^config: tuning\.space\.\S+: holds cred") as caught:
        Search.from_dict(tree | {"tuning": tuning})
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "desk-lamp of 2020 and more",
        "/data/sk-learn-digits-2020",
        "OPENAI_API_KEY",
        "a token",
        "eyJ",
    ],
)
def test_what_is_no_secret_may_be_written(text: str) -> None:
    refuse_credentials({"prompt": text, "where": {"token": text}, "prompts": {"secret": text}})
    refuse_credentials({"tokenizer": text, "max_tokens": 5, "api_key_env": "OPENAI_API_KEY"})
    refuse_credentials({"api_key_env": None, "password": None})


@pytest.mark.parametrize(
    "text",
    [
        "generator:\n  api_key: [hunter2\n",
        "generator:\n  api_key: hunter2: x\n",
        "generator:\n  password: *hunter2\n",
        "generator:\n  password: !hunter2\n",
        f"generator:\n  api_key_env: {OPENAI}: x\n",
        "private: {data: [s3://key:hunter2@bucket/data}\n",
    ],
)
def test_damaged_yaml_with_a_secret_is_not_quoted(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError, match="not YAML: see line") as caught:
        read_tree(tmp_path / "config.yaml")
    assert "hunter2" not in str(caught.value)
    assert OPENAI not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "generator.api_key=[hunter2",
        "generator.api_key:hunter2",
        "private.labels.api_key=hunter2",
        f"generator.api_key_env={OPENAI}: [",
        "output.path=[s3://key:hunter2@bucket/run",
    ],
)
def test_an_override_with_a_secret_is_not_quoted(tree: dict[str, Any], override: str) -> None:
    with pytest.raises(InputError, match=r"^--set [a-z]+\.") as caught:
        set_override(tree, override)
    assert "hunter2" not in str(caught.value)
    assert OPENAI not in str(caught.value)


def test_resources_hold_no_secret() -> None:
    with pytest.raises(InputError, match=r"resources\.address: holds cred") as caught:
        read_resources(["resources.address=ray://user:hunter2@host:10001"])
    assert "hunter2" not in str(caught.value)


def test_a_stored_configuration_with_a_secret_still_opens(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["generator"]["texts"] = {label: [label] for label in tree["private"]["labels"]}
    tree["private"]["where"] = {"key": "AKIAIOSFODNN7EXAMPLE"}
    (tmp_path / "config.yaml").write_text(dump_tree(tree))
    Config.from_run(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("public", "private", "same"),
    [
        ("/d", "file:///d", True),
        ("/d/../d/x.parquet", "/d", True),
        ("/d2", "/d", False),
        ("s3://b/x", "s3://b/x?region=eu", True),
        ("s3://b/x/part", "s3://b/x/", True),
        ("s3://b/xy", "s3://b/x", False),
        ("gs://b/x", "s3://b/x", False),
        ("/b/x", "s3://b/x", False),
    ],
)
def test_private_data_are_known_however_they_are_written(
    public: str, private: str, same: bool
) -> None:
    assert apart(public, {}, PrivateConfig(data=private, labels=("a",))) is not same


def test_a_filter_on_a_common_column_tells_records_apart() -> None:
    private = PrivateConfig(data="/d", labels=("a",), where={"split": "train"})
    assert apart("/d", {"split": "test"}, private)
    assert not apart("/d", {"split": "train"}, private)
    assert not apart("/d", {"fold": 1}, private)


def test_a_folder_lies_in_itself_and_in_those_above() -> None:
    assert lies_in("/a/b", "/a/b")
    assert lies_in("s3://a/b/c", "s3://a/b/")
    assert not lies_in("/a", "/a/b")


def test_plain_uris_are_no_credentials(tree: dict[str, Any]) -> None:
    tree["private"]["data"] = "s3://bucket/a@b/data?region=us-west-2"
    Config.from_dict(tree)


@pytest.mark.parametrize(
    ("field", "place", "message"),
    [
        ("output.path", "ftp://host/run", "no store that is known"),
        ("private.data", "ftp://host/data", "no store that is known"),
        ("private.cache", "s3://bucket/cache", "must be a local folder"),
        ("output.ledger", "s3://bucket/ledger", "must be a local folder"),
        ("output.ledger", "/ledger", "only for an output.path in a store"),
    ],
)
def test_a_place_that_cant_be_used_is_named(
    tree: dict[str, Any], field: str, place: str, message: str
) -> None:
    block, key = field.split(".")
    tree[block][key] = place
    with pytest.raises(InputError, match=rf"{field}: .*{message}"):
        Config.from_dict(tree)


@pytest.mark.parametrize("inside", ["private.data", "metrics.public.data"])
def test_a_run_never_lies_in_its_data(tree: dict[str, Any], inside: str) -> None:
    if inside == "private.data":
        tree["private"]["data"] = "/data"
    else:
        tree["metrics"]["public"] = {"data": "/data", "metrics": ["classifier"]}
    tree["output"]["path"] = "/data/run"
    with pytest.raises(InputError, match=rf"output\.path: lies in {inside}"):
        Config.from_dict(tree)


PUBLIC = {"data": "~/x", "metrics": ["frechet"]}
API = {
    "kind": "image_api",
    "store": "~/x",
    "image_size": 8,
    "random": {"model": "m", "size": 256},
    "vary": {"model": "m", "size": 256, "endpoint": "edits"},
    "price": {"random": 0, "vary": 0},
    "max_calls": 1,
    "max_cost": 1,
}
DIFFUSION = {
    "kind": "improved_diffusion",
    "checkpoint": "~/x",
    "image_size": 32,
    "num_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [16],
    "num_heads": 1,
    "class_cond": False,
    "learn_sigma": False,
    "diffusion_steps": 10,
    "noise_schedule": "linear",
    "timestep_respacing": "",
}
NEAREST = {"kind": "nearest_image", "data": "~/y", "image_size": 8}
LATENT = {"kind": "stable_diffusion", "checkpoint": "~/x"}


@pytest.mark.parametrize(
    ("model", "tree", "key"),
    [
        (PrivateConfig, {"data": "~/x", "labels": ["a"]}, "data"),
        (PrivateConfig, {"data": "/d", "labels": ["a"], "cache": "~/x"}, "cache"),
        (OutputConfig, {"path": "~/x"}, "path"),
        (OutputConfig, {"path": "s3://b/run", "ledger": "~/x"}, "ledger"),
        (MetricsConfig, {"audit_data": "~/x"}, "audit_data"),
        (MetricsConfig, {"public": PUBLIC}, "public.data"),
        (GeneratorPlugin, API, "options.store"),
        (GeneratorPlugin, DIFFUSION, "options.checkpoint"),
        (GeneratorPlugin, NEAREST | {"data": "~/x"}, "options.data"),
        (GeneratorPlugin, NEAREST | {"cache": "~/x"}, "options.cache"),
        (GeneratorPlugin, {"kind": "rendered_text", "fonts": "~/x"}, "options.fonts"),
        (GeneratorPlugin, LATENT, "options.checkpoint"),
        (GeneratorPlugin, LATENT | {"vary": {"checkpoint": "~/x"}}, "options.vary.checkpoint"),
        (GeneratorPlugin, {"kind": "unet", "checkpoint": "~/x"}, "options.checkpoint"),
        (EmbedderPlugin, {"kind": "inception", "weights": "~/x"}, "options.weights"),
        (EmbedderPlugin, {"kind": "clip", "checkpoint": "~/x"}, "options.checkpoint"),
        (EmbedderPlugin, {"kind": "dinov2", "checkpoint": "~/x"}, "options.checkpoint"),
    ],
)
def test_a_tilde_is_the_home_folder_in_use_and_stays_in_what_is_published(
    model: Any, tree: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    read = TypeAdapter(model)
    made = read.validate_python(tree)
    for value in (made, copy.deepcopy(made), read.validate_python(made)):
        assert attrgetter(key)(value) == "/home/somebody/x"
        published = read.dump_json(value).decode()
        assert "somebody" not in published
        assert read.validate_json(published) == made


def test_a_path_keeps_its_text_from_one_model_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    first = PrivateConfig(data="/d", labels=("a",), cache="~/x")
    second = PrivateConfig(data="/d", labels=("a",), cache=first.cache)
    assert second.cache == "/home/somebody/x"
    assert second.model_dump()["cache"] == "~/x"


def test_a_local_folder_may_be_written_as_a_uri() -> None:
    private = PrivateConfig(data="/d", labels=("a",), cache="file:///x/cache")
    assert private.cache == "/x/cache"
    assert private.model_dump()["cache"] == "file:///x/cache"


@pytest.mark.parametrize("text", ["sklearn:digits", "s3://b/~/x", "/a/~b", "~nobody-here/x"])
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert PrivateConfig(data=text, labels=("a",)).data == text


PATHS = {"data", "cache", "checkpoint", "weights", "fonts", "store", "path", "ledger", "file"}


def test_every_option_that_is_a_path_is_of_a_type_for_paths() -> None:
    """So that ~ works in it; an option with another name for a path belongs into the list."""
    models = [PrivateConfig, OutputConfig, MetricsConfig, PublicMetricsConfig, VarySettings]
    for plugin_type in ("generator", "embedder", "metric", "tuning_strategy", "tuning_objective"):
        kinds = BUILT_IN[plugin_type]
        models += [plugins.options_of(plugins.load(plugin_type, kind)) for kind in kinds]
    found = 0
    for model in models:
        for name in PATHS & model.model_fields.keys():
            field = model.model_fields[name]
            whole = Annotated[(field.annotation, name, *field.metadata)]  # type: ignore[valid-type]
            assert TypeAdapter(whole).validate_python("~/x") != "~/x", (model, name)
            found += 1
    assert found >= 12
