# SPDX-License-Identifier: Apache-2.0
"""Requests that come and go, waited for by threads and by event loops."""

import asyncio
import time

import pytest

import espalier
from own_policies import Fastv, Norms, Raising

LONG = dict(ignore_eos=True, max_new_tokens=200)


@pytest.fixture
def scheduler(engine):
    with espalier.Scheduler(engine) as scheduler:
        yield scheduler


def test_pieces_and_result(engine, scheduler, chat, picture):
    expected = engine.generate(chat, greedy=True)
    ticket = scheduler.submit(chat, greedy=True)
    assert "".join(ticket) == expected.text == ticket.result().text
    assert ticket.is_done and list(ticket) == []
    told = []
    scheduler.submit(chat, greedy=True, on_text=told.append).result()
    assert "".join(told) == expected.text


def test_waiting_has_an_end(scheduler, picture):
    ticket = scheduler.submit("what?", [picture], on_token=lambda *_: time.sleep(0.02), **LONG)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ticket.result(timeout=0.1)
    assert 0.08 < time.monotonic() - began < 3 and not ticket.is_done
    ticket.cancel()
    result = ticket.result()
    assert result.finish_reason == "cancelled" and len(result.token_ids) < 200


def test_samples(picture):
    options = {"do_sample": True, "temperature": 5.0, "max_new_tokens": 20, "ignore_eos": True}
    # So hot that the rounding of bf16, another in a batch than alone, would decide.
    with espalier.Engine(options=espalier.EngineOptions(dtype="f32")) as exact, espalier.Scheduler(exact) as scheduler:
        tickets = scheduler.submit_samples("what?", [picture], samples=3, seed=4, **options)
        answers = [ticket.result().token_ids for ticket in tickets]
        alone = [exact.generate("what?", [picture], seed=seed, **options).token_ids for seed in (4, 5, 6)]
    assert answers == alone and len(set(answers)) == 3


def test_limits(engine, picture):
    with espalier.Scheduler(engine, kv_bytes=1000) as scheduler, pytest.raises(espalier.Error, match="there are 1000"):
        scheduler.submit("what?", [picture])
    with espalier.Scheduler(engine, max_waiting=1) as scheduler:
        with pytest.raises(espalier.QueueFull, match="1 requests wait already"):
            for _ in range(50):
                scheduler.submit("what?", [picture], on_token=lambda *_: time.sleep(0.05), **LONG)
        assert scheduler.load().running + scheduler.load().waiting > 0
    with pytest.raises(espalier.Error, match="scheduler: it is closed"):
        scheduler.submit("what?")


def test_closing_cancels(engine, picture):
    scheduler = espalier.Scheduler(engine)
    ticket = scheduler.submit("what?", [picture], on_token=lambda *_: time.sleep(0.02), **LONG)
    scheduler.close()
    assert ticket.result(timeout=0).finish_reason == "cancelled"


# ---- event loops ----


def test_awaiting(engine, chat, picture):
    async def ask():
        with espalier.Scheduler(engine) as scheduler:
            first = scheduler.submit(chat, policy=Fastv(), greedy=True)
            others = [
                scheduler.submit(chat, policy=Norms(), greedy=True),
                scheduler.submit("what shape?", [picture], greedy=True),
            ]
            pieces = [piece async for piece in first]
            return "".join(pieces), await first, *await asyncio.gather(*others)

    for _ in range(2):  # in a loop each
        text, first, norms, alone = asyncio.run(ask())
        assert text == first.text == engine.generate(chat, policy="fastv:keep_ratio=1/4,layer=2", greedy=True).text
        assert norms.token_ids == engine.generate(chat, policy=Norms(), greedy=True).token_ids
        assert alone.token_ids == engine.generate("what shape?", [picture], greedy=True).token_ids


def test_the_loop_goes_on_meanwhile(scheduler, picture):
    async def ask():
        ticket = scheduler.submit(
            "what?", [picture], on_token=lambda *_: time.sleep(0.02), **LONG | {"max_new_tokens": 20}
        )
        turns = 0
        waiting = asyncio.ensure_future(ticket._wait())
        while not waiting.done():
            turns += 1
            await asyncio.sleep(0.01)
        return turns, await waiting

    turns, result = asyncio.run(ask())
    assert turns > 5 and len(result.token_ids) == 20


def test_what_is_raised_is_raised_where_it_is_awaited(scheduler, picture):
    raised = KeyError("mine")

    async def ask():
        await scheduler.submit("what?", [picture], policy=Raising("decide", raised))

    with pytest.raises(KeyError) as caught:
        asyncio.run(ask())
    assert caught.value is raised


def test_cancelling_the_task_cancels_the_request(scheduler, picture):
    async def ask():
        ticket = scheduler.submit("what?", [picture], on_token=lambda *_: time.sleep(0.02), **LONG)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ticket, 0.1)
        return ticket

    assert asyncio.run(ask()).result().finish_reason == "cancelled"


def test_a_loop_that_has_gone_does_no_harm(scheduler, picture):
    tickets = []

    async def ask():
        tickets.append(
            scheduler.submit("what?", [picture], on_token=lambda *_: time.sleep(0.005), **LONG | {"max_new_tokens": 30})
        )
        async for _ in tickets[0]:
            return

    asyncio.run(ask())
    assert len(tickets[0].result().token_ids) == 30
