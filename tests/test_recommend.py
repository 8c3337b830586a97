"A recommendation against a plain-Python reference over random shops; what an answer may never hold."

from dataclasses import dataclass
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxrec.errors import ConfigError, InputError
from voxrec.recs import candidates as module
from voxrec.recs.candidates import ARMS, Request, Shelf, Shopper, gather, resolve
from voxrec.recs.catalog import Catalog, Offer, Product, static_order
from voxrec.recs.events import Promo, RankedList
from voxrec.recs.interests import InterestConfig, category_weights
from voxrec.recs.rerank import Answer, Item, PromoBook, RerankConfig, recommend
from voxrec.recs.semantic import Relations
from voxrec.service import decode_body

NOW = 1_760_000_000_000
DAY = 24 * 3_600_000
ARMS["even"] = {"catalogue": 0.3, "best_sellers": 0.5, "co_view": 0.7, "semantic": 0.9}

# Few different values, so that ties, doubles and unknown ids are common.
MASTERS, CATEGORIES = [f"M{i}" for i in range(9)], ["C0", "C1", "C2", "C3"]
MASTER, CATEGORY = st.sampled_from([*MASTERS, "M?"]), st.sampled_from([*CATEGORIES, "C?"])
SCORE = st.sampled_from([0.1, 0.5, 0.7, 1.0, 3.0])
FACTOR = st.sampled_from([0.0, 0.3, 1.0, 1.5, 1.7])
AGO = st.sampled_from([0, 1, 3_600_000, DAY, 30 * DAY, 30 * DAY + 1, 90 * DAY])
OFFER = st.tuples(st.sampled_from([5.0, 9.9]), st.sampled_from([0.0, 3.5, 4.5]), st.integers(0, 2))
PROMO = st.tuples(FACTOR, FACTOR, st.booleans(), st.booleans(), st.sampled_from([0, -1, 0, 1]))


