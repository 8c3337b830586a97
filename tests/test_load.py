"""The load scenario of the recommendation service: what it sends, what it writes down, where it refuses to go."""

import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from voxrec.recs.candidates import Shopper
from voxrec.recs.catalog import Catalog, write_catalog
from voxrec.recs.shop import make_products
from voxrec.serve.recs_api import RecsService, recs_api
from voxrec.service import running
from voxrec.stores.kafka import FileLog
from voxrec.stores.redis import connect
from voxrec.telemetry import new_registry, sample

ROOT = Path(__file__).resolve().parent.parent
WIDGETS = {"related", "homepage", "cart"}
PRODUCTS = make_products(seed=1, n_masters=80, n_categories=8)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[RecsService, str]]:
    "A service with a small catalogue and no history, and its URL."
    catalog, log = Catalog(PRODUCTS), FileLog(tmp_path / "log")
    service = RecsService(catalog, log, connect(), new_registry("recs"))
    with running(recs_api(service)) as url:
        yield service, url


def locust(folder: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    "Run the scenario against `url` with the catalogue above; its samples go to `folder`/samples.csv."
    catalog = folder / "catalog.jsonl"
    write_catalog(PRODUCTS, catalog)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VOXREC_", "LOCUST_"))}
    scenario, samples = ROOT / "load_tests/recs.py", folder / "samples.csv"
    fixed = ["-f", scenario, "--headless", "--only-summary", "--host", url, "--samples", samples]
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


def test_samples_are_what_the_service_answered(tmp_path: Path, service: tuple[RecsService, str]) -> None:
    recs, url = service
    done = locust(tmp_path, url, "--rate", "20", "--users", "10", "--run-time", "3s")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = read_samples(tmp_path)
    assert {row["ok"] for row in rows} == {"1"}
    assert min(float(row["ms"]) for row in rows) > 0
    times = [float(row["second"]) for row in rows]
    assert max(times) - min(times) < 3
    names = Counter(row["name"] for row in rows)
    assert set(names) <= WIDGETS | {"view"}
    assert names["related"] and names["view"]
    assert len(rows) <= 10 * (1 + 3 * 2.5)  # a user sends once on its beat, 0.4 s, and so at most 8.5 times
    answered = sample(recs.registry, "voxrec_http_seconds_count", route="/v1/recommendations", status="200")
    assert answered == names.total() - names["view"]
    assert sample(recs.registry, "voxrec_events_accepted_total", type="view") == names["view"]


def test_a_degraded_answer_has_failed(
    tmp_path: Path, service: tuple[RecsService, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recs, url = service

    async def nothing(user_id: str) -> tuple[Shopper, list[str]]:
        return Shopper(user_id), ["history"]

    monkeypatch.setattr(recs, "shopper", nothing)
    done = locust(tmp_path, url, "--rate", "20", "--users", "10", "--run-time", "1s")
    assert done.returncode == 1
    assert {row["ok"] for row in read_samples(tmp_path) if row["name"] in WIDGETS} == {"0"}


def test_requests_that_nobody_answers_are_samples_too(tmp_path: Path) -> None:
    done = locust(tmp_path, "http://127.0.0.1:9", "--rate", "20", "--users", "10", "--run-time", "1s")
    assert done.returncode == 1
    assert {row["ok"] for row in read_samples(tmp_path)} == {"0"}


@pytest.mark.parametrize(
    ("url", "options", "told"),
    [
        ("http://192.0.2.1", (), "http://192.0.2.1 is not this machine"),
        ("http://localhost.example", (), "is not this machine"),
        ("http://127.0.0.1:9", ("--rate", "0"), "0 is not above 0"),
        ("http://127.0.0.1:9", ("--master",), "without master and workers"),
    ],
)
def test_refused_before_anything_is_sent(
    tmp_path: Path, url: str, options: tuple[str, ...], told: str
) -> None:
    done = locust(tmp_path, url, *options)
    assert done.returncode != 0
    assert told in done.stderr
    assert not (tmp_path / "samples.csv").exists()
