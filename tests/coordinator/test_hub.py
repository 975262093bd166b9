"""The asyncio shell around the core, on virtual time: handshakes, streams, losses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from coordinator import hub as hub_module
from coordinator.core import LEASE_S, Effect, PoolCore, ToNode
from coordinator.errors import GenerationFailed, PoolError, RequestRefused
from coordinator.hub import HELLO_TIMEOUT_S, MAX_OUTBOX
from coordinator.sessions import Deliver, Order, Rerouted
from coordinator.token_log import MemoryTokenLog
from protocol import messages as m
from protocol.env import ConnectionClosed
from protocol.errors import CloseCode
from protocol.messages import encode_message
from protocol.values import FinishReason, SessionId
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.hub_driver import HubDriver, hear, order, refusal, running_hub, say
from tests.fakes.virtual_loop import on_virtual_time


def node(number: int, max_layers: int = 8, **options: object) -> FakeNode:
    return FakeNode(number, facts.spec(max_layers), **options)  # type: ignore[arg-type]


async def answer(pool: HubDriver, asked: Order) -> list[int]:
    """All tokens of an answer; its positions must follow each other."""
    tokens: list[int] = []
    async with aclosing(pool.hub.generate(asked)) as items:
        async for item in items:
            if isinstance(item, Deliver):
                assert item.position == len(asked.prompt) + len(tokens)
                tokens += item.tokens
    return tokens


def hello_with(**changes: object) -> str:
    fields = json.loads(encode_message(facts.hello(1))) | changes
    return json.dumps(fields, ensure_ascii=False)


# ---------------------------------------------------------------- handshake


@on_virtual_time
async def test_a_good_hello_is_welcomed() -> None:
    async with running_hub() as pool:
        connection = await pool.connect()
        await connection.send(encode_message(facts.hello(1)))
        assert await hear(connection) == m.Welcome(1, "test pool", 2.0)
        assert isinstance(await hear(connection), m.MeasureDevice)
        assert facts.node_id(1) in pool.hub.core.nodes


@pytest.mark.parametrize("hello", [hello_with(protocol_version=99), hello_with(protocol_version=2, new_field=[1])])
@on_virtual_time
async def test_a_wrong_protocol_version_is_told_which_are_spoken(hello: str) -> None:
    async with running_hub() as pool:
        connection = await pool.connect()
        await connection.send(hello)
        told, closed = await refusal(connection)
        assert told.code == "protocol_version"
        assert "speaks protocol version 1," in told.message
        assert closed.code == CloseCode.PROTOCOL_VERSION
        assert not pool.hub.core.nodes


BAD_HELLOS: dict[str, tuple[str | bytes, str]] = {
    "not JSON": ("hello?", "not_json"),
    "empty": ("", "not_json"),
    "deep": ("[" * 10_000, "Expected `object`"),
    "too long": (" " * 70_000 + hello_with(), "limit 65536"),
    "unknown field": (hello_with(surprise=1), "surprise"),
    "a field in another alphabet": (hello_with(**{"\n" + "字" * 300: 1}), "unknown field"),
    "missing field": (hello_with(node_id=None), "node_id"),
    "no devices": (hello_with(devices=[]), "devices"),
    "a device twice": (hello_with(devices=[json.loads(hello_with())["devices"][0]] * 2), "devices"),
    "markup in the name": (hello_with(name="<script>"), "name"),
    "as bytes": (encode_message(facts.hello(1)).encode(), "text"),
    "another message": (encode_message(m.Heartbeat(0, 0, 0)), "must be a hello"),
    "the coordinator's message": (encode_message(m.Welcome(1, "x", 1)), "type"),
}


@pytest.mark.parametrize("case", BAD_HELLOS)
@on_virtual_time
async def test_a_bad_hello_is_refused_with_a_sentence(case: str) -> None:
    sent, word = BAD_HELLOS[case]
    async with running_hub() as pool:
        connection = await pool.connect()
        await connection.send(sent)
        told, closed = await refusal(connection)
        assert told.code == "bad_message"
        assert word in told.message
        assert closed.code == CloseCode.BAD_MESSAGE
        assert closed.reason
        good = await pool.connect()
        await good.send(encode_message(facts.hello(1)))
        assert isinstance(await hear(good), m.Welcome)


@on_virtual_time
async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with running_hub() as pool:
        connection = await pool.connect()
        before = pool.world.env().clock.monotonic()
        with pytest.raises(ConnectionClosed) as caught:
            await connection.recv()
        assert caught.value.code == 1013
        assert pool.world.env().clock.monotonic() - before == pytest.approx(HELLO_TIMEOUT_S, abs=0.1)


@on_virtual_time
async def test_a_connection_that_goes_before_its_hello_is_forgotten() -> None:
    async with running_hub() as pool:
        connection = await pool.connect()
        await connection.close()
        await asyncio.sleep(HELLO_TIMEOUT_S)
        assert not pool.hub.core.nodes


# ---------------------------------------------------------------- nodes


@on_virtual_time
async def test_a_node_that_connects_again_replaces_its_old_connection() -> None:
    async with running_hub() as pool:
        first, second = await pool.connect(), await pool.connect()
        for connection in (first, second):
            await connection.send(encode_message(facts.hello(1)))
            assert isinstance(await hear(connection), m.Welcome)
        assert isinstance(await hear(first), m.MeasureDevice)
        with pytest.raises(ConnectionClosed) as caught:
            await hear(first)
        assert caught.value.code == CloseCode.REPLACED
        await say(second, m.DeviceMeasured(facts.CPU, facts.DIGEST, facts.benchmark()))
        await pool.until(lambda: pool.hub.core.scheduler.state.holders(facts.DIGEST))
        assert list(pool.hub.core.nodes) == [facts.node_id(1)]


@on_virtual_time
async def test_many_connections_of_one_node_at_once_leave_one() -> None:
    async with running_hub() as pool:
        connections = [await pool.connect() for _ in range(5)]
        for connection in connections:
            await connection.send(encode_message(facts.hello(1)))
        await asyncio.sleep(1)
        codes = []
        for connection in connections:
            try:
                async with asyncio.timeout(1):
                    while True:
                        await connection.recv()
            except ConnectionClosed as closed:
                codes.append(closed.code)
            except TimeoutError:
                codes.append(0)
        assert sorted(codes) == [0, *[CloseCode.REPLACED] * 4]
        assert list(pool.hub.core.nodes) == [facts.node_id(1)]


@pytest.mark.expected_logs("message refused")
@pytest.mark.parametrize("nonsense", ["nonsense", encode_message(facts.hello(1)), encode_message(m.Welcome(1, "x", 1))])
@on_virtual_time
async def test_a_node_that_talks_nonsense_is_refused_and_the_others_go_on(nonsense: str) -> None:
    async with running_hub(node(1), node(2)) as pool:
        connection = await pool.connect()
        await connection.send(encode_message(facts.hello(3, facts.spec(1))))
        assert isinstance(await hear(connection), m.Welcome)
        assert isinstance(await hear(connection), m.MeasureDevice)
        await connection.send(nonsense)
        _, closed = await refusal(connection)
        assert closed.code == CloseCode.BAD_MESSAGE
        assert await answer(pool, order()) == answer_to((5, 6, 7), 8)
        assert len(pool.hub.core.nodes) == 2


@on_virtual_time
async def test_a_node_that_leaves_is_gone_at_once() -> None:
    async with running_hub(node(1)) as pool:
        leaver = await pool.join(node(2, 1))
        await say(leaver, m.Leaving("paused"))
        await pool.until(lambda: len(pool.hub.core.nodes) == 1)
        with pytest.raises(ConnectionClosed):
            await leaver.recv()


@on_virtual_time
async def test_a_node_that_goes_silent_loses_its_lease() -> None:
    async with running_hub(node(1)) as pool:
        pool.world.network.hold("node 1")
        await asyncio.sleep(LEASE_S + 5)
        assert not pool.hub.core.nodes


@on_virtual_time
async def test_a_node_that_does_not_read_is_dropped_when_too_much_waits() -> None:
    """It must not fill the coordinator's memory, and nobody else notices."""
    async with running_hub(node(1)) as pool:
        deaf = await pool.connect("deaf")
        await deaf.send(encode_message(facts.hello(2, facts.spec(1))))
        await pool.until(lambda: facts.node_id(2) in pool.hub.core.nodes)
        flood: list[Effect] = [ToNode(facts.node_id(2), m.ReleaseSlice(facts.CPU, 1))] * (MAX_OUTBOX + 200)
        pool.hub._apply(flood)
        assert facts.node_id(2) not in pool.hub.core.nodes
        assert await answer(pool, order()) == answer_to((5, 6, 7), 8)


