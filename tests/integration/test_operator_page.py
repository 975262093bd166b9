"""An operator at the operator's page, in a real Chromium, of a pool by invitation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from demo.local_pool import ChildProgram, local_pool
from tests.integration.chromium import ANSWER_MS, ask, opened, screenshot
from tests.integration.conftest import READY_S, Served
from tests.integration.streams import Stream

NODES = ("ada", "bert")
LONG = 1200
SHORT = 24
LIMIT_S = 120.0
REFUSALS = ("403 (Forbidden)",)
"""What Chromium writes to its console when the pool says no."""


@pytest.fixture(scope="module")
def served(endless_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two nodes, each with the whole of a tiny model."""
    folder = tmp_path_factory.mktemp("operated-pool")
    with local_pool(folder, [str(endless_folder)], "--invite-only", "--name", "The laboratory") as pool:
        link = pool.command("invite", "--no-chat").splitlines()[1].removeprefix("Join link: ")
        for name in NODES:
            pool.add_node(name, "--cpu", join=link)
        pool.wait_until(lambda state: [node["state"] for node in state["nodes"]] == ["serving"] * 2, READY_S)
        yield Served(pool, endless_folder.name)


@pytest.fixture(scope="module")
def page(served: Served, browser: Browser) -> Iterator[Page]:
    """The operator's page, signed in by a link."""
    with opened(browser, new_operator_link(served)) as page:
        expect(page.get_by_test_id("nodes")).to_be_visible()
        yield page


def new_operator_link(served: Served) -> str:
    return served.pool.command("operator-link").partition("): ")[2]


def row(page: Page, table: str, name: str) -> Locator:
    return page.get_by_test_id(table).get_by_role("row").filter(has_text=name)


def press(page: Page, label: str) -> None:
    page.get_by_role("button", name=label, exact=True).click()


def confirm(page: Page, label: str) -> None:
    """Press a button that asks before it acts."""
    press(page, label)
    page.get_by_test_id("confirm-go").click()
    expect(page.get_by_test_id("confirm")).to_be_hidden()


def made(page: Page, button: str, label: str, result: str) -> str:
    """Make something that is shown only once, by its form; returns what was shown."""
    page.get_by_test_id(button).click()
    page.get_by_label("Name", exact=True).fill(label)
    page.get_by_test_id("form-submit").click()
    value = page.get_by_test_id(result).input_value()
    page.get_by_test_id("form-done").click()
    expect(page.get_by_test_id(result)).to_be_hidden()
    return value


# ---------------------------------------------------------------- signing in


def test_nodes_and_models_are_there_to_see(page: Page, served: Served, tmp_path: Path) -> None:
    for name in NODES:
        expect(row(page, "nodes", name)).to_contain_text("Serving")
        expect(row(page, "nodes", name)).to_contain_text(f"of 4, {served.model}")
    expect(row(page, "models", served.model)).to_contain_text("Ready")
    assert "#" not in page.url, "the link's token is not in the address bar any more"
    screenshot(page, "operator-page.png", tmp_path)


def test_a_link_signs_one_operator_in_and_nobody_after(served: Served, browser: Browser) -> None:
    link = new_operator_link(served)
    with opened(browser, link, REFUSALS) as first:
        expect(first.get_by_test_id("nodes")).to_be_visible()
        with opened(browser, link, REFUSALS) as second:
            expect(second.get_by_test_id("operator-signed-out")).to_be_visible()
            expect(second.get_by_test_id("operator-error")).not_to_be_empty()
            assert "ada" not in second.content()
        first.get_by_test_id("operator-sign-out").click()
        expect(first.get_by_test_id("operator-signed-out")).to_be_visible()


# ---------------------------------------------------------------- invitations, keys, machines


def test_a_key_is_shown_once_and_opens_the_api_until_it_is_revoked(page: Page, served: Served) -> None:
    secret = made(page, "make-key", "a program", "made-key-secret")
    assert secret.startswith("sk-")
    assert secret not in page.content()

    def models() -> httpx.Response:
        return httpx.get(f"{served.pool.url}/v1/models", headers={"Authorization": f"Bearer {secret}"}, timeout=LIMIT_S)

    assert [model["id"] for model in models().json()["data"]] == [served.model]
    confirm(page, "Revoke a program")
    expect(row(page, "keys", "a program")).to_contain_text("Revoked")
    assert models().status_code == 401


