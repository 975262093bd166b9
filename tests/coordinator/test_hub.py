"""The asyncio shell around the core, on virtual time: connections, streams, losses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Sequence
from contextlib import aclosing

import msgspec
import pytest

from coordinator import hub as hub_module
from coordinator.core import LEASE_S, PoolCore
from coordinator.doorstep import MAX_IN_VAIN, MAX_PER_ADDRESS
from coordinator.effects import Effect, ToNode
from coordinator.errors import GenerationFailed, PoolError, RequestRefused
from coordinator.gate import GateFailed, OpenGate
from coordinator.handshake import HELLO_TIMEOUT_S, TRY_AGAIN_LATER
from coordinator.hub import SEEN_S, Item, in_one_line
from coordinator.scheduler.state import DeviceState
from coordinator.sessions import Deliver, Order, Queued, Rerouted
from coordinator.token_log import MemoryTokenLog
from protocol import messages as m
from protocol.env import Connection, ConnectionClosed
from protocol.errors import CloseCode
from protocol.frames import Frame, FrameKind, Phase, Segment, WireDtype, encode_frame
from protocol.messages import encode_message
from protocol.values import FinishReason, NodeId, SessionId
from shell.lanes import STUCK_S
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


# ---------------------------------------------------------------- nodes


@on_virtual_time
async def test_a_node_that_connects_again_replaces_its_old_connection() -> None:
    async with running_hub() as pool:
        first, _ = await pool.welcomed(facts.hello(1))
        second, _ = await pool.welcomed(facts.hello(1))
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
        connections = [await pool.greeted(facts.hello(1)) for _ in range(5)]
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


async def arrive(pool: HubDriver, address: str, port: int) -> Connection:
    """A connection that the hub believes to come from that address."""
    env = pool.world.env("door")

    async def serve(connection: Connection) -> None:
        await pool.hub.serve_node(connection, f"door:{port}", address)

    await env.network.listen("door", port, serve, 2**20)
    return await pool.world.env("node").network.connect(f"ws://door:{port}/node", 2**20)


@on_virtual_time
async def test_an_address_cannot_fill_the_doorstep_and_its_room_comes_back() -> None:
    async with running_hub() as pool:
        silent = [await arrive(pool, "10.9.9.9", port) for port in range(1, MAX_PER_ADDRESS + 1)]
        for connection in silent:
            assert isinstance(await hear(connection), m.Challenge)
        with pytest.raises(ConnectionClosed) as closed:
            await (await arrive(pool, "10.9.9.9", 100)).recv()
        assert closed.value.code == TRY_AGAIN_LATER
        assert isinstance(await hear(await arrive(pool, "10.8.8.8", 101)), m.Challenge)
        await asyncio.sleep(HELLO_TIMEOUT_S + 1)
        assert pool.hub.takes_visitor("10.9.9.9")


@on_virtual_time
async def test_a_node_that_is_in_takes_no_room_on_the_doorstep() -> None:
    async with running_hub() as pool:
        for number in range(1, MAX_PER_ADDRESS + 3):
            connection = await arrive(pool, "10.9.9.9", number)
            challenge = await hear(connection)
            assert isinstance(challenge, m.Challenge)
            hello = facts.signed(facts.hello(number), challenge.nonce, f"door:{number}")
            await connection.send(encode_message(hello))
            assert isinstance(await hear(connection), m.Welcome)


@on_virtual_time
async def test_who_is_refused_again_and_again_is_not_heard_for_a_while() -> None:
    async with running_hub(gate=Doorkeeper(PoolError("node_blocked", "No."))) as pool:
        for number in range(1, MAX_IN_VAIN + 1):
            connection = await arrive(pool, "10.9.9.9", number)
            assert isinstance(await hear(connection), m.Challenge)
            await connection.send("nonsense")
            await refusal(connection)
        assert not pool.hub.takes_visitor("10.9.9.9")
        assert pool.hub.takes_visitor("10.8.8.8")
        await asyncio.sleep(3)
        assert pool.hub.takes_visitor("10.9.9.9")


@on_virtual_time
async def test_a_node_cannot_write_lines_of_its_own_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with running_hub() as pool:
        connection, _ = await pool.welcomed(msgspec.structs.replace(facts.hello(1), name="a\u009b31m\u2028b"))
        await connection.close(4999, "x\nERROR root: forged \x1b[31m")
        await pool.until(lambda: not pool.hub.core.nodes)
    lines = [record.getMessage() for record in caplog.records]
    assert any("forged" in line for line in lines)
    assert any("a?31m?b" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_one_line_keeps_what_people_can_read() -> None:
    assert in_one_line("Jürgens Büro 北京 (3)\n\t\u202e") == "Jürgens Büro 北京 (3)???"


@pytest.mark.expected_logs("message refused")
@pytest.mark.parametrize(
    "nonsense", ["nonsense", encode_message(facts.hello(1)), encode_message(m.Welcome(1, "x", 1, "a-token-"))]
)
@on_virtual_time
async def test_a_node_that_talks_nonsense_is_refused_and_the_others_go_on(nonsense: str) -> None:
    async with running_hub(node(1), node(2)) as pool:
        connection, _ = await pool.welcomed(facts.hello(3, facts.spec(1)))
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
async def test_a_node_that_does_not_read_is_dropped_when_too_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not fill the coordinator's memory, and nobody else notices."""
    monkeypatch.setattr(hub_module, "MAX_CONTROL_BYTES", 10_000)
    async with running_hub(node(1)) as pool:
        await pool.greeted(facts.hello(2, facts.spec(1)), "deaf")
        await pool.until(lambda: facts.node_id(2) in pool.hub.core.nodes)
        flood: list[Effect] = [ToNode(facts.node_id(2), m.ReleaseSlice(facts.CPU, 1))] * 500
        pool.hub._apply(flood)
        assert facts.node_id(2) not in pool.hub.core.nodes
        assert await answer(pool, order()) == answer_to((5, 6, 7), 8)


