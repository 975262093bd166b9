"""For all tests of the scheduler."""

from __future__ import annotations

import pytest

from tests.fakes.scheduler_driver import SchedulerDriver


@pytest.fixture
def pool() -> SchedulerDriver:
    """Knows a model of 8 layers."""
    driver = SchedulerDriver()
    driver.add_model()
    return driver
