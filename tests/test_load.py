"The load on the recommendation service: what is sent and when, what is written down, where it will not go."

import asyncio
import csv
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxrec.config import Settings
from voxrec.errors import ConfigError, DataError, InputError, Unavailable
from voxrec.recs.candidates import Request
from voxrec.recs.catalog import write_catalog
from voxrec.recs.events import encode_event, key_of, topic_of
from voxrec.recs.shop import make_products, simulate
from voxrec.serve.recs_api import open_recs
from voxrec.service import Api, Route, running
from voxrec.stores.kafka import FileLog
from voxrec.telemetry import new_registry, sample

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "load_tests"))

import open_loop  # noqa: E402
from open_loop import Shot, fire, read_shots, schedule, write_shots  # noqa: E402

compiled = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (Debian: gcc libc6-dev)")
WIDGETS = {"related", "homepage", "cart"}
PRODUCTS = make_products(seed=1, n_masters=80, n_categories=8)


def shop(folder: Path) -> Api:
    "The embedded service with a day of history, and with patience for a busy machine."
    write_catalog(PRODUCTS, folder / "catalog.jsonl")
    log = FileLog(folder / "home/log")
    for event in simulate(PRODUCTS, 0, n_users=20, days=1, end_ms=time.time_ns() // 1_000_000):
        log.append(topic_of(event), key_of(event), encode_event(event))
    log.close()
    settings = {"home": folder / "home", "catalog": str(folder / "catalog.jsonl")}
    return open_recs(Settings(**settings, recs_deadline_ms=5000))


def locust(folder: Path, url: str, *options: str, scenario: str = "recs") -> subprocess.CompletedProcess[str]:
    "Run the scenario against `url` with the catalogue above; its samples go to `folder`/samples.csv."
    catalog = folder / "catalog.jsonl"
    write_catalog(PRODUCTS, catalog)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VOXREC_", "LOCUST_"))}
    file, samples = ROOT / f"load_tests/{scenario}.py", folder / "samples.csv"
    fixed = ["-f", file, "--headless", "--only-summary", "--host", url, "--samples", samples]
    return subprocess.run(
        [sys.executable, "-m", "locust", *fixed, *options],
        env=clean | {"VOXREC_CATALOG": str(catalog)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def read_samples(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_samples_are_what_the_service_answered(tmp_path: Path) -> None:
    api = shop(tmp_path)
    with running(api) as url:
        done = locust(tmp_path, url, "--rate", "20", "--users", "10", "--run-time", "3s")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_samples(tmp_path)
    assert {row["ok"] for row in rows} == {"1"}
    assert min(float(row["ms"]) for row in rows) > 0
    names = Counter(row["name"] for row in rows)
    assert set(names) <= WIDGETS | {"view"}
    assert names["related"] and names["view"]
    times = [float(row["second"]) for row in rows]
    assert len(rows) <= 10 * ((max(times) - min(times)) / 0.4 + 2)  # ten users, each on a beat of 0.4 s
    answered = sample(api.registry, "voxrec_http_seconds_count", route="/v1/recommendations", status="200")
    assert answered == names.total() - names["view"]
    assert sample(api.registry, "voxrec_events_accepted_total", type="view") == names["view"]


def test_degraded_answers_and_error_statuses_have_failed(tmp_path: Path) -> None:
    async def degraded(body: Request) -> dict[str, Any]:
        return {"degraded": ["history"], "items": [{}]}

    route = Route(
        method="POST", path="/v1/recommendations", call=degraded, request=Request, summary="poor"
    )  # and no /v1/events
    with running(Api("poor", [route], new_registry("poor"))) as url:
        done = locust(tmp_path, url, "--rate", "50", "--users", "10", "--run-time", "1s")
    assert done.returncode == 1
    rows = read_samples(tmp_path)
    assert {row["ok"] for row in rows} == {"0"}
    assert {"related", "view"} <= {row["name"] for row in rows}


def test_requests_that_nobody_answers_are_samples_too(tmp_path: Path) -> None:
    done = locust(tmp_path, "http://127.0.0.1:9", "--rate", "20", "--users", "10", "--run-time", "1s")
    assert done.returncode == 1
    assert {row["ok"] for row in read_samples(tmp_path)} == {"0"}


def test_another_machine_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    done = locust(tmp_path, "http://localhost.example")
    assert done.returncode == 1
    assert "http://localhost.example is not this machine" in done.stderr
    assert not (tmp_path / "samples.csv").exists()


NAMES = {
    "homepage": {"homepage", "batch"},
    "flash_sale": {"related", "sponsored", "view", "promo"},
    "hot_keys": {"related", "homepage", "view"},
}


@pytest.mark.parametrize("scenario", NAMES)
def test_every_scenario_is_answered(tmp_path: Path, scenario: str) -> None:
    with running(shop(tmp_path)) as url:
        options = ("--rate", "40", "--users", "11", "--run-time", "3s")
        done = locust(tmp_path, url, *options, scenario=scenario)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_samples(tmp_path)
    assert {row["ok"] for row in rows} == {"1"}
    assert {row["name"] for row in rows} == NAMES[scenario]


GOOD = b'{"degraded":[],"items":[1]}'


class Answering(asyncio.Protocol):
    "A server made of one function: (requests so far, bytes of a request, transport) -> nothing."

    def __init__(self, answer: Callable[[int, bytes, asyncio.Transport], None], seen: list[bytes]):
        self.answer, self.seen = answer, seen

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.seen.append(data)
        self.answer(len(self.seen), data, self.transport)


def http(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


@contextmanager
def serving(answer: Callable[[int, bytes, asyncio.Transport], None]) -> Iterator[tuple[str, list[bytes]]]:
    "The URL of such a server, on a thread of its own, and what it was sent."
    seen: list[bytes] = []
    loop, started, port = asyncio.new_event_loop(), threading.Event(), 0

    async def live() -> None:
        nonlocal port
        server = await loop.create_server(lambda: Answering(answer, seen), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        started.set()
        async with server:
            await ended.wait()

    ended = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(live(),))
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{port}", seen
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(10)
        loop.close()


SHOT = Shot("POST", "/v1/recommendations", b'{"user_id":"u1"}')


@compiled
def test_a_stall_is_in_the_latency_of_all_that_came_due_in_it() -> None:
    held: list[asyncio.Transport] = []

    def stalling(n: int, data: bytes, transport: asyncio.Transport) -> None:
        held.append(transport)
        if n >= 30:  # thirty are under way before the first is answered: nobody waited to send
            while held:
                held.pop().write(http(GOOD))

    with serving(stalling) as (url, _):
        run = fire(url, [SHOT], 100, 0.5, arrivals="even", connections=40, timeout_s=20)
    assert run.ok.all() and len(run.ms) == 50
    assert run.ms[0] >= 285  # the thirtieth is due 290 ms after the first
    assert run.ms[0] > run.ms[14] > run.ms[28]


@compiled
def test_a_slow_server_does_not_slow_the_schedule() -> None:
    def slow(n: int, data: bytes, transport: asyncio.Transport) -> None:
        asyncio.get_running_loop().call_later(0.02, transport.write, http(GOOD))

    with serving(slow) as (url, _):
        run = fire(url, [SHOT], 200, 0.5, arrivals="even", connections=2, timeout_s=20)
    assert np.array_equal(run.records["due"], schedule(200, 0.5, "even", 0))
    assert run.ok.all()
    assert (
        run.ms[-1] >= 500
    )  # a hundred, two at a time, each 20 ms: a second, of which half was the schedule's
    assert run.wall_s >= 0.99
    assert run.late > 50


@compiled
def test_what_is_no_good_answer_has_failed() -> None:
    said = {
        b"/good": http(GOOD),
        b"/accepted": http(b"{}", b"202 Accepted"),
        b"/degraded": http(b'{"degraded":["history"],"items":[1]}'),
        b"/empty": http(b'{"degraded":[],"items":[]}'),
        b"/busy": http(b"{}", b"503 Service Unavailable"),
        b"/other": b"220 mail\r\n\r\n",
        b"/endless": b"HTTP/1.1 200 OK\r\n\r\n",
    }

    def answer(n: int, data: bytes, transport: asyncio.Transport) -> None:
        path = data.split(b" ", 2)[1]
        if path == b"/gone":
            transport.close()
        elif path != b"/silent":
            whole = said[path]
            transport.write(whole[:20])  # in two parts
            asyncio.get_running_loop().call_soon(transport.write, whole[20:])

    paths = [*(path.decode() for path in said), "/gone", "/silent"]
    with serving(answer) as (url, seen):
        run = fire(url, [Shot("GET", path) for path in paths], 180, 0.1, timeout_s=1)
    statuses = [200, 202, 200, 200, 503, -2, -2, -1, 0]
    assert run.records["status"].tolist() == statuses * 2
    assert run.ok.tolist() == ([True, True] + [False] * 7) * 2
    assert np.isinf(run.ms).tolist() == (~run.ok).tolist()
    assert run.broken == 8
    told = {"unanswered": 2, "connection broken": 2, "no HTTP answer": 4, "200": 6, "202": 2, "503": 2}
    assert run.outcomes() == told | {"degraded": 2, "empty": 2}
    assert all(path.encode() in b"".join(seen) for path in paths)


@compiled
def test_a_request_arrives_as_it_was_written(tmp_path: Path) -> None:
    shots = [SHOT, Shot("GET", "/v1/products"), Shot("DELETE", "/v1/users/a%20b")]
    write_shots(shots, tmp_path / "shots")
    assert read_shots(tmp_path / "shots") == shots
    with serving(lambda n, data, transport: transport.write(http(GOOD))) as (url, seen):
        run = fire(url, shots, 30, 0.1, connections=1, headers={"X-Api-Key": "k"})
        words = ["--url", url, "--requests", str(tmp_path / "shots"), "--rate", "30", "--seconds", "0.1"]
        assert open_loop.main([*words, "--out", str(tmp_path / "run.npz")]) == 0
    assert run.ok.all()
    host = url.removeprefix("http://").encode()
    assert seen[0] == (
        b"POST /v1/recommendations HTTP/1.1\r\nHost: " + host + b"\r\nContent-Type: application/json\r\n"
        b'Content-Length: 16\r\nX-Api-Key: k\r\n\r\n{"user_id":"u1"}'
    )
    assert [line.split(b" HTTP")[0] for line in seen[1:3]] == [b"GET /v1/products", b"DELETE /v1/users/a%20b"]
    assert len(np.load(tmp_path / "run.npz")["records"]) == 3


def test_poisson_arrivals_are_as_many_as_asked_for_and_differ_by_seed() -> None:
    due = schedule(1000, 20, "poisson", 1)
    assert len(due) == 20_000 and (np.diff(due) >= 0).all()
    assert due[0] >= 0 and due[-1] < 20e9
    gaps = np.diff(due) / 1e6
    assert abs(gaps.std() / gaps.mean() - 1) < 0.05  # exponential; of even arrivals it would be 0
    assert not np.array_equal(due, schedule(1000, 20, "poisson", 2))


def test_bad_input_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "shots"
    for text in ("", "GET /v1\n", "GET\tv1\n", "\t/v1\n"):
        file.write_text(text)
        with pytest.raises(DataError):
            read_shots(file)
    for bad in ((0, 1), (1, 0), (float("inf"), 1), (float("nan"), 1)):
        with pytest.raises(InputError):
            schedule(*bad, "even", 0)
    with pytest.raises(InputError, match="not this machine"):
        fire("http://localhost.example:80", [SHOT], 1, 1)
    with pytest.raises(InputError):
        fire("http://127.0.0.1:9", [], 1, 1)


@compiled
def test_where_nothing_listens_there_is_no_run() -> None:
    with pytest.raises(Unavailable, match="0 of 3 connections"):
        fire("http://127.0.0.1:9", [SHOT], 1, 1, connections=3, timeout_s=0.2)


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_loop, "SOURCE", Path(shutil.copy(open_loop.SOURCE, tmp_path)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no C compiler") as e:
        open_loop.program()
    assert "gcc" in (e.value.hint or "")
