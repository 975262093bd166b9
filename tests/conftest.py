"""For all tests: an unexpected warning or error in our logs fails the test; hypothesis without deadlines."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("decentllm", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("decentllm")

OUR_LOGGERS = ("protocol", "shell", "coordinator", "client")


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "expected_logs(*parts): warnings or errors with these words belong to the test")
    config.addinivalue_line("markers", "allowed_logs(*parts): the same, but they need not come")


@pytest.fixture(autouse=True)
def _no_unexpected_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """A warning or error of ours that the test did not announce with `@pytest.mark.expected_logs("words")`."""
    collector = _Collector()
    for name in OUR_LOGGERS:
        logging.getLogger(name).addHandler(collector)
    yield
    for name in OUR_LOGGERS:
        logging.getLogger(name).removeHandler(collector)
    expected = [part for mark in request.node.iter_markers("expected_logs") for part in mark.args]
    lines = [f"{record.levelname} {record.name}: {record.getMessage()}" for record in collector.records]
    allowed = expected + [part for mark in request.node.iter_markers("allowed_logs") for part in mark.args]
    unexpected = [line for line in lines if not any(part in line for part in allowed)]
    assert not unexpected, "unexpected log lines:\n" + "\n".join(unexpected)
    missing = [part for part in expected if not any(part in line for line in lines)]
    assert not missing, f"log lines that were expected did not come: {missing}"
