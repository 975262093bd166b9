"""The bytes that a single token stands for, as far as its tokenizer has any.

    read_bytes = TokenBytes(tokenizer.backend_tokenizer)
    read_bytes(15)        # b" the"

Decoding one token by itself loses its leading space, or turns half a character into U+FFFD; tokenizer.json says in its
decoder what the names in the vocabulary mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

SPACE = "\u2581"
"""SentencePiece's mark for a space (Kudo and Richardson 2018, arXiv 1808.06226, section 3.1)."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>", re.ASCII)


def byte_of_char() -> dict[str, int]:
    """Byte-level vocabularies write bytes that are no visible character of Latin-1 as those from U+0100 on, in order
    (Radford et al. 2019, section 2.2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in visible)
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


class TokenBytes:
    """Of each id; b"" of one that the vocabulary does not have."""

    def __init__(self, backend: Any) -> None:
        """`backend`: a tokenizers.Tokenizer."""
        decoders = list(_flat(json.loads(backend.decoder.__getstate__()))) if backend.decoder else []
        kinds = {decoder.get("type") for decoder in decoders}
        self._backend = backend
        self._added = {id_: token.content for id_, token in backend.get_added_tokens_decoder().items()}
        self._by_char = byte_of_char() if "ByteLevel" in kinds else {}
        self._has_bytes = "ByteFallback" in kinds
        self._has_mark = "Metaspace" in kinds or any(_replaces_mark(decoder) for decoder in decoders)

    def __call__(self, token_id: int) -> bytes:
        if token_id in self._added:
            return bytes(self._added[token_id], "utf-8")
        name = self._backend.id_to_token(token_id) or ""
        if self._by_char:
            return b"".join(self._of_char(char) for char in name)
        if self._has_bytes and (match := _BYTE.fullmatch(name)):
            return bytes.fromhex(match[1])
        return bytes(name.replace(SPACE, " ") if self._has_mark else name, "utf-8")

    def _of_char(self, char: str) -> bytes:
        byte = self._by_char.get(char)
        return char.encode() if byte is None else bytes((byte,))


def _flat(decoder: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield decoder
    for part in decoder.get("decoders", ()):
        yield from _flat(part)


def _replaces_mark(decoder: Mapping[str, Any]) -> bool:
    return decoder.get("type") == "Replace" and decoder.get("pattern") == {"String": SPACE}
