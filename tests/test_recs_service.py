"""The recommendation service as it is deployed: two workers and a job on a real Redis, which then suffers."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from conftest import RedisServer

from voxrec.jobs.batch import build_semantic
from voxrec.recs.catalog_store import current_catalog, publish_catalog
from voxrec.recs.events import EVENTS, PROMOS, encode_event
from voxrec.recs.relations import SnapshotStore
from voxrec.recs.semantic_jobs import SemanticConfig
from voxrec.recs.shop import make_products, simulate
from voxrec.stores.kafka import FileLog

pytestmark = pytest.mark.redis
PRODUCTS = make_products(seed=1, n_masters=400, n_categories=12)
KEY = "0123456789abcdef"
VOXREC = str(Path(sys.executable).with_name("voxrec"))


def until(what: Callable[[], Any], patience_s: float = 20) -> Any:
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)
    return found


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class Shop:
    "The service's processes, and a client."

    def __init__(self, home: Path, redis: RedisServer, **settings: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.home, self.redis = f"http://127.0.0.1:{self.port}", home, redis
        given = {"home": str(home), "redis_url": redis.url, "log_format": "json"} | settings
        env = os.environ | {f"VOXREC_{name.upper()}": value for name, value in given.items()}
        self.log = (home / "service.log").open("w")
        command = [
            VOXREC,
            "serve",
            "recs",
            "--port",
            str(self.port),
            "--workers",
            "2",
        ]
        self.parent = subprocess.Popen(command, env=env, stderr=self.log)
        self.http = httpx.Client(base_url=self.url, timeout=10)

    def is_ready(self) -> bool:
        try:
            return self.http.get("/ready").status_code == 200
        except httpx.TransportError:
            assert self.parent.poll() is None, (self.home / "service.log").read_text()
            return False

    def ask(self, **request: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/recommendations", json={"user_id": "zoe", "k": 10} | request)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def fresh(self, **request: Any) -> dict[str, Any]:
        "The same on a connection of its own, which either worker may have."
        self.http.close()
        self.http = httpx.Client(base_url=self.url, timeout=10)
        return self.ask(**request)

    def everywhere(self, **request: Any) -> Iterator[dict[str, Any]]:
        "The same on so many connections that both workers answer (but once in 32,768 times)."
        return (self.fresh(**request) for _ in range(16))

    def send(self, *events: dict[str, Any]) -> None:
        base = {"ts": wall_ms()}
        made = [{"event_id": os.urandom(8).hex()} | base | event for event in events]
        receipt = self.http.post("/v1/events", json=made)
        assert receipt.status_code == 202 and receipt.json() == {"accepted": len(events), "refused": []}

    def stop(self) -> int:
        self.http.close()
        self.parent.send_signal(signal.SIGTERM)
        try:
            return self.parent.wait(30)
        finally:
            self.parent.kill()
            self.log.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Two days of a shop's life in the log, and its snapshots."
    home = tmp_path_factory.mktemp("shop")
    events = FileLog(home / "log")
    for event in simulate(PRODUCTS, seed=1, n_users=60, days=2, end_ms=wall_ms()):
        topic, key = (PROMOS, event.pid) if event.type == "promo" else (EVENTS, event.user_id)
        events.append(topic, key or "", encode_event(event))
    events.close()
    store = SnapshotStore(home / "snapshots")
    publish_catalog(store, PRODUCTS)
    build_semantic(store, current_catalog(store))
    return home


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on the PATH (Debian: apt-get install redis-server)")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def shop(home: Path, redis: RedisServer, tmp_path: Path) -> Iterator[Shop]:
    mine = tmp_path / "home"
    shutil.copytree(home, mine)
    shop = Shop(mine, redis, recs_arm="seed")
    try:
        until(shop.is_ready, 60)
        until(lambda: not any(a["degraded"] for a in shop.everywhere()))
        yield shop
    finally:
        code = shop.stop()
    assert code == 0, (mine / "service.log").read_text()


def test_what_a_shop_does_in_a_day(shop: Shop) -> None:
    "Events, promotions, products show in both workers' answers; no doubles; a person is forgotten."
    assert not shop.ask(user_id="stranger")["degraded"]
    seen = PRODUCTS[7]
    shop.send({"type": "view", "user_id": "zoe", "master_id": seen.master_id})

    def know_zoe() -> Iterator[bool]:
        for answer in shop.everywhere(widget="homepage"):
            yield any(part["name"] == "semantic" for item in answer["items"] for part in item["sources"])

    until(lambda: any(know_zoe()))
    assert all(know_zoe())

    last = shop.ask()["items"][-1]
    shop.send({"type": "promo", "pid": last["pid"], "props": {"flash_sale": True}})
    until(lambda: all(a["items"][0]["rules"] == ["flash sale +2.0"] for a in shop.everywhere()))

    offer = {"pid": "lamp-1", "seller": "ours", "price": 9.5, "rating": 5, "stock": 3}
    lamp = {"master_id": "lamp", "title": "A lamp", "category_id": "lamps-of-brass", "offers": [offer]}
    assert shop.http.put("/v1/products/lamp", json=lamp).status_code == 202
    until(lambda: shop.http.get("/v1/products/lamp").status_code == 200)
    on_page = {"user_id": "stranger", "category_id": "lamps-of-brass", "k": 50}
    until(lambda: "lamp-1" in [item["pid"] for item in shop.fresh(**on_page)["items"]])
    shop.send({"type": "catalog", "pid": "lamp-1", "price": 7.5})
    until(lambda: shop.http.get("/v1/products/lamp").json()["offers"][0]["price"] == 7.5)

    asked = [{"user_id": "zoe", "widget": w, "k": 8} for w in ("homepage", "sponsored", "cart")]
    answers = shop.http.post("/v1/recommendations:batch", json={"requests": asked}).json()["answers"]
    masters = [item["master_id"] for answer in answers for item in answer["items"]]
    assert len(masters) == len(set(masters)) == 24

    assert shop.http.delete("/v1/users/zoe").status_code == 202
    until(lambda: not any(know_zoe()))
    log = shop.home / "log"
    until(lambda: b'"zoe"' not in b"".join(f.read_bytes() for f in log.iterdir() if f.is_file()), 60)


def test_redis_paused_killed_and_back(shop: Shop) -> None:
    "No request fails; answers say what they lack; all is well again without a restart."
    shop.send({"type": "view", "user_id": "zoe", "master_id": PRODUCTS[7].master_id})
    until(lambda: any(p["name"] == "semantic" for i in shop.fresh()["items"] for p in i["sources"]))

    shop.redis.pause()
    try:
        began = time.monotonic()
        paused = [shop.ask() for _ in range(20)]
        assert time.monotonic() - began < 5
        assert all("history" in answer["degraded"] and answer["items"] for answer in paused)
        shop.send({"type": "view", "user_id": "ann", "master_id": PRODUCTS[9].master_id})
    finally:
        shop.redis.resume()
    until(lambda: not any(a["degraded"] for a in shop.everywhere()))

    shop.redis.kill()
    killed = until(lambda: {"history", "live"} <= set((answer := shop.fresh())["degraded"]) and answer)
    assert killed["items"] and shop.is_ready()
    shop.send({"type": "view", "user_id": "bob", "master_id": PRODUCTS[11].master_id})
    shop.redis.start()  # empty
    until(lambda: not any(a["degraded"] for a in shop.everywhere()), 40)
    for user in "zoe", "ann", "bob":  # what the lost memory held is written again, and what came meanwhile
        until(
            lambda user=user: any(
                p["name"] == "semantic" for i in shop.fresh(user_id=user)["items"] for p in i["sources"]
            ),
            40,
        )


def test_a_redis_that_is_full(shop: Shop) -> None:
    "Reading goes on; what cannot be written waits in the log, and is written when there is room."
    import redis as client

    with client.Redis.from_url(shop.redis.url) as admin:
        admin.config_set("maxmemory", "1")
        shop.send({"type": "view", "user_id": "zoe", "master_id": PRODUCTS[7].master_id})
        full = until(lambda: (answer := shop.fresh())["degraded"] and answer)
        assert full["items"] and full["degraded"] == ["live"]
        admin.config_set("maxmemory", "0")
    until(lambda: not any(a["degraded"] for a in shop.everywhere()))
    until(lambda: any(p["name"] == "semantic" for i in shop.fresh()["items"] for p in i["sources"]), 40)


def test_a_process_that_hangs_or_dies(shop: Shop) -> None:
    "A writer that hangs is told in the answers; it, and a worker, are replaced; nothing is lost."
    children = psutil.Process(shop.parent.pid).children()

    def listening() -> list[psutil.Process]:
        return [c for c in children if any(x.status == psutil.CONN_LISTEN for x in c.net_connections("tcp"))]

    until(lambda: len(listening()) == 2, 40)  # one is ready before the other
    takes = listening()
    [writer] = [c for c in children if c not in takes and "resource_tracker" not in " ".join(c.cmdline())]

    takes[0].kill()
    began = time.monotonic()
    for _ in range(20):
        try:
            assert shop.fresh()["items"]
        except httpx.TransportError:  # it was in that one's queue when it ended
            continue
    assert time.monotonic() - began < 5

    writer.suspend()
    shop.send({"type": "view", "user_id": "zoe", "master_id": PRODUCTS[7].master_id})
    until(lambda: "live" in shop.fresh()["degraded"])
    until(lambda: not writer.is_running() or writer.status() == psutil.STATUS_ZOMBIE)
    until(lambda: not any(a["degraded"] for a in shop.everywhere()), 40)
    until(lambda: any(p["name"] == "semantic" for i in shop.fresh()["items"] for p in i["sources"]), 40)


def test_snapshots_are_swapped_and_refused_under_requests(shop: Shop) -> None:
    store = SnapshotStore(shop.home / "snapshots")
    catalog = current_catalog(store)
    assert shop.ask()["model"] == "semantic-1"
    with ThreadPoolExecutor(4) as pool:
        going = [pool.submit(lambda: [shop.ask() for _ in range(200)]) for _ in range(4)]
        build_semantic(store, catalog, SemanticConfig(top=50))
        assert all(len(done.result()) == 200 for done in going)  # `ask` refuses any failure
    until(lambda: all(a["model"] == "semantic-2" for a in shop.everywhere()))
    build_semantic(store, catalog, SemanticConfig(top=20))
    until(lambda: shop.fresh()["model"] == "semantic-3")
    store.rollback("semantic")
    until(lambda: all(a["model"] == "semantic-2" for a in shop.everywhere()))
    other = SnapshotStore(shop.home / "other")
    strange = [msgspec.structs.replace(p, master_id=f"x-{p.master_id}") for p in PRODUCTS[:50]]
    publish_catalog(other, strange)
    build_semantic(other, current_catalog(other))
    foreign = other.current("semantic")
    store.publish("semantic", foreign.arrays, foreign.meta)
    time.sleep(2.5)
    assert all(a["model"] == "semantic-2" for a in shop.everywhere())


def test_hostile_clients_harm_nobody(shop: Shop) -> None:
    "Garbage, silence and floods on the side; honest requests are answered all the while."
    garbage = (
        b"\x00" * 4096,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    )
    silent = [socket.create_connection(("127.0.0.1", shop.port)) for _ in range(200)]
    for raw in garbage:
        with socket.create_connection(("127.0.0.1", shop.port)) as s:
            s.sendall(raw)
    slow = socket.create_connection(("127.0.0.1", shop.port))
    slow.sendall(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n[")
    bodies: list[Any] = [
        {"user_id": "x" * 65}, {"user_id": "zoe", "k": 0}, {"user_id": "zoe", "exclude": ["m"] * 1001},
        {"user_id": ""}, {"user_id": "zoe", "widget": "footer"}, [], None, "zoe", {"user_id": {"$gt": ""}},
    ]  # fmt: skip
    for body in bodies:
        answer = shop.http.post("/v1/recommendations", json=body)
        assert answer.status_code == 400 and answer.json()["error"], (body, answer.text)
    deep = shop.http.post("/v1/recommendations", content=b'{"user_id":' + b"[" * 100_000)
    assert deep.status_code == 400
    large = shop.http.post("/v1/recommendations", content=b" " * (2 << 20))
    assert large.status_code == 413
    for path in "/v1/related/../../etc/passwd", "/v1/related/" + "x" * 5000, "/v1/bestsellers/%00":
        assert shop.http.get(path).status_code in (400, 404)
    assert len(shop.ask()["items"]) == 10
    for s in (*silent, slow):
        s.close()


def test_more_than_it_can_take_is_refused_at_once(home: Path, redis: RedisServer, tmp_path: Path) -> None:
    "A burst of forty where there is room for two: answers and 503s, nothing else. Keys are asked for."
    mine = tmp_path / "home"
    shutil.copytree(home, mine)
    (tmp_path / "keys").write_text(f"shop {KEY}\n")
    shop = Shop(mine, redis, recs_in_flight="1", api_keys=str(tmp_path / "keys"))
    me = {"Authorization": f"Bearer {KEY}"}
    try:
        until(shop.is_ready, 60)
        assert shop.http.post("/v1/recommendations", json={"user_id": "zoe"}).status_code == 401
        redis.pause()  # so that each answer takes its time
        with ThreadPoolExecutor(40) as pool:
            burst = pool.map(
                lambda _: httpx.post(
                    f"{shop.url}/v1/recommendations", json={"user_id": "zoe"}, headers=me, timeout=10
                ),
                range(40),
            )
            answers = list(burst)
        redis.resume()
        statuses = {answer.status_code for answer in answers}
        assert statuses == {200, 503}, statuses
        assert all(a.headers["Retry-After"] == "1" for a in answers if a.status_code == 503)
        until(
            lambda: (
                shop.http.post("/v1/recommendations", json={"user_id": "z"}, headers=me).status_code == 200
            )
        )
    finally:
        assert shop.stop() == 0


def test_several_workers_need_a_store(tmp_path: Path) -> None:
    command = [VOXREC, "serve", "recs", "--workers", "2", "--port", "0"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("VOXREC_")} | {
        "VOXREC_HOME": str(tmp_path)
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "VOXREC_REDIS_URL" in done.stderr and "Traceback" not in done.stderr
