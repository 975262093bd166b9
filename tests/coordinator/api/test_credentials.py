"""What a request says about who sends it."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers

from coordinator.api.credentials import Sender, address_of, bearer_of, cookie_name, cookie_of, looks_like_key, sender_of
from tests.fakes.api_driver import CLOSED_SITE, OPEN_SITE


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


def scope(scheme: str = "http", **fields: str) -> dict[str, Any]:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return {"type": "http", "scheme": scheme, "headers": raw}


def test_over_tls_the_cookie_is_one_that_no_neighbour_can_set() -> None:
    assert cookie_name(CLOSED_SITE) == "__Host-decentllm"
    assert cookie_name(OPEN_SITE) == "decentllm"


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        (["decentllm=abc"], "abc"),
        (["a=1; decentllm=abc;b=2"], "abc"),
        (["a=1", "decentllm=abc"], "abc"),
        (['decentllm="abc"'], "abc"),
        (["decentllm=a=b"], "a=b"),
        (["decentllm="], ""),
        (["decentllm"], ""),
        (["decentllm=a; decentllm=b"], ""),
        (["decentllm=a; decentllm=a"], ""),
        (["Decentllm=abc"], ""),
        (["xdecentllm=abc; decentllmx=abc"], ""),
        (["__Host-decentllm=abc"], ""),
        (["decentllm=" + "x" * 257], ""),
        ([";;;=;=;" + "\xff" * 100], ""),
        ([], ""),
    ],
)
def test_a_cookie_is_found_by_its_exact_name_and_two_are_as_none(lines: list[str], value: str) -> None:
    assert cookie_of(headers(*(("cookie", line) for line in lines)), "decentllm") == value


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", ""),
        ("Bearer", ""),
        ("Bearerabc", ""),
        ("", ""),
        ("sk-abc", ""),
    ],
)
def test_a_bearer_token_is_that_of_its_scheme(header: str, token: str) -> None:
    assert bearer_of(headers(("authorization", header))) == token
    assert bearer_of(headers()) == ""


def test_words_that_programs_send_for_want_of_a_key_are_none() -> None:
    assert looks_like_key("sk-12345678-secret")
    assert not any(map(looks_like_key, ("", "none needed", "EMPTY", "SK-")))


@pytest.mark.parametrize(
    ("fields", "sender"),
    [
        ({}, Sender.UNSAID),
        ({"origin": "https://pool.test:8443"}, Sender.OWN),
        ({"origin": "https://POOL.test:8443"}, Sender.OWN),
        ({"origin": "https://10.0.0.7:8443", "host": "10.0.0.7:8443"}, Sender.OWN),
        ({"origin": "http://10.0.0.7:8443", "host": "10.0.0.7:8443"}, Sender.FOREIGN),
        ({"origin": "https://pool.test"}, Sender.FOREIGN),
        ({"origin": "https://pool.test:8443.evil.test"}, Sender.FOREIGN),
        ({"origin": "https://evil.test"}, Sender.FOREIGN),
        ({"origin": "null"}, Sender.FOREIGN),
        ({"origin": ""}, Sender.FOREIGN),
        ({"sec_fetch_site": "same-origin"}, Sender.OWN),
        ({"sec_fetch_site": "same-site", "origin": "https://pool.test:8443"}, Sender.FOREIGN),
        ({"sec_fetch_site": "cross-site"}, Sender.FOREIGN),
        ({"sec_fetch_site": "none"}, Sender.FOREIGN),
        ({"sec_fetch_site": "nonsense"}, Sender.FOREIGN),
    ],
)
def test_a_page_is_ours_only_when_the_browser_says_so(fields: dict[str, str], sender: Sender) -> None:
    given = {"host": "pool.test:8443"} | fields
    assert sender_of(scope("https", **given), CLOSED_SITE) is sender


def test_the_address_is_the_connections_own() -> None:
    assert address_of({"client": ("192.0.2.1", 5)}) == "192.0.2.1"
    assert address_of({"client": None}) == ""
    assert address_of({}) == ""
