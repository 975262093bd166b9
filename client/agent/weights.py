"""The weights on disk: sparse copies of the model's files, filled chunk by chunk, each chunk checked before it counts.

Interrupted at any moment it goes on at the last checked chunk. A chunk that does not match its SHA-256 is fetched
again; when that does not help, the mirror's file is bad and the sentence says which. Before a download, models that
nothing uses are removed if it would not fit otherwise (quota.py).
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.agent.quota import Kept, Room, disk_filled_up, to_evict
from client.config import MAX_DISK_BYTES
from client.errors import DiskFullError, WeightsError
from protocol.env import Access, Env, NetworkError
from protocol.errors import ProtocolError
from protocol.manifest import MAX_MANIFEST_BYTES, Manifest, chunk_span, chunks_of, decode_manifest, manifest_hash

log = logging.getLogger(__name__)

MAX_RUN_CHUNKS = 32
"""Chunks per request: long enough that requests cost nothing, short enough to lose little."""
MAX_TRIES = 4
RETRY_BASE_S = 0.5
USED_FILE = "used"
"""Written whenever a model's weights are asked for: its time says which model has not been used for longest."""
_DIGEST = re.compile(r"[0-9a-f]{64}")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Source:
    """Where to download from, and what opens it: a pool's address, or one of its files."""

    url: str
    access: Access = Access()

    def below(self, path: str) -> Source:
        return Source(f"{self.url}/weights/{path}", self.access)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Chunks of one file, ascending, that are not on disk yet."""

    file: int
    chunks: tuple[int, ...]


class WeightStore:
    """All weights of this installation: `folder / manifest hash / file`."""

    def __init__(
        self,
        folder: Path,
        env: Env,
        limit_bytes: Callable[[], int] = lambda: MAX_DISK_BYTES,
        in_use: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`limit_bytes` is for all weights together. `in_use` names the models that devices use, each once per
        device: they are not removed."""
        self._folder = folder
        self._env = env
        self._limit_bytes = limit_bytes
        self._in_use = in_use
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._room_turn = asyncio.Lock()
        self._downloads: dict[str, _Counter] = {}

    async def manifest(self, mirror: Source, digest: str) -> Manifest:
        """The manifest of that hash, from disk or from the pool. Raises WeightsError."""
        try:
            return decode_manifest(await self._manifest_bytes(mirror, digest))
        except ProtocolError as error:
            raise WeightsError("bad_manifest", f"The pool's model description is not usable: {error}") from None
        except OSError as error:
            raise self._disk_error(digest, error) from None

    async def fetch(
        self, mirror: Source, digest: str, manifest: Manifest, tensor_names: Sequence[str], progress: Progress
    ) -> Path:
        """Make sure that these tensors are on disk; returns the folder. `progress(done_bytes, total_bytes)`.

        Two devices that want parts of one model take turns: they share its files. Raises WeightsError."""
        folder = self._folder / digest
        try:
            wanted = chunks_of(manifest, tensor_names)
        except ProtocolError as error:
            raise WeightsError("bad_plan", f"The worker asks for what the model does not have: {error}") from None
        counter = _Counter(0, _num_bytes(manifest, wanted), progress)
        try:
            async with self._turns[digest]:
                await self._fetch(mirror, folder, manifest, wanted, counter)
        except DiskFullError as error:
            raise error.out_of(counter.total) from None
        except OSError as error:
            raise self._disk_error(digest, error, counter.total - counter.done, counter.total) from None
        return folder

    # ------------------------------------------------------------ parts

    async def _fetch(
        self, mirror: Source, folder: Path, manifest: Manifest, wanted: dict[int, list[int]], counter: _Counter
    ) -> None:
        await self._note_use(folder)
        try:
            async with self._room_turn:
                missing = await self._make_room(folder, manifest, wanted)
                counter.add(counter.total - _num_bytes(manifest, missing))
                self._downloads[folder.name] = counter
            for file, chunks in missing.items():
                await self._fetch_file(mirror, folder, manifest, Wanted(file, tuple(chunks)), counter)
        finally:
            self._downloads.pop(folder.name, None)

    async def _make_room(self, folder: Path, manifest: Manifest, wanted: dict[int, list[int]]) -> dict[int, list[int]]:
        """Remove models until what is missing of `wanted` fits; returns what is missing.

        Other layers of the same model go last, and the wanted ones with them: they share their files."""
        digest, missing = folder.name, self._missing(folder, manifest, wanted)
        kept, room = await self._env.run_blocking(self._kept)
        in_use = list(self._in_use())
        taken = {*in_use, *self._downloads}
        try:
            evicted = to_evict(kept, {*taken, digest}, _num_bytes(manifest, missing), room)
        except DiskFullError:
            if in_use.count(digest) > 1:
                raise
            evicted = to_evict(kept, taken - {digest}, _num_bytes(manifest, wanted), room)
        for model in evicted:
            log.info("removing the weights of model %s to make room", model[:16])
            await self._env.run_blocking(self._env.disk.remove_folder, self._folder / model)
        if digest not in evicted:
            return missing
        await self._note_use(folder)
        return self._missing(folder, manifest, wanted)

    async def _note_use(self, folder: Path) -> None:
        await self._env.run_blocking(self._env.disk.write_atomic, folder / USED_FILE, b"")

    def _kept(self) -> tuple[list[Kept], Room]:
        """The models on disk. What else lies in the folder takes room too, and is never removed."""
        used: defaultdict[str, int] = defaultdict(int)
        used_s: defaultdict[str, float] = defaultdict(float)
        for path, facts in self._env.disk.list_files(self._folder).items():
            name, _, rest = path.partition("/")
            used[name] += facts.used_bytes
            used_s[name] = facts.written_s if rest == USED_FILE else used_s[name]
        pending = sum(counter.total - counter.done for counter in self._downloads.values())
        free = self._env.disk.free_bytes(self._folder)
        room = Room(self._limit_bytes(), sum(used.values()) + pending, free - pending)
        return [Kept(name, used[name], used_s[name]) for name in used if _DIGEST.fullmatch(name)], room

    async def _manifest_bytes(self, mirror: Source, digest: str) -> bytes:
        path = self._folder / digest / "manifest.json"
        data = self._env.disk.read(path)
        if data is None or manifest_hash(data) != digest:
            data = await self._download_manifest(mirror.below(f"{digest}/manifest"))
            if manifest_hash(data) != digest:
                raise WeightsError("bad_manifest", "The pool's model description does not match its checksum.")
            self._env.disk.write_atomic(path, data)
        return data

    async def _download_manifest(self, source: Source) -> bytes:
        data = bytearray()
        try:
            async for piece in self._env.network.get(source.url, access=source.access):
                data += piece
                if len(data) > MAX_MANIFEST_BYTES:
                    raise NetworkError(f"it is longer than {MAX_MANIFEST_BYTES} bytes")
        except NetworkError as error:
            raise WeightsError("download_failed", f"The model description could not be downloaded: {error}") from None
        return bytes(data)

    def _missing(self, folder: Path, manifest: Manifest, wanted: dict[int, list[int]]) -> dict[int, list[int]]:
        return {file: self._missing_of(folder, manifest, file, chunks) for file, chunks in wanted.items()}

    def _missing_of(self, folder: Path, manifest: Manifest, file: int, chunks: Sequence[int]) -> list[int]:
        marks = _marks_path(folder, manifest, file)
        if not self._has_size(folder / manifest.files[file].path, manifest.files[file].size_bytes):
            self._env.disk.remove(marks)  # the marks are for a file that somebody deleted or cut
        have = self._env.disk.read(marks) or b""
        return [chunk for chunk in chunks if not (chunk < len(have) and have[chunk])]

    def _has_size(self, path: Path, size_bytes: int) -> bool:
        try:
            return len(self._env.disk.read_at(path, size_bytes - 1, 2)) == 1
        except FileNotFoundError:
            return False

    def _disk_error(self, digest: str, error: OSError, need_bytes: int = 0, wanted_bytes: int = 0) -> WeightsError:
        """`need_bytes` were still to come, of `wanted_bytes` in all."""
        folder = self._folder / digest
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return disk_filled_up(folder, need_bytes, self._env.disk.free_bytes(folder)).out_of(wanted_bytes)
        return WeightsError("disk_failed", f"The weights cannot be kept in {folder}: {error.strerror or error}.")

    async def _fetch_file(
        self, mirror: Source, folder: Path, manifest: Manifest, want: Wanted, counter: _Counter
    ) -> None:
        if not want.chunks:
            return
        spec = manifest.files[want.file]
        self._env.disk.reserve(folder / spec.path, spec.size_bytes)
        source = mirror.below(f"{folder.name}/files/{spec.path}")
        for run in _runs(want.chunks):
            await self._fetch_run(source, folder, manifest, Wanted(want.file, run), counter)

    async def _fetch_run(
        self, source: Source, folder: Path, manifest: Manifest, want: Wanted, counter: _Counter
    ) -> None:
        """One range of consecutive chunks, with retries from the first chunk that is still missing."""
        chunks, tries = list(want.chunks), 0
        while chunks:
            num_before = len(chunks)
            try:
                await self._stream_chunks(source, folder, manifest, want.file, chunks, counter)
                if chunks:
                    raise NetworkError(f"the mirror ended {len(chunks)} chunks early")
            except (NetworkError, _BadChunk) as error:
                tries = 1 if len(chunks) < num_before else tries + 1
                if tries >= MAX_TRIES:
                    raise _given_up(error, manifest.files[want.file].path) from None
                log.warning("download interrupted (%s), trying again", error)
                await self._env.clock.sleep(RETRY_BASE_S * 2**tries)

    async def _stream_chunks(
        self, source: Source, folder: Path, manifest: Manifest, file: int, chunks: list[int], counter: _Counter
    ) -> None:
        """Download `chunks` in one request, taking each off the list once it is checked and written."""
        start, stop = chunk_span(manifest, file, chunks[0])[0], chunk_span(manifest, file, chunks[-1])[1]
        buffer, fresh = bytearray(), list[int]()
        try:
            async for piece in self._env.network.get(source.url, start, stop, source.access):
                if not chunks:
                    break  # it sends more than it was asked for, perhaps without end
                buffer += piece
                while chunks and len(buffer) >= (size := _size(manifest, file, chunks[0])):
                    await self._env.run_blocking(self._store, folder, manifest, file, chunks[0], bytes(buffer[:size]))
                    fresh.append(chunks.pop(0))
                    del buffer[:size]
                    counter.add(size)
        finally:
            if fresh:
                await self._env.run_blocking(self._mark, folder, manifest, file, fresh)

    def _store(self, folder: Path, manifest: Manifest, file: int, chunk: int, data: bytes) -> None:
        spec = manifest.files[file]
        if hashlib.sha256(data).hexdigest() != spec.chunk_digests[chunk]:
            raise _BadChunk(chunk, len(spec.chunk_digests))
        self._env.disk.write_at(folder / spec.path, chunk_span(manifest, file, chunk)[0], data)

    def _mark(self, folder: Path, manifest: Manifest, file: int, chunks: Sequence[int]) -> None:
        """Note chunks as checked, after they are safe on disk: a mark must never outlive its chunk in a power cut."""
        spec = manifest.files[file]
        self._env.disk.sync(folder / spec.path)
        marks = _marks_path(folder, manifest, file)
        have = bytearray(self._env.disk.read(marks) or b"").ljust(len(spec.chunk_digests), b"\0")
        for chunk in chunks:
            have[chunk] = 1
        self._env.disk.write_atomic(marks, bytes(have))


