"""The online store's contract, on the embedded Redis and a real one; and what only a real one can suffer."""

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from voxrec.errors import ConfigError, DataError, InputError, TimedOut, Unavailable
from voxrec.jobs.writer import Writer, refill
from voxrec.recs.candidates import Shopper
from voxrec.recs.events import Listing, Offer, Product, Promo, RankedList, Update
from voxrec.stores.redis import (
    HISTORY,
    SHARED,
    Mirror,
    OnlineStore,
    Write,
    _replaced,
    connect,
    embedded_server,
    in_order,
    name_of,
    open_client,
)

pytestmark = pytest.mark.anyio
T0 = 1_700_000_000_000
Connect = Callable[..., OnlineStore]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.redis)])
def engine(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "embedded":
        return {"server": embedded_server()}
    return {"url": request.getfixturevalue("redis_server").url}


@pytest.fixture
def prefix(counter: Iterator[int] = itertools.count()) -> str:  # noqa: B008
    return f"shop{next(counter)}:"


@contextlib.asynccontextmanager
async def connecting(prefix: str, **engine: Any) -> AsyncIterator[Connect]:
    opened: list[OnlineStore] = []

    def open_one(more: str = "", **options: Any) -> OnlineStore:
        opened.append(connect(prefix=prefix + more, **{**engine, "timeout_s": 2.0, **options}))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def stores(engine: dict[str, Any], prefix: str) -> AsyncIterator[Connect]:
    "Opens stores that share a server and a prefix; closes them."
    async with connecting(prefix, **engine) as open_one:
        yield open_one


@pytest.fixture
async def real(redis_server: Any, prefix: str) -> AsyncIterator[Connect]:
    "The same, on the real server."
    async with connecting(prefix, url=redis_server.url) as open_one:
        yield open_one


def listed(
    id: str, *items: tuple[str, float], version: int = T0, kind: str = "cat:bestsellers", **more: int
) -> Any:
    return RankedList(kind=kind, id=id, items=items, version=version, **more)


async def all_lists(store: OnlineStore, kind: str = "cat:bestsellers") -> list[RankedList]:
    return sorted([ranked async for ranked in store.lists(kind)], key=lambda ranked: ranked.id)


async def until(true: Callable[[], object], within_s: float = 8.0) -> None:
    async with asyncio.timeout(within_s):
        while not true():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def mirroring(store: OnlineStore, **options: Any) -> AsyncIterator[tuple[Mirror, dict[Any, Update]]]:
    board: dict[Any, Update] = {}
    mirror = Mirror(store, lambda value: board.update({name_of(value): value}), **options)
    task = asyncio.create_task(mirror.run())
    try:
        await asyncio.wait_for(mirror.ready.wait(), 5)
        yield mirror, board
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


# The contract, on both engines


async def test_what_goes_in_comes_out(stores: Connect) -> None:
    "Any ids and any finite scores, to the last bit; more than a page of them; an empty list is a list."
    rng, store = random.Random(7), stores()
    scores = [0.1, 1 / 3, 1e-300, -2.5, 1.7976931348623157e308, float(T0), 5e-324, 0.0]
    names = ["M1", "é", "茶", "a b", "x:{y}", "quote\"'", "\x00", "m" * 64]
    made = [
        listed(
            f"{rng.choice(names)}-{n}",
            *((f"{name}{rng.randrange(9)}", rng.choice(scores)) for name in names[: n % 9]),
            version=T0 + n,
            as_of=n % 3,
        )
        for n in range(600)
    ]
    for ranked in made:
        assert await store.put(ranked)
    assert await all_lists(store) == sorted(
        (listed(r.id, *in_order(r.items), version=r.version, as_of=r.as_of) for r in made), key=lambda r: r.id
    )


async def test_promos_come_back_as_they_went(stores: Connect) -> None:
    store = stores()
    made = [
        Promo(pid="P1"),
        Promo(pid="P2", boost=1 / 3, ad_bid=0.0, flash_sale=True, expiry_s=T0 // 1000, version=T0),
        Promo(pid="P3:{x}", out_of_stock=True, version=T0 + 1),
    ]
    for promo in made:
        assert await store.put(promo)
    assert sorted([p async for p in store.promos()], key=lambda p: p.pid) == made


async def test_shopper(stores: Connect) -> None:
    "Newest first, no more than is read, each their own; a stranger has nothing."
    store = stores()
    for user, n in (("42", 30), ("}", 3)):
        views = tuple((f"M{user}-{i}", float(T0 + i)) for i in range(n))
        await store.put(listed(user, *views, kind="user:views"))
        await store.put(listed(user, ("tea", T0), ("mugs", T0 + 5), kind="user:recent_cats", ttl_s=60))
    await store.put(listed("42", ("M5", T0), kind="user:orders"))

    shopper = await store.shopper("42")
    assert shopper.views == [(f"M42-{i}", T0 + i) for i in range(29, 9, -1)]
    assert shopper.cats == [("mugs", T0 + 5), ("tea", T0)] and shopper.orders == [("M5", T0)]
    assert [m for m, _ in (await store.shopper("}")).views] == ["M}-2", "M}-1", "M}-0"]
    assert not (await store.shopper("nobody")).views


async def test_an_older_version_is_dropped(stores: Connect) -> None:
    store = stores()
    assert await store.put(listed("tea", ("M1", 1.0), version=5, as_of=2))
    assert not await store.put(listed("tea", ("M2", 2.0), version=4, as_of=9))
    assert not await store.put(listed("tea", ("M2", 2.0), version=5, as_of=1))
    assert await all_lists(store) == [listed("tea", ("M1", 1.0), version=5, as_of=2)]
    assert await store.put(listed("tea", ("M3", 3.0), version=5, as_of=2))  # equal is not older
    assert await store.put(listed("tea", version=6))
    assert await all_lists(store) == [listed("tea", version=6)]

    assert await store.put(Promo(pid="P", boost=2, version=5))
    assert not await store.put(Promo(pid="P", version=4))
    assert [p async for p in store.promos()] == [Promo(pid="P", boost=2, version=5)]


async def test_concurrent_writers(stores: Connect) -> None:
    "Whatever the interleaving, the newest stands, and listeners hear versions rise."
    writers, heard = [stores() for _ in range(4)], []

    async def write(store: OnlineStore, seed: int) -> None:
        for version in random.Random(seed).sample(range(1, 26), 25):
            await store.put(listed("tea", (f"M{version}", version), version=version))
            await store.put(Promo(pid="P", boost=version, version=version))

    async with stores().changes() as changes:
        await asyncio.gather(*(write(store, seed) for seed, store in enumerate(writers)))
        last = {"list": 0, "promo": 0}
        while last != {"list": 25, "promo": 25}:
            change = await asyncio.wait_for(anext(changes), 5)
            if change is not None:
                kind = "promo" if isinstance(change, Promo) else "list"
                heard.append((kind, change.version))
                assert change.version >= last[kind]
                last[kind] = change.version
    assert await all_lists(writers[0]) == [listed("tea", ("M25", 25.0), version=25)]
    assert [p.version async for p in writers[0].promos()] == [25]


def product(n: int, version: int = T0) -> Listing:
    offers = tuple(Offer(f"P{n}-{k}", "Fjell & Søn", 9.5 + k, 4.5, k) for k in range(n % 3))
    return Listing(Product(f"M{n}", f"Kettle {n} é茶", "kettles", offers), version)


async def test_listings_come_back_as_they_went(stores: Connect) -> None:
    store = stores()
    made = [product(n) for n in range(450)]
    assert all(await store.put_many(made[:400])) and all([await store.put(p) for p in made[400:]])
    assert sorted([p async for p in store.listings()], key=name_of) == sorted(made, key=name_of)
    assert await store.put_many([product(1, T0 - 1), product(2, T0 + 1)]) == [False, True]
    assert {p.product.master_id: p.version async for p in store.listings()}["M2"] == T0 + 1


async def test_many_at_once_are_as_one_by_one(stores: Connect) -> None:
    "Values of all kinds, some of them older than others or of one name, in batches of any size."
    rng, one, many = random.Random(3), stores("one:"), stores("many:")
    made: list[Update] = []
    for n in range(300):
        version, name = rng.randrange(1, 40), f"N{rng.randrange(12)}"
        kind = rng.choice(["cat:co_view", "user:views", "promo", "product"])
        if kind == "promo":
            made.append(Promo(pid=name, boost=n / 100, version=version))
        elif kind == "product":
            made.append(product(rng.randrange(12), version))
        else:
            made.append(listed(name, (f"M{n}", n), version=version, kind=kind, as_of=rng.randrange(2)))
    for value in made:
        await one.put(value)
    rest = made
    while rest:
        size = rng.randrange(1, 40)
        written = await many.put_many(rest[:size])
        names = [name_of(value) for value in rest[:size]]
        for n, name in enumerate(names):  # at most one of a name is written, no older one than the others
            assert not written[n] or written[n + 1 :].count(True) == sum(
                w for w, other in zip(written[n + 1 :], names[n + 1 :], strict=True) if other != name
            )
        rest = rest[size:]
    for kind in SHARED:
        assert await all_lists(many, kind) == await all_lists(one, kind)
    for n in range(12):
        assert (await many.shopper(f"N{n}")) == (await one.shopper(f"N{n}"))
    for read in ("promos", "listings"):
        found = [
            sorted([value async for value in getattr(store, read)()], key=name_of) for store in (one, many)
        ]
        assert found[0] == found[1] and found[0]
    assert await many.put_many([]) == []


async def test_one_bad_value_and_nothing_is_written(stores: Connect, engine: dict[str, Any]) -> None:
    store, raw = stores(), open_client(engine.get("url"), engine.get("server"))[0]
    good = listed("tea", ("M1", 1.0))
    for bad in (listed("x", ("M1", float("nan"))), listed("", ("M1", 1.0)), Promo(pid="")):
        with pytest.raises(InputError):
            await store.put_many([good, bad])
    key = store.keys.about(store.keys.ranked("cat:bestsellers", "mugs"))
    await raw.set(key, "somebody else's")
    with pytest.raises(DataError):
        await store.put_many([good, listed("mugs", ("M1", 1.0))])
    assert await all_lists(store) == []
    await raw.delete(key)
    assert await store.put_many([good, listed("mugs", ("M1", 1.0))]) == [True, True]
    await raw.aclose()


async def test_batches_that_fight_for_the_same_names(stores: Connect) -> None:
    "Four writers, each with all names in batches, all at once: every name ends with its newest."
    writers, names = [stores() for _ in range(4)], [f"c{n}" for n in range(8)]

    async def write(store: OnlineStore, seed: int) -> None:
        rng = random.Random(seed)
        for version in rng.sample(range(1, 13), 12):
            batch = [listed(name, (f"M{version}", version), version=version) for name in names]
            rng.shuffle(batch)
            await store.put_many(batch)

    await asyncio.gather(*(write(store, seed) for seed, store in enumerate(writers)))
    assert [r.version for r in await all_lists(writers[0])] == [12] * 8


async def test_forgetting(stores: Connect, engine: dict[str, Any], prefix: str) -> None:
    "Everything under the user's name goes, and nothing of another's."
    store, raw = stores(), open_client(engine.get("url"), engine.get("server"))[0]
    kept = [listed("4", (f"M{kind}", 3.0), kind=kind) for kind in HISTORY]
    await store.put_many([*kept, *(listed("42", ("M1", 3.0), kind=kind, ttl_s=60) for kind in HISTORY)])
    assert len([key async for key in raw.scan_iter(match=f"{prefix}*{{42}}*")]) == 8
    await store.forget("42")
    await store.forget("nobody")
    assert not [key async for key in raw.scan_iter(match=f"{prefix}*{{42}}*")]
    assert await store.shopper("42") == Shopper("42")
    assert (await store.shopper("4")).impressions == [("Muser:impressions", 3.0)]
    assert await store.put(listed("42", ("M2", 1.0), kind="user:views", version=1))  # no version is left
    await raw.aclose()


async def test_what_was_written_until_when(stores: Connect) -> None:
    store = stores()
    await store.mark_written(T0)
    assert await store.written_until() is None  # never filled
    await store.begin_refill()
    await store.mark_written(T0)
    assert await store.end_refill() and await store.written_until() == 0
    await store.mark_written(T0)
    assert await store.written_until() == T0 and await store.is_filled()


async def test_readers_see_whole_lists(stores: Connect) -> None:
    "Long and short lists take turns; a reader never sees parts of two, nor a list with the other's version."
    writer, reader, done = stores(), stores(), False
    long = [(f"long{i}", float(i)) for i in range(120)]
    short = [(f"short{i}", float(i)) for i in range(7)]

    async def write() -> None:
        nonlocal done
        for version in range(1, 121):
            items = long if version % 2 else short
            await writer.put(listed("tea", *items, version=version))
            await writer.put(listed("42", *items[:20], kind="user:views", version=version))
            for _ in range(version % 3):
                await asyncio.sleep(0)  # the embedded Redis never waits
        done = True

    task, seen = asyncio.create_task(write()), set()
    while not done:
        for ranked in await all_lists(reader):
            assert ranked.items == in_order(long if ranked.version % 2 else short)
            seen.add(len(ranked.items))
        views = [member for member, _ in (await reader.shopper("42")).views]
        await asyncio.sleep(0)
        assert views in ([], [m for m, _ in in_order(long[:20])], [m for m, _ in in_order(short)])
    await task
    assert seen == {120, 7}


async def test_changes_carry_values(stores: Connect) -> None:
    "What was written and is shared; nothing of one shopper, nothing that was dropped."
    writer, listener = stores(), stores()
    made: list[Any] = [
        listed("tea", ("M1", 1 / 3)),
        Promo(pid="P", flash_sale=True),
        listed("tea", version=T0 + 1),
    ]
    async with listener.changes(quiet_s=0.3) as changes:
        await writer.put(made[0])
        await writer.put(listed("tea", ("M9", 9.0), version=T0 - 1))
        await writer.put(listed("42", ("M1", T0), kind="user:views"))
        await writer.put(made[1])
        await writer.put(made[2])
        assert [await anext(changes) for _ in range(4)] == [*made, None]  # and then it is quiet


async def test_prefixes_do_not_meet(stores: Connect) -> None:
    ours, theirs = stores("a:"), stores("b:")
    async with theirs.changes(quiet_s=0.2) as changes:
        await ours.put(listed("tea", ("M1", 1.0)))
        await ours.put(listed("42", ("M1", T0), kind="user:views"))
        await ours.put(Promo(pid="P"))
        await ours.begin_refill()
        assert await ours.end_refill()
        assert await anext(changes) is None
    assert not await all_lists(theirs) and not [p async for p in theirs.promos()]
    assert not (await theirs.shopper("42")).views and not await theirs.is_filled()
    assert await theirs.put(listed("tea", version=1))  # our newer version is not theirs


async def test_expiry_is_of_the_whole_list(stores: Connect) -> None:
    store = stores()
    await store.put(listed("42", ("tea", T0), kind="user:recent_cats", ttl_s=1))
    await store.put(listed("tea", ("M1", 1.0), ttl_s=1))
    await store.put(listed("mugs", ("M1", 1.0), ttl_s=1))
    await store.put(listed("mugs", ("M1", 1.0), version=T0 + 1))  # kept from now on
    await asyncio.sleep(1.3)
    assert not (await store.shopper("42")).cats
    assert [ranked.id for ranked in await all_lists(store)] == ["mugs"]
    assert await store.put(listed("tea", ("M2", 1.0), version=1))  # its version went with it


async def test_a_cancelled_read_leaves_nothing_for_the_next(stores: Connect) -> None:
    "A reply that nobody waited for must never be taken for another shopper's."
    store = stores()
    for n in range(20):
        await store.put(listed(f"U{n}", (f"M{n}", T0), kind="user:views"))
    for n in range(60):
        task = asyncio.create_task(store.shopper(f"U{n % 20}"))
        for _ in range(n % 12):
            await asyncio.sleep(0)
        task.cancel()
        reads = await asyncio.gather(*(store.shopper(f"U{(n + k) % 20}") for k in range(3)))
        assert [read.views for read in reads] == [[(f"M{(n + k) % 20}", T0)] for k in range(3)]
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_mirror_loads_follows_and_finds_what_was_lost(stores: Connect, engine: dict[str, Any]) -> None:
    writer, raw = stores(), open_client(engine.get("url"), engine.get("server"))[0]
    await writer.put(listed("tea", ("M1", 1.0)))
    await writer.put(Promo(pid="P", version=1))
    await writer.put(product(7))
    async with mirroring(stores(), resync_s=0.3) as (mirror, board):
        first = [("product", "M7"), ("cat:bestsellers", "tea"), ("promo", "P")]
        assert list(board) == first  # products first: what follows may name them
        await writer.put(listed("mugs", ("M2", 2.0), kind="cat:co_view"))
        await until(lambda: ("cat:co_view", "mugs") in board)
        assert mirror.missed == 0

        channel = writer.keys.changes
        await raw.publish(channel, "not ours")  # told in the log, passed over
        await raw.publish(channel, '{"type":"promo","pid":"P","version":0,"boost":9}')  # older than held
        await raw.hset(writer.keys.promo("P"), "boost", "3")  # changed and not announced
        await until(lambda: board["promo", "P"].boost == 3)  # type: ignore[union-attr]
        assert mirror.missed == 1 and mirror.connected

        await raw.delete(*[key async for key in raw.scan_iter(match=writer.keys.prefix + "*")])
        applied = mirror.applied
        await asyncio.sleep(0.8)
        assert len(board) == 4 and mirror.applied == applied  # an emptied cache empties no server
    await raw.aclose()


async def test_a_mirror_stops_when_cancelled(stores: Connect) -> None:
    "Also while messages are coming in, when redis-py and Python 3.11 may swallow the cancellation."
    store = stores()
    for n in range(5):
        mirror = Mirror(store, lambda update: None)
        task = asyncio.create_task(mirror.run())
        await asyncio.wait_for(mirror.ready.wait(), 5)
        await store.put(listed("c", ("m", 1.0), version=n + 1))
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=3)
        assert done and task.cancelled()


async def test_three_hundred_at_once(stores: Connect) -> None:
    "More readers than connections wait for one; nobody is turned away."
    store = stores()
    await asyncio.gather(*(store.shopper(f"u{n}") for n in range(300)))


async def test_one_refused_value_does_not_stop_a_mirror(stores: Connect) -> None:
    writer, taken = stores(), []

    def apply(value: Update) -> None:
        if value.version == 1:
            raise ConfigError("not this one")
        taken.append(value.version)

    mirror = Mirror(stores(), apply)
    task = asyncio.create_task(mirror.run())
    await mirror.ready.wait()
    for version in (1, 2):
        await writer.put(listed("tea", version=version))
    await until(lambda: taken == [2])
    task.cancel()


# What only a real server can suffer


async def within(limit_s: float, call: Any) -> None:
    "Awaits `call`, which must raise TimedOut, by `limit_s` and half a second for the machine."
    began = time.perf_counter()
    with pytest.raises(TimedOut):
        await call
    assert time.perf_counter() - began < limit_s + 0.5


@pytest.mark.redis
async def test_a_paused_server_is_a_timeout_in_the_stated_time(real: Connect, redis_server: Any) -> None:
    store, cold = real(timeout_s=0.3), real(timeout_s=0.3)
    await store.put(listed("42", ("M1", T0), kind="user:views"))
    async with store.changes(quiet_s=0.2) as changes:
        redis_server.pause()
        try:
            for each in (store, cold):  # with connections open, and with none
                await within(0.3, each.ping())
                await within(0.3, each.shopper("42"))
                await within(0.3, each.put(listed("tea")))
                await within(0.3, each.put(Promo(pid="P")))
                await within(0.3, anext(each.lists("cat:bestsellers")))
                await within(0.3, each.is_filled())
            await within(0.5, anext(changes))
            waiting = [asyncio.create_task(store.shopper("42")) for _ in range(200)]  # more than the pool has
            await within(0.3, waiting[0])
            for task in waiting:
                with pytest.raises(Unavailable):
                    await task
        finally:
            redis_server.resume()
    assert (await store.shopper("42")).views == [("M1", T0)]


@pytest.mark.redis
async def test_a_pause_between_watch_and_exec(real: Connect, redis_server: Any) -> None:
    store = real(timeout_s=0.3)
    await store.ping()

    class Pausing(list[Any]):
        "A value's commands; the server stops when they are about to be sent."

        def __iter__(self) -> Iterator[Any]:
            redis_server.pause()
            return super().__iter__()

    async def put_slowly() -> None:
        async with store._told(), store._line() as line:
            await _replaced(line, [Write("watched", (1, 0), Pausing([("PING",)]))])

    try:
        await within(0.3, put_slowly())
    finally:
        redis_server.resume()
    assert await store.put(Promo(pid="P"))


@pytest.mark.redis
async def test_killed_and_started_again(real: Connect, redis_server: Any) -> None:
    "The mirror keeps what it had, says that it is alone, and comes back by itself; so does the store."
    store = real()
    writer = Writer(store)
    compacted: list[Update] = [listed("tea", ("M1", 1.0)), Promo(pid="P", out_of_stock=True, version=T0)]
    assert await refill(writer, lambda: compacted) == 2
    async with mirroring(real(), resync_s=30, retry_s=0.2) as (mirror, board):
        redis_server.kill()
        try:
            await until(lambda: not mirror.connected)
            with pytest.raises(Unavailable):
                await store.shopper("42")
            assert len(board) == 2
        finally:
            redis_server.start()
        await until(lambda: mirror.connected)
        assert len(board) == 2 and not await store.is_filled()
        assert await refill(writer, lambda: compacted) == 2 and await store.is_filled()
        await writer.write(Promo(pid="P", version=T0 + 1))
        await until(lambda: board["promo", "P"].version == T0 + 1)


@pytest.mark.redis
async def test_a_mirror_notices_a_paused_server(real: Connect, redis_server: Any) -> None:
    async with mirroring(real(timeout_s=0.3), resync_s=0.2, retry_s=0.2) as (mirror, board):
        redis_server.pause()
        try:
            await until(lambda: not mirror.connected)
        finally:
            redis_server.resume()
        await until(lambda: mirror.connected)
        await real().put(Promo(pid="P"))
        await until(lambda: ("promo", "P") in board)


@pytest.mark.redis
async def test_a_mirror_whose_connection_was_cut(real: Connect) -> None:
    "The periodic resync is far away: what comes after the cut comes because of the reconnection."
    store = real()
    async with mirroring(real(), resync_s=60) as (mirror, board):
        for version in range(1, 4):
            await store._client.client_kill_filter(_type="pubsub")
            await store.put(Promo(pid="P", version=version))
            await until(lambda v=version: ("promo", "P") in board and board["promo", "P"].version == v)
        assert mirror.missed >= 1


@pytest.mark.redis
async def test_a_writer_waits_for_a_restart(real: Connect, redis_server: Any) -> None:
    writer = Writer(real())
    await writer.store.ping()
    redis_server.kill()
    task = asyncio.create_task(writer.write(listed("tea", ("M1", 1.0))))
    await asyncio.sleep(0.3)
    assert not task.done()
    redis_server.start()
    assert await task


@pytest.mark.redis
async def test_no_server_and_no_access(real: Connect, redis_server: Any) -> None:
    async with connecting("", url="redis://127.0.0.1:1") as nowhere:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await nowhere().ping()
    store = real()
    await store._client.config_set("requirepass", "sesame")
    try:
        secret = redis_server.url.replace("//", "//:not-sesame@")
        async with connecting("", url=secret) as wrong, connecting("", url=redis_server.url) as without:
            for refused in (wrong(), without()):
                with pytest.raises(ConfigError) as caught:
                    await refused.ping()
                assert "sesame" not in str(caught.value)
    finally:
        await store._client.config_set("requirepass", "")


@pytest.mark.redis
async def test_a_full_server_is_unavailable(real: Connect) -> None:
    store = real()
    await store._client.config_set("maxmemory", 1)
    try:
        with pytest.raises(Unavailable):
            await store.put(listed("42", ("M1", T0), kind="user:views"))
        assert not (await store.shopper("42")).views
    finally:
        await store._client.config_set("maxmemory", 0)


@pytest.mark.redis
async def test_a_shopper_is_one_round_trip(redis_server: Any, prefix: str) -> None:
    "Through a proxy that counts how often the client speaks after the server did."
    trips, speaker = 0, "server"

    async def carry(who: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        nonlocal trips, speaker
        while data := await source.read(65_536):
            trips += who == "client" and speaker == "server"
            speaker = who
            sink.write(data)
            await sink.drain()
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", redis_server.port)
        await asyncio.gather(carry("client", reader, forth), carry("server", back, writer))

    proxy = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    async with connecting(prefix, url=f"redis://127.0.0.1:{port}") as open_one:
        store = open_one()
        await store.put(listed("42", ("M1", T0), kind="user:views"))
        trips = 0
        for n in range(1, 6):
            assert (await store.shopper("42")).views == [("M1", T0)]
            assert trips == n
    proxy.close()