class OverflowCore(PoolCore):
    """Records when a node was lost, and answers with an effect that must come last."""

    def node_lost(self, node_id: object, now_s: float) -> list[Effect]:
        effects = super().node_lost(node_id, now_s)  # type: ignore[arg-type]
        return [*effects, ToNode(facts.node_id(1), m.CloseSession("1" * 32, 1))]


@on_virtual_time
async def test_what_follows_from_an_overflow_does_not_overtake_what_came_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "MAX_CONTROL_BYTES", 10_000)
    async with running_hub() as pool:
        pool.hub.core.__class__ = OverflowCore
        healthy, _ = await pool.welcomed(facts.hello(1, facts.spec(1)), "healthy")
        await pool.welcomed(facts.hello(2, facts.spec(1)), "deaf")
        flood: list[Effect] = [ToNode(facts.node_id(2), m.ReleaseSlice(facts.CPU, 1))] * 500
        pool.hub._apply([*flood, ToNode(facts.node_id(1), m.ReleaseSlice(facts.CPU, 7))])
        heard = [await hear(healthy) for _ in range(3)]
        assert [type(message) for message in heard] == [m.MeasureDevice, m.ReleaseSlice, m.CloseSession]
        pool.hub.core.__class__ = PoolCore


# ---------------------------------------------------------------- who may contribute


class Doorkeeper(OpenGate):
    """Refuses the names it is told, and notes whom the hub has seen."""

    def __init__(self, error: PoolError | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str, str, str | None]] = []
        self.seen: list[set[str]] = []
        self.fails_to_note = False

    async def admit(self, node_id: str, public_key: str, name: str, invite: str | None) -> None:
        self.asked.append((node_id, name, invite))
        await asyncio.sleep(0.1)
        if self.error is not None:
            raise self.error

    async def note_seen(self, node_ids: Collection[str]) -> None:
        if self.fails_to_note:
            raise OSError("disk full")
        self.seen.append(set(node_ids))


