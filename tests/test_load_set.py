"The invented shop of the load tests: what is built, what Redis holds of it, what is asked of it."

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from voxrec.errors import InputError, NotFound
from voxrec.recs.candidates import Request
from voxrec.recs.catalog_store import catalog_in
from voxrec.recs.events import Promo, RankedList, decode_events
from voxrec.recs.relations import SnapshotReader
from voxrec.recs.semantic_jobs import semantic_relations
from voxrec.recs.sessions import from_arrays, predict

if TYPE_CHECKING:
    from conftest import RedisServer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "load_tests"))

import shop_set  # noqa: E402
from open_loop import fire  # noqa: E402
from shop_set import ShopSet, Size, build_set, category_id, master_id, user_id  # noqa: E402

compiled = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (Debian: gcc libc6-dev)")
SIZE = Size(masters=900, relations=30, categories=20, sessions=3000, users=3000, promos=100, seed=3)
NOW = 1_800_000_000_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> ShopSet:
    return build_set(tmp_path_factory.mktemp("load_set"), SIZE)


def test_its_snapshots_are_what_the_service_reads(shop: ShopSet) -> None:
    reader = SnapshotReader(shop.home / "snapshots")
    catalog = catalog_in(reader.current("catalog"))
    assert len(catalog) == 900
    assert catalog.master_ids[:2] == ["m0000000", "m0000001"]
    assert set(catalog.category_ids) == {category_id(c) for c in range(20)}
    assert all(catalog.category(master_id(m)) == category_id(shop.ring.category_of[m]) for m in range(900))
    near = semantic_relations(reader.current("semantic"), catalog)
    for master in (0, 450, 899):
        ids, scores = near.of(master)
        assert len(set(ids.tolist()) - {master}) == 30
        assert (np.diff(scores) <= 0).all() and 0.2 < scores[-1] < scores[0] < 1
        away = np.abs(shop.ring.place[ids] - shop.ring.place[master])
        assert np.minimum(away, 900 - away).max() < 60  # the surroundings
    sessions = from_arrays(reader.current("sessions").arrays)
    voted, _ = predict(sessions, shop.clicks[:2].tolist())
    assert len(voted) and voted.max() < 900


def test_a_set_is_built_once_and_goes_on_where_it_was_broken_off(
    tmp_path: Path, shop: ShopSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shop_set, "BLOCK", 300)
    made: list[int] = []
    rows = shop_set.relation_rows

    def broken(ring: shop_set.Ring, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        made.append(first)
        if made == [0, 300]:
            raise KeyboardInterrupt
        return rows(ring, first, last)

    monkeypatch.setattr(shop_set, "relation_rows", broken)
    with pytest.raises(KeyboardInterrupt):
        build_set(tmp_path, SIZE)
    build_set(tmp_path, SIZE)
    assert made == [0, 300, 300, 600]
    build_set(tmp_path, SIZE)
    assert len(made) == 4
    assert SnapshotReader(tmp_path / "snapshots").current_version("catalog") == 1
    with pytest.raises(InputError, match="another set"):
        build_set(tmp_path, msgspec.structs.replace(SIZE, users=1))
    with pytest.raises(InputError):
        Size(masters=100, relations=100)
    with pytest.raises(NotFound, match="no load set"):
        ShopSet(tmp_path / "elsewhere")


def test_its_requests_are_such_as_the_service_takes(shop: ShopSet) -> None:
    shots, names = shop.traffic(400, 100, 1, NOW)
    asked = [s for s, name in zip(shots, names, strict=True) if name != "view"]
    told = [s for s, name in zip(shots, names, strict=True) if name == "view"]
    requests = [msgspec.json.decode(s.body, type=Request) for s in asked]
    assert [r.widget for r in requests] == [name for name in names if name != "view"]
    assert {s.path for s in asked} == {"/v1/recommendations"}
    for r in requests:
        assert (r.master_id is not None) == (r.widget in ("related", "cart"))
    events, refused = decode_events(b"[" + b",".join(s.body for s in told) + b"]", NOW)
    assert len(events) == 100 and not refused and len({e.event_id for e in events}) == 100
    again, _ = shop.traffic(400, 100, 1, NOW)
    other, _ = shop.traffic(400, 100, 2, NOW)
    assert shots == again and shots != other
    visits = [msgspec.json.decode(s.body)["items"] for s in shop.visits(50, 1)]
    log = " ".join(map(master_id, shop.clicks.tolist()))
    assert all(" ".join(clicks) in log for clicks in visits) and {len(clicks) for clicks in visits} >= {
        1,
        2,
        3,
    }
    touched = shop.touched(asked[:1])
    assert set(shop.views(np.array([int(requests[0].user_id[1:])]))[0].tolist()) <= touched


def test_every_category_has_its_lists(shop: ShopSet) -> None:
    shared = list(shop.shared(NOW))
    lists = [u for u in shared if isinstance(u, RankedList)]
    assert len([u for u in shared if isinstance(u, Promo)]) == 100
    assert sorted((u.kind, u.id) for u in lists) == sorted(
        (kind, category_id(c)) for kind in ("cat:bestsellers", "cat:co_view") for c in range(20)
    )
    sold = next(u for u in lists if u.kind == "cat:bestsellers")
    assert all(category_id(shop.ring.category_of[int(m[1:])]) == sold.id for m, _ in sold.items)
    counts = [(shop.clicks == int(m[1:])).sum() for m, _ in sold.items]
    assert counts == sorted(counts, reverse=True)


def script(name: str, *words: str) -> "subprocess.CompletedProcess[str]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VOXREC_")}
    command = [sys.executable, str(ROOT / "load_tests" / name), *words]
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=60)


