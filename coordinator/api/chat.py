"""From a chat request to an order in tokens, and from sampled tokens back to text."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from coordinator.api.asker import Asker
from coordinator.api.errors import InvalidRequest, UnknownModel
from coordinator.api.schemas import ChatRequest
from coordinator.api.stop_strings import StopStrings
from coordinator.hub import Hub
from coordinator.models.errors import ModelError
from coordinator.models.tokenizer import ChatTokenizer
from coordinator.sessions import Deliver, Order, Queued, Rerouted
from protocol.env import Env
from protocol.values import FinishReason, Sampling, SessionId, StepTiming

MIN_TEMPERATURE = 1e-4
"""Below it the likeliest token has all the weight anyway, and dividing logits by it would overflow."""
DEFAULT_MAX_TOKENS = 2048
"""Answer length when the request names none (and the context and the pool's KV room allow it)."""


class TextStream(Protocol):
    def push(self, tokens: list[int]) -> str: ...

    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as the API knows it."""

    name: str
    manifest_hash: str
    num_layers: int
    context_length: int
    tokenizer: ChatTokenizer
    stop_tokens: tuple[int, ...]
    default_sampling: Sampling
    created_s: int


@dataclass(frozen=True, slots=True)
class StageName:
    """Which node holds which layers, for people."""

    name: str
    layers: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. `queue` is set while the request waits, `nodes` when the chain changed, `finish_reason` on
    the last one."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    queue: Queued | None = None
    nodes: tuple[StageName, ...] | None = None
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class Totals:
    """What an answer cost, for `usage` and for benchmarks."""

    num_prompt_tokens: int
    num_tokens: int = 0
    compute_us: int = 0
    codec_us: int = 0

    def add(self, num_tokens: int, timing: StepTiming) -> None:
        self.num_tokens += num_tokens
        self.compute_us += timing.compute_us
        self.codec_us += timing.codec_us


@dataclass(slots=True)
class Answer:
    """A running answer: iterate `chunks()`. `totals` grows while it runs."""

    hub: Hub
    model: ServedModel
    order: Order
    stops: StopStrings
    totals: Totals
    with_token_ids: bool = False
    text: TextStream = field(init=False)

    def __post_init__(self) -> None:
        self.text = self.model.tokenizer.decoder()

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Pieces as they come. Raises RequestRefused or GenerationFailed; stopping early cancels the generation."""
        async with aclosing(self.hub.generate(self.order)) as items:
            async for item in items:
                match item:
                    case Queued():
                        yield Chunk(queue=item)
                    case Rerouted():
                        yield Chunk(nodes=self._names(item))
                    case Deliver():
                        yield self._chunk(item)
                if self.stops.found:
                    return

    def _chunk(self, item: Deliver) -> Chunk:
        self.totals.add(len(item.tokens), item.timing)
        text = self.stops.push(self.text.push(list(item.tokens)))
        if self.stops.found:
            return Chunk(text, item.tokens, finish_reason=FinishReason.STOP)
        if item.finish_reason is not None:
            text += self.stops.push(self.text.finish()) + self.stops.finish()
        return Chunk(text, item.tokens, finish_reason=item.finish_reason)

    def _names(self, item: Rerouted) -> tuple[StageName, ...]:
        nodes = self.hub.core.nodes
        names = [(nodes[s.device.node_id].hello.name if s.device.node_id in nodes else "?") for s in item.chain]
        return tuple(StageName(name, str(s.layers)) for name, s in zip(names, item.chain, strict=True))


class ChatService:
    """Starts answers."""

    def __init__(self, hub: Hub, env: Env, models: dict[str, ServedModel]) -> None:
        self.hub = hub
        self.models = models
        self._env = env

    async def start(self, request: ChatRequest, asker: Asker = Asker()) -> Answer:
        """Tokenise and order. Raises UnknownModel or InvalidRequest; nothing runs before `chunks()` is iterated."""
        model = self.models.get(request.model)
        if model is None:
            raise UnknownModel(request.model, sorted(self.models))
        prompt = await self._tokens(model, request)
        order = Order(
            session_id=SessionId(self._env.random.token_hex(16)),
            manifest_hash=model.manifest_hash,
            prompt=tuple(prompt),
            max_new_tokens=self._answer_room(model, request, len(prompt)),
            sampling=self._sampling(model, request),
            stop_tokens=model.stop_tokens,
            tenant=asker.tenant,
            deadline_s=asker.deadline_s,
        )
        return Answer(
            self.hub,
            model,
            order,
            StopStrings(request.stop_strings),
            Totals(len(prompt)),
            bool(request.return_token_ids),
        )

    async def _tokens(self, model: ServedModel, request: ChatRequest) -> list[int]:
        messages = [{"role": m.template_role, "content": m.text} for m in request.messages]
        try:
            prompt = await self._env.run_blocking(model.tokenizer.encode_chat, messages)
        except ModelError as error:
            raise InvalidRequest("invalid_value", str(error), "messages") from None
        if not prompt:
            raise InvalidRequest("empty_prompt", "The messages contain no token.", "messages")
        return prompt

    def _answer_room(self, model: ServedModel, request: ChatRequest, num_prompt: int) -> int:
        """Tokens the answer may have: what was asked for, cut to the context and to the KV room of the pool."""
        if num_prompt >= model.context_length:
            sentence = f"The prompt has {num_prompt} tokens; {model.name} reads at most {model.context_length - 1}."
            raise InvalidRequest("context_length_exceeded", sentence, "messages")
        room = model.context_length - num_prompt
        kv_room = self.hub.core.scheduler.largest_request(model.manifest_hash)
        if kv_room > num_prompt:
            room = min(room, kv_room - num_prompt)
        return min(room, request.wanted_tokens or DEFAULT_MAX_TOKENS)

    def _sampling(self, model: ServedModel, request: ChatRequest) -> Sampling:
        asked = {"temperature": request.temperature, "top_p": request.top_p, "top_k": request.top_k}
        given = {name: value for name, value in asked.items() if value is not None}
        seed = request.seed if request.seed is not None else self._env.random.below(2**63)
        base = model.default_sampling
        return Sampling(
            temperature=_usable(float(given.get("temperature", base.temperature))),
            top_p=float(given.get("top_p", base.top_p)),
            top_k=int(given.get("top_k", base.top_k)),
            seed=seed,
        )


def _usable(temperature: float) -> float:
    """A temperature as small as makes no difference is greedy."""
    return temperature if temperature >= MIN_TEMPERATURE else 0.0
