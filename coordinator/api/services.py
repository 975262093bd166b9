"""What the routes work with."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.accounts import Accounts
from coordinator.api.model_desk import ModelDesk
from coordinator.config import Site
from coordinator.hub import Hub
from protocol.env import Env


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one coordinator, as `build_http` takes them."""

    hub: Hub
    desk: ModelDesk
    accounts: Accounts
    site: Site
    env: Env
