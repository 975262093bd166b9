"""A pool's link as a volunteer pastes it."""

from __future__ import annotations

import pytest

from client.ui.pool_link import is_on_this_computer, parse_pool_link, without_invitation
from protocol.join_link import JoinLink, JoinLinkError, fingerprint_text

PIN = "ab12" * 16


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("https://pool.example.org", JoinLink("https://pool.example.org")),
        ("  http://127.0.0.1:8000\n", JoinLink("http://127.0.0.1:8000")),
        ("pool.example.org:8000", JoinLink("http://pool.example.org:8000")),
        ("https://pool.example.org/#invite=abcdefgh", JoinLink("https://pool.example.org", "", "abcdefgh")),
        (f"decentllm://p:1/join?pin={PIN}&invite=abcdefgh", JoinLink("https://p:1", PIN, "abcdefgh")),
    ],
)
def test_a_link_or_an_address_is_taken(text: str, link: JoinLink) -> None:
    assert parse_pool_link(text) == link


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Paste the pool's join link"),
        ("ftp://pool.example.org", "begins with decentllm://"),
        ("https://user:secret@pool.example.org", "user name or password"),
        ("https://pöol.example.org", "xn--pol-sna.example.org"),
        ("decentllm://pöol.example.org/join", "xn--pol-sna.example.org"),
        ("decentllm://p/join?pin=1234", "fingerprint is damaged"),
        ("https://" + "a" * 700, "longer than 600"),
    ],
)
def test_what_is_no_link_gets_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(JoinLinkError, match=reason):
        parse_pool_link(text)


def test_a_fingerprint_is_written_in_pairs() -> None:
    assert fingerprint_text("ab12cd") == "AB:12:CD"


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost", True),
        ("http://[::1]:8000", True),
        ("http://10.0.0.7", False),
        ("http://localhost.example.org", False),
    ],
)
def test_what_is_on_this_computer_is_known(url: str, is_local: bool) -> None:
    assert is_on_this_computer(JoinLink(url)) is is_local


def test_the_pin_outlives_the_invitation() -> None:
    assert without_invitation(JoinLink("https://p", PIN, "abcdefgh")) == JoinLink("https://p", PIN)
