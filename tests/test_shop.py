"The invented shop: the same everywhere, in order, let in at the door; the published one where it is."

import gzip
import hashlib
import os
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from voxrec.config import Settings
from voxrec.errors import ConfigError, DataError, InputError
from voxrec.recs.catalog import Catalog, static_order
from voxrec.recs.events import Event, Offer, Product, decode_events, encode_event
from voxrec.recs.shop import (
    AWS_RETAIL,
    END_MS,
    ONLINE_RETAIL,
    RETAIL_COLUMNS,
    load_aws_retail,
    load_online_retail,
    make_products,
    open_catalog,
    simulate,
)

DAY_MS = 24 * 3_600_000
DATA = os.environ.get("VOXREC_DATA")
AWS = Path(DATA or ".") / AWS_RETAIL
needs_aws = pytest.mark.skipif(
    not (DATA and AWS.is_dir()), reason=f"VOXREC_DATA with {AWS_RETAIL}/ is not set"
)


@pytest.fixture(scope="module")
def products() -> list[Product]:
    return make_products(seed=3, n_masters=400)


@pytest.fixture(scope="module")
def events(products: list[Product]) -> list[Event]:
    return simulate(products, seed=4, n_users=100, days=3)


def digest(products: list[Product], events: list[Event]) -> str:
    return hashlib.sha256(msgspec.json.encode([products, events])).hexdigest()


def test_same_seed_same_bytes_in_another_process(products, events):
    code = (
        "import test_shop as t; p = t.make_products(seed=3, n_masters=400);"
        "print(t.digest(p, t.simulate(p, seed=4, n_users=100, days=3)))"
    )
    for hash_seed in "1", "2":  # the order of sets must not leak in
        env = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parent)}
        out = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
        )
        assert out.stdout.strip() == digest(products, events), out.stderr


def test_events_are_ordered_unique_and_within_their_days(events):
    assert all(a.ts <= b.ts for a, b in pairwise(events))
    assert len({e.event_id for e in events}) == len(events)
    assert events[0].ts >= END_MS - 3 * DAY_MS and events[-1].ts <= END_MS


def test_every_event_passes_the_door(events):
    for i in range(0, len(events), 1000):
        chunk = events[i : i + 1000]
        body = b"[" + b",".join(map(encode_event, chunk)) + b"]"
        assert decode_events(body, now_ms=END_MS) == (chunk, [])


def test_events_speak_of_the_catalogue(products, events):
    catalog = Catalog(products)
    for e in events:
        if e.master_id:
            assert catalog.category(e.master_id) == e.category_id
        if e.type in ("cart", "order", "promo"):
            offer = catalog.pid_index[e.pid]
            assert catalog.stock[offer] > 0
            assert e.type == "promo" or e.price == catalog.price[offer]


def test_a_session_is_one_person_who_buys_what_was_in_the_cart(events):
    visits = defaultdict(list)
    for e in events:
        if e.session_id:
            visits[e.session_id].append(e)
    for visit in visits.values():
        assert len({e.user_id for e in visit}) == 1 and visit[0].type == "view"
        seen: dict[str, set[str]] = defaultdict(set)
        for e in visit:
            before = {"view": None, "cart": "view", "order": "cart"}[e.type]
            assert before is None or e.master_id in seen[before]
            assert e.type != "order" or e.master_id not in seen["order"]
            seen[e.type].add(e.master_id)


def test_every_kind_of_promotion_comes_in_the_last_hour(events):
    promos = [e for e in events if e.type == "promo"]
    assert {prop for e in promos for prop in e.props} == {
        "boost",
        "ad_bid",
        "flash_sale",
        "expiry",
        "out_of_stock",
    }
    assert all(END_MS - 3_600_000 <= e.ts < END_MS for e in promos)


@pytest.mark.parametrize(("masters", "categories"), [(1, 1), (7, 3), (40, 40), (2, 40)])
def test_any_size_of_shop(masters, categories):
    products = make_products(1, masters, categories)
    assert len(products) == masters == len({p.title for p in products})
    assert len({p.category_id for p in products}) == min(masters, categories)
    simulate(products, seed=1, n_users=3, days=1)


def test_shops_that_cannot_be(products):
    for masters, categories in [(0, 40), (10, 0), (10, 41), (-1, 1)]:
        with pytest.raises(InputError):
            make_products(0, masters, categories)
    for users, days in [(0, 1), (1, 0), (-1, -1)]:
        with pytest.raises(InputError):
            simulate(products, 0, n_users=users, days=days)
    with pytest.raises(InputError):
        simulate([], 0)


def test_nothing_is_sold_where_nothing_is_in_stock():
    empty = [Product(f"M{i}", f"Thing {i}", "things", (Offer(f"P{i}", "x", 5.0, 4.0, 0),)) for i in range(5)]
    assert {e.type for e in simulate(empty, 0, n_users=20, days=2)} == {"view"}


