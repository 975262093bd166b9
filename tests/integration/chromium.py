"""A real Chromium for tests of the pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
ANSWER_MS = 180_000
EXPECT_MS = 60_000
"""Pages poll every two seconds, on machines that may be busy."""


@contextmanager
def launched() -> Iterator[Browser]:
    expect.set_options(timeout=EXPECT_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, address: str, allowed: tuple[str, ...] = (), **options: Any) -> Iterator[Page]:
    """A page in a profile of its own. What it writes to the console as an error fails the test, unless one of `allowed`
    is in it; `options` as Playwright's new_context takes them."""
    problems: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 800}, **options) as context:
        page = context.new_page()
        page.on("console", lambda message: _note(message, allowed, problems))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        yield page
    assert problems == [], problems


def screenshot(page: Page, name: str, folder: Path) -> None:
    """Into the folder of the published screenshots when they are being renewed, else where nobody looks."""
    target = Path(os.environ.get("DECENTLLM_SCREENSHOTS", folder))
    page.screenshot(path=str(target / name))
    assert (target / name).stat().st_size > 10_000


def ask(page: Page, question: str) -> None:
    """Type a question into the chat page and send it."""
    page.get_by_test_id("composer").fill(question)
    page.get_by_test_id("send").click()


def _note(message: ConsoleMessage, allowed: tuple[str, ...], problems: list[str]) -> None:
    if message.type in ("error", "warning") and not any(part in message.text for part in allowed):
        problems.append(message.text)
