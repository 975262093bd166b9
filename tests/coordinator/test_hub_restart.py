"""A coordinator that is killed and started again: no answer is lost, no token is repeated or changed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coordinator.answer_times import AnswerTimes
from coordinator.errors import RequestRefused
from coordinator.sessions import Order
from coordinator.token_log import Claim
from tests.fakes import pool_facts as facts
from tests.fakes.fake_node import FakeNode, answer_to
from tests.fakes.hub_driver import order
from tests.fakes.restarting_pool import Follower, RestartingPool, restarting_pool
from tests.fakes.virtual_loop import on_virtual_time, run_virtual

NUM_TOKENS = 24
WHOLE = answer_to((5, 6, 7), NUM_TOKENS)


def asked(number: int = 1, num_tokens: int = NUM_TOKENS) -> Order:
    return order(number, num_tokens=num_tokens)


def halves() -> tuple[FakeNode, FakeNode]:
    """Two nodes that hold the model together."""
    return FakeNode(1, facts.spec(4)), FakeNode(2, facts.spec(4))


async def until(condition: object) -> None:
    async with asyncio.timeout(600):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.001)


async def restart(pool: RestartingPool, *followers: Follower, pause_s: float = 1.0) -> None:
    await pool.kill()
    for follower in followers:
        await follower.leave()
    await asyncio.sleep(pause_s)
    await pool.start()


@pytest.mark.parametrize("num_seen", range(1, NUM_TOKENS))
@on_virtual_time
async def test_an_answer_goes_on_behind_any_of_its_tokens(num_seen: int, tmp_path: Path) -> None:
    async with restarting_pool(tmp_path, *halves()) as pool:
        reader = Follower(pool, asked())
        reader.ask()
        await until(lambda: len(reader.tokens) >= num_seen)
        await restart(pool, reader)
        assert reader.come_back()
        assert await reader.done() == WHOLE
        assert reader.is_complete


@pytest.mark.parametrize("seed", range(40))
def test_an_answer_survives_restarts_at_any_moment(seed: int, tmp_path: Path) -> None:
    """While the request is written, while nothing has come, between writing and showing, again and again."""

    async def main() -> None:
        async with restarting_pool(tmp_path, *halves(), seed=seed) as pool:
            reader = Follower(pool, asked())
            reader.ask()
            for _ in range(1 + seed % 3):
                await asyncio.sleep(pool.env.random.uniform(0.0, 4.0))
                await restart(pool, reader, pause_s=pool.env.random.uniform(0.0, 5.0))
                if not reader.come_back():
                    assert not reader.tokens, "only what nobody has seen anything of may be forgotten"
                    reader.ask()
            assert await reader.done() == WHOLE

    run_virtual(main())


@on_virtual_time
async def test_many_answers_survive_each_with_its_own_text(tmp_path: Path) -> None:
    async with restarting_pool(tmp_path, *halves()) as pool:
        readers = [Follower(pool, order(number, (number, 7), 20)) for number in range(1, 31)]
        for reader in readers:
            reader.ask()
        await until(lambda: all(len(reader.tokens) >= 3 for reader in readers))
        await restart(pool, *readers)
        assert all(reader.come_back() for reader in readers)
        for number, reader in enumerate(readers, start=1):
            assert await reader.done() == answer_to((number, 7), 20)


@on_virtual_time
async def test_who_waited_in_the_queue_is_served_in_the_old_order(tmp_path: Path) -> None:
    fakes = [FakeNode(1, facts.spec(4), num_kv_tokens=32), FakeNode(2, facts.spec(4), num_kv_tokens=32)]
    async with restarting_pool(tmp_path, *fakes) as pool:
        readers = [Follower(pool, asked(number)) for number in range(1, 6)]
        for reader in readers:
            reader.ask()
            await asyncio.sleep(0.1)
        await until(lambda: readers[0].tokens)
        assert not any(reader.tokens for reader in readers[1:])
        await restart(pool, *readers)
        assert all(reader.come_back() for reader in readers)
        ended: list[int] = []
        while len(ended) < 5:
            await asyncio.sleep(0.05)
            ended += [n for n, reader in enumerate(readers) if reader.is_complete and n not in ended]
        assert ended == [0, 1, 2, 3, 4]
        assert [await reader.done() for reader in readers] == [WHOLE] * 5


@on_virtual_time
async def test_an_answer_runs_on_while_its_reader_is_away_and_is_read_afterwards(tmp_path: Path) -> None:
    async with restarting_pool(tmp_path, *halves()) as pool:
        reader = Follower(pool, asked())
        reader.ask()
        await until(lambda: len(reader.tokens) >= 3)
        await restart(pool, reader)
        await asyncio.sleep(30)
        assert not pool.hub.core.sessions, "it is complete"
        assert len(reader.tokens) < NUM_TOKENS
        assert reader.come_back()
        assert await reader.done() == WHOLE


@on_virtual_time
async def test_an_answer_to_which_nobody_comes_back_is_cancelled_and_forgotten(tmp_path: Path) -> None:
    fakes = halves()
    async with restarting_pool(tmp_path, *fakes, times=AnswerTimes(unread_s=20.0)) as pool:
        reader = Follower(pool, asked(num_tokens=900))
        reader.ask()
        await until(lambda: len(reader.tokens) >= 3)
        await restart(pool, reader)
        await asyncio.sleep(15)
        assert pool.hub.core.sessions
        await asyncio.sleep(6)
        assert not pool.hub.core.sessions
        await asyncio.sleep(1)
        assert not any(fake.legs for fake in fakes)
        assert not reader.come_back()
        await restart(pool)
        assert not pool.hub.answers.answers


@on_virtual_time
async def test_a_complete_answer_is_read_again_until_its_time_is_over(tmp_path: Path) -> None:
    async with restarting_pool(tmp_path, *halves(), times=AnswerTimes(retention_s=100.0)) as pool:
        reader = Follower(pool, asked())
        reader.ask()
        await reader.done()
        await asyncio.sleep(40)
        await restart(pool, pause_s=20)
        assert reader.come_back()
        assert await reader.done() == WHOLE
        again = Follower(pool, asked())
        assert again.come_back()
        assert await again.done() == WHOLE
        await asyncio.sleep(101)
        assert not again.come_back()
        await restart(pool)
        assert not pool.hub.answers.answers


@on_virtual_time
async def test_what_nobody_can_come_back_for_is_on_no_disk_once_it_ends(tmp_path: Path) -> None:
    async with restarting_pool(tmp_path, *halves()) as pool:
        for number in (1, 2):
            async for _ in pool.hub.generate(Order(facts.session_id(number), facts.DIGEST, (5, 6, 7), 9, *rest())):
                if number == 2:
                    break
        await asyncio.sleep(1)
        await restart(pool)
        assert not pool.hub.answers.answers


def rest() -> tuple[object, ...]:
    one = order()
    return one.sampling, one.stop_tokens


@on_virtual_time
async def test_nobody_hears_twice_of_an_epoch_that_ended_with_a_coordinator(tmp_path: Path) -> None:
    """What a node still has of the session is fenced: new epochs are above all that were."""
    fakes = halves()
    async with restarting_pool(tmp_path, *fakes) as pool:
        reader = Follower(pool, asked())
        reader.ask()
        epochs: list[int] = []
        for num_seen in (3, 6, 9):
            await until(lambda n=num_seen: len(reader.tokens) >= n)
            epochs.append(next(leg.order.epoch for leg in fakes[0].legs.values()))
            await restart(pool, reader)
            reader.come_back()
        assert epochs == sorted(set(epochs))
        assert await reader.done() == WHOLE


@on_virtual_time
async def test_an_answer_of_a_model_that_is_served_no_more_says_so(tmp_path: Path) -> None:
    async with restarting_pool(tmp_path, *halves()) as pool:
        lost = Order(facts.session_id(9), "3d" * 32, (5, 6), 9, *rest())  # type: ignore[arg-type]
        with pytest.raises(RequestRefused):
            async for _ in pool.hub.generate(lost, Claim("x", is_resumable=True)):
                pass
        reader = Follower(pool, asked())
        reader.ask()
        await until(lambda: len(reader.tokens) >= 3)
        await restart(pool, reader)
        pool.hub.remove_model(facts.DIGEST)
        assert reader.come_back()
        with pytest.raises(Exception, match="unloaded"):
            await reader.done()
        pool.hub.add_model(facts.model())


# ---------------------------------------------------------------- nodes keep their layers


@pytest.mark.parametrize("pause_s", [0.5, 5.0, 25.0])
@on_virtual_time
async def test_no_node_loads_or_measures_again_for_a_restart(pause_s: float, tmp_path: Path) -> None:
    """Each could hold more than it does: a plan made with the first that comes back would move layers."""
    fakes = [FakeNode(number, facts.spec(4)) for number in range(1, 7)]
    async with restarting_pool(tmp_path, *fakes) as pool:
        await asyncio.sleep(30)
        loads, measured = [fake.num_loads for fake in fakes], [fake.num_measured for fake in fakes]
        layers = [fake.held[facts.CPU].layers for fake in fakes]
        for fake in fakes:
            fake.hello = facts.hello(facts.number_of(fake.node_id), facts.spec(8))
        reader = Follower(pool, asked(num_tokens=60))
        reader.ask()
        await until(lambda: len(reader.tokens) >= 3)
        for _ in range(2):
            await restart(pool, reader, pause_s=pause_s)
            reader.come_back()
            await pool.until_ready()
        assert await reader.done() == answer_to((5, 6, 7), 60)
        assert [fake.num_loads for fake in fakes] == loads
        assert [fake.num_measured for fake in fakes] == measured
        assert [fake.held[facts.CPU].layers for fake in fakes] == layers


@on_virtual_time
async def test_a_node_that_does_not_come_back_is_replaced(tmp_path: Path) -> None:
    fakes = [FakeNode(1, facts.spec(4)), FakeNode(2, facts.spec(4)), FakeNode(3, facts.spec(4))]
    async with restarting_pool(tmp_path, *fakes) as pool:
        await asyncio.sleep(5)
        reader = Follower(pool, asked())
        reader.ask()
        await until(lambda: len(reader.tokens) >= 3)
        await pool.kill()
        await reader.leave()
        pool.stop_node(1)
        await pool.start()
        assert reader.come_back()
        assert await reader.done() == WHOLE
