"""The naive layout, to be measured beside the service: every list a sorted set in Redis, read when asked for.

    python load_tests/naive.py --redis-url redis://127.0.0.1:6379 --port 8090

The same answer as arm `seed` gives (semantic and co-viewed best sellers, offers, promotions), from
`master:sem:M`, `master:pids:M`, `cat:*` and `promo:P` in four round trips, merged and ranked by plain
Python. `fill` writes what the load set's store does not have of it, for the products that some requests
touch.
"""

import argparse
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import redis
import redis.asyncio
import uvicorn
from shop_set import master_id
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from voxrec.recs.catalog import Catalog, offers_of
from voxrec.recs.relations import Relations

MOST, RELATED, K, FLASH = 1000, 50, 20, 2.0
Ask = Callable[[list[tuple[Any, ...]]], Awaitable[list[Any]]]


def fill(url: str, catalog: Catalog, relations: Relations, masters: Iterable[int]) -> int:
    "Sorted sets of these masters' relations, and offers of all that these name; how many masters in all."
    named = set()
    with redis.Redis.from_url(url) as client:
        for master in masters:
            ids, scores = relations.of(master)
            named |= {master, *ids.tolist()}
            members = {master_id(i): s for i, s in zip(ids.tolist(), scores.tolist(), strict=True)}
            client.zadd(f"master:sem:{master_id(master)}", members)
        pipe = client.pipeline(transaction=False)
        for master in named:
            offers = {
                catalog.pids[i]: f"{catalog.price[i]}|{catalog.rating[i]}|{catalog.stock[i]}"
                for i in offers_of(catalog, master)
            }
            pipe.hset(f"master:pids:{master_id(master)}", mapping=offers)
        pipe.execute()
    return len(named)


def scaled(scores: dict[str, float], weight: float) -> dict[str, float]:
    largest = max(scores.values(), default=0.0) or 1.0
    return {member: weight * score / largest for member, score in scores.items()}


async def candidates(ask: Ask, user: str, page: str | None) -> list[tuple[float, str]]:
    "The best by 0.6 semantic + 0.4 best sellers of co-viewed categories: three round trips."
    lists = ("views", 20), ("recent_cats", 10), ("orders", 200)
    keys = [("zrevrange", f"user:{name}:{{{user}}}", 0, n - 1) for name, n in lists]
    views, cats, orders = await ask(keys)
    anchors = list(dict.fromkeys([*([page] if page else []), *views]))
    wanted: list[tuple[Any, ...]] = [
        ("zrevrange", f"master:sem:{m}", 0, -(-MOST // i) - 1, True) for i, m in enumerate(anchors, 1)
    ]
    found = await ask(wanted + [("zrevrange", f"cat:co_view:{c}", 0, -1, True) for c in cats])
    semantic, reached = defaultdict[str, float](float), defaultdict[str, float](float)
    for place, near in enumerate(found[: len(anchors)], 1):
        for member, score in near:
            semantic[member] += score / place
    for related in found[len(anchors) :]:
        for category, score in related:
            reached[category] += score
    strongest = sorted(reached, key=lambda c: -reached[c])[:RELATED]
    sold = await ask([("zrevrange", f"cat:bestsellers:{c}", 0, -1, True) for c in strongest])
    selling = defaultdict[str, float](float)
    for category, best in zip(strongest, sold, strict=True):
        for member, score in best:
            selling[member] += score * reached[category]
    merged = defaultdict[str, float](float)
    for scores in (scaled(semantic, 0.6), scaled(selling, 0.4)):
        for member, score in scores.items():
            merged[member] += score
    left_out = {page, *orders}
    return sorted(((s, m) for m, s in merged.items() if m not in left_out), reverse=True)[:MOST]


async def ranked(ask: Ask, found: list[tuple[float, str]], widget: str) -> list[dict[str, Any]]:
    "Offers in one round trip, their promotions in another; then the rules."
    offers = await ask([("hgetall", f"master:pids:{m}") for _, m in found])
    first = []
    for (score, member), mine in zip(found, offers, strict=True):
        told = [(pid, *line.split("|")) for pid, line in mine.items()]
        stocked = [(float(price), -float(rating), pid) for pid, price, rating, stock in told if int(stock)]
        if stocked:
            price, _, pid = min(stocked)
            first.append((score, member, pid, price))
    promos = await ask([("hgetall", f"promo:{pid}") for _, _, pid, _ in first])
    items = []
    for (score, member, pid, price), promo in zip(first, promos, strict=True):
        if promo.get("out_of_stock") == "1":
            continue
        score = score * float(promo.get("boost", 1)) + FLASH * int(promo.get("flash_sale", 0))
        score *= float(promo.get("ad_bid", 1)) if widget == "sponsored" else 1.0
        items.append({"master_id": member, "pid": pid, "score": score, "price": price})
    return sorted(items, key=lambda item: -item["score"])[:K]


def app(url: str) -> Starlette:
    client = redis.asyncio.Redis.from_url(url, decode_responses=True, max_connections=64)

    async def ask(commands: list[tuple[Any, ...]]) -> list[Any]:
        pipe = client.pipeline(transaction=False)
        for command in commands:
            getattr(pipe, command[0])(*command[1:])
        return await pipe.execute() if commands else []

    async def recommend(request: Request) -> Response:
        asked = msgspec.json.decode(await request.body())
        found = await candidates(ask, asked["user_id"], asked.get("master_id"))
        items = await ranked(ask, found, asked["widget"])
        answer = {"rec_id": uuid.uuid4().hex, "arm": "seed", "degraded": [], "items": items}
        return Response(msgspec.json.encode(answer), media_type="application/json")

    async def ready(request: Request) -> Response:
        await client.ping()
        return Response("ready")

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    routes = [Route("/v1/recommendations", recommend, methods=["POST"]), Route("/ready", ready)]
    return Starlette(routes=routes, lifespan=life)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--port", type=int, default=8090)
    given = parser.parse_args()
    uvicorn.run(app(given.redis_url), port=given.port, log_level="warning")
