"The best offer against a plain loop over random catalogues; catalogue files that must be refused."

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxrec.errors import ConfigError, DataError, InputError
from voxrec.recs.catalog import (
    Catalog,
    Offer,
    Product,
    best_offers,
    offers_of,
    product_at,
    read_catalog,
    static_order,
    write_catalog,
)

# Few different values, so that ties are common.
OFFER = st.tuples(st.sampled_from([5.0, 9.9, 10.0]), st.sampled_from([3.5, 4.1, 4.5]), st.integers(0, 2))
SHOP = st.lists(st.lists(OFFER, max_size=5), max_size=8)


def shop(rows: list[list[tuple[float, float, int]]]) -> Catalog:
    "A catalogue of these offers; pids run against the order of entry, so that position is no proxy for pid."
    pid = iter(range(99, 0, -1))
    return Catalog(
        Product(
            f"M{m}",
            f"Product {m}",
            f"C{m % 3}",
            tuple(Offer(f"P{next(pid):02}", "x", *row) for row in offers),
        )
        for m, offers in enumerate(rows)
    )


def plain_best(product: Product, blocked: set[str], flash: set[str]) -> str | None:
    free = [o for o in product.offers if o.stock > 0 and o.pid not in blocked]
    return min(free, key=lambda o: (o.pid not in flash, *static_order(o))).pid if free else None


def check_first(catalog: Catalog) -> None:
    nothing = np.zeros(len(catalog.pids), bool)
    best = best_offers(catalog, np.arange(len(catalog), dtype=np.uint32), nothing, nothing)
    assert catalog.first_in_stock.tolist() == best.tolist()


def check_best(catalog: Catalog, masters: list[int], blocked: list[bool], flash: list[bool]) -> None:
    best = best_offers(catalog, np.array(masters, np.uint32), np.array(blocked, bool), np.array(flash, bool))
    names = [
        {pid for pid, on in zip(catalog.pids, mask, strict=True) if on} for mask in (blocked, flash)
    ]  # fmt: skip
    expected = [plain_best(product_at(catalog, m), *names) for m in masters]
    assert [catalog.pids[i] if i >= 0 else None for i in best] == expected


@given(SHOP, st.data())
def test_best_offers_is_the_plain_loop(rows, data):
    catalog = shop(rows)
    check_first(catalog)
    n = len(catalog.pids)
    mask = st.lists(st.booleans(), min_size=n, max_size=n)
    masters = data.draw(st.lists(st.integers(0, len(catalog) - 1))) if len(catalog) else []
    check_best(catalog, masters, data.draw(mask), data.draw(mask))


@given(SHOP.filter(any), st.data())
def test_after_any_updates_positions_stand_and_the_order_is_right(rows, data):
    catalog = shop(rows)
    before = list(catalog.pids)
    change = st.tuples(
        st.sampled_from(before), st.none() | st.sampled_from([4.0, 9.9, 11.0]), st.none() | st.integers(0, 2)
    )
    for pid, price, stock in data.draw(st.lists(change)):
        catalog.update_offer(pid, price=price, stock=stock)
        offer = catalog.pid_index[pid]
        assert price in (None, catalog.price[offer]) and stock in (None, catalog.stock[offer])
    assert catalog.pids == before
    assert sorted(catalog.order.tolist()) == list(range(len(before)))
    for m in range(len(catalog)):
        offers = product_at(catalog, m).offers
        assert list(offers) == sorted(offers, key=static_order)
        assert (catalog.offer_master[offers_of(catalog, m)] == m).all()
    check_first(catalog)
    n = len(before)
    check_best(catalog, list(range(len(catalog))), [False] * n, [False] * n)


@given(SHOP.filter(len))
def test_a_file_gives_the_same_catalogue(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("shop") / "shop.jsonl"
    catalog = shop(rows)
    write_catalog(catalog, path)
    again = read_catalog(path)
    assert [product_at(again, m) for m in range(len(again))] == [
        product_at(catalog, m) for m in range(len(rows))
    ]


GOOD_OFFER = {"pid": "P1", "seller": "x", "price": 9.5, "rating": 4.5, "stock": 3}
GOOD = {"master_id": "M1", "title": "Kettle", "category_id": "kettles", "offers": [GOOD_OFFER]}


def offer(**changes: object) -> str:
    return json.dumps(GOOD | {"offers": [GOOD_OFFER | changes]})


BAD_LINES = {
    "not JSON": "{",
    "a list": "[]",
    "null": "null",
    "torn": json.dumps(GOOD)[:-5],
    "no title": json.dumps({k: v for k, v in GOOD.items() if k != "title"}),
    "blank title": json.dumps(GOOD | {"title": "  "}),
    "misspelt field": json.dumps(GOOD | {"offer": []}),
    "empty id": json.dumps(GOOD | {"master_id": ""}),
    "number as id": json.dumps(GOOD | {"master_id": 7}),
    "long id": json.dumps(GOOD | {"category_id": "x" * 65}),
    "long id in bytes": json.dumps(GOOD | {"category_id": "ü" * 33}),
    "no price": offer(price=None),
    "free": offer(price=0),
    "negative price": offer(price=-1),
    "price as text": offer(price="9.50"),
    "NaN": offer(price=float("nan")),
    "infinite": offer(price=1).replace(": 1,", ": 1e999,"),
    "rating": offer(rating=5.5),
    "negative stock": offer(stock=-1),
    "half a piece": offer(stock=1.5),
    "stock too large": offer(stock=2**31),
    "master twice": json.dumps(GOOD | {"master_id": "M0", "offers": []}),
    "pid twice": offer(pid="P0"),
    "pid twice in one": json.dumps(GOOD | {"offers": [GOOD_OFFER, GOOD_OFFER]}),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, name: str):
    first = json.dumps(GOOD | {"master_id": "M0", "offers": [GOOD_OFFER | {"pid": "P0"}]})
    path = tmp_path / "shop.jsonl"
    path.write_text(f"{first}\n\n{BAD_LINES[name]}\n{first}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"shop.jsonl, line 3: ."):
        read_catalog(path)


def test_bytes_that_are_no_text(tmp_path: Path):
    (tmp_path / "shop.jsonl").write_bytes(json.dumps(GOOD).encode().replace(b"Kettle", b"K\xff\xfettle"))
    with pytest.raises(DataError, match="line 1"):
        read_catalog(tmp_path / "shop.jsonl")


def test_files_that_are_none(tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no product"):
        read_catalog(tmp_path / "empty.jsonl")
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(ConfigError, match="cannot read the catalogue"):
            read_catalog(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "shop.jsonl"
    write_catalog(shop([[(5.0, 4.5, 1)]]), path)
    old = path.read_bytes()

    def torn():
        yield Product("M9", "Toaster", "toasters")
        raise InputError("the source failed")

    with pytest.raises(InputError):
        write_catalog(torn(), path)
    assert path.read_bytes() == old
