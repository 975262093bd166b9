"""Try the .deb as a new user would: on a fresh Debian, join by link, serve, chat, remove, purge; nothing may be left.

    sudo python installer/linux/try_package.py dist/decentllm_0.1.0_amd64.deb --models models

Wants mmdebstrap, Xvfb, openbox, xdotool, Chromium and a checkout with the extras `dev` (the coordinator and the browser
run from it; the node runs from the package in the fresh root, which shares the network). Packages for the runtime come
from the usual index, or from --find-links. It works in a mount namespace of its own and ends every process it started.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from demo.local_pool import ChildProgram  # noqa: E402 - after the path is known

USER = "volunteer"
MODEL = "qwen2.5-coder-0.5b-instruct"
LIMIT_S = 900.0
NOT_OURS = re.compile(
    r"/(proc|sys|dev|run|tmp)(/|$)|/var/(cache|log|lib/apt|lib/dpkg|lib/systemd|tmp)(/|$)|/etc/(ld\.so\.cache|mtab)$"
    r"|/etc/(passwd|shadow|group|gshadow|subuid|subgid)-?$|__pycache__|/etc/\.pwd\.lock$|/etc/resolv\.conf$"
    r"|/home/\w+/\.cache/fontconfig/"
)
"""What installing any package changes, what is no file of the disk, and what the system's own font library keeps for
everybody who has had any window open."""


@dataclass
class Steps:
    """What was done, and how long it took."""

    started_s: float = field(default_factory=time.monotonic)
    rows: list[tuple[str, float, str]] = field(default_factory=list)

    def done(self, what: str, note: str = "") -> None:
        now_s = time.monotonic()
        self.rows.append((what, now_s - self.started_s, note))
        self.started_s = now_s
        print(f"{self.rows[-1][1]:7.1f} s  {what}  {note}", flush=True)

    def table(self) -> str:
        head = ["| step | seconds | |", "|---|---|---|"]
        return "\n".join([*head, *(f"| {what} | {seconds:.1f} | {note} |" for what, seconds, note in self.rows)])


class FreshRoot:
    """A minimal Debian in a folder."""

    def __init__(self, folder: Path, suite: str, find_links: str) -> None:
        self.folder = folder
        self._find_links = find_links
        run(["mmdebstrap", "--quiet", "--variant=minbase", suite, str(folder)])
        for source in ("/proc", "/dev"):
            run(["mount", "--rbind", source, f"{folder}{source}"])
        shutil.copy("/etc/resolv.conf", folder / "etc" / "resolv.conf")
        (folder / "tmp" / ".X11-unix").mkdir(mode=0o1777, parents=True)
        run(["mount", "--bind", "/tmp/.X11-unix", str(folder / "tmp" / ".X11-unix")])
        self._share(os.environ.get("SSL_CERT_FILE", ""))
        self._share(find_links)
        self.root(["apt-get", "update", "-qq"])

    def _share(self, name: str) -> None:
        """A file or folder of this machine, at the same place in there."""
        if not name:
            return
        target = self.folder / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(exist_ok=True) if Path(name).is_dir() else target.touch()
        run(["mount", "--bind", name, str(target)])

    def root(self, argv: Sequence[str]) -> None:
        run(["chroot", str(self.folder), "env", "DEBIAN_FRONTEND=noninteractive", *argv], quiet=True)

    def as_user(self, argv: Sequence[str], **environment: str) -> list[str]:
        """The words that run something in there as the volunteer."""
        given = {"HOME": f"/home/{USER}", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **environment}
        for name in ("SSL_CERT_FILE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"):
            if name in os.environ:
                given[name] = os.environ[name]
        if self._find_links:
            given["DECENTLLM_FIND_LINKS"] = self._find_links
        words = [f"{name}={value}" for name, value in given.items()]
        return ["chroot", f"--userspec={USER}:{USER}", str(self.folder), "env", "-i", *words, *argv]

    def files(self) -> set[str]:
        """Every file of the disk in there."""
        listed = subprocess.run(
            ["find", str(self.folder), "-xdev", "!", "-type", "d"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        names = {line.removeprefix(str(self.folder)) for line in listed}
        return {name for name in names if not NOT_OURS.search(name)}


def run(argv: Sequence[str], quiet: bool = False) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL if quiet else None)


@contextlib.contextmanager
def screen() -> Iterator[str]:
    """A virtual screen with a window manager; its DISPLAY."""
    read, write = os.pipe()
    argv = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x900x24", "-nolisten", "tcp", "-ac"]
    server = subprocess.Popen(argv, pass_fds=(write,), stderr=subprocess.DEVNULL)
    os.close(write)
    with os.fdopen(read) as pipe:
        display = f":{pipe.readline().strip()}"
    manager = subprocess.Popen(["openbox"], env={**os.environ, "DISPLAY": display}, stderr=subprocess.DEVNULL)
    try:
        yield display
    finally:
        for child in (manager, server):
            child.terminate()
            child.wait(10)


@contextlib.contextmanager
def pool(scratch: Path, model: Path) -> Iterator[tuple[ChildProgram, Path]]:
    """A pool by invitation, with its own certificate, as an operator starts it."""
    data_dir = scratch / "pool"
    argv = ["-m", "coordinator", "serve", "--host", "0.0.0.0", "--port", "0", "--invite-only", "--operator-link"]
    argv += ["--model", str(model), "--data-dir", str(data_dir), "--name", "Package test"]
    program = ChildProgram.start("coordinator", argv, scratch / "coordinator.log")
    try:
        program.wait_for_line("Fingerprint", LIMIT_S)
        yield program, data_dir
    finally:
        program.stop()


def api_key(data_dir: Path) -> str:
    argv = [sys.executable, "-m", "coordinator", "key", "--data-dir", str(data_dir), "--label", "package test"]
    said = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return next(word for word in said.split() if word.startswith("sk-"))


def until(what: str, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    deadline_s = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"{what}: not within {limit_s:.0f} s")
        time.sleep(0.2)


def node_states(url: str, certificate: Path, key: str) -> list[str]:
    import ssl

    context = ssl.create_default_context(cafile=str(certificate))
    extensions = {"sni_hostname": "pool.decentllm.invalid"}
    answer = httpx.Client(verify=context).get(
        f"{url}/pool", headers={"Authorization": f"Bearer {key}"}, extensions=extensions
    )
    return [node["state"] for node in answer.json()["nodes"]]


def click_join(display: str) -> None:
    """The question's default is no: one Tab further is yes."""
    environment = {**os.environ, "DISPLAY": display}
    search = ["xdotool", "search", "--sync", "--onlyvisible", "--name", "^Join a pool$"]
    window = subprocess.run(search, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    for words in (["windowactivate", "--sync", window.split()[0]], ["key", "Tab"], ["key", "space"]):
        subprocess.run(["xdotool", *words], env=environment, check=True)


def picture(display: str, path: Path) -> None:
    subprocess.run(["import", "-window", "root", "-display", display, str(path)], check=True)


def chat(link: str, path: Path) -> str:
    """One question in the browser; the answer's text."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_context(ignore_https_errors=True).new_page()  # the pool signs its certificate itself
        page.goto(link)
        page.get_by_role("textbox").last.fill("What is the capital of France? Answer in one short sentence.")
        page.keyboard.press("Enter")
        page.get_by_text("Paris").first.wait_for(timeout=120_000)
        page.screenshot(path=str(path))
        text = page.get_by_text("Paris").first.inner_text()
        browser.close()
    return str(text)


def processes_of_user(uid: int) -> list[str]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has just ended
            text = status.read_text()
            if f"\nUid:\t{uid}\t" in text and "State:\tZ" not in text:
                found.append(text.split()[1])
    return found


def try_package(arguments: argparse.Namespace, scratch: Path, steps: Steps) -> None:
    root = FreshRoot(scratch / "root", arguments.suite, arguments.find_links)
    root.root(["useradd", "--create-home", USER])
    before = root.files()
    uid = int(
        next(line for line in (root.folder / "etc/passwd").read_text().splitlines() if line.startswith(USER)).split(
            ":"
        )[2]
    )
    steps.done(f"fresh Debian {arguments.suite}", f"{len(before):,} files")
    shutil.copy(arguments.deb, root.folder / "root")
    root.root(["apt-get", "install", "-y", "-qq", "--no-install-recommends", f"/root/{arguments.deb.name}"])
    steps.done("apt install ./decentllm.deb", f"{arguments.deb.stat().st_size / 1e6:.0f} MB")
    with screen() as display, pool(scratch, arguments.models / MODEL) as (coordinator, data_dir):
        serve_and_chat(arguments, scratch, steps, root, display, coordinator, data_dir)
    left = processes_of_user(uid)
    steps.done("quit from outside (SIGTERM)", f"processes left: {left or 'none'}")
    run(root.as_user(["decentllm", "clean", "--yes"]))
    root.root(["apt-get", "remove", "-y", "-qq", "decentllm"])
    root.root(["apt-get", "purge", "-y", "-qq", "--auto-remove", "decentllm"])
    (root.folder / "root" / arguments.deb.name).unlink()
    remains = sorted(root.files() - before)
    steps.done("decentllm clean, apt remove, apt purge", f"files left: {len(remains)}")
    if "decentllm" in (root.folder / "etc/passwd").read_text():
        remains.append("the user decentllm")
    for name in remains:
        print(f"    left: {name}")
    if left or remains:
        raise SystemExit("something is left")


def serve_and_chat(
    arguments: argparse.Namespace, scratch: Path, steps: Steps, root: FreshRoot, display: str,
    coordinator: ChildProgram, data_dir: Path,
) -> None:  # fmt: skip
    said = dict(line.partition(": ")[::2] for line in coordinator.lines)
    url, link = said["Chat page"].rstrip("/"), said["Join link"]
    key, certificate = api_key(data_dir), next((data_dir / "tls").glob("*cert*"))
    steps.done("the pool starts (by invitation, own certificate)")
    log = (scratch / "app.log").open("ab")
    argv = root.as_user(["decentllm", link], DISPLAY=display, XDG_RUNTIME_DIR=f"/home/{USER}")
    app = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        click_join(display)
        clicked_s = time.monotonic()
        steps.done("the link opens the app and its question; yes is clicked")
        time.sleep(3)
        picture(display, arguments.pictures / "package-preparing.png")
        until("serving", lambda: node_states(url, certificate, key) == ["serving"])
        steps.done("click to serving, from nothing", f"{time.monotonic() - clicked_s:.1f} s from the click")
        picture(display, arguments.pictures / "package-serving.png")
        answer = chat(said["Invitation to the chat page"], arguments.pictures / "package-chat.png")
        steps.done("an answer in the browser", answer[:60])
    finally:
        app.send_signal(signal.SIGTERM)
        app.wait(60)
        log.close()


def page(steps: Steps, suite: str) -> str:
    from benchmarks.machine import describe_machine

    return f"""# The package on a fresh Debian

From install to purge as the README says, on a fresh minimal Debian ({suite}) that shares this machine's network; the
pool is by invitation with its own certificate; {MODEL} from the pool's mirror, runtime from the package index.
{describe_machine()}.
Command: `make package-test` (`installer/linux/try_package.py --write`).

{steps.table()}

Files left: compared with the fresh system, without what installing any package changes (package lists, logs, accounts'
files) and the font library's own cache.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("deb", type=Path)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the real models")
    parser.add_argument("--suite", default="bookworm", help="the Debian to try it on")
    parser.add_argument("--find-links", default=os.environ.get("FIND_LINKS", ""), help="folder with torch's wheel")
    parser.add_argument("--pictures", type=Path, default=None, help="where pictures of the screen go")
    parser.add_argument("--write", action="store_true", help="write the table to docs/package.md")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if os.geteuid() != 0:
        raise SystemExit("It makes a root for itself: run it as root.")
    if missing := [name for name in ("mmdebstrap", "Xvfb", "openbox", "xdotool", "import") if not shutil.which(name)]:
        raise SystemExit(
            f"Missing programs: {', '.join(missing)} (Debian: mmdebstrap, xvfb, openbox, xdotool, imagemagick)."
        )
    if not arguments.inside:  # all mounts end with the namespace
        itself = [sys.executable, str(Path(__file__).resolve()), *(sys.argv[1:] if argv is None else argv), "--inside"]
        return subprocess.run(["unshare", "--mount", "--propagation", "private", *itself], check=False).returncode
    with tempfile.TemporaryDirectory(prefix="decentllm-package-") as scratch:
        arguments.deb, arguments.models = arguments.deb.resolve(), arguments.models.resolve()
        arguments.pictures = (arguments.pictures or Path(scratch)).resolve()
        steps = Steps()
        try:
            try_package(arguments, Path(scratch), steps)
            if arguments.write:
                (ROOT / "docs" / "package.md").write_text(page(steps, arguments.suite), "utf-8")
        finally:
            print(steps.table())
            for log in ("app.log", "coordinator.log"):
                if (Path(scratch) / log).exists():
                    print("".join(f"  {log}: {line}\n" for line in (Path(scratch) / log).read_text().splitlines()[-8:]))
            subprocess.run(
                ["umount", "--recursive", "--lazy", f"{scratch}/root/dev"], check=False, stderr=subprocess.DEVNULL
            )
            subprocess.run(
                ["umount", "--recursive", "--lazy", f"{scratch}/root/proc"], check=False, stderr=subprocess.DEVNULL
            )
            for mounted in _mounts_below(Path(scratch)):
                subprocess.run(["umount", "--lazy", mounted], check=False)
    return 0


def _mounts_below(folder: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted((line.split()[4] for line in lines if line.split()[4].startswith(f"{folder}/")), reverse=True)


if __name__ == "__main__":
    sys.exit(main())
