"""Weights: only what is needed, only what is right, and on with it after any interruption."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from math import inf
from pathlib import Path

import msgspec
import pytest

from client.agent.quota import RESERVE_BYTES
from client.agent.weights import MAX_TRIES, Source, WeightStore
from client.errors import DiskFullError, WeightsError
from protocol.env import Access
from protocol.manifest import MIN_CHUNK_BYTES, encode_manifest
from shell import AsyncioEnv
from shell.disk import LocalDisk
from tests.client.agent.mirror import Mirror, Span, running_mirror
from tests.client.agent.samples import model

WEIGHTS = "model.safetensors"
LAYERS_0_1 = model().tensor_names(0, 1)
ALL = model().tensor_names(0, 1, 2, 3)
INTERRUPTED = pytest.mark.expected_logs("download interrupted")


class ImpatientClock:
    """Waits nothing, and remembers how long it should have."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    def monotonic(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 0.0

    async def sleep(self, delay_s: float) -> None:
        self.slept_s.append(delay_s)
        await asyncio.sleep(0)


class Store:
    """A WeightStore in a folder, with a mirror to fetch from."""

    def __init__(self, folder: Path, env: AsyncioEnv, mirror: Mirror) -> None:
        self.env, self.mirror = env, mirror
        self.clock = env.clock = ImpatientClock()  # type: ignore[assignment]
        self.limit_bytes = 10**12
        self.in_use = [model().digest]
        self.store = WeightStore(folder, env, lambda: self.limit_bytes, lambda: self.in_use)
        self.folder = folder / model().digest
        self.progress: list[tuple[int, int]] = []
        self.token = ""

    @property
    def source(self) -> Source:
        return Source(self.mirror.url, Access(token=self.token))

    async def fetch(self, *names: str) -> Path:
        return await self.store.fetch(
            self.source, model().digest, model().manifest, names, lambda *numbers: self.progress.append(numbers)
        )

    def keep_other(self, letter: str, num_bytes: int = 10**6) -> Path:
        """Another model's weights, last used now."""
        folder = self.folder.parent / (letter * 64)
        folder.mkdir(parents=True)
        (folder / WEIGHTS).write_bytes(bytes([1]) * num_bytes)
        (folder / "used").write_bytes(b"")
        return folder

    async def fails(self, *names: str) -> WeightsError:
        with pytest.raises(WeightsError) as caught:
            await self.fetch(*names)
        return caught.value

    @property
    def content(self) -> bytes:
        return (self.folder / WEIGHTS).read_bytes()

    @property
    def weight_spans(self) -> list[tuple[int, int]]:
        """The chunks [start, stop) of each request for the weight file."""
        spans = [span for span in self.mirror.spans if span.path == WEIGHTS]
        return [(span.start // MIN_CHUNK_BYTES, -(-span.stop // MIN_CHUNK_BYTES)) for span in spans]


@pytest.fixture
async def mirror() -> AsyncIterator[Mirror]:
    async with running_mirror() as mirror:
        yield mirror


@pytest.fixture
def store(tmp_path: Path, env: AsyncioEnv, mirror: Mirror) -> Store:
    return Store(tmp_path, env, mirror)


# ---------------------------------------------------------------- the good case


async def test_all_layers_give_the_models_own_files(store: Store) -> None:
    folder = await store.fetch(*ALL)
    assert folder == store.folder
    assert store.content == model().weights
    assert (folder / "config.json").read_bytes() == b"{}"


async def test_a_sparse_file_of_full_size_holds_exactly_the_chunks_of_the_layers(store: Store) -> None:
    await store.fetch(*LAYERS_0_1)
    needed = 3 * MIN_CHUNK_BYTES
    assert store.weight_spans == [(0, 3)]
    assert store.content[:needed] == model().weights[:needed]
    assert store.content[needed:] == bytes(len(model().weights) - needed)


async def test_layers_in_the_middle_need_the_header_too(store: Store) -> None:
    await store.fetch(*model().tensor_names(3))
    assert store.weight_spans == [(0, 1), (4, 6)]


async def test_progress_starts_at_what_is_there_and_ends_at_the_total(store: Store) -> None:
    await store.fetch(*LAYERS_0_1)
    total = 3 * MIN_CHUNK_BYTES + 2
    assert store.progress[0] == (0, total)
    assert store.progress[-1] == (total, total)
    assert store.progress == sorted(store.progress)
    store.progress.clear()
    await store.fetch(*ALL)
    assert store.progress[0] == (total, len(model().weights) + 2)


async def test_what_is_there_is_not_fetched_again(store: Store) -> None:
    await store.fetch(*LAYERS_0_1)
    store.mirror.spans.clear()
    await store.fetch(*LAYERS_0_1)
    assert store.mirror.spans == []
    await store.fetch(*ALL)
    assert store.weight_spans == [(3, 6)]


async def test_two_devices_of_one_model_take_turns_and_fetch_nothing_twice(store: Store) -> None:
    await asyncio.gather(store.fetch(*LAYERS_0_1), store.fetch(*model().tensor_names(1, 2)))
    assert store.weight_spans == [(0, 3), (3, 5)]
    assert store.mirror.spans.count(Span("config.json", 0, 2)) == 1


# ---------------------------------------------------------------- a mirror that lies


@INTERRUPTED
@pytest.mark.parametrize("trick", ["whole", "other-range", "short", "less", "reset", "missing", "error", "corrupt"])
async def test_a_lie_that_passes_costs_only_a_retry(store: Store, trick: str) -> None:
    store.mirror.tricks.extend(["honest", trick])
    await store.fetch(*ALL)
    assert store.content == model().weights
    assert len(store.clock.slept_s) == 1


@INTERRUPTED
@pytest.mark.parametrize(
    ("trick", "sentence"),
    [
        ("whole", "status 200, expected 206"),
        ("other-range", "another range than asked for"),
        ("missing", "status 404, expected 206"),
        ("error", "status 500, expected 206"),
    ],
)
async def test_a_lie_that_stays_is_given_up_with_a_sentence(store: Store, trick: str, sentence: str) -> None:
    store.mirror.tricks.append("honest")
    store.mirror.habit = trick
    error = await store.fails(*ALL)
    assert error.code == "download_failed"
    assert str(error).startswith(f"The file {WEIGHTS} could not be downloaded: ")
    assert sentence in str(error)
    assert len(store.weight_spans) == MAX_TRIES
    assert store.clock.slept_s == sorted(store.clock.slept_s)


@INTERRUPTED
async def test_a_corrupt_file_is_named_with_the_chunk(store: Store) -> None:
    store.mirror.tricks.append("honest")
    store.mirror.habit = "corrupt"
    error = await store.fails(*ALL)
    assert error.code == "bad_weights"
    sentence = f"The pool's file {WEIGHTS} is corrupt: chunk 0 of 6 does not match its checksum."
    assert str(error) == sentence


@INTERRUPTED
async def test_a_corrupt_chunk_never_reaches_the_disk(store: Store) -> None:
    store.mirror.tricks.append("honest")
    store.mirror.habit = "corrupt"
    await store.fails(*ALL)
    assert store.content == bytes(len(model().weights))


@INTERRUPTED
async def test_retries_begin_at_the_first_missing_chunk(store: Store) -> None:
    store.mirror.tricks.extend(["honest", "short"])
    await store.fetch(*ALL)
    assert store.weight_spans == [(0, 6), (5, 6)]


@INTERRUPTED
async def test_a_mirror_that_always_breaks_off_is_no_failure_as_long_as_it_gets_on(store: Store) -> None:
    store.mirror.tricks.extend(["honest", *["drips"] * 5])
    await store.fetch(*ALL)
    assert store.content == model().weights


async def test_a_body_without_end_is_cut_off(store: Store) -> None:
    store.mirror.tricks.extend(["honest", "endless"])
    async with asyncio.timeout(20):
        await store.fetch(*LAYERS_0_1)
    assert store.content[: 3 * MIN_CHUNK_BYTES] == model().weights[: 3 * MIN_CHUNK_BYTES]


# ---------------------------------------------------------------- interruptions


async def test_a_cancelled_download_goes_on_where_it_was(store: Store) -> None:
    store.mirror.tricks.extend(["honest", "stalls"])
    task = asyncio.create_task(store.fetch(*ALL))
    await store.mirror.stalled.wait()
    while len(store.progress) < 7:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    store.mirror.spans.clear()
    await store.fetch(*ALL)
    assert store.weight_spans == [(5, 6)]
    assert store.content == model().weights


async def test_marks_do_not_outlive_their_file(store: Store) -> None:
    await store.fetch(*ALL)
    (store.folder / WEIGHTS).unlink()
    await store.fetch(*ALL)
    assert store.content == model().weights


@pytest.mark.parametrize("size", [0, 1000, 7_000_000])
async def test_a_file_that_somebody_resized_is_fetched_again(store: Store, size: int) -> None:
    await store.fetch(*ALL)
    with (store.folder / WEIGHTS).open("r+b") as file:
        file.truncate(size)
    await store.fetch(*ALL)
    assert store.content == model().weights


# ---------------------------------------------------------------- the disk


async def test_too_little_room_is_said_before_anything_is_fetched(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.env.disk, "free_bytes", lambda path: 10**9)
    error = await store.fails(*ALL)
    assert (error.code, store.mirror.spans) == ("disk_full", [])
    assert str(error) == "The weights need 6 MB more disk space; 1.0 GB are free, and 2.1 GB stay free."


@pytest.fixture
def aged(store: Store) -> tuple[Path, Path]:
    """Two other models on the disk: one not used for long, one used a moment ago."""
    old, new = store.keep_other("a"), store.keep_other("b")
    os.utime(old / "used", (1_000_000, 1_000_000))
    return old, new


async def test_the_model_that_was_not_used_for_longest_makes_room(store: Store, aged: tuple[Path, Path]) -> None:
    store.limit_bytes = 8 * 10**6
    await store.fetch(*ALL)
    assert [folder.exists() for folder in aged] == [False, True]
    assert store.content == model().weights


async def test_what_is_in_use_is_never_removed(store: Store, aged: tuple[Path, Path]) -> None:
    store.limit_bytes = 8 * 10**6
    store.in_use.append(aged[0].name)
    await store.fetch(*ALL)
    assert [folder.exists() for folder in aged] == [True, False]


async def test_a_download_that_can_never_fit_is_refused_and_removes_nothing(
    store: Store, aged: tuple[Path, Path]
) -> None:
    store.limit_bytes = 5 * 10**6
    error = await store.fails(*ALL)
    assert error.code == "disk_full"
    assert str(error) == "The weights need 6 MB more disk space, and this node may keep 5 MB of weights in all."
    assert all(folder.exists() for folder in aged)
    assert store.mirror.spans == []


@pytest.mark.parametrize("has_other_layers", [False, True])
async def test_that_the_disk_is_full_is_said_with_what_part_would_fit(store: Store, has_other_layers: bool) -> None:
    """What is there of the same model makes room for it, or is a part of it."""
    if has_other_layers:
        await store.fetch(*LAYERS_0_1)
    total_bytes = len(model().weights)
    store.limit_bytes = total_bytes // 2
    error = await store.fails(*ALL)
    assert isinstance(error, DiskFullError)
    assert error.share is not None
    assert 0.4 < error.share <= 0.5


async def test_files_that_are_not_ours_take_room_and_stay(store: Store) -> None:
    foreign = store.folder.parent / "notes"
    foreign.mkdir(parents=True)
    (foreign / "file").write_bytes(bytes([1]) * 10**6)
    store.limit_bytes = 6_500_000
    assert (await store.fails(*ALL)).code == "disk_full"
    assert foreign.exists()


async def test_layers_that_a_device_serves_no_more_go_when_nothing_else_helps(store: Store) -> None:
    await store.fetch(*LAYERS_0_1)
    store.limit_bytes = 5_500_000
    await store.fetch(*model().tensor_names(2, 3))
    needed = model().weights[3 * MIN_CHUNK_BYTES :]
    assert store.content[3 * MIN_CHUNK_BYTES :] == needed
    assert store.content[MIN_CHUNK_BYTES : 2 * MIN_CHUNK_BYTES] == bytes(MIN_CHUNK_BYTES)


async def test_layers_that_another_device_may_serve_stay(store: Store) -> None:
    await store.fetch(*LAYERS_0_1)
    store.limit_bytes = 5_500_000
    store.in_use = [model().digest] * 2
    assert (await store.fails(*model().tensor_names(2, 3))).code == "disk_full"
    await store.fetch(*LAYERS_0_1)
    assert store.content[: 3 * MIN_CHUNK_BYTES] == model().weights[: 3 * MIN_CHUNK_BYTES]


async def test_the_reserve_of_free_space_stays_free(
    store: Store, aged: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.env.disk, "free_bytes", lambda path: RESERVE_BYTES + 6 * 10**6)
    await store.fetch(*ALL)
    assert [folder.exists() for folder in aged] == [False, True]


async def test_two_downloads_at_once_do_not_share_the_same_room(
    store: Store, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.env.disk, "free_bytes", lambda path: RESERVE_BYTES + 9 * 10**6)
    mirror.tricks.extend(["honest", "stalls"])
    first = asyncio.create_task(store.fetch(*ALL))
    await mirror.stalled.wait()
    with pytest.raises(WeightsError, match="more disk space"):
        await store.store.fetch(store.source, "c" * 64, model().manifest, ALL, lambda done, total: None)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


# ---------------------------------------------------------------- the mirror's door


async def test_the_token_opens_the_mirror(store: Store) -> None:
    store.mirror.token = store.token = "weights-token"
    assert await store.store.manifest(store.source, model().digest) == model().manifest
    await store.fetch(*ALL)
    assert store.content == model().weights


@INTERRUPTED
async def test_a_token_that_does_not_open_the_mirror_is_said_without_being_said(store: Store) -> None:
    store.mirror.token, store.token = "weights-token", "wrong-token"
    assert "status 401" in str(await store.fails(*ALL))
    with pytest.raises(WeightsError, match="status 401") as caught:
        await store.store.manifest(store.source, model().digest)
    assert "token" not in str(caught.value)


WRITING = ("reserve", "write_at", "write_atomic", "sync")


@pytest.mark.parametrize("method", WRITING)
async def test_a_disk_that_fails_in_the_middle_is_said_with_the_folder(
    store: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EACCES, "It does not work")

    monkeypatch.setattr(store.env.disk, method, fail)
    error = await store.fails(*ALL)
    assert error.code == "disk_failed"
    assert str(error) == f"The weights cannot be kept in {store.folder}: It does not work."


class FillingDisk:
    """The disk, on which the write of that number and all later ones find no room, until `has_room`."""

    def __init__(self, disk: LocalDisk, first: float) -> None:
        self._disk, self._first = disk, first
        self.num_writes = 0
        self.has_room = False

    def __getattr__(self, name: str) -> object:
        method = getattr(self._disk, name)
        return partial(self._write, method) if name in WRITING else method

    def _write(self, method: Callable[..., None], path: Path, *rest: object) -> None:
        if self.num_writes >= self._first and not self.has_room:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        self.num_writes += 1
        method(path, *rest)

    def free_bytes(self, path: Path) -> int:
        """It is as empty as it has to be: somebody else is quicker."""
        return 10**12


async def test_a_disk_that_fills_up_at_any_write_keeps_what_has_come_and_harms_nothing(
    tmp_path: Path, env: AsyncioEnv, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def play(first: float) -> FillingDisk:
        disk = FillingDisk(LocalDisk(), first)
        monkeypatch.setattr(env, "disk", disk)
        store = Store(tmp_path / str(first), env, mirror)
        other = store.keep_other("a")
        if first != inf:
            error = await store.fails(*ALL)
            assert error.code == "disk_full"
            assert str(error).startswith(f"The disk of {store.folder} is full")
            assert str(error).endswith("Make room; what has come is kept.")
            is_partly_there = all(path.exists() for path in (store.folder / WEIGHTS, store.folder / "config.json"))
            assert is_partly_there or "MB are still to come, and 1000.0 GB are free. " in str(error)
        marked = sum(sum(path.read_bytes()) for path in store.folder.glob("checked/*.chunks"))
        disk.has_room = True
        mirror.spans.clear()
        await store.fetch(*ALL)
        assert store.content == model().weights
        fetched = sum(-(-(span.stop - span.start) // MIN_CHUNK_BYTES) for span in mirror.spans)
        assert fetched == sum(len(file.chunk_digests) for file in model().manifest.files) - marked
        assert len((other / WEIGHTS).read_bytes()) == 10**6
        assert not list(store.folder.rglob("*.part"))
        return disk

    num_writes = (await play(inf)).num_writes
    assert num_writes > 8
    for first in range(num_writes):
        await play(first)


async def test_a_folder_that_is_a_file_is_said(store: Store) -> None:
    store.folder.parent.mkdir(exist_ok=True)
    store.folder.write_text("in the way")
    assert (await store.fails(*ALL)).code == "disk_failed"


async def test_a_plan_with_a_tensor_that_does_not_exist_is_said(store: Store) -> None:
    error = await store.fails("model.layers.9.weight")
    assert error.code == "bad_plan"
    assert "there is no tensor model.layers.9.weight" in str(error)


# ---------------------------------------------------------------- the manifest


async def manifest_error(store: Store) -> WeightsError:
    with pytest.raises(WeightsError) as caught:
        await store.store.manifest(store.source, model().digest)
    return caught.value


async def test_a_manifest_is_fetched_once_and_kept(store: Store) -> None:
    for _ in range(2):
        assert await store.store.manifest(store.source, model().digest) == model().manifest
    assert store.mirror.num_manifests == 1


async def test_a_manifest_damaged_on_disk_is_fetched_again(store: Store) -> None:
    store.folder.mkdir(parents=True)
    (store.folder / "manifest.json").write_bytes(b"{")
    assert await store.store.manifest(store.source, model().digest) == model().manifest


async def test_another_manifest_than_asked_for_is_refused_and_not_kept(store: Store) -> None:
    other = msgspec.structs.replace(model().manifest, name="other")
    store.mirror.manifest_bytes = encode_manifest(other)
    error = await manifest_error(store)
    assert (error.code, str(error)) == (
        "bad_manifest",
        "The pool's model description does not match its checksum.",
    )
    assert not store.folder.exists()


async def test_a_manifest_without_end_is_cut_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.agent.weights.MAX_MANIFEST_BYTES", 100)
    error = await manifest_error(store)
    assert error.code == "download_failed"
    assert "longer than 100 bytes" in str(error)


async def test_a_manifest_that_cannot_be_had_is_said(store: Store) -> None:
    with pytest.raises(WeightsError, match="status 404"):
        await store.store.manifest(store.source, "0" * 64)
    with pytest.raises(WeightsError, match="could not be downloaded"):
        await store.store.manifest(Source("http://127.0.0.1:1"), model().digest)


async def test_a_manifest_that_cannot_be_kept_is_said(store: Store) -> None:
    store.folder.write_text("in the way")
    assert (await manifest_error(store)).code == "disk_failed"