@pytest.mark.redis
def test_redis_holds_it_and_live_updates_reach_it(shop: ShopSet, redis_server: "RedisServer") -> None:
    import redis
    from shop_fill import histories

    where = ("--redis-url", redis_server.url)
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        client.flushall()
        done = script("shop_fill.py", str(shop.home), *where)
        assert done.returncode == 0, done.stderr
        assert msgspec.json.decode(done.stdout)["all_bytes"] > 0
        user = user_id(2999)
        views, seen = histories(shop, np.arange(2000, 3000), 0).views
        newest = client.zrevrange(f"user:views:{{{user}}}", 0, 0)
        assert newest == [master_id(views[999][np.argmax(seen[999])])]
        assert 0 < client.ttl(f"user:views:{{{user}}}") <= 30 * 86_400
        assert client.zcard("cat:bestsellers:c00000") and client.zcard("cat:co_view:c00000")
        before = client.config_resetstat() and client.dbsize()
        done = script("live_updates.py", str(shop.home), *where, "--rate", "200", "--seconds", "2")
        assert done.returncode == 0, done.stderr
        ready, said = done.stdout.splitlines()
        told = msgspec.json.decode(said)
        assert ready == "ready"
        assert 300 <= told["updates"] <= 400 and told["written"] > 0
        assert client.info("commandstats")["cmdstat_publish"]["calls"] > 0
        assert client.dbsize() >= before
        client.flushall()


@pytest.mark.redis
@compiled
def test_the_benchmarks_rig_serves_the_set_and_ends_what_it_began(shop: ShopSet) -> None:
    import naive
    import psutil
    import rig

    shots, names = shop.traffic(60, 10, 1, time.time_ns() // 1_000_000)
    asked = [shot for shot, name in zip(shots, names, strict=True) if name != "view"][:5]
    with rig.redis_with(shop) as redis:
        with rig.voxrec(shop, redis, 2, recs_deadline_ms="10000") as server:
            assert len(server.workers) == 2 and server.jobs
            with (
                rig.updating(shop, redis, 50, 2, 0) as updates,
                rig.watching(workers=server.workers) as usage,
            ):
                run = fire(server.url, shots, 35, 2, connections=8)
            everybody = [server.process, *server.workers, *server.jobs]
        assert run.ok.all(), run.outcomes()
        assert updates[0].written > 0
        assert usage.cpu_s["workers"] > 0 and 0 < usage.busy <= 1
        reader = SnapshotReader(shop.home / "snapshots")
        catalog = catalog_in(reader.current("catalog"))
        near = semantic_relations(reader.current("semantic"), catalog)
        assert naive.fill(redis.url, catalog, near, shop.touched(asked)) > len(shop.touched(asked))
        with rig.naive(redis, shop.home / "naive.txt") as reference:
            plain = fire(reference.url, asked, 5, 1, connections=2)
            everybody.append(reference.process)
        assert plain.ok.all(), plain.outcomes()
        everybody.append(redis.process)
    assert not psutil.wait_procs(everybody, timeout=10)[1]  # Python's resource tracker ends a moment later
    with rig.redis_with(shop) as redis:  # from its dump
        assert rig.Redis.from_url(redis.url).zcard("cat:bestsellers:c00000") > 0


@pytest.mark.redis
def test_a_redis_that_is_not_empty_is_told(shop: ShopSet, redis_server: "RedisServer") -> None:
    import redis

    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.set("user:views:{u0000000}", "a foreign value")
        done = script("shop_fill.py", str(shop.home), "--redis-url", redis_server.url)
        client.flushall()
    assert done.returncode == 1
    assert "Redis took" in done.stderr