class OverflowCore(PoolCore):
    """Records when a node was lost, and answers with an effect that must come last."""

    def node_lost(self, node_id: object, now_s: float) -> list[Effect]:
        effects = super().node_lost(node_id, now_s)  # type: ignore[arg-type]
        return [*effects, ToNode(facts.node_id(1), m.CloseSession("1" * 32, 1))]


@on_virtual_time
async def test_what_follows_from_an_overflow_does_not_overtake_what_came_before() -> None:
    async with running_hub() as pool:
        pool.hub.core.__class__ = OverflowCore
        healthy, deaf = await pool.connect("healthy"), await pool.connect("deaf")
        for number, connection in ((1, healthy), (2, deaf)):
            await connection.send(encode_message(facts.hello(number, facts.spec(1))))
            assert isinstance(await hear(connection), m.Welcome)
        flood: list[Effect] = [ToNode(facts.node_id(2), b"x")] * (MAX_OUTBOX + 100)
        pool.hub._apply([*flood, ToNode(facts.node_id(1), m.ReleaseSlice(facts.CPU, 7))])
        heard = [await hear(healthy) for _ in range(3)]
        assert [type(message) for message in heard] == [m.MeasureDevice, m.ReleaseSlice, m.CloseSession]
        pool.hub.core.__class__ = PoolCore


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (3, 3, 3)])
@on_virtual_time
async def test_an_answer_comes_over_the_network_as_it_should(sizes: tuple[int, ...]) -> None:
    async with running_hub(*(node(n, size) for n, size in enumerate(sizes, start=1))) as pool:
        assert await answer(pool, order()) == answer_to((5, 6, 7), 8)


