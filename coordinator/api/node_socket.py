"""Starlette's websocket behind protocol.env.Connection."""

from __future__ import annotations

from starlette.websockets import WebSocket, WebSocketDisconnect

from protocol.env import ConnectionClosed


class SocketConnection:
    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def send(self, data: str | bytes) -> None:
        try:
            if isinstance(data, bytes):
                await self._websocket.send_bytes(data)
            else:
                await self._websocket.send_text(data)
        except (WebSocketDisconnect, RuntimeError) as error:  # RuntimeError: after we have closed it ourselves
            raise ConnectionClosed(1006, str(error)) from None

    async def recv(self) -> str | bytes:
        try:
            message = await self._websocket.receive()
        except RuntimeError as error:
            raise ConnectionClosed(1006, str(error)) from None
        if message["type"] == "websocket.disconnect":
            raise ConnectionClosed(message.get("code", 1006), message.get("reason") or "")
        data: str | bytes | None = message.get("text")
        return message["bytes"] if data is None else data

    async def close(self, code: int = 1000, reason: str = "") -> None:
        try:
            await self._websocket.close(code, reason)
        except (WebSocketDisconnect, RuntimeError):  # closed already, by either side
            return
