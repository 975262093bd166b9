"""What a user asked for, and what the stages of a chain are told of it: one message each, and then the log. Pure."""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from coordinator.affinity import prefix_hashes
from coordinator.scheduler.commands import ChainStage
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, encode_frame
from protocol.messages import OpenSession
from protocol.values import KV_BLOCK_TOKENS, Hop, NodeId, Sampling, SessionId, StopRule

MAX_ROWS_PER_FRAME = 8192


@dataclass(frozen=True, slots=True)
class Order:
    """What a user asked for, in tokens. `tenant` is who asks, `deadline_s` how long it may wait in the queue at most
    (None: as long as the pool lets it)."""

    session_id: SessionId
    manifest_hash: str
    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    stop_tokens: tuple[int, ...]
    tenant: str = ""
    deadline_s: float | None = None

    @property
    def num_tokens(self) -> int:
        """KV room the session may need in all."""
        return len(self.prompt) + self.max_new_tokens


@dataclass(frozen=True, slots=True)
class Contact:
    """How a node's neighbours reach it; address None: only through the coordinator's relay.

    `fingerprint` is that of the certificate it shows there (wss only)."""

    address: str | None = None
    ticket: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A session on one chain in one epoch. `log` is what it begins with, prompt and committed tokens; `num_kept` says
    per stage how many rows of it are not computed again. `names` are of its blocks, for stages with a prefix cache."""

    order: Order
    epoch: int
    chain: tuple[ChainStage, ...]
    log: tuple[int, ...]
    num_kept: tuple[int, ...]
    names: tuple[str, ...] = ()

    def open_message(self, stage: int, contacts: Mapping[NodeId, Contact]) -> OpenSession:
        """What the stage's node is told."""
        last = len(self.chain) - 1
        tail, place = stage == last, self.chain[stage]
        return OpenSession(
            session_id=self.order.session_id,
            epoch=self.epoch,
            device_id=place.device.device_id,
            generation=place.generation,
            stage=stage,
            num_stages=len(self.chain),
            num_prompt_tokens=len(self.log),
            num_reserved_tokens=self.order.num_tokens,
            previous=self._hop(stage - 1 if stage else last, {}),
            next=self._hop(0 if tail else stage + 1, contacts),
            sampling=self.order.sampling if tail else None,
            stop=StopRule(self.order.num_tokens, self.order.stop_tokens) if tail else None,
            history=self.log if tail else (),
            num_kept_tokens=self.num_kept[stage],
            next_from=0 if tail else self.num_kept[stage + 1],
            prefix_hashes=self.names if place.has_prefix_cache else (),
        )

    def _hop(self, stage: int, contacts: Mapping[NodeId, Contact]) -> Hop:
        node_id = self.chain[stage].device.node_id
        contact = contacts.get(node_id, Contact())
        return Hop(node_id, stage, contact.address, contact.ticket, contact.fingerprint)


def may_begin(
    chain: Sequence[ChainStage], names: Sequence[str], num_kept: Sequence[int], opened: Collection[int]
) -> bool:
    """Whether the head may get the log: all stages behind it are open. Its own order to open is on the line that the
    rows come on, before them, so that they need not wait for its answer, which it gives between two steps; unless what
    it has cached decides where the log begins."""
    asks_head = bool(names) and chain[0].has_prefix_cache and not num_kept[0]
    return all(stage in opened for stage in range(0 if asks_head else 1, len(chain)))


def prompt_frames(session_id: SessionId, epoch: int, log: tuple[int, ...], first: int) -> list[bytes]:
    """The log from row `first` on, as the head gets it."""
    frames = []
    for seq, start in enumerate(range(first, len(log), MAX_ROWS_PER_FRAME)):
        tokens = log[start : start + MAX_ROWS_PER_FRAME]
        segment = Segment(session_id, epoch, start, len(tokens), seq, 0, Phase.PREFILL)
        payload = struct.pack(f"<{len(tokens)}i", *tokens)
        frames.append(encode_frame(Frame(FrameKind.TOKENS, WireDtype.INT32, 1, (segment,), payload)))
    return frames


def names_for(chain: Sequence[ChainStage], tokens: Sequence[int], tenant: str) -> tuple[str, ...]:
    """What the tokens' blocks are called, if a stage of the chain wants to know."""
    return prefix_hashes(tokens, tenant) if any(stage.has_prefix_cache for stage in chain) else ()


def first_row(num_log: int, num_kept: Sequence[int], num_cached: Mapping[int, int]) -> int:
    """The row of the log that the head begins with. Before a stage that keeps rows, all have to compute what one of
    them has not cached, and it takes no row that it has; the log's last row is computed in any case.

    The stages behind that one get their rows from it. `num_cached`: by stage, what each has said; nothing of a
    head that was not asked."""
    leading = list(takewhile(lambda stage: not num_kept[stage], range(len(num_kept))))
    if not leading:
        return num_kept[0]
    following = num_kept[len(leading) : len(leading) + 1]
    most = min(num_log - 1, *following, *(num_cached.get(stage, 0) for stage in leading))
    return most // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
