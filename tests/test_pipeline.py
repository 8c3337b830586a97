"""Events from the door to the store, on the embedded Redis and a real one; beside workers, after crashes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from voxrec.errors import ConfigError, InputError, NotFound
from voxrec.jobs.local import (
    DeadLetter,
    Door,
    Folds,
    Follower,
    History,
    Listings,
    LocalPipeline,
    Pipeline,
    keep_time,
    purge,
    replay,
    settle,
    wall_ms,
)
from voxrec.jobs.writer import Writer
from voxrec.recs.bots import BotConfig, BotState, bot_step, bot_tick
from voxrec.recs.candidates import Shopper
from voxrec.recs.catalog import Catalog, product_at
from voxrec.recs.events import (
    CATALOG,
    DEAD,
    EVENTS,
    PROMOS,
    Event,
    Offer,
    Product,
    Promo,
    RankedList,
    encode_event,
)
from voxrec.service import stopped
from voxrec.stores.kafka import FileLog
from voxrec.stores.redis import SHARED, OnlineStore, connect, embedded_server, name_of
from voxrec.telemetry import sample

pytestmark = pytest.mark.anyio
T = 1_767_312_000_000
MINUTE = 60_000
USERS = [f"u{n}" for n in range(6)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.redis)])
def opened(
    request: pytest.FixtureRequest,
    counter: Iterator[int] = itertools.count(),  # noqa: B008
) -> Callable[[], OnlineStore]:
    "Opens stores that share one server and one prefix."
    prefix, options = f"pipeline{next(counter)}:", {"server": embedded_server()}
    if request.param == "real":
        options = {"url": request.getfixturevalue("redis_server").url}
    return lambda: connect(prefix=prefix, timeout_s=2.0, **options)


def shop() -> Catalog:
    return Catalog(
        Product(f"M{n}", f"Thing {n}", f"c{n % 3}", (Offer(f"P{n}", "us", 9.0 + n, 4.0, 5),))
        for n in range(12)
    )


def event(n: int, ts: int, user: str, master: str = "M1", kind: str = "view", **more: Any) -> Event:
    if kind == "order":
        more |= {"qty": 2, "price": 3.0}
    if kind.startswith("rec_"):
        more |= {"rec_id": "r"}
    return Event(event_id=f"e{n}", type=kind, ts=ts, user_id=user, master_id=master, **more)  # type: ignore[arg-type]


def story(seed: int, n: int = 400, start_ms: int = T) -> list[Event]:
    "An hour and a half of a small shop: shoppers, one without consent, a bot, promotions, new products."
    rng, events = random.Random(seed), list[Event]()
    kinds = ["view"] * 5 + ["cart", "order", "rec_viewed", "rec_viewed", "rec_clicked"]
    for i in range(n):
        ts, user = start_ms + i * 13_000 + rng.randrange(3000), rng.choice(USERS)
        master = f"M{rng.randrange(13)}"  # M12 is listed later
        if rng.random() < 0.06:
            events.append(
                Event(event_id=f"p{i}", type="promo", ts=ts, pid=f"P{i % 5}", props={"boost": i / 100})
            )
        elif rng.random() < 0.04:
            events.append(Event(event_id=f"c{i}", type="catalog", ts=ts, pid=f"P{i % 5}", price=1.0 + i))
        more = {"consent": False, "session_id": "S"} if user == "u5" else {}
        events.append(event(i, ts, user, master, rng.choice(kinds), **more))
    mug = Product("M12", "Mug", "c9", (Offer("P12", "us", 4.0, 4.5, 9),))
    events.append(Event(event_id="new", type="catalog", ts=start_ms + 50_000, product=mug))
    events += [event(10_000 + i, start_ms + 60_000 + i * 200, "bot", "M0") for i in range(150)]
    return sorted(events, key=lambda e: e.ts)


def body(events: list[Event]) -> bytes:
    return b"[" + b",".join(map(encode_event, events)) + b"]"


async def content(store: OnlineStore) -> dict[Any, Any]:
    "All that is in the store, without versions."
    found: dict[Any, Any] = {user: await store.shopper(user) for user in [*USERS, "bot"]}
    for kind in SHARED:
        found |= {name_of(r): (r.items, r.as_of) async for r in store.lists(kind)}
    found |= {name_of(p): msgspec.structs.replace(p, version=0) async for p in store.promos()}
    return found | {name_of(p): p.product async for p in store.listings()}


@contextlib.asynccontextmanager
async def local(folder: Path, store: OnlineStore, now_ms: int = T) -> AsyncIterator[LocalPipeline]:
    "A pipeline over a folder, replayed."
    log = FileLog(folder, clock=lambda: now_ms)
    one = LocalPipeline(log, Writer(store, CollectorRegistry(), attempts=1), shop(), CollectorRegistry())
    try:
        await replay(one, now_ms)
        yield one
    finally:
        one.close()
        await store.close()


class Clock:
    "What everybody's clock says."

    now = T

    def __call__(self) -> int:
        return self.now


async def until(true: Callable[[], object], within_s: float = 10.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.01)


# -- one process


async def test_a_replay_and_a_life_come_to_the_same(
    tmp_path: Path, opened: Callable[[], OnlineStore]
) -> None:
    "In order of time, event by event and all from the log: what is in the store is the same."
    events, end = story(1), T + 3 * 3_600_000
    store = opened()
    async with local(tmp_path, store) as one:
        for e in events:
            assert (await one.ingest(encode_event(e), e.ts)).accepted == 1
        one.take(one.folds.advance(end))
        assert await settle(one) and one.pending.latest and not one.pending.waiting
        lived, bots = await content(store), one.folds.states["bots"].bots
    assert {kind for kind, *_ in (k for k in lived if isinstance(k, tuple))} >= {*SHARED, "promo", "product"}
    assert lived["u5"] == Shopper("u5") and lived["u1"].impressions and lived["u1"].views and bots > 80
    again = connect()
    async with local(tmp_path, again, end):
        assert await content(again) == lived


@pytest.mark.redis
async def test_many_at_once_write_together(tmp_path: Path, redis_server: Any) -> None:
    "Forty events at the same moment: each is in the store when it is answered, and few transactions did it."
    opened = partial(connect, redis_server.url, f"together{tmp_path.name}:", timeout_s=2.0)
    store, calls = opened(), 0
    async with local(tmp_path, store) as one:
        put_many = store.put_many

        async def counted(values: Any) -> list[bool]:
            nonlocal calls
            calls += 1
            return await put_many(values)

        store.put_many = counted  # type: ignore[method-assign]

        async def post(n: int) -> None:
            await one.ingest(encode_event(event(n, T + n, f"u{n}", f"M{n % 12}")), T + n)
            assert (await store.shopper(f"u{n}")).views == [(f"M{n % 12}", float(T + n))]

        await asyncio.gather(*(post(n) for n in range(40)))
        assert calls <= 10


async def test_a_value_that_is_refused_stops_no_other(
    tmp_path: Path, opened: Callable[[], OnlineStore]
) -> None:
    store = opened()
    async with local(tmp_path, store) as one:
        key = store.keys.about(store.keys.ranked("user:views", "u3"))
        await store._client.set(key, "somebody else's")
        assert (await one.ingest(body([event(n, T + n, f"u{n}") for n in range(6)]), T)).accepted == 6
        for n in range(6):
            shopper = await store.shopper(f"u{n}")
            assert shopper.cats and bool(shopper.views) == (n != 3)
        assert not one.pending.waiting
        await store._client.delete(key)
        await one.ingest(encode_event(event(9, T + 9, "u3")), T)
        assert (await store.shopper("u3")).views


# -- leaving


def names_in(folder: Path, name: str) -> list[str]:
    return [path.name for path in folder.iterdir() if name.encode() in path.read_bytes()]


async def test_who_leaves_is_nowhere(tmp_path: Path, opened: Callable[[], OnlineStore]) -> None:
    store, events = opened(), story(2)
    leaver = [msgspec.structs.replace(e, user_id="leaver") if e.user_id == "u1" else e for e in events]
    refused = [
        b'{"type": "view", "user_id": "leaver"}',
        b'broken "leaver"',
        b'{"type": "view", "user_id": "u0"}',
    ]
    async with local(tmp_path, store) as one:
        for part in (body(leaver), *refused):
            await one.ingest(part, events[-1].ts)
        before = {u: await store.shopper(u) for u in USERS}
        assert (await store.shopper("leaver")).views and names_in(tmp_path, "leaver")
        assert [key async for key in store._client.scan_iter(match="*{leaver}*")]
        await one.erase("leaver", T)
        assert await store.shopper("leaver") == Shopper("leaver")
        assert not [key async for key in store._client.scan_iter(match="*{leaver}*")]
        assert {u: await store.shopper(u) for u in USERS} == before
        assert (
            not names_in(tmp_path, "leaver") and one.log.end(DEAD) == 3 and len(list(one.log.read(DEAD))) == 1
        )
        assert not [name for name in one.pending.latest if name[1] == "leaver"]
        one.folds.advance(events[-1].ts + 60 * 86_400_000)  # heaps drop their names when they are due
        assert b"leaver" not in msgspec.json.encode(one.folds.states)
        later = events[-1].ts + 61 * 86_400_000
        await one.ingest(encode_event(event(99, later, "leaver", "M7")), later)
        assert (await store.shopper("leaver")).views == [("M7", float(later))]
    async with local(tmp_path, connect(), later) as again:
        assert again.pending.latest["user:views", "leaver"].items == (("M7", float(later)),)  # type: ignore[union-attr]


@pytest.mark.parametrize("done", ["nothing", "store", "dead letters"])
async def test_a_crash_while_someone_leaves(
    tmp_path: Path, opened: Callable[[], OnlineStore], done: str
) -> None:
    "The last word is in the log, and the process dies at each step after it."
    store, keeper = opened(), opened()
    async with local(tmp_path, store) as one:
        await one.ingest(body([event(n, T + n, f"u{n % 2}", f"M{n}") for n in range(10)]), T)
        await one.ingest(b'{"user_id": "u1"}', T)
        one.door.give_up("u1")
        if done != "nothing":
            await store.forget("u1")
        if done == "dead letters":
            one.log.purge(DEAD, lambda record: True)
        await one.ingest(
            encode_event(event(50, T + 50, "u1", "M9")), T
        )  # lost with the process, but for the log
    async with local(tmp_path, keeper, T + 60) as two:
        assert (await keeper.shopper("u1")).views == [("M9", float(T + 50))]
        assert len((await keeper.shopper("u0")).views) == 5
        clock = asyncio.create_task(keep_time(two, 0.02, lambda: T + 60))
        await until(lambda: not two.erased)
        await stopped([clock])
        assert [r.offset for r in two.log.read(EVENTS)] == [0, 2, 4, 6, 8, 11]
        assert not list(two.log.read(DEAD)) and two.log.end(EVENTS) == 12


async def test_leaving_while_the_store_is_away(tmp_path: Path) -> None:
    "The log keeps the last word until the store has forgotten; then both are done."
    server = embedded_server()
    store = connect(server=server)
    async with local(tmp_path, store) as one:
        await one.ingest(encode_event(event(1, T, "u1")), T)
        server.connected = False
        await one.erase("u1", T)
        await one.ingest(encode_event(event(2, T + 5, "u1", "M2")), T)
        assert one.erased and names_in(tmp_path, "u1") and await purge(one) == 0
        clock = asyncio.create_task(keep_time(one, 0.02, lambda: T + 10))
        await asyncio.sleep(0.1)
        server.connected = True
        await until(lambda: not one.erased and not one.pending.waiting)
        await stopped([clock])
        assert (await store.shopper("u1")).views == [("M2", float(T + 5))]
        assert [r.offset for r in one.log.read(EVENTS)] == [2]


async def test_leaving_while_the_store_is_filled_again(
    tmp_path: Path, opened: Callable[[], OnlineStore]
) -> None:
    "A refill of many values is under way; whoever leaves meanwhile is not written by it."
    store = opened()
    async with local(tmp_path, store) as one:
        await one.ingest(body([event(n, T + n, f"shopper{n}", f"M{n % 12}") for n in range(300)]), T)
        await store._client.flushdb()
        for last in (0, 150, 299):  # at each a batch has been taken out
            task = asyncio.create_task(one.pending.refill())
            while not task.done() and not (await store.shopper(f"shopper{last}")).views:
                await asyncio.sleep(0)
            await one.erase(f"shopper{last}", T)
            await task
            assert not (await store.shopper(f"shopper{last}")).views
            await store._client.flushdb()
        await one.pending.refill()
        views = [bool((await store.shopper(f"shopper{n}")).views) for n in range(300)]
        assert [n for n, seen in enumerate(views) if not seen] == [0, 150, 299]


@pytest.mark.parametrize(
    ("user", "spelled"),
    [
        ("gdprdead", r"gdprde\u0061d"),
        ("gdprdead", r"\u0067\u0064\u0070\u0072\u0064\u0065\u0061\u0064"),
        ("a/b", r"a\/b"),
        ('"a\\b"', r"\"a\\b\""),
        ("tab\tü", r"tab\t\u00FC"),
        ("tab\tü", r"tab\u0009ü"),
        ("😀", r"\uD83D\ude00"),
        ("😀", "😀"),
    ],
)
async def test_who_leaves_is_found_however_the_id_is_spelled(tmp_path: Path, user: str, spelled: str) -> None:
    whole = '{"type": "dance", "user_id": "' + spelled + '"}'
    broken = '{"user_id" "' + spelled + r'", \u00 \ud83d'
    other = '{"user_id": "' + spelled + r'x", "\ud83d": "\\u0067dprdead"}'
    async with local(tmp_path, connect()) as one:
        for refused in (whole, broken, other):
            assert (await one.ingest(refused.encode(), T)).accepted == 0
        await one.erase(user, T)
        [left] = one.log.read(DEAD)
        assert msgspec.json.decode(left.value, type=DeadLetter).refused.raw == other and left.offset == 2


async def test_nobody_has_such_a_name(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    for name in ("", "x" * 65, "ü" * 33):
        with pytest.raises(InputError, match="no user"):
            await Door(log, CollectorRegistry()).erase(name, T)
    assert log.end(EVENTS) == 0
    log.close()


# -- without consent


async def test_without_consent_nothing_is_kept_of_anybody(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    door = Door(FileLog(tmp_path), registry)
    said = {"type": "view", "ts": T, "user_id": "cleo", "session_id": "visit7", "consent": False}
    sent = [said | {"event_id": "a", "master_id": "M1"}, said | {"event_id": "b"}, said | {"type": "dance"}]
    receipt = await door.ingest(msgspec.json.encode(sent), T)
    assert receipt.accepted == 1 and [fault.index for fault in receipt.refused] == [1, 2]
    letters = [msgspec.json.decode(r.value, type=DeadLetter) for r in door.log.read(DEAD)]
    assert [msgspec.json.decode(letter.refused.raw)["consent"] for letter in letters] == [False, False]
    assert not names_in(tmp_path, "cleo") and not names_in(tmp_path, "visit7")
    assert sample(registry, "voxrec_events_refused_total", reason="missing_field") == 1
    door.close()


# -- beside workers


@contextlib.asynccontextmanager
async def following(folder: Path, store: OnlineStore, now_ms: Callable[[], int]) -> AsyncIterator[Follower]:
    log = FileLog(folder, shared=True, clock=now_ms)
    one = Follower(log, Writer(store, CollectorRegistry(), attempts=1), shop(), CollectorRegistry())
    task = asyncio.create_task(one.run(now_ms, 0.002))
    try:
        yield one
    finally:
        await stopped([task])
        assert task.cancelled() or task.exception() is None
        log.close()
        await store.close()


async def test_a_follower_comes_to_what_one_process_does(
    tmp_path: Path, opened: Callable[[], OnlineStore]
) -> None:
    "Two doors, turn by turn; the follower is stopped twice on the way, and another goes on."
    events, store, clock = story(3), opened(), Clock()
    doors = [Door(FileLog(tmp_path, shared=True, clock=clock), CollectorRegistry()) for _ in range(2)]
    parts = [events[:150], events[150:151], events[151:400], events[400:]]
    for turn, part in enumerate(parts):
        async with following(tmp_path, opened(), clock) as one:
            for n, e in enumerate(part):
                clock.now = e.ts
                await doors[n % 2].ingest(encode_event(e), clock.now)
                await asyncio.sleep(0.003 if turn == 1 or n % 40 == 0 else 0)
            ends = {topic: doors[0].log.end(topic) for topic in (EVENTS, PROMOS, CATALOG)}
            if turn == len(parts) - 1:
                await until(lambda one=one: one.folded_ms == clock.now)
                clock.now = T + 3 * 3_600_000
                one.take(one.folds.advance(clock.now))
                assert await settle(one, clock.now)
                assert await store.written_until() == clock.now
    followed = await content(store)
    assert sum(ends.values()) == len(events)
    for door in doors:
        door.close()
    alone = connect()
    async with local(tmp_path, alone, clock.now):
        assert await content(alone) == followed


async def test_after_a_restart_only_what_was_undone_is_written(
    tmp_path: Path, opened: Callable[[], OnlineStore]
) -> None:
    clock = Clock()
    door = Door(FileLog(tmp_path, shared=True, clock=clock), CollectorRegistry())
    await door.ingest(body([event(n, T + n, f"shopper{n}", f"M{n % 12}") for n in range(200)]), T)
    async with following(tmp_path, opened(), clock) as first:
        await until(lambda: first.behind is False and not first.pending.waiting)
        clock.now = T + 5 * MINUTE
        first.take(first.folds.advance(clock.now))
        assert await settle(first, clock.now)
    clock.now += 1000
    await door.ingest(
        encode_event(event(300, clock.now, "shopper7", "M3")), clock.now
    )  # while nobody follows
    written: list[Any] = []
    store = opened()
    put_many = store.put_many

    async def watched(values: Any) -> list[bool]:
        written.extend(map(name_of, values))
        return await put_many(values)

    store.put_many = watched  # type: ignore[method-assign]
    async with following(tmp_path, store, clock) as second:
        await until(lambda: second.behind is False and not second.pending.waiting)
        assert [m for m, _ in (await store.shopper("shopper7")).views] == ["M3", "M7"]
        assert {name for name in written if name[0].startswith("user:")} == {
            ("user:views", "shopper7"),
            ("user:recent_cats", "shopper7"),
        }
        assert len(second.pending.latest) > 400
    door.close()


async def test_two_followers_take_turns(tmp_path: Path, opened: Callable[[], OnlineStore]) -> None:
    door = Door(FileLog(tmp_path, shared=True, clock=lambda: T), CollectorRegistry())
    async with contextlib.AsyncExitStack() as other:
        async with following(tmp_path, opened(), lambda: T) as first:
            await until(lambda: not first.behind)
            second = await other.enter_async_context(following(tmp_path, opened(), lambda: T))
            await door.ingest(encode_event(event(1, T, "u1")), T)
            await until(lambda: ("user:views", "u1") in first.pending.latest)
            assert second.behind and not second.pending.latest
        await until(lambda: ("user:views", "u1") in second.pending.latest)
    door.close()


async def test_leaving_through_a_worker(tmp_path: Path, opened: Callable[[], OnlineStore]) -> None:
    "What the user did before is forgotten, what they do afterwards is not; at once, and after a restart."
    door, store = Door(FileLog(tmp_path, shared=True, clock=lambda: T), CollectorRegistry()), opened()
    async with following(tmp_path, opened(), lambda: T) as one:
        await until(lambda: not one.behind)
        await door.ingest(body([event(1, T, "u1"), event(2, T, "u2")]), T)
        await door.erase("u1", T)
        await door.ingest(encode_event(event(3, T + 3, "u1", "M3")), T)  # perhaps one batch for the follower
        await until(lambda: one.log.end(EVENTS) == 4 and len(list(one.log.read(EVENTS))) == 2)
        await until(lambda: not one.pending.waiting)
    for _ in range(2):
        assert (await store.shopper("u1")).views == [("M3", float(T + 3))]
        assert (await store.shopper("u2")).views == [("M1", float(T))]
        async with following(tmp_path, opened(), lambda: T) as one:
            await until(lambda: not one.behind and not one.pending.waiting)
    await store.close()
    door.close()


@pytest.mark.redis
async def test_a_killed_follower(tmp_path: Path, redis_server: Any) -> None:
    "Killed at any moment, while late events come in: the next one brings the store to what the log says."
    prefix, events = f"killed{tmp_path.name}:", story(4, start_ms=wall_ms() - 3 * 3_600_000)
    code = f"""
        import asyncio
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_pipeline import *
        writer = Writer(connect({redis_server.url!r}, {prefix!r}), CollectorRegistry())
        log = FileLog(Path({str(tmp_path)!r}), shared=True)
        print("begun", flush=True)
        asyncio.run(Follower(log, writer, shop(), CollectorRegistry()).run(every_s=0.002))
    """
    store, rng = connect(redis_server.url, prefix, timeout_s=2.0), random.Random(4)
    door, rest = Door(FileLog(tmp_path, shared=True), CollectorRegistry()), iter(events)
    while part := list(itertools.islice(rest, 300)):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout and process.stdout.readline() == "begun\n"
        for e in part:
            await door.ingest(encode_event(e), e.ts)
            await asyncio.sleep(0.001)
        await asyncio.sleep(rng.random() / 3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    now = wall_ms()
    async with following(tmp_path, connect(redis_server.url, prefix, timeout_s=2.0), lambda: now) as one:
        await until(lambda: one.behind is False and not one.pending.waiting)
        assert await settle(one, now)
        found = await content(store)
    door.close()
    alone = connect()
    async with local(tmp_path, alone, now):
        assert await content(alone) == found
    await store.close()


async def test_a_follower_whose_log_is_damaged_says_so(tmp_path: Path) -> None:
    door = Door(FileLog(tmp_path, shared=True, clock=lambda: T), CollectorRegistry())
    await door.ingest(body([event(n, T, "u1") for n in range(9)]), T)
    path = tmp_path / f"{EVENTS}.log"
    one = Follower(FileLog(tmp_path, shared=True), Writer(connect()), shop(), CollectorRegistry())
    task = asyncio.create_task(one.run(lambda: T, 0.002))
    await until(lambda: not one.behind)
    whole = path.read_bytes()
    path.write_bytes(whole + b"?" * 300)
    with pytest.raises(Exception, match="damaged"):
        await asyncio.wait_for(task, 10)
    one.log.close()
    door.close()


# -- a log in the order of time


@settings(max_examples=60, deadline=None)
@given(times=st.lists(st.tuples(st.sampled_from([EVENTS, PROMOS, CATALOG]), st.integers(0, 9)), max_size=40))
def test_in_order_is_a_stable_sort(
    tmp_path_factory: pytest.TempPathFactory, times: list[tuple[str, int]]
) -> None:
    log = FileLog(tmp_path_factory.mktemp("order"), clock=lambda: 5)
    for topic, ts in times:
        log.append(topic, "k", b'{"ts": %d}' % ts if ts else b"no event")  # which has the time of its append
    ends = {topic: log.end(topic) for topic in (CATALOG, PROMOS, EVENTS)}
    log.append(EVENTS, "k", b'{"ts": 1}')  # comes after the ends
    rows = [(ts or 5, topic, n) for topic in ends for n, ts in enumerate(t for k, t in times if k == topic)]
    got = [(ts, record.topic, record.offset) for ts, record in History(log, ends).in_order()]
    assert got == sorted(rows, key=lambda row: row[0])
    log.close()


# -- the catalogue


def test_a_product_said_late_does_not_undo() -> None:
    listings = Listings(shop())
    old, new = (
        Product("M1", t, "c1", (Offer("P1", "us", p, 4.0, 5),)) for t, p in (("Old", 5.0), ("New", 7.0))
    )

    def said(n: int, ts: int, **fields: Any) -> list[Any]:
        return listings.step(Event(event_id=f"c{n}", type="catalog", ts=ts, **fields))

    versions = [u.version for n, p in ((1, new), (2, new)) for u in said(n, T + 10, product=p)]
    assert versions == [T + 10, T + 11] and said(3, T + 9, product=old) == [] and listings.late == 1
    assert said(4, T + 9, pid="P1", price=1.0) == [] and listings.late == 2  # the statement is newer
    assert said(5, T + 20, pid="P1", price=8.0)[0].product.offers[0].price == 8.0
    assert (
        said(6, T + 15, pid="P1", props={"stock": 1})[0].product.offers[0].stock == 1
    )  # of the stock, the newest
    assert said(7, T + 15, pid="P1", price=9.0) == []
    at = listings.catalog.index["M1"]
    assert product_at(listings.catalog, at) == Product("M1", "New", "c1", (Offer("P1", "us", 8.0, 4.0, 1),))
    with pytest.raises(NotFound):
        said(8, T, pid="P99", price=1.0)


# -- bots


def verdicts(
    events: list[Event], state: BotState | None = None, config: BotConfig | None = None
) -> list[bool]:
    state, told = state or BotState(), []
    for e in events:
        state, is_bot = bot_step(state, e, config or BotConfig(a_minute=4, an_hour=9))
        told.append(is_bot)
    return told


rows = st.lists(
    st.tuples(
        st.integers(0, 7_200_000),
        st.sampled_from(["view", "cart", "order"]),
        st.sampled_from("ab"),
        st.sampled_from([None, "S", "T"]),
    ),
    max_size=60,
)


def made(drawn: list[tuple[int, str, str, str | None]]) -> list[Event]:
    return [
        event(n, T + ts, user, kind=kind, session_id=session)
        for n, (ts, kind, user, session) in enumerate(sorted(drawn, key=lambda row: row[0]))
    ]


def brute_force(events: list[Event], a_minute: int, an_hour: int) -> list[bool]:
    "The rule as it is told: of each user and session, all views and carts of the clock's minute and hour."
    ends, told = dict[str, int](), []
    counted: dict[str, list[int]] = {}
    for e in events:
        who = [f"user {e.user_id}", *([f"session {e.session_id}"] if e.session_id else [])]
        out = [w for w in who if e.ts < ends.get(w, 0)]
        for w in who if e.type != "order" else ():
            if w not in out:
                times = counted.setdefault(w, [])
                times.append(e.ts)
                minute = sum(t // MINUTE == e.ts // MINUTE for t in times)
                hour = sum(t // (60 * MINUTE) == e.ts // (60 * MINUTE) for t in times)
                if minute > a_minute or hour > an_hour:
                    ends[w] = e.ts + 24 * 60 * MINUTE
                    out.append(w)
        told.append(bool(out))
    return told


@settings(max_examples=200, deadline=None)
@given(rows)
def test_bots_are_told_by_the_rule(drawn: list[tuple[int, str, str, str | None]]) -> None:
    assert verdicts(made(drawn)) == brute_force(made(drawn), 4, 9)


@settings(max_examples=100, deadline=None)
@given(rows, st.data())
def test_doubles_and_restarts_make_no_bots(
    drawn: list[tuple[int, str, str, str | None]], data: st.DataObject
) -> None:
    "Each event up to three times, somewhere behind its first; written out and read back in the middle."
    events = made(drawn)
    told = dict(zip((e.event_id for e in events), verdicts(events), strict=True))
    state = BotState()
    for n, e in enumerate(events):
        again = events[max(0, n - 3) : n] if data.draw(st.booleans()) else []
        for one in (e, *again, e):
            state, is_bot = bot_step(state, one, BotConfig(a_minute=4, an_hour=9))
            if one is e:
                assert is_bot == told[e.event_id] or is_bot  # a bot's second time is a bot's
            if one is e and not told[e.event_id]:
                assert not is_bot
        state = msgspec.json.decode(msgspec.json.encode(state), type=BotState)
        bot_tick(state, e.ts)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_a_bot_is_nobody_elses_harm(drawn: list[tuple[int, str, str, str | None]]) -> None:
    "The lists of all are as if the bot's events from its conviction on had never been."
    events = [e for e in made(drawn) if not e.session_id]
    crowd = sorted(
        [*events, *(event(1000 + n, T + n * 60_000, "person", f"M{n % 5}") for n in range(8))],
        key=lambda e: e.ts,
    )
    config = BotConfig(a_minute=4, an_hour=9)
    told = verdicts(crowd, config=config)
    assert not any(out for e, out in zip(crowd, told, strict=True) if e.user_id == "person")
    with_bots, without = Folds(shop()), Folds(shop())
    with_bots.bot_config = config
    for e, out in zip(crowd, told, strict=True):
        with_bots.step(e)
        if not out:
            without.step(e)
    end = T + 4 * 3_600_000
    seen = {name_of(u): u for u in with_bots.advance(end)}
    for name, update in {name_of(u): u for u in without.advance(end)}.items():
        if name[0] in SHARED:
            assert isinstance(update, RankedList) and seen[name].items == update.items  # type: ignore[union-attr]
    assert with_bots.states["bestsellers"].rankings.keys() == without.states["bestsellers"].rankings.keys()


def test_settings_of_bots_are_checked() -> None:
    for name in BotConfig.__struct_fields__:
        with pytest.raises(ConfigError):
            BotConfig(**{name: 0})


# -- what the metrics say


async def test_shown_one_by_one_counts_and_a_whole_answer_is_told_unused(
    tmp_path: Path, opened: Callable[[], OnlineStore]
) -> None:
    registry, store = CollectorRegistry(), opened()
    one = LocalPipeline(FileLog(tmp_path), Writer(store, registry), shop(), registry)
    shown = [event(n, T + n, "u1", f"M{n % 2}", "rec_viewed", position=n % 2) for n in range(4)]
    whole = Event(event_id="whole", type="rec_viewed", ts=T, user_id="u1", rec_id="r")
    receipt = await one.ingest(body([*shown, whole]), T)
    await settle(one)
    assert receipt.accepted == 5 and not receipt.refused
    assert (await store.shopper("u1")).impressions == [("M0", 2.0), ("M1", 2.0)]
    assert sample(registry, "voxrec_fold_unused", fold="interests", why="unnamed") == 1
    one.close()
    await store.close()


async def test_what_could_not_be_used_is_counted(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    one = LocalPipeline(FileLog(tmp_path), Writer(connect(), registry), shop(), registry)
    fast = [event(n, T + n, "bot") for n in range(70)]
    unknown = Event(event_id="c", type="catalog", ts=T, pid="nobody's", price=1.0)
    await one.ingest(body([*fast, unknown, event(99, T, "u1", "unheard of")]), T)
    await settle(one)
    assert sample(registry, "voxrec_fold_unused", fold="bots", why="bots") == 10
    assert sample(registry, "voxrec_fold_unused", fold="catalog", why="not_found") == 1
    assert sample(registry, "voxrec_fold_unused", fold="coview", why="unknown") == 1
    assert sample(registry, "voxrec_store_waiting") == 0
    assert isinstance(one, Pipeline) and isinstance(
        next(iter(one.pending.latest.values())), RankedList | Promo
    )
    one.close()
