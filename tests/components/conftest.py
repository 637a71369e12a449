"""An image service on this machine, for the tests of those who call it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from image_service import KEY, Service, serving

from pe_ray.components.generators import service_client


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("PE_RAY_TEST_KEY", KEY)
    monkeypatch.setattr(service_client, "_FIRST_WAIT", 0.01)
    with serving() as running:
        yield running
