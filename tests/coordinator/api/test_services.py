"""What the routes work with."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from coordinator.api.services import Services
from tests.fakes.api_driver import OPEN_SITE


def test_the_parts_of_a_running_coordinator_are_not_exchanged() -> None:
    services = Services(None, None, None, OPEN_SITE, None)  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        services.site = OPEN_SITE  # type: ignore[misc]