def test_prices_and_ratings_look_like_a_shop(products):
    offers = [o for p in products for o in p.offers]
    assert all(round(o.price * 100) % 50 == 49 for o in offers)
    assert 0.04 < sum(o.stock == 0 for o in offers) / len(offers) < 0.14
    assert all(
        1 <= len(p.offers) <= 5 and len({o.seller for o in p.offers}) == len(p.offers) for p in products
    )
    assert len({min(p.offers, key=static_order).price for p in products}) > 50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a list"),
        ("a: 1", "not a list"),
        ("[]", "not a list"),
        ("- {", "not YAML"),
        ("- 7", "product 1"),
        ("- {id: a}", "product 1: KeyError"),
        ("- {id: a, name: b, category: c, style: d, price: many, current_stock: 1}", "product 1: ValueError"),
        ("- {id: a, name: b, category: c, style: d, price: -1, current_stock: 1}", "above 0"),
        ("- {id: 7, name: b, category: c, style: d, price: 1, current_stock: 1}", "product 1"),
        ("- {id: a, name: 7, category: c, style: d, price: 1, current_stock: 1}", "product 1"),
    ],
)
def test_a_broken_published_catalogue(tmp_path, text, message):
    (tmp_path / "products.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        load_aws_retail(tmp_path)


def test_a_published_catalogue_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"products.yaml"):
        load_aws_retail(tmp_path)


@needs_aws
def test_the_retail_demo_store():
    catalog = open_catalog(Settings(catalog=AWS_RETAIL, data=Path(DATA)))
    assert len(catalog) == len(catalog.pids) == 2465
    assert len(catalog.category_ids) == 85
    assert catalog.category_of[catalog.index["2e852905-c6f4-47db-802c-654013571922"]] == 0
    assert catalog.category_ids[0] == "accessories/backpack" and " " not in "".join(catalog.category_ids)


@needs_aws
def test_shoppers_walk_through_the_retail_demo_store():
    events = simulate(load_aws_retail(AWS), seed=0, n_users=50, days=2)
    body = b"[" + b",".join(map(encode_event, events)) + b"]"
    assert decode_events(body, now_ms=END_MS) == (events, []) and len(events) > 200


RETAIL = ",".join(RETAIL_COLUMNS) + "\n536365,85123A,WHITE HEART,6,2010-12-01 08:26:00,2.55,17850.0\n"
BAD_RETAIL = {  # name: (bytes or text, what is told)
    "empty": ("", "line 0"),
    "no header": (RETAIL.split("\n", 1)[1], "line 1"),
    "column missing": (RETAIL.replace("UnitPrice", "Price"), "line 1"),
    "cell missing": (RETAIL.replace(",17850.0", ""), "line 2"),
    "quantity a word": (RETAIL.replace(",6,", ",six,"), "line 2"),
    "price a word": (RETAIL.replace("2.55", "cheap"), "line 2"),
    "price infinite": (RETAIL.replace("2.55", "inf"), "line 2"),
    "no invoice": (RETAIL.replace("536365", ""), "line 2"),
    "time of day only": (RETAIL.replace("2010-12-01 ", ""), "line 2"),
    "not text": (RETAIL.encode().replace(b"WHITE", b"\xff"), "line"),
    "only cancelled": (RETAIL.replace("536365", "C536365"), "holds no sale"),
}


@pytest.mark.parametrize("name", BAD_RETAIL)
def test_a_bad_retail_file_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    content, told = BAD_RETAIL[name]
    (tmp_path / "retail.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=told):
        load_online_retail(tmp_path / "retail.csv")


def test_a_torn_or_absent_retail_file(tmp_path: Path) -> None:
    header, row, _ = RETAIL.split("\n")
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress("\n".join([header] + [row] * 9999).encode())[:-20])
    (tmp_path / "plain.csv.gz").write_text(RETAIL)
    for name in ("torn.csv.gz", "plain.csv.gz"):
        with pytest.raises(DataError, match="is torn"):
            load_online_retail(tmp_path / name)
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(ConfigError, match="cannot read"):
            load_online_retail(path)


@pytest.mark.skipif(
    not (DATA and (Path(DATA) / ONLINE_RETAIL).is_file()),
    reason=f"VOXREC_DATA with {ONLINE_RETAIL} is not set",
)
def test_online_retail_is_what_it_says() -> None:
    retail = load_online_retail(Path(str(DATA)) / ONLINE_RETAIL)
    assert len(retail.events) + sum(retail.skipped.values()) == 541_909
    catalog = Catalog(retail.products)
    assert len(catalog) == 3791 and all(e.pid in catalog.pid_index for e in retail.events)
    assert decode_events(encode_event(retail.events[0]), END_MS) == ([retail.events[0]], [])
