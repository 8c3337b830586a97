"""The batch jobs: in parts as in full, killed and begun again, two at once, and over what they cannot use."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from voxrec.errors import DataError, InputError, NotFound, Unavailable
from voxrec.jobs import batch
from voxrec.jobs.batch import (
    NOBODY,
    SessionsConfig,
    build_catalog,
    build_semantic,
    build_sessions,
    build_sessions_of,
    catalog_for,
    sit,
)
from voxrec.recs.catalog import Catalog, product_at
from voxrec.recs.catalog_store import current_catalog
from voxrec.recs.evaluate import Session
from voxrec.recs.events import EVENTS, Event, Offer, Product, encode_event, key_of, topic_of
from voxrec.recs.relations import SnapshotStore, fits
from voxrec.recs.semantic_jobs import SemanticConfig, semantic_full
from voxrec.recs.sessions import build, from_arrays
from voxrec.recs.shop import make_products
from voxrec.stores.kafka import FileLog

MINUTE, START = 60_000, 1_767_225_600_000
SHOP = make_products(seed=2, n_masters=40)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots", keep=9)


@pytest.fixture
def log(tmp_path: Path) -> Iterable[FileLog]:
    events = FileLog(tmp_path / "log")
    yield events
    events.close()


def say(log: FileLog, events: Iterable[Event]) -> None:
    for event in events:
        log.append(topic_of(event), key_of(event), encode_event(event))


def views(rng: np.random.Generator, n: int, late_ms: int = 0) -> list[Event]:
    "A few users, some with sessions, some in the middle of the night, each product and some unknown ones."
    ts = START + np.cumsum(rng.integers(0, 20 * MINUTE, n)) - rng.integers(0, late_ms + 1, n)
    found = []
    for i, at in enumerate(ts.tolist()):
        user, item = int(rng.integers(6)), int(rng.integers(len(SHOP) + 2))
        master = SHOP[item].master_id if item < len(SHOP) else "unknown"
        session = f"s{user}-{i // 9}" if rng.integers(2) else None
        found.append(
            Event(
                event_id=f"e{i}", type="view", ts=at, user_id=f"u{user}", session_id=session, master_id=master
            )
        )
    return found


def same(store: SnapshotStore, one: int, other: int) -> bool:
    a, b = (store.open("sessions", version, verify=True).arrays for version in (one, other))
    return set(a) == set(b) and all(np.array_equal(a[name], b[name]) for name in a)


# ---- sessions, in parts as in full


@pytest.mark.parametrize("seed", range(12))
def test_a_log_read_in_parts_is_the_log_read_whole(store: SnapshotStore, log: FileLog, seed: int) -> None:
    "Views up to an hour late, other events between them, a catalogue that grows, parts of any size."
    rng = np.random.default_rng(seed)
    events, catalog = views(rng, 300, late_ms=5 * MINUTE), Catalog(SHOP[:30])
    config = SessionsConfig(m=5, days=2)
    say(log, events[:20])
    with patch.object(batch, "BLOCK", 17), patch.object(batch, "PART", 29):
        version = build_sessions(store, Catalog(SHOP), log, config).version
        first = 20
        while first < len(events):
            last = first + int(rng.integers(1, 120))
            say(log, [replace(events[first], event_id="cart", type="cart"), *events[first:last]])
            version, first = build_sessions(store, Catalog(SHOP), log, since=True).version, last
    whole = build_sessions(store, Catalog(SHOP), log, config)
    assert whole.sessions and same(store, version, whole.version)
    assert whole.unknown == sum(e.master_id == "unknown" for e in events) and whole.views == len(events)
    index = from_arrays(store.current("sessions").arrays)
    newest = max(e.ts for e in events)
    assert (np.diff(index.session_start) > 1).all() and index.last_ms.min() >= newest - 2 * 86_400_000
    assert index.n_items == len(SHOP) and len(catalog) == 30


def plain_sittings(clicks: list[tuple[int, int]], gap: int) -> list[int]:
    "Which clicks share a sitting, by numbers: one user's after the other, in the order of time."
    number, last = list(range(len(clicks))), dict[int, int]()
    for i in sorted(range(len(clicks)), key=lambda i: (clicks[i], i)):
        who, ms = clicks[i]
        if who in last and ms - clicks[last[who]][1] <= gap:
            number[i] = number[last[who]]
        last[who] = i
    return number


@pytest.mark.parametrize("seed", range(30))
def test_sittings_are_those_of_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 60))
    who, ms = rng.integers(0, 4, n).astype(np.uint64), np.sort(rng.integers(0, 3000, n))
    cut = int(rng.integers(0, n + 1))
    early, going = sit(who[:cut], ms[:cut], NOBODY, 50)
    late, _ = sit(who[cut:], ms[cut:], going, 50)
    got, wanted = [*early, *late], plain_sittings(list(zip(who.tolist(), ms.tolist(), strict=True)), 50)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    assert [got[i] == got[j] for i, j in pairs] == [wanted[i] == wanted[j] for i, j in pairs]


def test_a_session_of_one_product_waits_a_day_for_the_second(store: SnapshotStore, log: FileLog) -> None:
    def view(n: int, session: str, minute: int) -> Event:
        return Event(event_id=f"{session}{n}", type="view", ts=START + minute * MINUTE, user_id="u",
                     session_id=session, master_id=SHOP[n].master_id)  # fmt: skip

    catalog = Catalog(SHOP)
    say(log, [view(0, "soon", 0), view(0, "late", 0), view(3, "twice", 1), view(3, "twice", 2)])
    first = build_sessions(store, catalog, log)
    assert (first.sessions, first.waiting) == (0, 4)
    say(log, [view(1, "soon", 60)])
    assert build_sessions(store, catalog, log, since=True).sessions == 1
    say(log, [view(5, "other", 3 * 1440), view(1, "late", 3 * 1440)])
    last = build_sessions(store, catalog, log, since=True)
    assert (last.sessions, last.waiting) == (1, 2)


def test_a_file_gives_the_index_of_its_clicks(store: SnapshotStore) -> None:
    catalog, rng = Catalog(SHOP), np.random.default_rng(4)
    sessions = [
        Session(f"s{i}", tuple(SHOP[j].master_id for j in rng.permutation(40)[:4]), (i, i + 1, i + 2, i + 3))
        for i in range(50)
    ]
    done = build_sessions_of(store, catalog, [*sessions, Session("x", ("gone", SHOP[0].master_id), (7, 8))])
    assert (done.sessions, done.views, done.unknown) == (50, 202, 1)
    got = from_arrays(store.current("sessions").arrays)
    rows = [(i, catalog.index[m], i + j) for i, s in enumerate(sessions) for j, m in enumerate(s.items)]
    wanted = build(*np.array(rows).T, n_items=40)
    for name in ("last_ms", "session_start", "session_items", "item_start", "item_sessions", "item_counts"):
        assert np.array_equal(getattr(got, name), getattr(wanted, name)), name
    with pytest.raises(InputError, match="none of 2 clicks"):
        build_sessions_of(store, catalog, [Session("x", ("a", "b"), (1, 2))])


# ---- broken off


class Stop(BaseException):
    pass


@pytest.mark.parametrize("since", [False, True])
@pytest.mark.parametrize("after", [1, 3, 6, 7])
def test_a_broken_job_reads_on_where_it_was(
    store: SnapshotStore, log: FileLog, since: bool, after: int
) -> None:
    catalog, events = Catalog(SHOP), views(np.random.default_rng(1), 100)
    say(log, events[:30])
    build_sessions(store, catalog, log)
    say(log, events[30:])
    told: list[tuple[str, int, int]] = []

    def breaks(*so: Any) -> None:
        told.append(so)
        if len(told) == after:
            raise Stop

    with patch.object(batch, "BLOCK", 16), patch.object(batch, "PART", 40):
        with pytest.raises(Stop):
            build_sessions(store, catalog, log, since=since, progress=breaks)
        assert store.current_version("sessions") == 1
        with patch.object(batch, "decode_event", wraps=batch.decode_event) as decoded:
            done = build_sessions(store, catalog, log, since=since)
    read = 16 * sum(what == "views" for what, *_ in told)
    assert decoded.call_count == max(0, (70 if since else 100) - read)
    assert done.views == (70 if since else 100)
    assert same(store, done.version, build_sessions(store, catalog, log).version)
    assert not (store.folder / "session_clicks" / "building" / "blocks.json").exists()


KILLED = """
import os, signal, sys
from voxrec.jobs import batch
from voxrec.recs.catalog import Catalog
from voxrec.recs.semantic_jobs import SemanticConfig, semantic_full
from voxrec.recs.shop import make_products