def test_an_invitation_that_is_made_here_opens_the_chat(page: Page, served: Served, browser: Browser) -> None:
    link = made(page, "make-invitation", "friends", "made-browser-link")
    assert link not in page.content()
    with opened(browser, link) as guest:
        expect(guest.get_by_test_id("model-name")).to_contain_text(served.model, timeout=ANSWER_MS)
        ask(guest, "hello")
        expect(guest.get_by_test_id("answered-by")).to_be_visible(timeout=ANSWER_MS)
        expect(guest.get_by_test_id("message-assistant")).not_to_be_empty()
    expect(row(page, "invitations", "friends")).to_contain_text("1 of 10", timeout=ANSWER_MS)


def test_a_machine_comes_by_an_invitation_and_when_it_is_removed_it_is_gone_for_good(
    page: Page, served: Served
) -> None:
    link = made(page, "make-invitation", "a guest", "made-join-link")
    guest = served.pool.add_node("guest", "--cpu", "--max-layers", "1", join=link)
    expect(row(page, "nodes", "guest")).to_be_visible(timeout=ANSWER_MS)
    served.pool.nodes.remove(guest)
    confirm(page, "Remove guest")
    assert_turned_away(served, guest, "The operator removed this machine from the pool.")
    expect(row(page, "nodes", "guest")).to_be_hidden()
    page.get_by_test_id("away").locator("summary").click()
    expect(row(page, "away-nodes", "guest")).to_contain_text("Removed")

    again = served.pool.add_node("guest", "--cpu", "--max-layers", "1", join=link)
    served.pool.nodes.remove(again)
    assert_turned_away(served, again, "removed")


def assert_turned_away(served: Served, node: ChildProgram, words: str) -> None:
    assert node.process.wait(LIMIT_S) == 2
    node.stop()
    last = (served.pool.folder / f"{node.name}.log").read_text().splitlines()[-1]
    assert last.startswith("decentllm: ")
    assert words in last


# ---------------------------------------------------------------- draining, loading


def test_a_node_that_drains_finishes_its_answer_and_gets_no_other(page: Page, served: Served) -> None:
    undisturbed = served.tokens("a long story", LONG)
    stream = Stream(served, "a long story", LONG)
    stream.wait_begun()
    ((drained,),) = stream.chains
    (other,) = set(NODES) - {drained}
    press(page, f"Drain {drained}")
    expect(row(page, "nodes", drained)).to_contain_text("Draining")
    assert not stream.is_over, "the answer runs on"
    assert {answering(served) for _ in range(3)} == {other}
    assert stream.wait() == undisturbed
    assert stream.chains == [[drained]]

    press(page, f"Undrain {drained}")
    expect(row(page, "nodes", drained)).to_contain_text("Serving")
    press(page, f"Drain {other}")
    expect(row(page, "nodes", other)).to_contain_text("Draining")
    assert answering(served) == drained, "it takes new work again"
    press(page, f"Undrain {other}")
    expect(row(page, "nodes", other)).to_contain_text("Serving")


def answering(served: Served) -> str:
    """The node that answers a short question."""
    ((node,),) = [served.complete("hi", max_tokens=1)["decentllm"]["nodes"]]
    name: str = node["name"]
    return name


def test_a_model_that_is_unloaded_answers_nobody_until_it_is_loaded_again(page: Page, served: Served) -> None:
    before = served.tokens("hello", SHORT)
    confirm(page, f"Unload {served.model}")
    expect(row(page, "models", served.model)).to_contain_text("Not loaded")
    refused = served.pool.http.post("/v1/chat/completions", json=served.body("hello"))
    assert refused.status_code == 404
    press(page, f"Load {served.model}")
    expect(row(page, "models", served.model)).to_contain_text("Ready", timeout=ANSWER_MS)
    assert served.tokens("hello", SHORT) == before
