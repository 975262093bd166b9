"""From a chat request to an order in tokens, and from sampled tokens back to text."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import structs

from coordinator.answers import Item, KeptAnswer
from coordinator.api.asker import Asker
from coordinator.api.errors import InvalidRequest, UnknownModel
from coordinator.api.resuming import ID_BYTES, Format, format_of, not_found, other_request
from coordinator.api.schemas import SAMPLING_FIELDS, ChatRequest
from coordinator.api.stop_strings import StopStrings
from coordinator.hub import Hub
from coordinator.models.errors import ModelError
from coordinator.models.tokenizer import ChatTokenizer
from coordinator.sessions import Deliver, Order, Queued, Rerouted
from coordinator.token_log import Claim
from protocol.env import Env
from protocol.values import FinishReason, Sampling, SessionId, StepTiming, TokenLogprobs

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
    vocab_size: int
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
    the last one. `num_tokens`: so many of the answer's tokens are in this piece and those before it."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    queue: Queued | None = None
    nodes: tuple[StageName, ...] | None = None
    finish_reason: FinishReason | None = None
    num_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of each of these tokens, if they are wanted."""


@dataclass(slots=True)
class Totals:
    """What an answer cost, for `usage` and for benchmarks."""

    num_prompt_tokens: int
    num_cached_tokens: int = 0
    num_tokens: int = 0
    compute_us: int = 0
    codec_us: int = 0

    def add_timing(self, timing: StepTiming) -> None:
        self.compute_us += timing.compute_us
        self.codec_us += timing.codec_us


@dataclass(slots=True)
class Answer:
    """A running answer: iterate `chunks()`. `totals` grows while it runs.

    `kept`: it began earlier, and whoever reads it now has its first `num_seen` tokens already."""

    hub: Hub
    model: ServedModel
    order: Order
    claim: Claim
    format: Format
    kept: KeptAnswer | None = None
    num_seen: int = 0
    stops: StopStrings = field(init=False)
    totals: Totals = field(init=False)
    text: TextStream = field(init=False)

    def __post_init__(self) -> None:
        self.text = self.model.tokenizer.decoder()
        self.stops = StopStrings(self.format.stop_strings)
        self.totals = Totals(len(self.order.prompt))

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """Pieces as they come. Raises RequestRefused or GenerationFailed; stopping early ends the generation, unless
        the client may come back."""
        async with aclosing(self._items()) as items:
            async for item in items:
                match item:
                    case Queued():
                        yield Chunk(queue=item, num_tokens=self.num_seen)
                    case Rerouted():
                        yield Chunk(nodes=self._names(item), num_tokens=max(self.num_seen, self.totals.num_tokens))
                    case Deliver():
                        chunk = self._chunk(item)
                        if chunk.tokens or chunk.finish_reason:
                            yield chunk
                if self.stops.found:
                    self.hub.complete(self.order, FinishReason.STOP)
                    return

    def _items(self) -> AsyncGenerator[Item, None]:
        """Of this answer, or of the one that was asked for under the same name before."""
        kept = self.kept or self.hub.answers.repeated(self.order.tenant, self.claim.retry_key)
        if kept is None:
            return self.hub.generate(self.order, self.claim)
        if self.kept is None and format_of(kept).request_digest != self.format.request_digest:
            raise other_request()
        self.order, self.claim, self.format = kept.order, kept.claim, format_of(kept)
        return self.hub.read(kept)

    def _chunk(self, item: Deliver) -> Chunk:
        """One token after the other: what is shown after n tokens must not depend on how they came together."""
        text, tokens, num_read, finish = "", list[int](), 0, item.finish_reason
        self.totals.add_timing(item.timing)
        self.totals.num_cached_tokens += item.num_cached_tokens
        for token in item.tokens:
            piece = self.stops.push(self.text.push([token]))
            self.totals.num_tokens += 1
            num_read += 1
            if self.totals.num_tokens > self.num_seen:
                text += piece
                tokens.append(token)
            if self.stops.found:
                finish = FinishReason.STOP
                break
        if finish is not None and not self.stops.found and self.totals.num_tokens > self.num_seen:
            text += self.stops.push(self.text.finish()) + self.stops.finish()
        logprobs = item.logprobs[num_read - len(tokens) : num_read]
        num_tokens = self.totals.num_tokens
        return Chunk(text, tuple(tokens), finish_reason=finish, num_tokens=num_tokens, logprobs=logprobs)

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

    async def start(self, request: ChatRequest, asker: Asker = Asker(), retry_key: str = "") -> Answer:
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
            sampling=self._sampling(model, request, len(prompt)),
            stop_tokens=model.stop_tokens,
            tenant=asker.tenant,
            deadline_s=asker.deadline_s,
        )
        form = self._format(model, request)
        return Answer(self.hub, model, order, self._claim(request, form, retry_key), form)

    def resume(self, answer: KeptAnswer, num_seen: int) -> Answer:
        """Go on writing an answer for a client that has so many of its tokens. Raises ApiError."""
        form = format_of(answer)
        model = self.models.get(form.model)
        if model is None or model.manifest_hash != answer.order.manifest_hash:
            raise not_found()
        return Answer(self.hub, model, answer.order, answer.claim, form, answer, num_seen)

    def _format(self, model: ServedModel, request: ChatRequest) -> Format:
        options = request.stream_options
        return Format(
            created_s=int(self._env.clock.wall()),
            model=model.name,
            stop_strings=request.stop_strings,
            with_token_ids=bool(request.return_token_ids),
            include_usage=bool(options and options.include_usage),
            request_digest=hashlib.sha256(request.model_dump_json().encode()).digest(),
        )

    def _claim(self, request: ChatRequest, form: Format, retry_key: str) -> Claim:
        """Who names the request, or says so, can come back for the answer."""
        can_come_back = bool(request.stream and request.stream_options and request.stream_options.resumable)
        answer_id = f"chatcmpl-{self._env.random.token_hex(ID_BYTES)}"
        return Claim(answer_id, bool(retry_key) or can_come_back, retry_key, form.pack())

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

    def _sampling(self, model: ServedModel, request: ChatRequest, num_prompt: int) -> Sampling:
        """What is asked for; else what the model's makers recommend. Whoever asks for the likeliest token has asked for
        no penalty."""
        biases = request.biases
        if any(token >= model.vocab_size for token in biases):
            last = model.vocab_size - 1
            sentence = f"logit_bias names a token that {model.name} does not have; the last one is {last}."
            raise InvalidRequest("invalid_value", sentence, "logit_bias")
        asked = request.model_dump(include={*SAMPLING_FIELDS}, exclude_none=True)
        base = model.default_sampling
        sampling = structs.replace(
            base if request.temperature != 0 else Sampling(top_p=base.top_p, top_k=base.top_k),
            **asked,
            logit_bias=tuple(sorted(biases.items())),
            num_logprobs=(request.top_logprobs or 0) if request.logprobs else None,
            answer_from=num_prompt if request.counts_answer else 0,
        )
        seed = request.seed if request.seed is not None else self._env.random.below(2**63)
        return structs.replace(sampling, temperature=_usable(sampling.temperature), seed=seed)


def _usable(temperature: float) -> float:
    """A temperature as small as makes no difference is greedy."""
    return temperature if temperature >= MIN_TEMPERATURE else 0.0
