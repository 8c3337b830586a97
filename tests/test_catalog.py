"""Random catalogues: the best offer against a plain loop; living ones, and ones in files, against new ones.

And catalogue files, and snapshots, that must be refused.
"""

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxrec.errors import ConfigError, DataError, InputError, NotFound, Unavailable
from voxrec.recs.candidates import Request, Shelf, Shopper
from voxrec.recs.catalog import (
    Catalog,
    best_offers,
    offers_of,
    product_at,
    read_catalog,
    static_order,
    write_catalog,
)
from voxrec.recs.catalog_store import catalog_in, current_catalog, publish_catalog
from voxrec.recs.columns import Columns
from voxrec.recs.events import Offer, Product, Promo, RankedList
from voxrec.recs.relations import Live, SnapshotReader, SnapshotStore
from voxrec.recs.rerank import PromoBook, recommend

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
    assert list(catalog.pids) == before
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


# Few masters, pids and categories, so that offers go, come back and change their product.
ANY_OFFER = st.builds(
    Offer,
    pid=st.sampled_from([f"P{i}" for i in range(9)]),
    seller=st.sampled_from(["x", "y", ""]),
    price=st.sampled_from([5.0, 9.9, 10]),
    rating=st.sampled_from([0, 3.5, 4.5]),
    stock=st.integers(0, 2),
)
ANY_PRODUCT = st.builds(
    Product,
    master_id=st.sampled_from([f"M{i}" for i in range(6)]),
    title=st.sampled_from(["Kettle", "Größere Kanne", "K"]),
    category_id=st.sampled_from(["C0", "C1", "C2"]),
    offers=st.lists(ANY_OFFER, max_size=5, unique_by=lambda o: o.pid).map(tuple),
)
CHANGE = st.tuples(
    st.sampled_from([f"P{i}" for i in range(9)]), st.sampled_from([1.0, 12.0]), st.integers(0, 1)
)
STEPS = st.lists(ANY_PRODUCT | CHANGE | st.just("packed"), max_size=12)


def put(model: dict[str, Product], product: Product) -> None:
    "The last word on a product, and on whose an offer is, counts."
    taken = {offer.pid for offer in product.offers}
    for master_id, other in model.items():
        if taken & {o.pid for o in other.offers}:
            rest = tuple(o for o in other.offers if o.pid not in taken)
            model[master_id] = msgspec.structs.replace(other, offers=rest)
    model[product.master_id] = product


def change_offer(model: dict[str, Product], pid: str, price: float, stock: int) -> bool:
    for product in model.values():
        if pid in {o.pid for o in product.offers}:
            changed = (
                msgspec.structs.replace(o, price=price, stock=stock) if o.pid == pid else o
                for o in product.offers
            )
            model[product.master_id] = msgspec.structs.replace(product, offers=tuple(changed))
            return True
    return False


def check_whole(catalog: Catalog) -> None:
    "Each offer is in one list at most, its own product's; those in none have no stock and no rating."
    lists = [offers_of(catalog, m).tolist() for m in range(len(catalog))]
    listed = [i for offers in lists for i in offers]
    assert (
        len(listed)
        == len(set(listed))
        == catalog.listed
        <= len(catalog.order)
        < len(catalog.rows["order"].room)
    )
    assert all((catalog.offer_master[offers] == m).all() for m, offers in enumerate(lists))
    gone = np.setdiff1d(np.arange(len(catalog.pids)), listed)
    assert not catalog.stock[gone].any() and not catalog.rating[gone].any()
    check_first(catalog)


def check_same(catalog: Catalog, model: dict[str, Product], blocked: set[str], flash: set[str]) -> None:
    "Nothing that a caller asks by id differs from a catalogue made anew."
    anew = Catalog(model.values())
    for c in (catalog, anew):
        check_whole(c)
    numbers = [[c.index[m] for m in model] for c in (catalog, anew)]
    products = [[product_at(c, i) for i in numbers[at]] for at, c in enumerate((catalog, anew))]
    assert products[0] == products[1] and set(catalog.index) == set(anew.index)
    assert [catalog.category(m) for m in model] == [p.category_id for p in model.values()]
    shown = []
    for c, masters in zip((catalog, anew), numbers, strict=True):
        masks = [np.array([pid in names for pid in c.pids], bool) for names in (blocked, flash)]
        best = best_offers(c, np.array(masters, np.uint32), *masks)
        shown.append(
            [(c.pids[i], c.price[i], c.seller_ids[c.seller_of[i]]) if i >= 0 else None for i in best]
        )
    assert shown[0] == shown[1]


