"""Places: private data are known however they are written; no URI holds credentials."""

from __future__ import annotations

from typing import Any

import pytest

from pe_ray import Config, InputError
from pe_ray.config.blocks import PrivateConfig
from pe_ray.config.places import apart, lies_in


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
