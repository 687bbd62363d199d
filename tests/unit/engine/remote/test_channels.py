"""Answers by the connection between a replica and a front: real sockets, and lists of frames in place of Ray."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from amalgam.engine.remote import channel_client
from amalgam.engine.remote.answer_channel import (
    END,
    MOST_BYTES,
    SECRET_BYTES,
    hello,
    numbered,
    read_numbered,
)
from amalgam.engine.remote.channel_client import Answer, Channels
from amalgam.engine.remote.channel_server import Channel, ChannelServer
from amalgam.engine.remote.messages import TAKEN, ChannelAddress
from amalgam.engine.remote.replica import own_host
from amalgam.errors.remote import ChannelLost

HOST = "127.0.0.1"


class ByRay:
    """What Ray brings: frames, exceptions, and after the last one nothing until it is told that the call is over."""

    def __init__(self, steps: Sequence[bytes | BaseException], *, is_over: bool = False) -> None:
        self._steps = iter(steps)
        self.over = asyncio.Event()
        self.cancelled = 0
        if is_over:
            self.over.set()

    def __aiter__(self) -> "ByRay":
        return self

    async def __anext__(self) -> bytes:
        step = next(self._steps, None)
        if step is None:
            await self.over.wait()
            raise StopAsyncIteration
        if isinstance(step, BaseException):
            raise step
        return step

    def cancel(self) -> None:
        self.cancelled += 1


class Died(Exception):
    """As Ray says that a replica died."""


async def channel(server: ChannelServer, front: str = "f") -> Channel:
    async with asyncio.timeout(5):
        while (found := server.to(front)) is None:
            await asyncio.sleep(0.01)
    return found


async def until_open(channels: Channels, *replicas: str) -> None:
    async with asyncio.timeout(5):
        while not all(channels.has(one) for one in replicas):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def connected(*replicas: str) -> AsyncIterator[tuple[Channels, list[ChannelServer]]]:
    """One front and its channels to replicas."""
    servers = [ChannelServer() for _ in replicas]
    for one in servers:
        await one.open(HOST)
    channels = Channels("f")
    follow(channels, dict(zip(replicas, servers, strict=True)))
    await until_open(channels, *replicas)
    try:
        yield channels, servers
    finally:
        await channels.close()
        for one in servers:
            await one.close()


def follow(channels: Channels, servers: dict[str, ChannelServer]) -> None:
    channels.follow({name: one.address for name, one in servers.items() if one.address is not None})


def taken(replica: str) -> bytes:
    return TAKEN + replica.encode()


async def frames(answer: Answer) -> list[bytes]:
    async with asyncio.timeout(10):
        return [frame async for frame in answer]


async def test_answers_that_are_sent_together_come_to_the_requests_that_they_are_of() -> None:
    async with connected("r0", "r1") as (channels, servers):
        asked = {
            channels.next_number(): (name, one)
            for name, one in zip(("r0", "r1", "r1"), [*servers, servers[1]], strict=True)
        }
        answers = {number: channels.awaited(number, ByRay([taken(name)])) for number, (name, _) in asked.items()}
        for turn in range(3):
            for number, (_, server) in asked.items():
                await (await channel(server)).send(number, b"P%d of %d" % (turn, number))
        for number, (_, server) in asked.items():
            await (await channel(server)).end(number)
        for number, answer in answers.items():
            got = await frames(answer)
            assert [frame for frame in got if frame[:1] != TAKEN] == [
                b"P%d of %d" % (turn, number) for turn in range(3)
            ]


async def test_a_channel_that_is_faster_than_ray_loses_nothing_and_says_nothing_twice() -> None:
    async with connected("r0") as (channels, [server]):
        number, by_ray = channels.next_number(), ByRay([])
        answer = channels.awaited(number, by_ray)
        await (await channel(server)).send(number, b"Hhead")
        assert await anext(answer) == b"Hhead"
        by_ray.over.set()
        await (await channel(server)).send(number, b"Plast")
        await (await channel(server)).end(number)
        assert await frames(answer) == [b"Plast"]


async def test_without_a_channel_ray_brings_the_answer() -> None:
    channels = Channels("f")
    answer = channels.awaited(1, ByRay([TAKEN, b"Hhead", b"Ppiece"], is_over=True))
    assert await frames(answer) == [TAKEN, b"Hhead", b"Ppiece"]


async def test_a_frame_as_long_as_a_large_answer() -> None:
    async with connected("r0") as (channels, [server]):
        number, large = channels.next_number(), b"P" + bytes(8 << 20)
        answer = channels.awaited(number, ByRay([taken("r0")], is_over=True))
        await (await channel(server)).send(number, large)
        await (await channel(server)).end(number)
        assert await frames(answer) == [taken("r0"), large]


async def test_where_the_channel_breaks_its_answers_are_lost_and_no_others() -> None:
    async with connected("r0", "r1") as (channels, [first, second]):
        lost, kept = channels.next_number(), channels.next_number()
        broken = channels.awaited(lost, ByRay([taken("r0")]))
        whole = channels.awaited(kept, ByRay([taken("r1")], is_over=True))
        assert await anext(broken) == taken("r0")
        sender = await channel(first)
        await first.close()
        with pytest.raises(ChannelLost):
            await asyncio.wait_for(anext(broken), 5)
        with pytest.raises(ChannelLost):
            await sender.send(lost, b"Pmore")
        await (await channel(second)).send(kept, b"Ppiece")
        await (await channel(second)).end(kept)
        assert await frames(whole) == [taken("r1"), b"Ppiece"]


async def test_a_channel_that_broke_is_there_again_when_the_replica_is_seen_again() -> None:
    async with connected("r0") as (channels, [server]):
        (await channel(server)).close()
        async with asyncio.timeout(5):
            while channels.has("r0"):
                await asyncio.sleep(0.01)
        follow(channels, {"r0": server})
        await until_open(channels, "r0")
        assert server.to("f") is not None


async def test_a_replica_that_dies_is_told_by_ray() -> None:
    async with connected("r0") as (channels, [server]):
        number = channels.next_number()
        answer = channels.awaited(number, ByRay([taken("r0"), Died()]))
        assert await anext(answer) == taken("r0")
        with pytest.raises(Died):
            await asyncio.wait_for(anext(answer), 5)
        # What comes late is of nobody.
        await (await channel(server)).send(number, b"Plate")


async def test_an_answer_whose_rest_does_not_come_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_client, "REST_S", 0.05)
    async with connected("r0") as (channels, _):
        answer = channels.awaited(channels.next_number(), ByRay([taken("r0")], is_over=True))
        assert await anext(answer) == taken("r0")
        with pytest.raises(ChannelLost, match="rest"):
            await asyncio.wait_for(anext(answer), 5)


async def test_who_has_taken_a_request_by_a_channel_that_is_not_here_is_lost() -> None:
    channels = Channels("f")
    answer = channels.awaited(1, ByRay([taken("r0")]))
    with pytest.raises(ChannelLost, match="before"):
        await asyncio.wait_for(anext(answer), 5)


async def test_what_is_cancelled_is_cancelled_at_the_replica_and_read_no_more() -> None:
    async with connected("r0") as (channels, [server]):
        number, by_ray = channels.next_number(), ByRay([taken("r0")])
        answer = channels.awaited(number, by_ray)
        assert await anext(answer) == taken("r0")
        answer.cancel()
        assert by_ray.cancelled == 1
        await (await channel(server)).send(number, b"Plate")
        with pytest.raises(ChannelLost):
            await asyncio.wait_for(anext(answer), 5)


@pytest.mark.parametrize("said", [hello(bytes(SECRET_BYTES), "f"), b"GET / HTTP/1.1\r\n" + bytes(99), b"x"])
async def test_a_stranger_gets_no_answers(said: bytes) -> None:
    server = ChannelServer()
    await server.open(HOST)
    assert server.address is not None
    reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
    writer.write(said)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    assert server.to("f") is None
    writer.close()
    await server.close()


async def test_an_endless_frame_breaks_the_channel() -> None:
    reader = asyncio.StreamReader()
    reader.feed_data(numbered(7, b"x"))
    assert await read_numbered(reader) == (7, b"x")
    reader.feed_data((MOST_BYTES + 1).to_bytes(4, "big") + bytes(8))
    with pytest.raises(ChannelLost):
        await read_numbered(reader)


async def test_a_replica_that_nobody_listens_at_is_asked_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_client, "PAUSE_S", 0.05)
    server, channels = ChannelServer(), Channels("f")
    await server.open(HOST)
    address = server.address
    assert address is not None
    nowhere = ChannelAddress(host=HOST, port=1, secret=address.secret)
    channels.follow({"r0": nowhere})
    async with asyncio.timeout(5):
        while not channels.has("r0"):
            channels.follow({"r0": address})
            await asyncio.sleep(0.01)
    await channels.close()
    await server.close()


def keepalive_timers(port: int) -> list[bool]:
    """Of both ends of connections to this port of loopback: whether the system asks for the other side while idle."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = f"0100007F:{port:04X}"
    return [row[5].partition(":")[0] == "02" for row in rows if row[3] == "01" and ours in (row[1], row[2])]


async def test_the_system_asks_both_sides_whether_the_other_one_is_still_there() -> None:
    async with connected("r0") as (_, [server]):
        await channel(server)
        assert server.address is not None
        assert keepalive_timers(server.address.port) == [True, True]


def test_where_ray_encrypts_nothing_goes_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    assert own_host() == ""


def test_the_end_is_no_frame() -> None:
    assert END == b""
    assert numbered(1, END)[:4] == bytes(4)