@on_virtual_time
async def test_whom_the_gate_refuses_is_told_its_code_and_sentence() -> None:
    door = Doorkeeper(PoolError("node_blocked", "This machine was removed by the pool's operator."))
    async with running_hub(gate=door) as pool:
        told, closed = await refusal(await pool.greeted(facts.hello(1)))
        assert (told.code, told.message) == ("node_blocked", "This machine was removed by the pool's operator.")
        assert (closed.code, closed.reason) == (CloseCode.NOT_ALLOWED, told.message)
        assert not pool.hub.core.nodes


@on_virtual_time
async def test_the_gate_sees_the_invitation_and_nobody_keeps_it() -> None:
    door = Doorkeeper()
    async with running_hub(gate=door) as pool:
        await pool.welcomed(msgspec.structs.replace(facts.hello(1), invite="an-invitation"))
        assert door.asked == [(facts.node_id(1), "node 1", "an-invitation")]
        assert pool.hub.core.nodes[facts.node_id(1)].hello.invite is None


@pytest.mark.expected_logs("could not be let in: store_full")
@on_virtual_time
async def test_a_gate_that_does_not_work_asks_the_node_to_try_again() -> None:
    async with running_hub(gate=Doorkeeper(GateFailed("store_full"))) as pool:
        connection = await pool.greeted(facts.hello(1))
        with pytest.raises(ConnectionClosed) as caught:
            await connection.recv()
        assert caught.value.code == 1013
        assert "operator" in caught.value.reason


@on_virtual_time
async def test_nobody_asks_the_gate_about_a_node_that_proved_nothing() -> None:
    door = Doorkeeper()
    async with running_hub(gate=door) as pool:
        connection, _ = await pool.challenged()
        await connection.send(encode_message(facts.hello(1)))
        await refusal(connection)
        assert door.asked == []


@on_virtual_time
async def test_the_gate_is_told_once_a_minute_who_is_here_and_at_once_who_left() -> None:
    door = Doorkeeper()
    async with running_hub(gate=door) as pool:
        await pool.join(node(1))
        leaver = await pool.join(node(2))
        await asyncio.sleep(SEEN_S + 1)
        assert door.seen == [{facts.node_id(1), facts.node_id(2)}]
        await say(leaver, m.Leaving("paused"))
        await asyncio.sleep(1)
        assert door.seen[1:] == [{facts.node_id(2)}]


@pytest.mark.expected_logs("nodes were seen")
@on_virtual_time
async def test_a_record_that_cannot_be_written_ends_no_answer() -> None:
    door = Doorkeeper()
    async with running_hub(node(1), gate=door) as pool:
        door.fails_to_note = True
        await asyncio.sleep(SEEN_S + 1)
        assert await answer(pool, order()) == answer_to((5, 6, 7), 8)


@on_virtual_time
async def test_a_weights_token_opens_while_its_connection_lasts() -> None:
    async with running_hub() as pool:
        first, welcome = await pool.welcomed(facts.hello(1))
        _, other = await pool.welcomed(facts.hello(2))
        assert welcome.weights_token != other.weights_token
        assert pool.hub.is_weights_token(welcome.weights_token)
        assert not pool.hub.is_weights_token("")
        assert not pool.hub.is_weights_token(welcome.weights_token.upper())
        await first.close()
        await pool.until(lambda: not pool.hub.is_weights_token(welcome.weights_token))
        assert pool.hub.is_weights_token(other.weights_token)


@on_virtual_time
async def test_a_node_that_connects_again_has_a_new_weights_token_only() -> None:
    async with running_hub() as pool:
        _, old = await pool.welcomed(facts.hello(1))
        _, new = await pool.welcomed(facts.hello(1))
        assert [pool.hub.is_weights_token(w.weights_token) for w in (old, new)] == [False, True]


# ---------------------------------------------------------------- what an operator does


@on_virtual_time
async def test_a_removed_node_is_told_and_its_answer_goes_on_elsewhere() -> None:
    async with running_hub(node(1), node(2)) as pool:
        tokens: list[int] = []
        async for item in pool.hub.generate(order(num_tokens=30)):
            if isinstance(item, Rerouted) and not tokens:
                first = item.chain[0].device.node_id
            if isinstance(item, Deliver):
                tokens += item.tokens
                if len(tokens) == 5:
                    pool.hub.remove_node(first, "The operator of this pool has removed this machine.")
        assert tokens == answer_to((5, 6, 7), 30)
        assert first not in pool.hub.core.nodes
        closed = [c.theirs.closed or c.ours.closed for c in pool.world.network.connections]
        assert [c.code for c in closed if c is not None] == [CloseCode.NOT_ALLOWED]