@given(st.lists(ANY_PRODUCT, max_size=4, unique_by=lambda p: p.master_id), STEPS, st.data())
def test_a_living_catalogue_is_the_one_made_anew(
    first: list[Product], steps: list[Any], data: st.DataObject
) -> None:
    model: dict[str, Product] = {}
    for product in first:
        put(model, product)
    catalog = Catalog(model.values())
    for step in steps:
        before = [list(names) for names in (catalog.master_ids, catalog.pids, catalog.category_ids)]
        digest, changes = catalog.digest(len(catalog)), catalog.changes
        if step == "packed":
            catalog = Catalog(columns=Columns(*catalog.packed()))
        elif isinstance(step, Product):
            catalog.upsert(step)
            put(model, step)
            assert catalog.changes > changes
        elif change_offer(model, *step):
            catalog.update_offer(step[0], price=step[1], stock=step[2])
        else:
            with pytest.raises(NotFound, match="no offer"):
                catalog.update_offer(step[0], price=step[1], stock=step[2])
        after = [list(names) for names in (catalog.master_ids, catalog.pids, catalog.category_ids)]
        assert all(a[: len(b)] == b for a, b in zip(after, before, strict=True)), "numbers are append-only"
        assert catalog.digest(len(before[0])) == digest
        names = st.sets(st.sampled_from([f"P{i}" for i in range(9)]))
        check_same(catalog, model, data.draw(names), data.draw(names))


def answer(catalog: Catalog, widget: str) -> list[Any]:
    "What one shopper is shown, and why; scores are all different."
    shelf, book = Shelf(catalog), PromoBook(catalog)
    shelf.apply(RankedList("cat:co_view", "C1", (("C2", 3.0), ("C0", 1.5)), 1, as_of=1))
    for c in range(3):
        items = tuple((f"M{m}", 30.0 - m - c / 7) for m in range(c, 30, 3))
        shelf.apply(RankedList("cat:bestsellers", f"C{c}", items, 1))
    for i in range(4):
        book.apply(Promo(f"M4-{i}", boost=1.7, flash_sale=i == 1, version=1))
        book.apply(Promo(f"M7-{i}", ad_bid=1.3, version=1))
    book.apply(Promo("M9-0", out_of_stock=True, version=1))
    shopper = Shopper("u1", [("M1", 5.0)], [("C1", 5.0)], [])
    return recommend(shelf, book, shopper, Request(user_id="u1", widget=widget, k=50), "seed", 10).items


@pytest.mark.parametrize("widget", ["homepage", "sponsored"])
def test_a_living_catalogue_answers_and_explains_as_one_made_anew(widget: str) -> None:
    rng = random.Random(0)
    products = [
        Product(
            f"M{m}",
            f"Thing {m}",
            f"C{m % 3}",
            tuple(
                Offer(f"M{m}-{i}", "x", rng.choice([5.0, 9.0]), 3 + m / 20, rng.randrange(3))
                for i in range(4)
            ),
        )
        for m in range(30)
    ]
    earlier = [
        msgspec.structs.replace(p, category_id=f"C{rng.randrange(4)}", offers=p.offers[: rng.randrange(4)])
        for p in rng.sample(products, 20)
    ]
    catalog = Catalog(earlier)
    for product in rng.sample(products, 30):
        catalog.upsert(product)
    assert list(catalog.index) != [p.master_id for p in products]
    expected = answer(Catalog(products), widget)
    assert answer(catalog, widget) == expected and len(expected) > 20
    assert len({item.score for item in expected}) == len(expected) and any(item.rules for item in expected)


def test_gaps_are_closed_and_arrays_move_seldom() -> None:
    rng, model = random.Random(0), dict[str, Product]()
    catalog, moves, prices = Catalog(), 0, None
    for n in range(6000):
        offers = tuple(
            Offer(f"M{n % 400}-{i}", "x", 1.0 + rng.random(), 4.0, 1) for i in range(rng.randrange(7))
        )
        catalog.upsert(product := Product(f"M{n % 400}", "Thing", f"C{n % 7}", offers))
        put(model, product)
        assert len(catalog.order) <= 2 * catalog.listed + 1000
        moves, prices = moves + (prices is not catalog.rows["price"].room), catalog.rows["price"].room
    assert moves < 20 and len(catalog) == 400
    check_same(catalog, model, set(), set())


