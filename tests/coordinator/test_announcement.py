"""What an operator reads when the pool starts."""

from __future__ import annotations

from dataclasses import replace

from coordinator.announcement import StartTokens, announcement
from coordinator.config import Site

PIN = "0a" * 32
SITE = Site("http://127.0.0.1:8000", "", False, frozenset({"localhost"}), True, "Lab")
CLOSED = replace(SITE, base_url="https://10.0.0.1:8443", pin=PIN, is_secure=True, is_open=False)


def test_an_open_pool_on_this_machine_names_its_addresses_and_its_join_link() -> None:
    assert announcement(SITE, ["one", "two"], StartTokens()).splitlines() == [
        "Models: one, two",
        "Chat page: http://127.0.0.1:8000/",
        "API: http://127.0.0.1:8000/v1",
        "Contribute a machine: decentllm node run --join 'decentllm://127.0.0.1:8000/join'",
        "Join link: decentllm://127.0.0.1:8000/join",
        "Operator page: http://127.0.0.1:8000/operator (`decentllm-coordinator operator-link` signs in)",
    ]


def test_a_closed_pool_shows_its_first_invitation_in_both_forms() -> None:
    lines = announcement(CLOSED, ["one"], StartTokens(operator="op-1", invite="in-12345678")).splitlines()
    link = f"decentllm://10.0.0.1:8443/join?pin={PIN}&invite=in-12345678"
    assert f"Join link: {link}" in lines
    assert f"Contribute a machine: decentllm node run --join '{link}'" in lines
    assert "Invitation to the chat page: https://10.0.0.1:8443/#invite=in-12345678" in lines
    assert "Operator page (one sign-in): https://10.0.0.1:8443/operator#token=op-1" in lines
    assert f"Fingerprint (SHA-256): {':'.join(['0A'] * 32)}" in lines


def test_a_closed_pool_says_later_how_to_invite() -> None:
    text = announcement(CLOSED, ["one"], StartTokens())
    assert "decentllm-coordinator invite" in text
    assert "invite=" not in text
    assert "Operator page: https://10.0.0.1:8443/operator (`decentllm-coordinator operator-link` signs in)" in text
    assert "token=" not in text


def test_a_pool_without_a_model_says_how_to_add_one() -> None:
    assert "no model yet" in announcement(SITE, [], StartTokens()).splitlines()[0]
