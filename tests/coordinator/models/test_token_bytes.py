"""The bytes of single tokens: together they are the bytes of the text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from coordinator.models.token_bytes import TokenBytes, byte_of_char

TEXTS = ("Hello, world!", " two  spaces", "Grüße, 世界 🌍\n\t", "\u0301a\u200d🏽")


def byte_level() -> Any:
    tokenizer = Tokenizer(models.BPE(dict(byte_of_char().items()), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_piece(decoder: Any) -> Any:
    """Letters, SentencePiece's mark, and a byte each for everything else."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "H": 257, "e": 258}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoder
    return tokenizer


REPLACE = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
METASPACE = decoders.Sequence([decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback()])


@pytest.mark.parametrize(
    "tokenizer",
    [byte_level(), sentence_piece(REPLACE), sentence_piece(METASPACE)],
    ids=["bytes", "replace", "metaspace"],
)
@pytest.mark.parametrize("text", TEXTS)
def test_all_tokens_together_are_the_text(tokenizer: Any, text: str) -> None:
    read = TokenBytes(tokenizer)
    assert b"".join(map(read, tokenizer.encode(text).ids)) == text.encode()


@given(st.text(max_size=30))
def test_no_text_is_lost_in_bytes(text: str) -> None:
    tokenizer = byte_level()
    assert b"".join(map(TokenBytes(tokenizer), tokenizer.encode(text).ids)) == text.encode()


def test_every_byte_has_one_character() -> None:
    assert sorted(byte_of_char().values()) == list(range(256))
    assert byte_of_char()["Ġ"] == 0x20


def test_an_added_token_is_its_own_text() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|im_end|>"])
    assert TokenBytes(tokenizer)(256) == b"<|im_end|>"


def test_an_id_beyond_the_vocabulary_has_no_bytes() -> None:
    assert TokenBytes(byte_level())(10**6) == b""


def test_without_a_decoder_names_are_texts() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁word": 0, "<0x41>": 1}, "▁word"))
    assert [TokenBytes(tokenizer)(token) for token in (0, 1)] == ["▁word".encode(), b"<0x41>"]