fast = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fast
@given(
    st.lists(st.tuples(st.lists(ANY_PRODUCT, min_size=1, max_size=5), st.booleans()), min_size=1, max_size=4)
)
def test_each_catalogue_keeps_the_numbers_of_the_last(
    tmp_path_factory: pytest.TempPathFactory, days: list[tuple[list[Product], bool]]
) -> None:
    store = SnapshotStore(tmp_path_factory.mktemp("days"))
    model: dict[str, Product] = {}
    for products, complete in days:
        before = current_catalog(store)
        told: list[int] = []
        masters, pids = [p.master_id for p in products], [o.pid for p in products for o in p.offers]
        if len(set(masters)) < len(masters) or len(set(pids)) < len(pids):
            with pytest.raises(InputError, match="listed twice"):
                publish_catalog(store, products, complete=complete)
            assert list(current_catalog(store).index) == list(before.index)
            continue
        publish_catalog(store, iter(products), complete=complete, progress=told.append)
        if complete:
            model = {m: msgspec.structs.replace(p, offers=()) for m, p in model.items()}
        for product in products:
            put(model, product)
        catalog = catalog_in(store.current("catalog", verify=True))
        check_same(catalog, model, set(), set())
        assert list(catalog.index)[: len(before)] == list(before.index) and told == [len(products)]
        assert list(catalog.pids)[: len(before.pids)] == list(before.pids)
        assert len(before) == 0 or catalog.digests[len(before)] == before.digest(len(before))
        assert catalog.digests[len(catalog)] == Catalog(map(model.__getitem__, catalog.index)).digest(
            len(catalog)
        )


def test_what_a_worker_adds_reaches_no_file_and_no_other(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    publish_catalog(store, [Product("M1", "Kettle", "C", (Offer("P1", "x", 5.0, 4.0, 1),))])
    mine, other = current_catalog(store), current_catalog(store)
    mine.update_offer("P1", price=9.0, stock=0)
    mine.upsert(Product("M1", "A kettle of another name", "D", product_at(mine, 0).offers))
    for i in range(200):
        mine.upsert(Product(f"N{i}", "New", "C"))
    assert product_at(mine, 0).category_id == "D" and mine.price[0] == 9.0 and len(mine) == 201
    store.open("catalog", 1, verify=True)
    for catalog in (other, current_catalog(store)):
        assert product_at(catalog, 0) == Product("M1", "Kettle", "C", (Offer("P1", "x", 5.0, 4.0, 1),))
    publish_catalog(store, [Product("M2", "Pan", "C")], complete=False)
    assert list(current_catalog(store).index) == ["M1", "M2"], "numbers given in one process are its own"


def spoil(meta: dict, arrays: dict[str, np.ndarray], how: str) -> None:
    match how:
        case "no meta":
            meta.clear()
        case "counts as text":
            meta["used"] = {"price": "many"}
        case "digests as list":
            meta["digests"] = ["a"]
        case "a column short":
            meta["used"]["price"] -= 1
        case "titles short":
            for name in ("title_start", "title_size"):
                meta["used"][name] -= 1
        case "beyond the end":
            meta["used"]["order"] = len(arrays["order"]) + 1
        case "no such array":
            del arrays["stock"]
        case "another type":
            arrays["price"] = arrays["price"].astype(np.float32)


@pytest.mark.parametrize(
    "how",
    ["no meta", "counts as text", "digests as list", "a column short", "titles short", "beyond the end",
     "no such array", "another type"],
)  # fmt: skip
def test_a_snapshot_that_is_no_catalogue_is_refused_and_the_old_one_stays(tmp_path: Path, how: str) -> None:
    store = SnapshotStore(tmp_path)
    publish_catalog(store, [Product("M1", "Kettle", "C", (Offer("P1", "x", 5.0, 4.0, 1),))])
    live = Live(SnapshotReader(tmp_path), "catalog", catalog_in, Catalog())
    assert live.refresh() and len(live.value) == 1
    good = store.current("catalog")
    meta, arrays = msgspec.to_builtins(good.meta), dict(good.arrays)
    spoil(meta, arrays, how)
    store.publish("catalog", arrays, meta)
    assert not live.refresh() and live.error and list(live.value.index) == ["M1"]
    with pytest.raises(DataError):
        publish_catalog(store, [Product("M2", "Pan", "C")])
    assert store.rollback("catalog") == 1 and not live.refresh() and live.error is None
    assert publish_catalog(store, [Product("M2", "Pan", "C")]) == 3 and live.refresh()


def test_one_writer_at_a_time_and_a_bad_line_publishes_nothing(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    with store.build("catalog"), pytest.raises(Unavailable):
        publish_catalog(store, [Product("M1", "Kettle", "C")])

    def broken() -> Any:
        yield Product("M1", "Kettle", "C")
        raise DataError("line 2")

    with pytest.raises(DataError, match="line 2"):
        publish_catalog(store, broken())
    assert store.current_version("catalog") is None and len(current_catalog(store)) == 0