@on_virtual_time
async def test_the_first_item_names_the_chain_and_the_last_one_the_end() -> None:
    async with running_hub(node(1, 4), node(2, 4)) as pool:
        items: list[Deliver | Rerouted] = [item async for item in pool.hub.generate(order())]
        assert isinstance(items[0], Rerouted)
        assert [stage.layers.start for stage in items[0].chain] == [0, 4]
        assert isinstance(items[-1], Deliver)
        assert items[-1].finish_reason is FinishReason.LENGTH
        assert not pool.hub.core.sessions


@on_virtual_time
async def test_many_answers_run_at_once() -> None:
    async with running_hub(node(1, 4), node(2, 4)) as pool:
        prompts = {number: (number, 7) for number in range(1, 13)}
        answers = await asyncio.gather(*(answer(pool, order(n, prompt)) for n, prompt in prompts.items()))
        assert answers == [answer_to(prompt, 8) for prompt in prompts.values()]


@pytest.mark.parametrize("how", ["cut", "hold"])
@pytest.mark.parametrize("seed", range(4))
@on_virtual_time
async def test_a_node_that_dies_or_hangs_in_mid_answer_changes_no_token(how: str, seed: int) -> None:
    async with running_hub(*(node(n, 4) for n in range(1, 5)), seed=seed) as pool:
        tokens: list[int] = []
        chains = 0
        async for item in pool.hub.generate(order(num_tokens=30)):
            if isinstance(item, Rerouted):
                chains += 1
                first = item.chain[seed % 2].device.node_id
            else:
                tokens += item.tokens
            if len(tokens) == 5 and chains == 1:
                getattr(pool.world.network, how)(f"node {int(first, 16)}")
        assert tokens == answer_to((5, 6, 7), 30)
        assert chains == 2


