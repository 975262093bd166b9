"""The pages' built files are committed, so that nobody needs npm: they must be those of the committed sources."""

import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "coordinator" / "web"
STATIC = WEB / "static"
# Both lists are those of coordinator/web/scripts/record-build.mjs, which writes build.json.
SOURCES = (
    "index.html",
    "operator.html",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "vite.config.ts",
    "public",
    "scripts",
    "src",
)
TEXT_SUFFIXES = {".css", ".html", ".js", ".json", ".mjs", ".svg", ".ts", ".tsx", ".txt"}
# Names of XML vocabularies and, in the highlighter's warnings, of its documentation: written there, never fetched.
NAMES_IN_CODE = {"www.w3.org", "github.com"}
PAGES = ("index.html", "operator.html")
IMPORTED = re.compile(r"""(?:\bfrom|\bimport\(?)\s*[`"']\./([^`"']+)""")
OPERATORS_ADDRESS = "api/operator"
MAX_SCRIPT_BYTES = {"index.html": 92_000, "operator.html": 28_000}
"""Of what a page loads at once, compressed as a server would."""
HTML_SINKS = re.compile(
    r"innerHTML|InnerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser"
)
CHECKED_FOR_ORIGINS = {".html", ".js", ".css", ".svg"}


def files_under(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def sum_of(file: Path) -> str:
    content = file.read_bytes()
    if file.suffix in TEXT_SUFFIXES:
        content = content.replace(b"\r\n", b"\n")  # a checkout may turn line ends; that changes no source
    return hashlib.sha256(content).hexdigest()


def name_of(file: Path) -> str:
    return file.relative_to(WEB).as_posix()


@pytest.fixture(scope="module")
def build() -> dict[str, object]:
    return json.loads((STATIC / "build.json").read_text("utf-8"))


def test_the_built_files_are_those_of_the_committed_sources(build: dict[str, object]) -> None:
    files = sorted((file for name in SOURCES for file in files_under(WEB / name)), key=name_of)
    whole = hashlib.sha256("".join(f"{sum_of(file)}  {name_of(file)}\n" for file in files).encode())
    assert whole.hexdigest() == build["sources"], "run `npm ci && npm run build` in coordinator/web"


def test_no_built_file_is_missing_left_over_or_edited(build: dict[str, object]) -> None:
    found = {file.relative_to(STATIC).as_posix(): sum_of(file) for file in files_under(STATIC)}
    del found["build.json"]
    assert found == build["files"]


class References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self._script = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [value for name in ("src", "href") if (value := values.get(name)) is not None]
        self.inline += [f"{tag} {name}" for name in values if name.startswith("on") or name == "style"]
        if tag in {"script", "style"} and "src" not in values:
            self.inline.append(tag)


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest) -> References:
    return parsed(request.param)


def parsed(name: str) -> References:
    references = References()
    references.feed((STATIC / name).read_text("utf-8"))
    return references


def test_a_page_refers_to_files_beside_it_only(page: References) -> None:
    assert page.addresses
    for address in page.addresses:
        assert address.startswith("./"), address
        assert (STATIC / address).is_file(), address


def test_a_page_holds_nothing_that_its_security_policy_forbids(page: References) -> None:
    assert page.inline == []


def scripts_of(name: str) -> set[Path]:
    """All scripts that a page can come to load, at once or later."""
    waiting = [STATIC / address for address in parsed(name).addresses if address.endswith(".js")]
    found: set[Path] = set()
    while waiting:
        script = waiting.pop().resolve()
        if script not in found:
            found.add(script)
            waiting += [script.parent / imported for imported in IMPORTED.findall(script.read_text("utf-8"))]
    return found


def test_what_the_scripts_load_is_there() -> None:
    scripts = set().union(*(scripts_of(name) for name in PAGES))
    assert scripts == {script.resolve() for script in STATIC.glob("assets/*.js")}


def test_the_chat_page_loads_nothing_of_the_operators() -> None:
    chat, operator = scripts_of("index.html"), scripts_of("operator.html")
    assert any(OPERATORS_ADDRESS in script.read_text("utf-8") for script in operator)
    assert not any(OPERATORS_ADDRESS in script.read_text("utf-8") for script in chat)


def test_the_pages_stay_small() -> None:
    for name, limit_bytes in MAX_SCRIPT_BYTES.items():
        at_once = [STATIC / address for address in parsed(name).addresses if address.endswith(".js")]
        assert sum(len(gzip.compress(script.read_bytes(), 9)) for script in at_once) <= limit_bytes, name


def test_no_source_turns_text_into_html() -> None:
    """Names come from strangers and are text nodes; the sanitizer, a package, gives a finished fragment."""
    sources = [file for file in files_under(WEB / "src") if file.suffix in (".ts", ".tsx")]
    assert [file.name for file in sources if HTML_SINKS.search(file.read_text("utf-8"))] == []


def test_no_other_origin_is_named() -> None:
    for file in files_under(STATIC):
        if file.suffix in CHECKED_FOR_ORIGINS:
            hosts = re.findall(r"https?://([a-z0-9.-]+\.[a-z]+)", file.read_text("utf-8"), re.IGNORECASE)
            assert set(hosts) <= NAMES_IN_CODE, file.name


def test_the_lock_file_names_no_download_address() -> None:
    text = (WEB / "package-lock.json").read_text("utf-8")
    assert '"resolved"' not in text
    packages = json.loads(text)["packages"]
    assert all("integrity" in entry for name, entry in packages.items() if name)
