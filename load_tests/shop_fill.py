"""The load set's users, live lists and promotions in a Redis, as they would stand now.

    python load_tests/shop_fill.py FOLDER --redis-url redis://127.0.0.1:6379

A million users are four million lists. They go in as raw commands, with the replies switched off, in a
minute or two; afterwards some are read back through the store and compared. What servers mirror goes in by
the Writer.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from redis import Redis
from shop_set import BLOCK, ShopSet, category_id, master_id, told, user_id

from voxrec.errors import DataError, VoxrecError
from voxrec.jobs.writer import AT_ONCE, Writer
from voxrec.recs.interests import InterestConfig
from voxrec.stores.redis import ABOUT, HISTORY, Keys, OnlineStore, connect

HOUR_MS = 3_600_000


class Histories(NamedTuple):
    "Of some users: members and scores, [users, n] each, of every kind in `HISTORY`; the oldest first."

    views: tuple[NDArray[np.int64], NDArray[np.int64]]
    cats: tuple[NDArray[np.int64], NDArray[np.int64]]
    orders: tuple[NDArray[np.int64], NDArray[np.int64]]
    impressions: tuple[NDArray[np.int64], NDArray[np.int64]]


def histories(shop: ShopSet, users: NDArray[np.int64], now_ms: int) -> Histories:
    "Views some hours apart up to a day ago, the categories of the last ten, two orders, twenty impressions."
    rng = np.random.default_rng([shop.size.seed, 9, int(users[0])])
    views = shop.views(users).astype(np.int64)
    ages = np.cumsum(rng.exponential(3 * HOUR_MS, views.shape), axis=1)[:, ::-1]
    seen = (now_ms - ages).astype(np.int64)
    shown = shop.ring.near(views, rng.integers(1, 30, views.shape)).astype(np.int64)
    times = rng.integers(1, 7, views.shape)
    cats = shop.ring.category_of[views[:, -10:]]
    return Histories((views, seen), (cats, seen[:, -10:]), (views[:, 4::10], seen[:, 4::10]), (shown, times))


def argument(value: str | int) -> bytes:
    "As the Redis protocol has it."
    text = str(value).encode()
    return b"$%d\r\n%b\r\n" % (len(text), text)


class Commands:
    "The commands that put users' lists in place: what `write_list` says, made for speed."

    def __init__(self, shop: ShopSet, prefix: str):
        self.shop, self.keys, config = shop, Keys(prefix), InterestConfig()
        masters = [argument(master_id(i)) for i in range(shop.size.masters)]
        categories = [argument(category_id(i)) for i in range(shop.size.categories)]
        self.members = {kind: categories if kind == "user:recent_cats" else masters for kind in HISTORY}
        self.ttl_s = {kind: config.limits(kind)[1] // 1000 for kind in HISTORY}

    def of(self, users: NDArray[np.int64], now_ms: int) -> Iterator[bytes]:
        "Chunks of commands, a user's each."
        columns = {
            kind: (members.tolist(), scores.tolist())
            for kind, (members, scores) in zip(HISTORY, histories(self.shop, users, now_ms), strict=True)
        }
        for row, user in enumerate(users.tolist()):
            name = user_id(user)
            yield b"".join(
                self.put(kind, name, members[row], scores[row], now_ms)
                for kind, (members, scores) in columns.items()
            )

    def put(self, kind: str, name: str, members: list[int], scores: list[int], now_ms: int) -> bytes:
        key = self.keys.ranked(kind, name)
        at, about, ttl = argument(key), argument(self.keys.about(key)), argument(self.ttl_s[kind])
        facts = b"".join(map(argument, (ABOUT[0], now_ms, ABOUT[1], 0, ABOUT[2], self.ttl_s[kind])))
        names = self.members[kind]
        pairs = [part for m, s in zip(members, scores, strict=True) for part in (argument(s), names[m])]
        return b"".join(
            (b"*8\r\n$4\r\nHSET\r\n", about, facts, b"*%d\r\n$4\r\nZADD\r\n" % (2 + len(pairs)), at, *pairs,
             b"*3\r\n$6\r\nEXPIRE\r\n", at, ttl, b"*3\r\n$6\r\nEXPIRE\r\n", about, ttl)
        )  # fmt: skip


def fill_users(shop: ShopSet, url: str, now_ms: int, prefix: str = "") -> None:
    "All users' lists. DataError where Redis does not hold them afterwards."
    commands, client = Commands(shop, prefix), Redis.from_url(url)
    before, n = client.dbsize(), shop.size.users
    connection = client.connection_pool.get_connection()
    connection.send_command("CLIENT", "REPLY", "OFF")
    for first in range(0, n, BLOCK):
        last = min(first + BLOCK, n)
        connection.send_packed_command([b"".join(commands.of(np.arange(first, last), now_ms))])
        told("users", last, n)
    connection.send_command("CLIENT", "REPLY", "ON")
    connection.read_response()  # when all before it has been carried out
    client.connection_pool.release(connection)
    added, wanted = client.dbsize() - before, 2 * len(HISTORY) * n
    client.close()
    if added != wanted:
        hint = "is it empty, and large enough? redis-cli info memory"
        raise DataError(f"Redis took {added:,} of {wanted:,} keys", hint=hint)


async def check_users(shop: ShopSet, store: OnlineStore, now_ms: int) -> None:
    "Compare some users with what was meant. DataError for a difference."
    block = np.arange(min(BLOCK, shop.size.users))
    meant = histories(shop, block, now_ms)
    for user in (0, int(block[-1])):
        found = await store.shopper(user_id(user))
        for kind, (members, scores), held in zip(
            HISTORY, meant, (found.views, found.cats, found.orders, found.impressions), strict=True
        ):
            name = category_id if kind == "user:recent_cats" else master_id
            wanted = dict(zip(map(name, members[user].tolist()), scores[user].tolist(), strict=True))
            if dict(held) != wanted:
                raise DataError(f"{kind} of {user_id(user)} is not what was written", hint="see shop_fill.py")


async def fill_shared(shop: ShopSet, store: OnlineStore, now_ms: int) -> None:
    "Lists and promotions, as the jobs write them; then the mark that the store is filled."
    writer, updates, n = Writer(store), shop.shared(now_ms), 2 * shop.size.categories + shop.size.promos
    await store.begin_refill()
    for done in range(AT_ONCE, n + AT_ONCE, AT_ONCE):
        await writer.write_many(list(islice(updates, AT_ONCE)))
        told("lists and promotions", min(done, n), n)
    await store.end_refill()


def fill(shop: ShopSet, url: str, prefix: str = "") -> dict[str, float]:
    "Everything. How long it took, s, and Redis's memory after the users and after all, bytes."
    now_ms, began = time.time_ns() // 1_000_000, time.monotonic()

    async def shared() -> None:
        store = connect(url, prefix, timeout_s=30)
        try:
            await check_users(shop, store, now_ms)
            await fill_shared(shop, store, now_ms)
        finally:
            await store.close()

    def used() -> float:
        with Redis.from_url(url) as client:
            return float(client.info("memory")["used_memory"])

    fill_users(shop, url, now_ms, prefix)
    users = used()
    asyncio.run(shared())
    return {"seconds": time.monotonic() - began, "users_bytes": users, "all_bytes": used()}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--prefix", default="")
    given = parser.parse_args()
    try:
        print(msgspec.json.encode(fill(ShopSet(given.folder), given.redis_url, given.prefix)).decode())
    except VoxrecError as e:
        print(f"shop_fill: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