@dataclass
class Case:
    "One shop at one moment, one shopper, one request."

    loaded: list[Product]
    stock: dict[str, int]
    semantic: dict[str, list[tuple[str, float]]]
    co_view: dict[str, list[tuple[str, float]]]
    bestsellers: dict[str, list[tuple[str, float]]]
    promos: dict[str, Promo]
    shopper: Shopper
    request: Request
    arm: str

    def built(self) -> tuple[Shelf, PromoBook]:
        catalog = Catalog(self.loaded)
        rows = [self.semantic.get(m, []) for m in catalog.master_ids]
        start = np.cumsum([0] + [len(row) for row in rows])
        ids = np.array([catalog.index[m] for row in rows for m, _ in row], np.uint32)
        semantic = Relations(start, ids, np.array([s for row in rows for _, s in row], np.float32))
        shelf, book = Shelf(catalog, semantic), PromoBook(catalog)
        for kind, lists in (("cat:co_view", self.co_view), ("cat:bestsellers", self.bestsellers)):
            for id, items in lists.items():
                shelf.apply(RankedList(kind=kind, id=id, items=tuple(items), version=1))
        for promo in self.promos.values():
            book.apply(promo)
        for pid, stock in self.stock.items():
            catalog.update_offer(pid, stock=stock)
        return shelf, book

    def answer(self, **changes: object) -> Answer:
        request = msgspec.structs.replace(self.request, **changes)
        return recommend(*self.built(), self.shopper, request, self.arm, NOW)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def items(id: st.SearchStrategy[str], score: st.SearchStrategy[float] = SCORE) -> list[tuple[str, float]]:
        return draw(st.lists(st.tuples(id, score), max_size=5, unique_by=lambda item: item[0]))

    names = MASTERS[: draw(st.sampled_from([9, 9, 9, 4, 1, 0]))]
    rows = draw(st.lists(st.lists(OFFER, max_size=3), min_size=len(names), max_size=len(names)))
    pid = iter(range(99, 0, -1))
    loaded = [
        Product(m, m, CATEGORIES[i % 3], tuple(Offer(f"P{next(pid):02}", "x", *row) for row in offers))
        for i, (m, offers) in enumerate(zip(names, rows, strict=True))
    ]
    pids = [offer.pid for product in loaded for offer in product.offers]
    some = st.lists(st.sampled_from(pids), max_size=4, unique=True) if pids else st.just([])
    known = st.sampled_from(names) if names else st.nothing()
    return Case(
        loaded=loaded,
        stock={pid: draw(st.integers(0, 1)) for pid in draw(some)},
        semantic={m: items(known) for m in names},
        co_view={c: items(CATEGORY) for c in CATEGORIES},
        bestsellers={c: items(MASTER) for c in CATEGORIES},
        promos={
            pid: Promo(pid, boost, bid, flash, out, (NOW // 1000 + end) if end else 0, version=1)
            for pid in draw(some)
            for boost, bid, flash, out, end in [draw(PROMO)]
        },
        shopper=Shopper(
            "U", *([(id, NOW - ago) for id, ago in items(ids, AGO)] for ids in (MASTER, CATEGORY, MASTER))
        ),
        request=Request(
            "U",
            draw(st.none() | MASTER),
            draw(st.none() | CATEGORY),
            draw(st.sampled_from(["related", "homepage", "sponsored", "cart"])),
            draw(st.integers(1, 12)),
            draw(st.lists(MASTER, max_size=2)),
        ),
        arm=draw(st.sampled_from(["seed", "even"])),
    )


# The reference: the same recommendation with dictionaries and loops, in the words of CONTRACTS.


def plain_sources(case: Case, most: int, related: int) -> dict[str, list[tuple[str, float]]]:
    category_of = {p.master_id: p.category_id for p in case.loaded}
    real = set(category_of.values())
    request = case.request
    anchors = [request.master_id] + [m for m, _ in sorted(case.shopper.views, key=lambda v: -v[1])]
    anchors = [m for m in dict.fromkeys(anchors) if m in category_of]
    page = request.category_id or category_of.get(request.master_id or "")
    weights = {page: 1.0} if page in real else {}
    recent = sorted(case.shopper.cats, key=lambda v: -v[1])[: module.INTERESTS.cats_read]
    for c, weight in category_weights(recent, NOW, module.INTERESTS.half_life_ms):
        if c in real:
            weights.setdefault(c, weight)

    reached: dict[str, float] = {}
    for c, weight in weights.items():
        top = max((s for _, s in case.co_view.get(c, [])), default=0)
        for other, score in case.co_view.get(c, []):
            reached[other] = reached.get(other, 0) + weight * score / top
    strongest = sorted(reached.items(), key=lambda pair: (-pair[1], pair[0]))[:related]

    sells = {c: [(m, s) for m, s in row if m in category_of] for c, row in case.bestsellers.items()}
    mine = [(c, w) for c, w in weights.items() if sells.get(c)] or [(c, 1.0) for c in sells]
    rating = {p.master_id: max((o.rating for o in p.offers), default=0.0) for p in case.loaded}
    sold_out = {p.master_id: all(o.stock == 0 for o in p.offers) for p in case.loaded}
    by_rating = sorted(category_of, key=lambda m: (sold_out[m], -rating[m], MASTERS.index(m)))
    head = {*by_rating[:most], *[m for m in by_rating if category_of[m] == page][:most]}
    f32 = lambda x: float(np.float32(x))  # noqa: E731  # relations hold float32
    return {
        "semantic": [(m, f32(s) * (1 / (i + 1))) for i, a in enumerate(anchors) for m, s in case.semantic[a]],
        "co_view": [(m, f32(s) * w) for c, w in strongest for m, s in sells.get(c, [])],
        "best_sellers": [(m, f32(s) * w) for c, w in mine for m, s in sells[c]],
        "catalogue": [(m, 1 + rating[m] + 6 * (category_of[m] == page)) for m in head],
    }


def plain_candidates(case: Case, most: int, related: int) -> dict[str, list[tuple[str, float]]]:
    "Master -> its (source, weighted part), best first."
    sources = plain_sources(case, most, related)
    parts: dict[str, list[tuple[str, float]]] = {}
    for name, weight in ARMS[case.arm].items():
        total: dict[str, float] = {}
        for m, score in sources[name]:
            total[m] = total.get(m, 0) + score
        for m, score in total.items():
            parts.setdefault(m, []).append((name, weight * (score / max(total.values()))))
    bought = {m for m, ts in case.shopper.orders if NOW - ts <= 30 * DAY}
    for m in {case.request.master_id, *case.request.exclude, *bought} & parts.keys():
        del parts[m]
    best = sorted(parts, key=lambda m: (-sum(s for _, s in parts[m]), MASTERS.index(m)))
    return {m: parts[m] for m in best[:most]}


def plain_offer(case: Case, product: Product, live: dict[str, Promo]) -> Offer | None:
    def promo(offer: Offer) -> Promo:
        return live.get(offer.pid, Promo(offer.pid))

    free = [o for o in product.offers if case.stock.get(o.pid, o.stock) and not promo(o).out_of_stock]
    return min(free, key=lambda o: (not promo(o).flash_sale, *static_order(o)), default=None)


def plain_items(case: Case, most: int = 1000, related: int = 50) -> list[dict[str, object]]:
    live = {pid: promo for pid, promo in case.promos.items() if promo.active(NOW)}
    products = {p.master_id: p for p in case.loaded}
    items: list[dict[str, object]] = []
    for m, parts in plain_candidates(case, most, related).items():
        if (offer := plain_offer(case, products[m], live)) is None:
            continue
        promo = live.get(offer.pid, Promo(offer.pid))
        score, rules = sum(s for _, s in parts) * promo.boost, []
        if promo.boost != 1:
            rules.append(f"boost x{promo.boost}")
        if promo.flash_sale:
            score, rules = score + 2.0, [*rules, "flash sale +2.0"]
        if case.request.widget == "sponsored" and promo.ad_bid != 1:
            score, rules = score * promo.ad_bid, [*rules, f"ad bid x{promo.ad_bid}"]
        why = [{"name": name, "score": part} for name, part in parts]
        items.append({"master_id": m, "pid": offer.pid, "score": score, "price": offer.price})
        items[-1] |= {"sources": why, "rules": rules}
    return sorted(items, key=lambda item: -item["score"])[: case.request.k]  # type: ignore[operator]


@settings(max_examples=250, deadline=None)
@given(cases())
def test_the_answer_is_the_plain_one(case):
    assert msgspec.to_builtins(case.answer().items) == plain_items(case)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_bounds_cut_as_stated(case):
    with patch.multiple(module, MOST=3, RELATED=2, INTERESTS=InterestConfig(cats_read=2)):
        assert msgspec.to_builtins(case.answer().items) == plain_items(case, most=3, related=2)


def by_paper(item: Item) -> float:
    "The final score as a person recomputes it from what the item says."
    score = sum(part.score for part in item.sources)
    for rule in item.rules:
        name, number = rule.rsplit(" ", 1)
        operation = {"boost": "x", "flash sale": "+", "ad bid": "x"}[name]
        assert number[0] == operation
        score = score * float(number[1:]) if operation == "x" else score + float(number[1:])
    return score


@settings(max_examples=120, deadline=None)
@given(cases())
def test_what_every_answer_keeps(case):
    answer = case.answer()
    offers = {o.pid: (p.master_id, o) for p in case.loaded for o in p.offers}
    for item in answer.items:
        assert item.score == by_paper(item)
        assert item.sources and all(part.score > 0 for part in item.sources)
        master, offer = offers[item.pid]
        promo = case.promos.get(item.pid, Promo(item.pid))
        assert (master, offer.price) == (item.master_id, item.price)
        assert case.stock.get(item.pid, offer.stock) > 0
        assert not (promo.out_of_stock and promo.active(NOW))
    masters = [item.master_id for item in answer.items]
    assert len(masters) == len(set(masters)) <= case.request.k
    bought = {m for m, ts in case.shopper.orders if NOW - ts <= 30 * DAY}
    assert not set(masters) & {case.request.master_id, *case.request.exclude, *bought}
    scores = [item.score for item in answer.items]
    assert scores == sorted(scores, reverse=True)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_expired_promos_do_nothing(case):
    past = {pid: msgspec.structs.replace(p, expiry_s=NOW // 1000) for pid, p in case.promos.items()}
    answers = []
    for promos in (past, {}):
        case.promos = promos
        answers.append(case.answer())
    assert answers[0] == answers[1]


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_smaller_k_is_the_head_of_a_larger(case):
    whole = case.answer(k=200).items
    assert len(whole) <= RerankConfig().top
    for k in range(1, len(whole) + 2):
        assert case.answer(k=k).items == whole[:k]


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_excluding_moves_nobody_else(case, data):
    shelf, _ = case.built()
    before = gather(resolve(shelf, case.shopper, case.request, NOW), case.arm)
    names = [shelf.catalog.master_ids[m] for m in before.ids]
    gone = data.draw(st.sets(st.sampled_from(names))) if names else set()
    request = msgspec.structs.replace(case.request, exclude=[*case.request.exclude, *gone])
    after = gather(resolve(shelf, case.shopper, request, NOW), case.arm)
    stay = [i for i, name in enumerate(names) if name not in gone]
    assert (after.ids == before.ids[stay]).all() and (after.parts == before.parts[stay]).all()


SHOP = [
    Product(f"M{i}", f"M{i}", f"C{i % 4}", (Offer(f"P{i}", "x", 1.0 + i, (i % 11) / 2, i % 7),))
    for i in range(200)
]
UPDATES = st.permutations([(pid, version) for pid in ("P1", "P2", "P?") for version in (1, 2, 3)])


@given(UPDATES)
def test_the_newest_promo_and_list_win_in_any_order(updates):
    catalog = Catalog(SHOP)
    book, shelf = PromoBook(catalog), Shelf(catalog)
    for pid, version in updates:
        book.apply(Promo(pid, boost=float(version), version=version))
        for kind, items in (("cat:co_view", ("C1", version)), ("cat:bestsellers", ("M5", version))):
            shelf.apply(RankedList(kind=kind, id=pid, items=(items,), version=version))
    assert book.boost[[1, 2]].tolist() == [3, 3] and book.boost.sum() == len(SHOP) + 4 and book.unknown == 3
    assert all(row == [("C1", 3)] for row in shelf.co_view.values())
    assert all(scores.tolist() == [3] for _, scores in shelf.bestsellers.values())


def test_a_list_of_a_later_slot_replaces_one_of_the_same_version():
    shelf = Shelf(Catalog(SHOP))
    for as_of in (1, 3, 2):
        new = RankedList(kind="cat:co_view", id="C0", items=(("C1", as_of),), version=7, as_of=as_of)
        assert shelf.apply(new) == (as_of != 2)
    assert shelf.co_view["C0"] == [("C1", 3)]


def test_equally_co_viewed_categories_are_followed_in_the_order_of_their_names():
    shelf = Shelf(Catalog(SHOP))
    for kind, id, items in (
        ("cat:co_view", "C0", (("C3", 1.0), ("C2", 1.0), ("C1", 1.0))),
        *(("cat:bestsellers", f"C{i}", ((f"M{i}", 1.0),)) for i in range(4)),
    ):
        shelf.apply(RankedList(kind=kind, id=id, items=items, version=1))
    query = resolve(shelf, Shopper("U"), Request("U", category_id="C0"), NOW)
    with patch.object(module, "RELATED", 2):
        assert module.co_view(query)[0].tolist() == [1, 2]


def test_a_cold_shop_answers_everybody_with_what_it_can_sell():
    catalog = Catalog(SHOP)
    shelf, book = Shelf(catalog), PromoBook(catalog)
    for request in (Request("U", k=200), Request("U", "M?", "C?", k=200), Request("U", "M5", k=200)):
        answer = recommend(shelf, book, Shopper("U"), request, "seed", NOW)
        assert len(answer.items) == 50 and all(int(item.pid[1:]) % 7 for item in answer.items)
    same = [int(item.pid[1:]) % 4 == 1 for item in answer.items]
    assert same == sorted(same, reverse=True) and sum(same) > 30  # on the page of M5, its category first


def test_a_page_of_many_neighbours_keeps_a_thousand_candidates():
    n = 3000
    catalog = Catalog(Product(f"M{i}", f"M{i}", "C", (Offer(f"P{i}", "x", 1.0, 4.0, 1),)) for i in range(n))
    scores = np.linspace(1, 0.1, n - 1, dtype=np.float32)
    row = Relations(np.array([0] + [n - 1] * n), np.arange(1, n, dtype=np.uint32), scores)
    found = gather(resolve(Shelf(catalog, row), Shopper("U"), Request("U", "M0"), NOW))
    assert found.ids.tolist() == list(range(1, 1001)) and found.parts.shape == (1000, 4)


def test_the_same_call_gives_the_same_answer_and_touches_nothing():
    catalog = Catalog(SHOP)
    shelf, book = Shelf(catalog), PromoBook(catalog)
    shopper = Shopper("U", [("M1", NOW), ("M9", NOW - 1)], [("C1", NOW)], [("M2", NOW)])
    before = msgspec.json.encode(shopper)
    calls = [recommend(shelf, book, shopper, Request("U"), "seed", NOW, degraded=["redis"]) for _ in range(2)]
    assert calls[0] == calls[1] and calls[0].degraded == ["redis"] and msgspec.json.encode(shopper) == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 5000,
        b'{"user_id": null}',
        b'{"user_id": ""}',
        b'{"user_id": "%s"}' % (b"u" * 65),
        b'{"user_id": "u", "k": 0}',
        b'{"user_id": "u", "k": -1}',
        b'{"user_id": "u", "k": 51}',
        b'{"user_id": "u", "k": 1000000000}',
        b'{"user_id": "u", "k": 1e400}',
        b'{"user_id": "u", "k": "20"}',
        b'{"user_id": "u", "widget": "popup"}',
        b'{"user_id": "u", "exclude": "M1"}',
        b'{"user_id": "u", "exclude": [%s]}' % b",".join([b'"M"'] * 1001),
        b'{"user_id": "u", "product": "M1"}',
        b'{"user_id": "u"',
    ],
)
def test_a_bad_request_is_an_input_error(body):
    with pytest.raises(InputError) as caught:
        decode_body(msgspec.json.Decoder(Request), body)
    assert caught.value.hint


@pytest.mark.parametrize("k", [0, -1])
def test_no_items_asked_for_is_an_input_error(k):
    catalog = Catalog(SHOP)
    with pytest.raises(InputError):
        recommend(Shelf(catalog), PromoBook(catalog), Shopper("U"), Request("U", k=k), "seed", NOW)


def test_an_unknown_arm_or_a_foreign_promo_book_is_a_config_error():
    catalog = Catalog(SHOP)
    for book, arm in ((PromoBook(catalog), "nope"), (PromoBook(Catalog(SHOP)), "seed")):
        with pytest.raises(ConfigError):
            recommend(Shelf(catalog), book, Shopper("U"), Request("U"), arm, NOW)