@on_virtual_time
async def test_a_node_that_is_removed_while_the_gate_decides_is_asked_about_again() -> None:
    door = Doorkeeper()
    async with running_hub(gate=door) as pool:
        connection = await pool.greeted(facts.hello(1))
        await pool.until(lambda: door.asked)
        door.error = None
        await asyncio.sleep(0.05)
        pool.hub.remove_node(facts.node_id(1), "removed")
        await pool.until(lambda: len(door.asked) == 2)
        door.error = PoolError("node_blocked", "Blocked.")
        told, _ = await refusal(connection)
        assert told.code == "node_blocked"
        assert not pool.hub.core.nodes


@on_virtual_time
async def test_removing_a_node_that_is_not_here_is_harmless() -> None:
    async with running_hub(node(1)) as pool:
        pool.hub.remove_node(facts.node_id(7), "removed")
        pool.hub.remove_node("nonsense", "removed")
        assert await answer(pool, order()) == answer_to((5, 6, 7), 8)


@on_virtual_time
async def test_a_drained_node_gets_no_new_answer_until_it_is_drained_no_more() -> None:
    fakes = [node(1), node(2)]
    async with running_hub(*fakes) as pool:
        await pool.until(lambda: len(pool.hub.core.scheduler.state.in_state(DeviceState.READY)) == 2)
        pool.hub.drain_node(facts.node_id(1), True)
        for number in range(1, 5):
            await answer(pool, order(number))
        assert fakes[0].num_tokens == 0
        pool.hub.drain_node(facts.node_id(1), False)
        pool.hub.drain_node(facts.node_id(2), True)
        await pool.until_ready()
        await answer(pool, order(5))
        assert fakes[0].num_tokens == 8


@on_virtual_time
async def test_a_removed_model_ends_its_answers_with_a_sentence() -> None:
    async with running_hub(node(1)) as pool:
        seen = 0
        with pytest.raises(GenerationFailed, match="unloaded") as caught:
            async for _ in pool.hub.generate(order(num_tokens=100)):
                seen += 1
                if seen == 4:
                    pool.hub.remove_model(facts.DIGEST)
        assert caught.value.code == "model_unloaded"
        with pytest.raises(RequestRefused) as refused:
            await answer(pool, order(2))
        assert refused.value.code == "model_unloaded"
        pool.hub.add_model(facts.model())
        await pool.until_ready()
        assert await answer(pool, order(3)) == answer_to((5, 6, 7), 8)


# ---------------------------------------------------------------- the queue


@on_virtual_time
async def test_who_has_to_wait_hears_the_place_before_the_chain() -> None:
    async with running_hub(node(1)) as pool:
        first = asyncio.create_task(answer(pool, order(1, num_tokens=6000)))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(answer(pool, order(2, num_tokens=6000)))
        await asyncio.sleep(0.1)
        kinds: list[Item] = []
        async with aclosing(pool.hub.generate(order(3, num_tokens=6000))) as items:
            async for item in items:
                kinds.append(item)
                if isinstance(item, Queued) and item.place == 2:
                    first.cancel()
                if isinstance(item, Queued) and item.place == 1:
                    second.cancel()
                if isinstance(item, Deliver):
                    break
        assert [type(item) for item in kinds] == [Queued, Queued, Rerouted, Deliver]
        assert [item.num_waiting for item in kinds if isinstance(item, Queued)] == [2, 1]
        await asyncio.gather(first, second, return_exceptions=True)


