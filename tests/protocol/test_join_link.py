"""Join links: what comes out of one goes into one, and what is none gets one sentence."""

from __future__ import annotations

import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.join_link import JoinLink, JoinLinkError, format_browser_link, format_join_link, parse_join_link

PIN = "0123456789abcdef" * 4
INVITE = "Invite-token_1"
POOL = "https://pool.example:8443"


@pytest.mark.parametrize(
    ("text", "link"),
    [
        (f"decentllm://pool.example:8443/join?pin={PIN}&invite={INVITE}", JoinLink(POOL, PIN, INVITE)),
        (f"decentllm://pool.example:8443/join?invite={INVITE}&pin={PIN}", JoinLink(POOL, PIN, INVITE)),
        (f"decentllm://pool.example:8443/join?pin={PIN}", JoinLink(POOL, PIN)),
        ("decentllm://pool.example:8443/join?tls=1", JoinLink(POOL)),
        (f"DecentLLM://Pool.Example:8443/join?tls=1&invite={INVITE}", JoinLink(POOL, "", INVITE)),
        ("decentllm://127.0.0.1:8000/join", JoinLink("http://127.0.0.1:8000")),
        ("decentllm://127.0.0.1:8000", JoinLink("http://127.0.0.1:8000")),
        ("decentllm://[::1]:8000/join?tls=0", JoinLink("http://[::1]:8000")),
        (f"{POOL}/#invite={INVITE}", JoinLink(POOL, "", INVITE)),
        (f"{POOL}/", JoinLink(POOL)),
        (f"{POOL}/chat?x=1#y", JoinLink(POOL)),
        ("http://127.0.0.1:8000", JoinLink("http://127.0.0.1:8000")),
        ("127.0.0.1:8000", JoinLink("http://127.0.0.1:8000")),
        ("pool.example", JoinLink("http://pool.example")),
        ("ws://pool.example/node", JoinLink("http://pool.example")),
        ("wss://pool.example/node", JoinLink("https://pool.example")),
        ("  http://[::1]:8000/\n", JoinLink("http://[::1]:8000")),
        ("http://bücher.example", JoinLink("http://bücher.example")),
    ],
)
def test_a_link_is_read_in_every_form(text: str, link: JoinLink) -> None:
    assert parse_join_link(text) == link


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Paste the pool's join link"),
        ("   ", "Paste the pool's join link"),
        ("x" * 601, "longer than 600 characters"),
        ("http://pool example", "a blank"),
        ('"http://pool.example"', "a quotation mark"),
        ("http://pool<script>", "a character that cannot be shown"),
        ("http://po\x00ol", "a character that cannot be shown"),
        ("http://pool\\example", "a character that cannot be shown"),
        ("http://", "must look like https://host:port"),
        ("decentllm://", "must look like https://host:port"),
        ("decentllm:///join", "must look like https://host:port"),
        ("http://:8000", "must look like https://host:port"),
        ("http://pool.example:0", "must look like https://host:port"),
        ("http://po\udcffol", "not a valid URL"),
        ("http://pool.example:70000", "not a valid URL"),
        ("http://pool.example:abc", "not a valid URL"),
        ("http://[::1", "not a valid URL"),
        ("http://" + "x" * 64 + ".example", "not a valid URL"),
        ("http://b..ü", "not a valid URL"),
        ("ftp://pool.example", "begins with decentllm://, https:// or http://"),
        ("javascript:alert(1)//", "begins with|must look like|not a valid URL"),
        ("file:///etc/passwd", "begins with decentllm://"),
        ("decentllm://pool/join?pin=abc", "fingerprint is damaged"),
        (f"decentllm://pool/join?pin={PIN.upper()}", "fingerprint is damaged"),
        (f"decentllm://pool/join?pin={PIN}0", "fingerprint is damaged"),
        ("decentllm://pool/join?invite=short", "invitation is damaged"),
        (f"decentllm://pool/join?invite={'x' * 129}", "invitation is damaged"),
        ("decentllm://pool/join?invite=with%20blank", "invitation is damaged"),
        ("https://pool/#invite=%0aevil-line", "invitation is damaged"),
        (f"decentllm://pool/join?pin={PIN}&pin={PIN}", "two values for 'pin'"),
        (f"https://pool/#invite={INVITE}&invite={INVITE}", "two values for 'invite'"),
        ("decentllm://pool/join?" + "&".join(f"a{n}=1" for n in range(17)), "not a valid URL"),
    ],
)
def test_what_is_no_link_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(JoinLinkError, match=words) as caught:
        parse_join_link(text)
    assert str(caught.value) == caught.value.sentence
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["http://user:secret@pool", "http://user@pool", "http://@pool", "decentllm://u:secret@pool/join"]
)
def test_credentials_in_a_link_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(JoinLinkError, match="user name or password") as caught:
        parse_join_link(text)
    assert "secret" not in str(caught.value)


def test_a_damaged_invitation_is_not_repeated() -> None:
    with pytest.raises(JoinLinkError) as caught:
        parse_join_link("https://pool/#invite=secret.invitation")
    assert "secret" not in str(caught.value)


HOSTS = st.sampled_from(["pool.example", "10.0.0.7:8443", "[fd00::7]:8443", "localhost:8000", "xn--bcher-kva.example"])
TOKENS = st.text(string.ascii_letters + string.digits + "_-", min_size=8, max_size=128)
PINS = st.text("0123456789abcdef", min_size=64, max_size=64)
SECURE = st.builds(JoinLink, HOSTS.map("https://".__add__), st.just("") | PINS, st.just("") | TOKENS)
PLAIN = st.builds(JoinLink, HOSTS.map("http://".__add__), st.just(""), st.just("") | TOKENS)


@given(SECURE | PLAIN)
def test_a_link_that_is_written_is_read_as_it_was(link: JoinLink) -> None:
    assert parse_join_link(format_join_link(link)) == link


@given(SECURE | PLAIN)
def test_the_browsers_form_has_everything_but_the_fingerprint(link: JoinLink) -> None:
    text = format_browser_link(link)
    assert parse_join_link(text) == JoinLink(link.url, "", link.invite)
    assert "invite" not in text.partition("#")[0]


@given(st.text(max_size=60) | st.text("decntlm:/@[]%.01 \\?#=&", max_size=60).map("decentllm://".__add__))
def test_any_text_is_a_link_or_a_sentence(text: str) -> None:
    with contextlib.suppress(JoinLinkError):
        link = parse_join_link(text)
        assert parse_join_link(link.url) == JoinLink(link.url)


def test_the_invitation_is_in_no_text_of_a_link() -> None:
    link = JoinLink(POOL, PIN, INVITE)
    assert INVITE not in f"{link} {link!r} {link.host_and_port}"
    assert link.host_and_port == "pool.example:8443"