@dataclass(slots=True)
class _Counter:
    done: int
    total: int
    progress: Progress

    def add(self, num_bytes: int) -> None:
        self.done += num_bytes
        self.progress(self.done, self.total)


class _BadChunk(Exception):  # noqa: N818 - turned into a WeightsError when it stays bad
    def __init__(self, chunk: int, num_chunks: int) -> None:
        super().__init__(f"chunk {chunk} of {num_chunks} does not match its checksum")


def _given_up(error: Exception, path: str) -> WeightsError:
    if isinstance(error, _BadChunk):
        return WeightsError("bad_weights", f"The pool's file {path} is corrupt: {error}.")
    return WeightsError("download_failed", f"The file {path} could not be downloaded: {error}.")


def _num_bytes(manifest: Manifest, chunks_of_file: dict[int, list[int]]) -> int:
    return sum(_size(manifest, file, chunk) for file, chunks in chunks_of_file.items() for chunk in chunks)


def _size(manifest: Manifest, file: int, chunk: int) -> int:
    start, stop = chunk_span(manifest, file, chunk)
    return stop - start


def _marks_path(folder: Path, manifest: Manifest, file: int) -> Path:
    """One byte per chunk: 1 once it is on disk and checked."""
    return folder / "checked" / f"{manifest.files[file].path}.chunks"


def _runs(chunks: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Consecutive chunks, at most MAX_RUN_CHUNKS at a time."""
    run: list[int] = []
    for chunk in chunks:
        if run and (chunk != run[-1] + 1 or len(run) == MAX_RUN_CHUNKS):
            yield tuple(run)
            run = []
        run.append(chunk)
    if run:
        yield tuple(run)