@on_virtual_time
async def test_who_leaves_the_queue_is_out_of_it_at_once() -> None:
    async with running_hub(node(1)) as pool:
        first = asyncio.create_task(answer(pool, order(1, num_tokens=6000)))
        await asyncio.sleep(0.1)
        async with aclosing(pool.hub.generate(order(2, num_tokens=6000))) as items:
            assert isinstance(await anext(items), Queued)
        assert not pool.hub.core.scheduler.state.waiting
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("sizes", [(8,), (4, 4), (3, 3, 3)])
@on_virtual_time
async def test_an_answer_comes_over_the_network_as_it_should(sizes: tuple[int, ...]) -> None:
    async with running_hub(*(node(n, size) for n, size in enumerate(sizes, start=1))) as pool:
        assert await answer(pool, order()) == answer_to((5, 6, 7), 8)


@on_virtual_time
async def test_the_first_item_names_the_chain_and_the_last_one_the_end() -> None:
    async with running_hub(node(1, 4), node(2, 4)) as pool:
        items = [item async for item in pool.hub.generate(order())]
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
            elif isinstance(item, Deliver):
                tokens += item.tokens
            if len(tokens) == 5 and chains == 1:
                getattr(pool.world.network, how)(f"node {facts.number_of(first)}")
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
        seen: list[Item] = []
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


