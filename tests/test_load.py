"The load scenario of the recommendation service: what it sends, what it writes down, where it will not go."

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from voxrec.recs.candidates import Request
from voxrec.recs.catalog import Catalog, write_catalog
from voxrec.recs.shop import make_products
from voxrec.serve.recs_api import RecsService, recs_api
from voxrec.service import Api, Route, running
from voxrec.stores.kafka import FileLog
from voxrec.stores.redis import connect
from voxrec.telemetry import new_registry, sample

ROOT = Path(__file__).resolve().parent.parent
WIDGETS = {"related", "homepage", "cart"}
PRODUCTS = make_products(seed=1, n_masters=80, n_categories=8)


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


def test_samples_are_what_the_service_answered(tmp_path: Path) -> None:
    registry = new_registry("recs")
    recs = RecsService(Catalog(PRODUCTS), FileLog(tmp_path / "log"), connect(), registry)
    with running(recs_api(recs)) as url:
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
    answered = sample(registry, "voxrec_http_seconds_count", route="/v1/recommendations", status="200")
    assert answered == names.total() - names["view"]
    assert sample(registry, "voxrec_events_accepted_total", type="view") == names["view"]


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
