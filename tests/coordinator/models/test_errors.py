from __future__ import annotations

from coordinator.models.errors import BrokenModelError, shown


def test_foreign_text_is_shown_on_one_line_without_control_characters() -> None:
    assert shown("a\n b\x1b[31m\x00c") == "a b\\x1b[31m\\x00c"


def test_foreign_text_is_cut() -> None:
    assert len(shown("x" * 10_000)) == 200


def test_an_error_is_one_sentence_with_its_data_in_attributes() -> None:
    error = BrokenModelError("model.safetensors", "the header size is 0 bytes")
    assert str(error) == "model.safetensors is damaged or incomplete: the header size is 0 bytes"
    assert error.file == "model.safetensors"
