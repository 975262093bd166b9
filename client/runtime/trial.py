"""Whether an own product is right and faster than the usual one on this device: both are run, compared and timed."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor

from client.runtime.decode_graphs import Recorder, time_s
from client.runtime.errors import first_line

_logger = logging.getLogger(__name__)

MAX_TRIED = 8
"""Weights of one shape that a trial goes through, so that they do not stay in the card's cache."""
TOLERANCE = 0.01


def is_faster(own: Callable[[], Tensor], usual: Callable[[], Tensor], what: str, recorder: Recorder) -> bool:
    """Whether `own` gives the result of `usual` in less time; `what` they are, for the log."""
    try:
        found, wanted = own().float(), usual().float()
        if not float((found - wanted).norm()) <= TOLERANCE * float(wanted.norm()):
            raise ValueError("its result is another")
        own_s, usual_s = (time_s(recorder.record(product), recorder) for product in (own, usual))
    except Exception as error:  # noqa: BLE001 - compilers raise anything; the usual product is always there
        _logger.warning("no own product of %s: %s", what, first_line(error))
        return False
    _logger.info("%s: %.0f us, the usual product %.0f us", what, own_s * 1e6, usual_s * 1e6)
    return own_s < usual_s
