"""Signing in by a link, and out. The cookie is out of reach of scripts; GET says what it stands for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response

from coordinator.accounts import Caller, Role
from coordinator.accounts.sign_in import SESSION_S
from coordinator.api.access import NOBODY, SESSION_PATH, caller_of
from coordinator.api.bodies import Body, read_as
from coordinator.api.credentials import MAX_SECRET_CHARACTERS, address_of, cookie_name, cookie_of
from coordinator.api.errors import TooManyAttempts
from coordinator.api.services import Services
from coordinator.throttle import Throttle


class SignIn(Body):
    """An invitation's token or an operator link's."""

    token: Annotated[str, Field(min_length=1, max_length=MAX_SECRET_CHARACTERS)]


class SessionRoutes:
    def __init__(self, services: Services, throttle: Throttle) -> None:
        self._accounts = services.accounts
        self._site = services.site
        self._env = services.env
        self._throttle = throttle
        self.router = APIRouter()
        self.router.get(SESSION_PATH)(self.show)
        self.router.post(SESSION_PATH)(self.sign_in)
        self.router.delete(SESSION_PATH)(self.sign_out)

    async def show(self, request: Request) -> dict[str, Any]:
        """Who is signed in, and to which pool."""
        return self._view(caller_of(request))

    async def sign_in(self, request: Request) -> Response:
        """A session for a link's token. Whoever was signed in with this cookie before is not any more."""
        body = await read_as(SignIn, request)
        cookie, role = await self._redeem(body.token, address_of(request.scope))
        before = caller_of(request)
        if before.role is Role.OPERATOR and role is Role.CHAT:  # an operator who tries an invitation stays one
            await self._env.run_blocking(self._accounts.sign_out, cookie)
            return JSONResponse(self._view(before))
        await self._end(request)
        caller = await self._env.run_blocking(self._accounts.caller_of_cookie, cookie)
        if role is Role.OPERATOR:
            await self._env.run_blocking(self._accounts.audit, name_of(caller), "signed in")
        response = JSONResponse(self._view(caller))
        self._set_cookie(response, cookie, int(SESSION_S[role]))
        return response

    async def sign_out(self, request: Request) -> Response:
        """Harmless when nobody is signed in."""
        await self._end(request)
        caller = caller_of(request)
        if caller.role is Role.OPERATOR:
            await self._env.run_blocking(self._accounts.audit, name_of(caller), "signed out")
        response = JSONResponse(self._view(NOBODY))
        self._set_cookie(response, "", 0)
        return response

    async def _redeem(self, token: str, address: str) -> tuple[str, Role]:
        """The cookie and the role. Raises AccountError, and TooManyAttempts after ten of them in a minute."""
        if wait_s := self._throttle.take(address, self._env.clock.monotonic()):
            raise TooManyAttempts(wait_s)
        signed_in = await self._env.run_blocking(self._accounts.sign_in, token)
        self._throttle.give_back(address, self._env.clock.monotonic())
        return signed_in

    async def _end(self, request: Request) -> None:
        if cookie := cookie_of(Headers(scope=request.scope), cookie_name(self._site)):
            await self._env.run_blocking(self._accounts.sign_out, cookie)

    def _set_cookie(self, response: Response, value: str, max_age_s: int) -> None:
        response.set_cookie(
            cookie_name(self._site),
            value,
            max_age=max_age_s,
            path="/",
            secure=self._site.is_secure,
            httponly=True,
            samesite="strict",
        )

    def _view(self, caller: Caller) -> dict[str, Any]:
        return {
            "pool_name": self._site.pool_name,
            "is_open": self._site.is_open,
            "role": caller.role,
            "label": caller.label,
            "can_chat": self._site.is_open or caller.role is not None,
        }


def name_of(caller: Caller) -> str:
    """A person in the audit trail: two operators are told apart by their sessions."""
    return f"{caller.label or caller.role} {caller.session_id[:8]}".strip()
