"""The shop's jobs at work: updates written to Redis at a steady rate while the service answers.

    python load_tests/live_updates.py FOLDER --redis-url redis://127.0.0.1:6379 --rate 500 --seconds 60

Of 100 updates 40 are users' views, 30 promotions, 20 best sellers, 10 co-viewed categories. They go through
the project's own Writer, those due at once in one transaction, and so to every server that mirrors the
shared ones. The last line on stdout says what it did, and what CPU it took.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
from shop_set import ShopSet, master_id, user_id

from voxrec.errors import VoxrecError
from voxrec.jobs.writer import Writer
from voxrec.recs.events import RankedList, Update
from voxrec.stores.redis import connect

SHARES = {"user:views": 0.4, "promo": 0.3, "cat:bestsellers": 0.2, "cat:co_view": 0.1}
EVERY_S = 0.05  # as the jobs do (53_kafka, follow)


class Told(msgspec.Struct):
    "What was done: `updates` given to the writer, `written`, `late_s`: how far behind at most."

    updates: int = 0
    written: int = 0
    late_s: float = 0.0
    seconds: float = 0.0
    cpu_s: float = 0.0


class Updates:
    "Updates drawn by chance, each newer than what there was."

    def __init__(self, shop: ShopSet, seed: int):
        self.shop, self.rng = shop, np.random.default_rng([shop.size.seed, 10, seed])
        self.lists: dict[str, list[RankedList]] = {"cat:bestsellers": [], "cat:co_view": []}
        for ranked in shop.lists(0):
            self.lists[ranked.kind].append(ranked)

    def take(self, n: int, now_ms: int) -> list[Update]:
        return [self.one(kind, now_ms) for kind in self.rng.choice([*SHARES], n, p=[*SHARES.values()])]

    def one(self, kind: str, now_ms: int) -> Update:
        if kind == "promo":
            return self.shop.promo(self.rng, now_ms)
        if kind == "user:views":
            return self.views(int(self.rng.integers(self.shop.size.users)), now_ms)
        old = self.lists[kind][self.rng.integers(len(self.lists[kind]))]
        scores = np.sort(self.rng.exponential(20.0, len(old.items)))[::-1].round(3).tolist()
        items = zip((name for name, _ in old.items), scores, strict=True)
        return msgspec.structs.replace(old, items=tuple(items), version=now_ms)

    def views(self, user: int, now_ms: int) -> RankedList:
        "A user's history with one more view, near the last."
        seen = self.shop.views(np.array([user]))[0]
        seen = np.append(seen[1:], self.shop.ring.near(seen[-1:], self.rng.integers(1, 20, 1)))[::-1]
        newest = {master_id(master): float(now_ms - 60_000 * age) for age, master in enumerate(seen.tolist())}
        return RankedList("user:views", user_id(user), tuple(newest.items()), now_ms, ttl_s=30 * 86_400)


async def run(updates: Updates, writer: Writer, rate: float, seconds: float) -> Told:
    "Write at this rate for so long, whatever it takes; what is late is caught up."
    done, began, cpu = Told(), time.monotonic(), time.process_time()
    while (gone := time.monotonic() - began) < seconds:
        due = int(gone * rate) - done.updates
        done.late_s = max(done.late_s, due / rate - EVERY_S)
        done.written += await writer.write_many(updates.take(due, time.time_ns() // 1_000_000))
        done.updates += due
        await asyncio.sleep(max(0.0, EVERY_S - (time.monotonic() - began - gone)))
    done.seconds, done.cpu_s = time.monotonic() - began, time.process_time() - cpu
    return done


async def live(folder: Path, url: str, prefix: str, rate: float, seconds: float, seed: int) -> Told:
    updates, store = Updates(ShopSet(folder), seed), connect(url, prefix)
    print("ready", flush=True)
    try:
        return await run(updates, Writer(store), rate, seconds)
    finally:
        await store.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--prefix", default="")
    parser.add_argument("--rate", type=float, default=500.0, help="updates a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args()
    try:
        told = asyncio.run(live(o.folder, o.redis_url, o.prefix, o.rate, o.seconds, o.seed))
    except VoxrecError as e:
        print(f"live_updates: {e}", file=sys.stderr)
        return 1
    print(msgspec.json.encode(told).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
