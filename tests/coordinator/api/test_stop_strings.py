"""Cutting at a stop string, however the text is divided into tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.api.stop_strings import StopStrings

letters = st.text("ab", max_size=20)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4).map(tuple)


def run(pieces: list[str], stops: tuple[str, ...]) -> tuple[str, bool]:
    cutter = StopStrings(stops)
    shown = "".join(cutter.push(piece) for piece in pieces)
    return shown + ("" if cutter.found else cutter.finish()), cutter.found


def cut(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """What it must do, on the whole text: end at the first place where a stop string is complete."""
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        return text, False
    seen = text[: min(ends)]
    return seen[: min(seen.find(stop) for stop in stops if stop in seen)], True


@given(st.lists(st.text("ab", max_size=3), max_size=12), stops)
def test_the_text_ends_before_the_first_stop_string(pieces: list[str], stops: tuple[str, ...]) -> None:
    """One character at a time there is one right answer; with larger pieces a stop string that begins earlier but
    ends later may be found in the same piece, which cuts no later."""
    text = "".join(pieces)
    assert run(list(text), stops) == cut(text, stops)
    shown, found = run(pieces, stops)
    assert found == cut(text, stops)[1]
    assert text.startswith(shown)
    assert len(shown) <= len(cut(text, stops)[0])
    assert not any(stop in shown for stop in stops)


@given(st.lists(st.text("ab", max_size=3), max_size=12))
def test_without_stop_strings_text_passes_at_once(pieces: list[str]) -> None:
    cutter = StopStrings(())
    assert [cutter.push(piece) for piece in pieces] == pieces
    assert cutter.finish() == ""


@given(letters, stops)
def test_what_is_held_back_could_still_become_a_stop_string(text: str, stops: tuple[str, ...]) -> None:
    cutter = StopStrings(stops)
    shown = "".join(cutter.push(char) for char in text)
    if not cutter.found:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_stop_string_spread_over_tokens_is_found() -> None:
    cutter = StopStrings(("\n\nUser:",))
    assert [cutter.push(piece) for piece in ("Yes.", "\n", "\nUs", "er", ": no")] == ["Yes.", "", "", "", ""]
    assert cutter.found
    assert cutter.push("more") == ""
    assert cutter.finish() == ""


def test_a_beginning_that_comes_to_nothing_is_shown_after_all() -> None:
    cutter = StopStrings(("END",))
    assert [cutter.push("E"), cutter.push("N"), cutter.push("X")] == ["", "", "ENX"]
    assert cutter.push("EN") == ""
    assert cutter.finish() == "EN"