@on_virtual_time
@pytest.mark.parametrize("max_layers", [8, 4])
async def test_an_answer_on_a_node_that_stops_goes_on_long_before_the_lease_ends(max_layers: int) -> None:
    """Deadlines lie between the ticks, and the hub wakes up for them."""
    nodes = [FakeNode(number, facts.spec(max_layers), layer_s=0.001) for number in range(1, 5)]
    async with running_hub(*nodes) as pool:
        tokens: list[int] = []
        stopped_s = went_on_s = 0.0
        async for item in pool.hub.generate(order(num_tokens=60)):
            if isinstance(item, Rerouted):
                chain = item.chain
            if not isinstance(item, Deliver):
                continue
            tokens += item.tokens
            if stopped_s and not went_on_s:
                went_on_s = asyncio.get_running_loop().time() - stopped_s
            if len(tokens) == 20:
                next(fake for fake in nodes if fake.node_id == chain[-1].device.node_id).silent = True
                stopped_s = asyncio.get_running_loop().time()
        assert tokens == answer_to((5, 6, 7), 60)
        assert 0.0 < went_on_s < 1.5 < LEASE_S


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
async def test_a_thousand_aborts_at_any_moment_leave_nothing_behind() -> None:
    """While they wait for a chain, while it opens, in the prompt, in the answer, and while they move."""
    log, rng = SlowLog(), random.Random(4)
    async with running_hub(token_log=log) as pool:
        nodes = [node(number, 4, num_kv_tokens=2_000) for number in range(1, 5)]
        for played in nodes:
            await pool.join(played)
        await pool.until_ready()
        await asyncio.sleep(10)
        num_moved = 0
        for batch in range(50):
            asking = [asyncio.ensure_future(answer(pool, order(1 + 20 * batch + n, num_tokens=300))) for n in range(20)]
            if batch % 10 == 9:
                await asyncio.sleep(0.05)
                num_moved += len(pool.hub.core.sessions)
                pool.world.network.cut(f"node {1 + batch // 10 % 4}")
                nodes[batch // 10 % 4].legs.clear()  # as an agent that has lost its pool does
                await pool.join(nodes[batch // 10 % 4])
            for task in asking:
                await asyncio.sleep(rng.expovariate(100))
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        await asyncio.sleep(2)
        core = pool.hub.core
        assert num_moved
        assert (core.sessions, pool.hub.answers.answers, log.tokens) == ({}, {}, {})
        assert (core.scheduler.state.waiting, core.scheduler.state.running) == ({}, {})
        assert all(device.num_reserved_tokens == 0 for device in core.scheduler.state.devices.values())
        assert all(link.outbox.is_empty for link in pool.hub._links.values())
        assert [played.legs for played in nodes if played.node_id in core.nodes] == [{}] * len(core.nodes)
        assert await answer(pool, order(5_000)) == answer_to((5, 6, 7), 8)


@on_virtual_time
async def test_a_model_added_later_is_served_too() -> None:
    other = facts.model(4, digest="3d" * 32)
    async with running_hub(node(1)) as pool:
        pool.hub.add_model(other)
        await pool.join(node(2, 4))
        await pool.until(lambda: pool.hub.core.scheduler.is_ready(other.manifest_hash))
        assert await answer(pool, order()) == answer_to((5, 6, 7), 8)


async def stops_reading(pool: HubDriver, connection: Connection, node_id: NodeId) -> None:
    """It goes on with its heartbeats; what is sent to it fills the pipe."""

    async def never() -> bytes:
        await asyncio.sleep(100_000)
        raise AssertionError("not read any more")

    connection.recv = never  # type: ignore[method-assign]
    pool.hub._apply([ToNode(node_id, m.ReleaseSlice(facts.CPU, 0))] * 100)


@on_virtual_time
async def test_a_node_that_takes_nothing_is_dropped_and_its_answers_go_on() -> None:
    """Its heartbeats still come: it is not the lease that ends it."""
    async with running_hub() as pool:
        nodes = {facts.node_id(number): node(number, 4) for number in range(1, 5)}
        connections = {node_id: await pool.join(played) for node_id, played in nodes.items()}
        await pool.until_ready()
        await asyncio.sleep(10)
        asked = order(num_tokens=200)
        asking = asyncio.ensure_future(answer(pool, asked))
        await pool.until(lambda: pool.hub.core.sessions and pool.hub.core.sessions[asked.session_id].tokens)
        tail = pool.hub.core.sessions[asked.session_id].chain[-1].device.node_id
        await stops_reading(pool, connections[tail], tail)
        await asyncio.sleep(STUCK_S / 2)
        assert tail in pool.hub.core.nodes
        assert await asking == answer_to((5, 6, 7), 200)
        await pool.until(lambda: tail not in pool.hub.core.nodes)


@on_virtual_time
async def test_rows_for_a_node_that_takes_none_move_their_answer_before_they_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_module, "MAX_RELAY_BYTES", 0)
    async with running_hub() as pool:
        nodes = {facts.node_id(number): node(number, 4) for number in range(1, 5)}
        connections = {node_id: await pool.join(played) for node_id, played in nodes.items()}
        await pool.until_ready()
        await asyncio.sleep(10)
        asked = order(num_tokens=200)
        asking = asyncio.ensure_future(answer(pool, asked))
        await pool.until(lambda: pool.hub.core.sessions and pool.hub.core.sessions[asked.session_id].tokens)
        tail = pool.hub.core.sessions[asked.session_id].chain[-1].device.node_id
        await stops_reading(pool, connections[tail], tail)
        while not asking.done():
            link = pool.hub._links.get(tail)
            assert link is None or len(link.outbox._bulk.items) <= 1
            pool.hub._apply([ToNode(tail, late_rows())])
            await asyncio.sleep(0.5)
        assert await asking == answer_to((5, 6, 7), 200)


def late_rows() -> bytes:
    segment = Segment(facts.session_id(99), 1, 0, 1, 0, 1, Phase.PREFILL)
    return encode_frame(Frame(FrameKind.HIDDEN, WireDtype.FLOAT32, 1, (segment,), bytes(4)))


@on_virtual_time
async def test_new_requests_are_refused_while_the_record_is_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MAX_NEWS", 2)

    class StuckLog(MemoryTokenLog):
        is_stuck = True

        async def commit(self, entries: Sequence[tuple[SessionId, int, tuple[int, ...]]]) -> None:
            while self.is_stuck:
                await asyncio.sleep(0.1)
            await super().commit(entries)

    log = StuckLog()
    async with running_hub(node(1), token_log=log) as pool:
        running = asyncio.ensure_future(answer(pool, order(1, num_tokens=20)))
        await pool.until(lambda: pool.hub._delivery.num_waiting > 2)
        with pytest.raises(RequestRefused) as refused:
            await answer(pool, order(2))
        assert refused.value.code == "overloaded"
        assert refused.value.retry_after_s
        log.is_stuck = False
        assert await running == answer_to((5, 6, 7), 20)
        assert await answer(pool, order(3)) == answer_to((5, 6, 7), 8)
