"""Where a paid service is, whose key opens it, and what it may cost."""

from __future__ import annotations

from typing import ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pe_ray.config.places import LocalFolder
from pe_ray.plugins import Options
from pe_ray.plugins.stand_ins import Rehearsal

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_safe(url: str) -> bool:
    """Tell whether nobody else can read what goes there: https, or this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)


class AccountOptions(Options):
    """How a paid service is reached, and what it may cost."""

    unbound: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "store", "price", "max_calls", "max_cost", "concurrency"}
        | {"requests_per_minute", "timeout", "attempts"}
    )
    modules: ClassVar[tuple[str, ...]] = ("openai",)

    base_url: str
    api_key_env: str | None
    store: LocalFolder = Field(min_length=1)
    """Folder of what was asked and answered; every worker has to see the same one."""
    max_calls: int = Field(ge=0)
    """Calls at most, over the life of the store."""
    max_cost: float = Field(ge=0, allow_inf_nan=False)
    """Cost at most, by `price`, over the life of the store."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Calls under way at once, of each worker."""
    requests_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Calls at most, of all workers together; default: as fast as answers come."""
    timeout: float = Field(default=120.0, gt=0, le=3600)
    """Seconds without a byte from the service, after which a call has failed."""
    attempts: int = Field(default=6, ge=1, le=100)
    """Attempts at one answer before the run ends."""

    @field_validator("base_url")
    @classmethod
    def _check_url(cls, given: str) -> str:
        parts = urlsplit(given)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write it as https://HOST/PATH")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query; keys come from the environment")
        return given.rstrip("/")

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.api_key_env and not is_safe(self.base_url):
            raise ValueError(
                "base_url: http would show the key to the network; use https, or api_key_env: null"
            )
        return self

    def rehearsal(self, rehearsal: Rehearsal) -> Self:
        from pe_ray.components.generators.local_service import serve

        port = serve().server_port
        return self.model_copy(
            update={
                "base_url": f"http://127.0.0.1:{port}/v1",
                "api_key_env": None,
                "store": str(rehearsal.make_folder("store")),
                "max_calls": 10**6,
                "max_cost": 1e9,
                "requests_per_minute": None,
            }
        )