@on_virtual_time
async def test_a_model_without_nodes_refuses() -> None:
    async with running_hub() as pool:
        with pytest.raises(RequestRefused, match="No node is connected") as caught:
            await answer(pool, order())
        assert caught.value.retry_after_s == 5.0
        assert not pool.hub.core.sessions


@on_virtual_time
async def test_an_answer_that_had_begun_fails_as_such() -> None:
    async with running_hub(node(1)) as pool:
        seen: list[Deliver | Rerouted] = []
        with pytest.raises(GenerationFailed) as caught:
            async for item in pool.hub.generate(order(num_tokens=30)):
                seen.append(item)
                if len(seen) == 4:
                    pool.world.network.cut("node 1")
        assert caught.value.code == "no_capacity"
        assert isinstance(caught.value, PoolError)
        assert len(seen) >= 4


@pytest.mark.parametrize("after", [1, 2, 5])
@on_virtual_time
async def test_a_consumer_that_leaves_cancels_the_generation_on_the_nodes(after: int) -> None:
    fakes = [node(1, 4), node(2, 4)]
    async with running_hub(*fakes) as pool:
        async with aclosing(pool.hub.generate(order(num_tokens=500))) as items:
            for _ in range(after):
                await anext(items)
        assert not pool.hub.core.sessions
        await pool.until(lambda: not any(fake.legs for fake in fakes))
        await asyncio.sleep(1)
        assert pool.token_log.tokens == {}  # type: ignore[attr-defined]


@on_virtual_time
async def test_a_consumer_that_is_cancelled_while_it_waits_cancels_too() -> None:
    fakes = [node(1, 4), node(2, 4)]
    async with running_hub(*fakes) as pool:
        reading = asyncio.create_task(answer(pool, order(num_tokens=500)))
        await pool.until(lambda: any(fake.legs for fake in fakes))
        await asyncio.sleep(0.5)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not pool.hub.core.sessions
        await pool.until(lambda: not any(fake.legs for fake in fakes))


class SlowLog(MemoryTokenLog):
    """A durable log takes its time. Notes what was committed when."""

    def __init__(self) -> None:
        super().__init__()
        self.num_committed = 0

    async def commit(self, entries: Sequence[tuple[SessionId, int, tuple[int, ...]]]) -> None:
        await asyncio.sleep(0.05)
        await super().commit(entries)
        self.num_committed += sum(len(tokens) for _, _, tokens in entries)


@on_virtual_time
async def test_a_token_is_in_the_log_before_anybody_sees_it() -> None:
    log = SlowLog()
    async with running_hub(node(1), token_log=log) as pool:
        seen = 0
        async for item in pool.hub.generate(order()):
            if isinstance(item, Deliver):
                seen += len(item.tokens)
                assert log.num_committed >= seen
        assert seen == 8


@on_virtual_time
async def test_the_log_keeps_nothing_of_a_request_that_ended_while_tokens_were_committed() -> None:
    """What is under way to the log when its reader leaves must not stay there for ever."""
    log = SlowLog()
    async with running_hub(node(1), token_log=log) as pool:
        for number in range(1, 6):
            async with aclosing(pool.hub.generate(order(number, num_tokens=500))) as items:
                for _ in range(number):
                    await anext(items)
                await asyncio.sleep(0.03)
        await asyncio.sleep(2)
        assert log.tokens == {}


@on_virtual_time
async def test_a_model_added_later_is_served_too() -> None:
    other = facts.model(4, digest="3d" * 32)
    async with running_hub(node(1)) as pool:
        pool.hub.add_model(other)
        await pool.join(node(2, 4))
        await pool.until(lambda: pool.hub.core.scheduler.is_ready(other.manifest_hash))
        assert await answer(pool, order()) == answer_to((5, 6, 7), 8)


def test_the_outbox_is_bounded() -> None:
    assert 0 < hub_module.MAX_OUTBOX <= 10_000