def die(what, done, of):
    if (what, done) == ("search", int(sys.argv[2])):
        os.kill(os.getpid(), signal.SIGKILL)

store, catalog = batch.SnapshotStore(sys.argv[1]), Catalog(make_products(seed=2, n_masters=900))
semantic_full(store, catalog, SemanticConfig(top=20), block=64, progress=die)
"""


def test_kill_9_in_the_middle_and_again(store: SnapshotStore) -> None:
    def build(folder: Path, dies_at: int) -> int:  # with one thread: sums in another order are other sums
        words = [sys.executable, "-c", KILLED, str(folder), str(dies_at)]
        return subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode

    assert build(store.folder, 640) == -signal.SIGKILL and store.current_version("semantic") is None
    catalog, told = Catalog(make_products(seed=2, n_masters=900)), list[tuple[str, int, int]]()
    config = SemanticConfig(top=20)
    semantic_full(store, catalog, config, block=64, progress=lambda *so: told.append(so))
    assert told[0][0] == "search" and 640 <= told[0][1] <= 704  # told after the block was written
    resumed = store.current("semantic", verify=True)
    calm = SnapshotStore(store.folder / "calm")
    assert build(calm.folder, -1) == 0
    for name, array in calm.current("semantic").arrays.items():
        assert np.array_equal(array, resumed[name]), name


def test_two_at_once_is_told(store: SnapshotStore, log: FileLog) -> None:
    catalog = Catalog(SHOP)
    say(log, views(np.random.default_rng(0), 9))
    jobs: dict[str, Callable[[], Any]] = {
        "catalog": lambda: build_catalog(store, Catalog(SHOP), log),
        "semantic": lambda: build_semantic(store, catalog),
        "session_clicks": lambda: build_sessions(store, catalog, log),
    }
    for kind, job in jobs.items():
        with store.build(kind), pytest.raises(Unavailable, match="another process is writing"):
            job()
        assert job().version == 1


# ---- what cannot be gone on from


def test_since_what(store: SnapshotStore, log: FileLog, tmp_path: Path) -> None:
    catalog = Catalog(SHOP)
    with pytest.raises(NotFound, match="no snapshot of 'sessions'"):
        build_sessions(store, catalog, log, since=True)
    say(log, views(np.random.default_rng(0), 30))
    build_sessions(store, catalog, log)
    with pytest.raises(DataError, match="another catalogue"):
        build_sessions(store, Catalog(SHOP[::-1]), log, since=True)
    other = FileLog(tmp_path / "other")
    say(other, views(np.random.default_rng(0), 3))
    with pytest.raises(DataError, match="the log has 3 events, of which 30"):
        build_sessions(store, catalog, other, since=True)
    other.close()
    torn = store.current("sessions").folder / "going_who.npy"
    torn.chmod(0o644)
    os.truncate(torn, 100)
    with pytest.raises(DataError) as e:
        build_sessions(store, catalog, log, since=True)
    assert "rollback" in e.value.hint or "anew" in e.value.hint
    assert build_sessions(store, catalog, log).version == 2  # in full, from the log, it mends itself


def test_what_cannot_be_read_is_counted_and_told(
    store: SnapshotStore, log: FileLog, caplog: pytest.LogCaptureFixture
) -> None:
    say(log, views(np.random.default_rng(0), 30))
    log.append(EVENTS, "u", b"no event")
    assert build_sessions(store, Catalog(SHOP), log).broken == 1
    assert "not read" in caplog.text


def test_an_empty_log_is_an_index_of_nothing(store: SnapshotStore, log: FileLog) -> None:
    catalog = Catalog(SHOP)
    assert build_sessions(store, catalog, log).sessions == 0
    assert not build_sessions(store, catalog, log, since=True).published
    say(log, views(np.random.default_rng(0), 60))
    assert build_sessions(store, catalog, log, since=True).sessions > 0


def test_who_wants_to_be_forgotten_is(store: SnapshotStore, log: FileLog) -> None:
    "Before and after the purge alike; what they do later counts again."
    events = views(np.random.default_rng(3), 120)
    say(log, events[:80])
    log.append(EVENTS, "u3", b"")
    say(log, events[80:])
    done = build_sessions(store, Catalog(SHOP), log)
    assert done.views == 120 and done.broken == 0
    log.purge(EVENTS, lambda record: record.key == "u3" and record.offset <= 80)
    assert same(store, done.version, build_sessions(store, Catalog(SHOP), log).version)
    kept = [e for i, e in enumerate(events) if i >= 80 or e.user_id != "u3"]
    other = FileLog(store.folder / "other")
    say(other, kept)
    assert same(store, done.version, build_sessions(store, Catalog(SHOP), other).version)
    other.close()


# ---- the catalogue


def product_event(n: int, product: Product) -> Event:
    return Event(event_id=f"p{n}", type="catalog", ts=START + n, product=product)


@pytest.mark.parametrize("seed", range(10))
def test_a_catalogue_in_versions_keeps_numbers_and_says_what_is_true(
    store: SnapshotStore, log: FileLog, seed: int
) -> None:
    "Products come, change, and go in file and log; after each build the snapshot is shop, then log."
    rng = np.random.default_rng(seed)
    numbers: dict[str, int] = {}
    told: dict[str, Product] = {}
    for step in range(6):
        shop = {SHOP[i].master_id: SHOP[i] for i in rng.permutation(40)[: rng.integers(1, 40)]}
        if rng.integers(2):
            p = SHOP[int(rng.integers(40))]
            told[p.master_id] = replace(p, title=f"{p.title} {step}")
            say(log, [product_event(step, told[p.master_id])])
        done = build_catalog(store, Catalog(shop.values()), log)
        now, wanted = current_catalog(store), shop | told
        assert done.masters == len(now) and done.version == store.current_version("catalog")
        for master_id, number in now.index.items():
            assert numbers.setdefault(master_id, number) == number
            said = product_at(now, number)
            if master_id in wanted:
                assert said == product_at(Catalog([wanted[master_id]]), 0)
            else:
                assert not said.offers
        assert set(wanted) <= set(now.index)
        again = build_catalog(store, Catalog(shop.values()), log)
        assert not again.published and (again.added, again.changed, again.gone) == (0, 0, 0)


def test_events_that_do_not_apply_are_counted(store: SnapshotStore, log: FileLog) -> None:
    stolen = Product("thief", "Thief", "c", (Offer(SHOP[0].offers[0].pid, "Us", 1.0, 4.0, 1),))
    say(log, [product_event(1, stolen), Event(event_id="x", type="catalog", ts=START, pid="?", price=2.0)])
    log.append("shop.catalog", "x", b"{}")
    done = build_catalog(store, Catalog(SHOP), log)
    assert done.unused >= 2 and done.masters >= 40
    pids = [offer.pid for i in range(done.masters) for offer in product_at(current_catalog(store), i).offers]
    assert len(pids) == len(set(pids))


def test_no_products_is_refused_and_the_shop_stays_open(store: SnapshotStore, log: FileLog) -> None:
    build_catalog(store, Catalog(SHOP), log)
    with pytest.raises(InputError, match="no products"):
        build_catalog(store, Catalog([]), log)
    assert len(current_catalog(store)) == 40


def test_the_first_job_publishes_the_catalogue(store: SnapshotStore, log: FileLog) -> None:
    assert len(catalog_for(store, lambda: Catalog(SHOP), log)) == 40
    with patch.object(batch, "build_catalog", side_effect=AssertionError("there was one")):
        catalog = catalog_for(store, lambda: Catalog([]), log)
    build_semantic(store, catalog, SemanticConfig(top=5))
    assert fits(store.current("semantic"), current_catalog(store)) == 40
    assert msgspec.json.encode(store.current("semantic").meta)
