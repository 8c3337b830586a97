"A recommendation against a plain-Python reference over random shops; what an answer may never hold."

import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxrec.errors import ConfigError, DataError, InputError
from voxrec.recs import candidates as module
from voxrec.recs.candidates import (
    ARMS,
    SOURCES,
    Batch,
    Candidates,
    Request,
    Shelf,
    Shopper,
    gather,
    names_of,
    next_items,
    numbers_of,
    one_list,
    plain_gather,
    resolve,
)
from voxrec.recs.catalog import Catalog, product_at, static_order
from voxrec.recs.events import Offer, Product, Promo, RankedList
from voxrec.recs.interests import InterestConfig, category_weights
from voxrec.recs.relations import Relations
from voxrec.recs.rerank import (
    Answer,
    Item,
    PromoBook,
    RerankConfig,
    best_selling,
    plain_rerank,
    recommend,
    recommend_batch,
    rerank,
    sellable,
)
from voxrec.recs.sessions import SessionConfig, SessionIndex, build, predict
from voxrec.service import decode_body

NOW = 1_760_000_000_000
DAY = 24 * 3_600_000
ARMS["even"] = {"catalogue": 0.3, "best_sellers": 0.5, "sessions": 0.6, "co_view": 0.7, "semantic": 0.9}
ARMS["narrow"] = {"semantic": 0.6, "co_view": 0.4}  # most products are no candidates
KNN = SessionConfig(m=5, k=3, items=3, proximity=1.0)

# Few different values, so that ties, doubles and unknown ids are common.
MASTERS, CATEGORIES = [f"M{i}" for i in range(9)], ["C0", "C1", "C2", "C3"]
MASTER, CATEGORY = st.sampled_from([*MASTERS, "M?"]), st.sampled_from([*CATEGORIES, "C?"])
SCORE = st.sampled_from([0.1, 0.5, 0.7, 1.0, 3.0])
FACTOR = st.sampled_from([0.0, 0.3, 1.0, 1.5, 1.7])
SHOWN = st.sampled_from([1.0, 3.0, 4.0, 9.0])
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
    sessions: list[list[str]]
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
        past = self.index({m: i for i, m in enumerate(catalog.master_ids)})
        shelf, book = Shelf(catalog, semantic, past, KNN), PromoBook(catalog)
        for kind, lists in (("cat:co_view", self.co_view), ("cat:bestsellers", self.bestsellers)):
            for id, items in lists.items():
                shelf.apply(RankedList(kind=kind, id=id, items=tuple(items), version=1))
        for promo in self.promos.values():
            book.apply(promo)
        for pid, stock in self.stock.items():
            catalog.update_offer(pid, stock=stock)
        return shelf, book

    def index(self, number: dict[str, int]) -> SessionIndex:
        clicks = [(s, number[m], t) for s, row in enumerate(self.sessions) for t, m in enumerate(row)]
        return build(*np.array(clicks, np.int64).reshape(-1, 3).T, n_items=len(number), m=KNN.m)

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
        sessions=draw(st.lists(st.lists(known, min_size=2, max_size=4), max_size=6)) if names else [],
        promos={
            pid: Promo(pid, boost, bid, flash, out, (NOW // 1000 + end) if end else 0, version=1)
            for pid in draw(some)
            for boost, bid, flash, out, end in [draw(PROMO)]
        },
        shopper=Shopper(
            "U",
            *([(id, NOW - ago) for id, ago in items(ids, AGO)] for ids in (MASTER, CATEGORY, MASTER)),
            impressions=items(MASTER, SHOWN),
        ),
        request=Request(
            "U",
            draw(st.none() | MASTER),
            draw(st.none() | CATEGORY),
            draw(st.sampled_from(["related", "homepage", "sponsored", "cart"])),
            draw(st.integers(1, 12)),
            draw(st.lists(MASTER, max_size=2)),
        ),
        arm=draw(st.sampled_from(["seed", "even", "narrow"])),
    )


# The reference: the same recommendation with dictionaries and loops, in the words of CONTRACTS.


def plain_sources(
    case: Case, most: int, related: int, sellable: set[str] | None
) -> dict[str, list[tuple[str, float]]]:
    category_of = {p.master_id: p.category_id for p in case.loaded}
    real, names = list(dict.fromkeys(category_of.values())), list(category_of)
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
            if other in real:
                reached[other] = reached.get(other, 0) + weight * (score / top)
    strongest = sorted(reached.items(), key=lambda pair: (-pair[1], real.index(pair[0])))[:related]

    sells = {c: [(m, s) for m, s in case.bestsellers[c] if m in category_of] for c in real}
    selling = [c for c in real if sells[c]]
    if len(selling) > related:
        selling = sorted(selling, key=lambda c: -sells[c][0][1])[:related]
    mine = [(c, w) for c, w in weights.items() if sells[c]] or [(c, 1.0) for c in selling]
    rating = plain_ratings(case)
    sold_out = {p.master_id: all(o.stock == 0 for o in p.offers) for p in case.loaded}
    by_rating = sorted(category_of, key=lambda m: (sold_out[m], -rating[m], MASTERS.index(m)))
    head = {*by_rating[:most], *[m for m in by_rating if category_of[m] == page][:most]}
    for some in (by_rating, [m for m in by_rating if category_of[m] == page]) if sellable else ():
        head |= {*[m for m in some[most:] if m in sellable - left_out(case)][:most]}
    top = float(np.float32(max((s for row in case.semantic.values() for _, s in row), default=1.0)))
    packed = lambda s: int(np.rint(float(np.float32(s)) / (top / 65535)))  # noqa: E731  # relations hold steps
    clicks = [names.index(m) for m in anchors[::-1]][-KNN.items :]
    voted = zip(*predict(case.index({m: i for i, m in enumerate(names)}), clicks, 200, KNN), strict=True)
    return {
        "semantic": [
            (m, packed(s) * (1 / place))
            for place, anchor in enumerate(anchors[: module.ANCHORS], 1)
            for m, s in case.semantic[anchor][: -(-most // place)]
        ],
        "co_view": plain_heads(sells, strongest),
        "best_sellers": plain_heads(sells, mine),
        "sessions": [(names[i], float(s)) for i, s in voted] if clicks else [],
        "catalogue": [(m, 1 + rating[m] + 6 * (category_of[m] == page)) for m in head],
    }


def plain_heads(
    sells: dict[str, list[tuple[str, float]]], rows: list[tuple[str, float]]
) -> list[tuple[str, float]]:
    "Of each category as much of its list as its weight is of the largest."
    most = max((w for _, w in rows), default=1.0)
    return [(m, s * w) for c, w in rows for m, s in sells[c][: math.ceil(len(sells[c]) * (w / most))]]


def plain_ratings(case: Case) -> dict[str, float]:
    "The best rating of each; of those nobody rated, the mean of the category's or the shop's rated ones."
    best = {p.master_id: max((o.rating for o in p.offers), default=0.0) for p in case.loaded}
    for p in case.loaded:
        if p.offers and not max(o.rating for o in p.offers):
            rated = [
                (q.category_id, r) for q in case.loaded if (r := max((o.rating for o in q.offers), default=0))
            ]
            mine = [r for c, r in rated if c == p.category_id] or [r for _, r in rated]
            best[p.master_id] = sum(mine) / len(mine) if mine else 0.0
    return best


def left_out(case: Case) -> set[str]:
    bought = {m for m, ts in case.shopper.orders if NOW - ts <= 30 * DAY}
    return {*([case.request.master_id] if case.request.master_id else []), *case.request.exclude, *bought}


def plain_candidates(
    case: Case, most: int, related: int, sellable: set[str] | None = None
) -> dict[str, list[tuple[str, float]]]:
    "Master -> its (source, weighted part), best first; with `sellable`, of those alone."
    sources = plain_sources(case, most, related, sellable)
    parts: dict[str, list[tuple[str, float]]] = {}
    named = {m for name in ARMS[case.arm] if name != "catalogue" for m, _ in sources[name]}
    for name, weight in ARMS[case.arm].items():
        total: dict[str, float] = {}
        asked = name != "catalogue" or len(named) < most or sellable is not None
        for m, score in sources[name] if asked else ():
            total[m] = total.get(m, 0) + score
        for m, score in total.items() if any(total.values()) else ():
            parts.setdefault(m, []).append((name, score * (weight / max(total.values()))))
    for m in (left_out(case) | (set() if sellable is None else parts.keys() - sellable)) & parts.keys():
        del parts[m]
    parts = {m: [(name, s) for name, s in said if s] for m, said in parts.items()}
    best = sorted(
        (m for m in parts if parts[m]), key=lambda m: (-sum(s for _, s in parts[m]), MASTERS.index(m))
    )
    return {m: parts[m] for m in best[:most]}


def plain_offer(case: Case, product: Product, live: dict[str, Promo]) -> Offer | None:
    def promo(offer: Offer) -> Promo:
        return live.get(offer.pid, Promo(offer.pid))

    free = [o for o in product.offers if case.stock.get(o.pid, o.stock) and not promo(o).out_of_stock]
    return min(free, key=lambda o: (not promo(o).flash_sale, *static_order(o)), default=None)


def plain_items(case: Case, most: int = 1000, related: int = 50) -> list[dict[str, object]]:
    "Of the candidates those that can be sold; if these are too few, of the candidates among all that can be."
    live = {pid: promo for pid, promo in case.promos.items() if promo.active(NOW)}
    sellable = {p.master_id for p in case.loaded if plain_offer(case, p, live)}
    items = plain_ranked(case, plain_candidates(case, most, related), live)
    if len(items) < case.request.k:
        items = plain_ranked(case, plain_candidates(case, most, related, sellable), live)
    return items


def plain_ranked(
    case: Case, found: dict[str, list[tuple[str, float]]], live: dict[str, Promo]
) -> list[dict[str, object]]:
    products, shown = {p.master_id: p for p in case.loaded}, dict(case.shopper.impressions)
    merged: list[float] = []
    items: list[dict[str, object]] = []
    for m, parts in found.items():
        if (offer := plain_offer(case, products[m], live)) is None:
            continue
        merged.append(sum(s for _, s in parts))
        promo = live.get(offer.pid, Promo(offer.pid))
        score, rules = sum(s for _, s in parts) * promo.boost, []
        if promo.boost != 1:
            rules.append(f"boost x{promo.boost}")
        if promo.flash_sale:
            score, rules = score + 2.0, [*rules, "flash sale +2.0"]
        if case.request.widget == "sponsored" and promo.ad_bid != 1:
            score, rules = score * promo.ad_bid, [*rules, f"ad bid x{promo.ad_bid}"]
        if (factor := 0.8 ** max(0, shown.get(m, 0) - 3)) != 1:
            score, rules = score * factor, [*rules, f"shown {shown[m]:g} times x{factor}"]
        why = [{"name": name, "score": part} for name, part in parts]
        items.append({"master_id": m, "pid": offer.pid, "score": score, "price": offer.price})
        items[-1] |= {"sources": why, "rules": rules}
    items.sort(key=lambda item: -item["score"])  # type: ignore[operator]
    if case.request.widget != "homepage":
        return items[: case.request.k]
    category_of = {p.master_id: p.category_id for p in case.loaded}
    return plain_homepage(items, category_of, max(merged, default=0.0))[: case.request.k]


def plain_homepage(items: list[Any], category_of: dict[str, str], best: float) -> list[Any]:
    "Maximal marginal relevance, place by place."
    page: list[Any] = []
    while items:
        above = [category_of[item["master_id"]] for item in page]
        cost = [0.35 * best * (1 - 0.5 ** above.count(category_of[item["master_id"]])) for item in items]
        value = [item["score"] - c for item, c in zip(items, cost, strict=True)]
        at = value.index(max(value))
        rules = items[at]["rules"] + ([f"diversity -{cost[at]}"] if cost[at] else [])
        page.append(items.pop(at) | {"score": value[at], "rules": rules})
    return page


@settings(max_examples=250, deadline=None)
@given(cases())
def test_the_answer_is_the_plain_one(case):
    assert msgspec.to_builtins(case.answer().items) == plain_items(case)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_bounds_cut_as_stated(case):
    with patch.multiple(module, MOST=3, RELATED=2, ANCHORS=2, INTERESTS=InterestConfig(cats_read=2)):
        assert msgspec.to_builtins(case.answer().items) == plain_items(case, most=3, related=2)


# The kernels against the notebooks' plain-Python references, over random shops of up to a hundred products:
# more ties, longer lists and more overlap than a drawn case has.


def random_shop(rng: random.Random) -> tuple[Shelf, PromoBook]:
    n = rng.choice([1, 5, 60, 100])
    offers = lambda i: tuple(  # noqa: E731
        Offer(f"P{i}-{j}", "x", rng.choice([5.0, 9.9]), rng.choice([0.0, 3.5, 4.5]), rng.randint(0, 2))
        for j in range(rng.randint(0, 3))
    )
    catalog = Catalog(Product(f"M{i}", f"M{i}", f"C{rng.randint(0, 7)}", offers(i)) for i in range(n))
    rows = [rng.sample(range(n), rng.randint(0, min(n, 40))) for _ in range(n)]
    scores = [rng.choice([0.0, 0.1, 0.5, rng.random()]) for row in rows for _ in row]
    semantic = Relations(np.cumsum([0, *map(len, rows)]), [m for row in rows for m in row], scores)
    clicks = [(s, rng.randrange(n), t) for s in range(60) for t in range(rng.randint(1, 6))]
    past = build(*np.array(clicks).T, n_items=n, m=20)
    shelf, book = Shelf(catalog, semantic, rng.choice([past, None])), PromoBook(catalog)
    for id in catalog.category_ids:
        some = rng.sample(range(n), rng.randint(0, min(n, 12)))
        others = rng.sample(catalog.category_ids, rng.randint(0, len(catalog.category_ids)))
        sold = tuple((f"M{m}", rng.choice([0.5, 1.0, rng.random()])) for m in some)
        seen = tuple((c, rng.choice([1.0, rng.random()])) for c in others)
        shelf.apply(RankedList(kind="cat:bestsellers", id=id, items=sold, version=1))
        shelf.apply(RankedList(kind="cat:co_view", id=id, items=seen, version=1))
    for pid in rng.sample(catalog.pids, len(catalog.pids) // 3):
        factors = rng.choice([0.0, 1.0, 1.7]), rng.choice([0.5, 1.0])
        end = rng.choice([0, NOW // 1000 - 1, NOW // 1000 + 1])
        book.apply(Promo(pid, *factors, rng.random() < 0.3, rng.random() < 0.3, end))
    return shelf, book


def random_visit(rng: random.Random, shelf: Shelf) -> tuple[Shopper, Request]:
    def some(ids: list[str], most: int, values: list[float]) -> list[tuple[str, float]]:
        return [(id, rng.choice(values)) for id in rng.sample(ids, rng.randint(0, min(most, len(ids))))]

    masters, categories = shelf.catalog.master_ids, shelf.catalog.category_ids
    ago = [NOW - rng.choice([0, DAY, 31 * DAY]) for _ in range(9)]
    lists = some(masters, 20, ago), some(categories, 5, ago), some(masters, 3, ago)
    shopper = Shopper("U", *lists, some(masters, 30, [1.0, 3.0, 4.0, 8.0]))
    page = rng.choice([None, rng.choice(masters)]), rng.choice([None, None, rng.choice(categories)])
    widget = rng.choice(["related", "homepage", "homepage", "sponsored", "cart"])
    return shopper, Request("U", *page, widget, rng.randint(1, 30), rng.sample(masters, min(2, len(masters))))


def same(a: Candidates, b: Candidates) -> bool:
    fields = ("ids", "scores", "parts", "shown")
    return a.sources == b.sources and all(np.array_equal(getattr(a, f), getattr(b, f)) for f in fields)


@pytest.mark.parametrize("seed", range(60))
def test_kernels_give_the_references_lists(seed):
    rng = random.Random(seed)
    shelf, book = random_shop(rng)
    for _ in range(50):
        shopper, request = random_visit(rng, shelf)
        query = resolve(shelf, shopper, request, NOW)
        arm, most = rng.choice(["seed", "blend", "even", "narrow"]), rng.choice([1000, 1000, 20])
        with patch.object(module, "MOST", most):
            found = gather(query, arm)
            assert same(found, plain_gather(query, arm))
            again = query._replace(sellable=sellable(book, NOW))
            assert same(gather(again, arm), plain_gather(again, arm))
        config = RerankConfig(diversity=rng.choice([0.0, 0.35, 2.0]), fatigue=rng.choice([0.8, 1.0]))
        ranked = rerank(found, book, request.widget, NOW, request.k, config)
        fast = zip(ranked.rows.tolist(), ranked.offers.tolist(), ranked.scores.tolist(), strict=True)
        assert list(fast) == plain_rerank(found, book, request.widget, NOW, request.k, config)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_drawn_cases_give_the_references_lists(case):
    shelf, book = case.built()
    found = gather(query := resolve(shelf, case.shopper, case.request, NOW), case.arm)
    assert same(found, plain_gather(query, case.arm))
    ranked = rerank(found, book, case.request.widget, NOW, case.request.k)
    fast = zip(ranked.rows.tolist(), ranked.offers.tolist(), ranked.scores.tolist(), strict=True)
    assert list(fast) == plain_rerank(found, book, case.request.widget, NOW, case.request.k)


WIDGETS = st.lists(st.sampled_from(["related", "homepage", "sponsored", "cart"]), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(cases(), WIDGETS)
def test_a_batch_shows_nothing_twice_and_leaves_out_nothing_else(case, widgets):
    requests = [msgspec.structs.replace(case.request, widget=widget) for widget in widgets]
    shelf, book = case.built()
    answers = recommend_batch(
        shelf, book, case.shopper, Batch(requests), case.arm, NOW, rec_id="r", model="m", degraded=["x"]
    ).answers
    shown: list[str] = []
    for place, (request, answer) in enumerate(zip(requests, answers, strict=True), 1):
        request = msgspec.structs.replace(request, exclude=request.exclude + shown)
        assert answer.items == recommend(shelf, book, case.shopper, request, case.arm, NOW).items
        assert (answer.rec_id, answer.model, answer.degraded) == (f"r.{place}", "m", ["x"])
        shown += [item.master_id for item in answer.items]
    assert len(shown) == len(set(shown))


@settings(max_examples=60, deadline=None)
@given(cases())
def test_what_was_shown_often_only_sinks(case):
    before = case.answer(k=50, widget="related").items
    often = case.request.exclude[:1] or [item.master_id for item in before[:1]]
    impressions = [
        *((m, n) for m, n in case.shopper.impressions if m not in often),
        *((m, 9.0) for m in often),
    ]
    case.shopper = msgspec.structs.replace(case.shopper, impressions=impressions)
    after = case.answer(k=50, widget="related").items
    place = {item.master_id: i for i, item in enumerate(after)}
    assert place.keys() == {item.master_id for item in before}
    assert all(place[item.master_id] >= i for i, item in enumerate(before) if item.master_id in often)
    rest = [[item for item in items if item.master_id not in often] for items in (before, after)]
    assert rest[0] == rest[1]


def test_threads_that_ask_the_same_shelf_do_not_disturb_each_other():
    rng = random.Random(1)
    shelf, book = random_shop(rng)
    visits = [random_visit(rng, shelf) for _ in range(300)]
    alone = [recommend(shelf, book, *visit, "even", NOW) for visit in visits]
    with ThreadPoolExecutor(4) as pool:
        beside = list(pool.map(lambda visit: recommend(shelf, book, *visit, "even", NOW), visits))
    assert alone == beside


def test_a_broken_source_spoils_no_later_request(monkeypatch):
    rng = random.Random(2)
    shelf, _ = random_shop(rng)
    queries = [resolve(shelf, *random_visit(rng, shelf), NOW) for _ in range(20)]
    before = [gather(query, "even") for query in queries]
    monkeypatch.setitem(ARMS, "broken", {"catalogue": 1.0, "semantic": 1.0, "broken": 1.0})
    for ids, scores in (([0], [np.nan]), ([0, 0], [1, -1]), ([0], [np.inf]), ([len(shelf.catalog)], [1])):
        monkeypatch.setitem(SOURCES, "broken", lambda query, a=ids, b=scores: one_list(a, b))
        with pytest.raises(DataError):
            gather(queries[0], "broken")
        assert all(same(gather(q, "even"), c) for q, c in zip(queries, before, strict=True))

    def fails(query):
        raise RuntimeError("source")

    monkeypatch.setitem(SOURCES, "broken", fails)
    with pytest.raises(RuntimeError):
        gather(queries[0], "broken")
    assert all(same(gather(q, "even"), c) for q, c in zip(queries, before, strict=True))


def by_paper(item: Item) -> float:
    "The final score as a person recomputes it from what the item says."
    score = sum(part.score for part in item.sources)
    for rule in item.rules:
        name, number = rule.rsplit(" ", 1)
        kinds = {"boost": "x", "flash": "+", "ad": "x", "shown": "x", "diversity": "-"}
        operation, value = kinds[name.split()[0]], float(number[1:])
        assert number[0] == operation
        score = {"x": score * value, "+": score + value, "-": score - value}[operation]
    return score


def crowded(n: int = 3000) -> tuple[Shelf, Shopper]:
    "A shop whose products are all alike, the best rated first, and one who viewed the first."
    offers = [(Offer(f"P{i}", "x", 1.0, 5 - i / n, 1),) for i in range(n)]
    catalog = Catalog(Product(f"M{i}", f"M{i}", f"C{i % 7}", o) for i, o in enumerate(offers))
    near = Relations([0] + [n - 1] * n, np.arange(1, n), np.linspace(1, 0.1, n - 1))
    return Shelf(catalog, near), Shopper("U", [("M0", NOW)], [("C0", NOW)])


@pytest.mark.parametrize("arm", ["seed", "blend"])
@pytest.mark.parametrize("widget", ["related", "homepage", "sponsored", "cart"])
@pytest.mark.parametrize("left", [2000, 50, 20, 7, 0])
def test_a_list_is_as_long_as_what_the_shop_can_sell(arm, widget, left):
    shelf, shopper = crowded()
    book, n = PromoBook(shelf.catalog), len(shelf.catalog)
    for i in range(n - left):
        if i % 2:
            book.apply(Promo(f"P{i}", out_of_stock=True, version=NOW))
        else:
            shelf.catalog.update_offer(f"P{i}", stock=0)
    for visitor in (shopper, Shopper("V")):
        items = recommend(shelf, book, visitor, Request("U", "M0", widget=widget), arm, NOW).items
        assert len(items) == min(20, left) and all(int(item.pid[1:]) >= n - left for item in items)
        assert all(item.score == by_paper(item) for item in items)
        shelf.refresh()
    page = [Request("U", "M0", widget=w) for w in (widget, "related", "cart")]
    answers = recommend_batch(shelf, book, shopper, Batch(page), arm, NOW).answers
    shown = [item.master_id for answer in answers for item in answer.items]
    assert len(set(shown)) == len(shown) == min(60, left)


def test_what_fills_a_list_is_the_best_rated_that_may_be_shown_of_the_page_s_category_first():
    shelf, shopper = crowded()
    book, n = PromoBook(shelf.catalog), len(shelf.catalog)
    for i in range(n - 100):
        book.apply(Promo(f"P{i}", out_of_stock=True, version=NOW))
    mine = [i for i in range(n - 100, n) if i % 7 == 3]
    others = [i for i in range(n - 100, n) if i % 7 != 3]
    request = Request("U", "M3", widget="related", k=50, exclude=[f"M{mine[0]}", f"M{others[0]}"])
    bought = msgspec.structs.replace(shopper, views=[], orders=[(f"M{others[1]}", NOW)])
    items = recommend(shelf, book, bought, request, "seed", NOW).items
    assert [int(item.pid[1:]) for item in items] == [*mine[1:], *others[2:]][:50]


@settings(max_examples=100, deadline=None)
@given(cases(), st.integers(1, 6), st.sampled_from([3, 1000]))
def test_best_sellers_of_a_category_are_what_sells_in_it_then_its_best_rated(case, k, most):
    with patch.object(module, "MOST", most):
        shelf, book = case.built()
        live = {pid: promo for pid, promo in case.promos.items() if promo.active(NOW)}
        for number, category in enumerate(shelf.catalog.category_ids):
            items = best_selling(shelf, book, number, k, NOW)
            mine = {
                p.master_id for p in case.loaded if p.category_id == category and plain_offer(case, p, live)
            }
            sells = {m for m, _ in case.bestsellers[category]}
            names = {item.master_id for item in items}
            assert names <= mine | sells and len(names) == len(items) >= min(k, len(mine), most)
            assert all(item.score == by_paper(item) for item in items)
            if not case.promos:
                first = [item.master_id in sells for item in items]
                assert first == sorted(first, reverse=True)


def test_products_that_came_since_the_ratings_fill_a_list_too():
    catalog = Catalog(SHOP[:5])
    shelf, book = Shelf(catalog), PromoBook(catalog)
    for i in range(1200):
        offers = (Offer(f"PN{i}", "x", 1.0, 4.0, 1),) if i < 150 else ()
        catalog.upsert(Product(f"N{i}", "N", f"C{i % 2}", offers))
    for i in range(5):
        catalog.update_offer(f"P{i}", stock=0)
    shown = [item.master_id for item in recommend(shelf, book, Shopper("U"), Request("U"), "seed", NOW).items]
    assert len(shown) == 20 and all(m.startswith("N") for m in shown)


def test_the_usual_request_gathers_once(monkeypatch):
    shelf, shopper = crowded(300)
    calls: list[Any] = []
    monkeypatch.setattr("voxrec.recs.rerank.gather", lambda q, arm: calls.append(q) or gather(q, arm))
    recommend(shelf, PromoBook(shelf.catalog), shopper, Request("U", "M0"), "seed", NOW)
    assert [query.sellable for query in calls] == [None]


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


def padded(relations: Relations, n: int) -> Relations:
    "Relations that know `n` masters, the new ones without neighbours."
    end = np.full(n - len(relations), relations.start[-1])
    return Relations.packed(
        np.concatenate([relations.start, end]), relations.index, relations.score, relations.step
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_shop_that_grows_is_the_shop_built_at_once(seed):
    rng = random.Random(seed)
    whole, _ = random_shop(rng)
    products = [product_at(whole.catalog, i) for i in range(len(whole.catalog))]
    n, old = len(products), rng.randint(1, len(products))
    rows = [rng.sample(range(old), rng.randint(0, min(old, 9))) for _ in range(old)]
    near = Relations(
        np.cumsum([0, *map(len, rows)]), [m for row in rows for m in row], [0.5] * sum(map(len, rows))
    )
    clicks = np.array([(s, rng.randrange(old), t) for s in range(40) for t in range(3)]).T
    catalog = Catalog(products[:old])
    shelf, book = Shelf(catalog, near, build(*clicks, n_items=old, m=20)), PromoBook(catalog)
    sold = tuple((p.master_id, 1.0 + i) for i, p in enumerate(products))
    lists = [RankedList(kind="cat:bestsellers", id=c, items=sold[::3], version=1) for c in ("C1", "C5")]
    lists += [
        RankedList(kind="cat:co_view", id=f"C{i}", items=(("C5", 2.0), ("C1", 1.0)), version=1)
        for i in range(8)
    ]
    pids = [offer.pid for product in products for offer in product.offers]
    promos = [Promo(pid, rng.choice([0.5, 1.5]), 1.0, rng.random() < 0.3) for pid in pids[::2]]
    for product in products[old:]:
        catalog.upsert(product)
        visit = random_visit(rng, shelf)
        found = gather(query := resolve(shelf, *visit, NOW), "blend")
        assert same(found, plain_gather(query, "blend"))
        ranked = rerank(found, book, visit[1].widget, NOW, visit[1].k)
        assert all(catalog.stock[ranked.offers] > 0)
    assert shelf.refresh() == (old < n)
    later = Shelf(Catalog(products), padded(near, n), build(*clicks, n_items=n, m=20))
    anew = PromoBook(later.catalog)
    for some, promo_book in ((shelf, book), (later, anew)):
        assert all([*map(some.apply, lists), *map(promo_book.apply, promos)]) or n < 60
    for _ in range(30):
        visit = random_visit(rng, later)
        assert recommend(shelf, book, *visit, "blend", NOW) == recommend(later, anew, *visit, "blend", NOW)


def test_a_new_product_of_a_new_category_is_shown_at_once_and_so_is_its_promotion():
    catalog = Catalog(SHOP)
    shelf, book = Shelf(catalog), PromoBook(catalog)
    catalog.upsert(Product("N", "N", "new", (Offer("PN", "x", 1.0, 0.0, 5),)))
    shelf.apply(RankedList(kind="cat:bestsellers", id="new", items=(("N", 3.0),), version=1))
    assert book.apply(Promo("PN", flash_sale=True, version=1))
    for request in (Request("U"), Request("U", category_id="new"), Request("U", "M1")):
        first = recommend(shelf, book, Shopper("U"), request, "seed", NOW).items[0]
        assert (first.master_id, first.rules) == ("N", ["flash sale +2.0"])
    assert recommend(
        shelf, book, Shopper("U"), Request("U", "N"), "seed", NOW
    ).items  # nothing is like it yet


def test_relations_and_sessions_of_more_masters_than_the_catalogue_are_refused():
    shelf = Shelf(Catalog(SHOP))
    for more in ({"semantic": Relations.none(201)}, {"sessions": build([], [], [], n_items=201)}):
        with pytest.raises(DataError):
            shelf.use(**more)
        with pytest.raises(DataError):
            Shelf(Catalog(SHOP), **more)
    shelf.use(Relations.none(3), build([], [], [], n_items=3, m=9))
    assert (len(shelf.semantic), shelf.sessions.n_items, shelf.session_config.m) == (3, 3, 9)
    shelf.use(semantic=Relations.none(4))
    assert (len(shelf.semantic), shelf.sessions.n_items) == (4, 3)


def test_ratings_are_made_anew_beside_a_catalogue_that_grows():
    catalog = Catalog(SHOP)
    shelf = Shelf(catalog)
    with ThreadPoolExecutor(1) as pool:
        ready = [pool.submit(shelf.refresh) for _ in range(200)]
        for i in range(200, 700):
            catalog.upsert(Product(f"M{i}", "M", f"C{i % 9}", (Offer(f"P{i}", "x", 1.0, 4.0, 1),)))
        assert {done.result() for done in ready} <= {True, False}
    shelf.refresh()
    assert (
        shelf.rated.rating == Shelf(Catalog(product_at(catalog, i) for i in range(700))).rated.rating
    ).all()


@settings(max_examples=100, deadline=None)
@given(cases())
def test_without_consent_everybody_is_a_stranger(case):
    shelf, book = case.built()
    request = msgspec.structs.replace(case.request, consent=False)
    stranger = recommend(shelf, book, Shopper("U"), case.request, case.arm, NOW)
    assert recommend(shelf, book, case.shopper, request, case.arm, NOW) == stranger


ANY_ID = st.text(min_size=0, max_size=20) | st.sampled_from(["a\0b", "\0", "é", "日本", "\ud800", "x" * 64])


@given(
    st.lists(ANY_ID.filter(lambda id: 0 < len(id.encode("utf-8", "surrogatepass")) <= 64)), st.lists(ANY_ID)
)
def test_ids_looked_up_together_are_those_looked_up_alone(known, asked):
    known = [id for id in dict.fromkeys(known) if id.isprintable() or "\0" in id]
    index = Catalog(Product(id, "x", "c") for id in known).index
    asked = [*asked, *known]
    assert numbers_of(index, asked).tolist() == [known.index(id) if id in known else -1 for id in asked]
    numbers = numbers_of(index, known[::-1])
    assert names_of(index.names, numbers) == known[::-1]


def test_a_source_may_name_everything(monkeypatch):
    n = 30_000
    catalog = Catalog(
        Product(f"M{i}", f"M{i}", f"C{i % 7}", (Offer(f"P{i}", "x", 1.0, 4.0, 1),)) for i in range(n)
    )
    shelf = Shelf(catalog)
    monkeypatch.setitem(SOURCES, "all", lambda query: one_list(np.arange(n)[::-1], np.arange(n) % 97))
    monkeypatch.setitem(ARMS, "all", {"best_sellers": 0.5, "all": 1.0, "catalogue": 1e-6})
    for _ in range(2):
        query = resolve(shelf, Shopper("U"), Request("U", exclude=["M96", "M?"]), NOW)
        assert same(gather(query, "all"), plain_gather(query, "all"))
        assert same(gather(query, "seed"), plain_gather(query, "seed"))


@settings(max_examples=60, deadline=None)
@given(cases(), st.lists(MASTER, max_size=5))
def test_next_items_are_the_sessions_votes(case, clicked):
    shelf, _ = case.built()
    index = {m: i for i, m in enumerate(shelf.catalog.master_ids)}
    numbers = [index.get(m, 100 + i) for i, m in enumerate(clicked)]
    ids, scores = predict(shelf.sessions, numbers, 4, KNN)
    assert next_items(shelf, clicked, 4) == ([shelf.catalog.master_ids[int(i)] for i in ids], scores.tolist())


UPDATES = st.permutations([(pid, version) for pid in ("P1", "P2", "P?") for version in (1, 2, 3)])


@given(UPDATES)
def test_the_newest_promo_and_list_win_in_any_order(updates):
    catalog = Catalog(SHOP)
    book, shelf = PromoBook(catalog), Shelf(catalog)
    for pid, version in updates:
        book.apply(Promo(pid, boost=float(version), version=version))
        for kind, items in (("cat:co_view", ("C1", version)), ("cat:bestsellers", ("M5", version))):
            shelf.apply(RankedList(kind=kind, id="C0", items=(items,), version=version))
    boost = book.promos["boost"][: len(SHOP)]
    assert boost[[1, 2]].tolist() == [3, 3] and boost.sum() == len(SHOP) + 4
    assert book.unknown == 1 and book.waiting["P?"].version == 3
    assert shelf.co_view.of(0) == [(1, 1.0)] and shelf.bestsellers.of(0) == [(5, 3.0)]


STEPS = st.permutations([f"N{i}" for i in range(4)] + [("N1", 2), ("N1", 1), ("N2", 5), ("N9", 1), ("1", 1)])


@given(STEPS)
def test_a_promotion_before_its_product_is_the_same_as_after_it(steps):
    live, later = Catalog(SHOP), Catalog(SHOP)
    books = PromoBook(live), PromoBook(later)
    products = {f"N{i}": Product(f"N{i}", "N", "C1", (Offer(f"PN{i}", "x", 1.0, 4.0, 5),)) for i in range(4)}
    promos = [Promo(f"P{s[0]}", boost=1.0 + s[1], version=s[1]) for s in steps if isinstance(s, tuple)]
    come = iter(promos)
    for step in steps:
        if isinstance(step, str):
            live.upsert(products[step])
            recommend(Shelf(live), books[0], Shopper("U"), Request("U"), "seed", NOW)
        else:
            books[0].apply(next(come))
    for step in steps:
        if isinstance(step, str):
            later.upsert(products[step])
    for promo in promos:
        books[1].apply(promo)
    a, b = (
        recommend(Shelf(book.catalog), book, Shopper("U"), Request("U", k=50), "seed", NOW) for book in books
    )
    assert a == b and any(item.rules for item in a.items)
    assert books[0].unknown == books[1].unknown == 1 and list(books[0].waiting) == ["PN9"]


def test_a_promotion_whose_product_comes_counts_at_once_and_what_waits_in_vain_expires():
    catalog = Catalog(SHOP)
    shelf, book = Shelf(catalog), PromoBook(catalog)
    sold_out = Promo("PN", out_of_stock=True, version=NOW)
    assert not book.apply(sold_out) and book.unknown == 1
    catalog.upsert(Product("N", "N", "new", (Offer("PN", "x", 1.0, 5.0, 5),)))
    items = recommend(shelf, book, Shopper("U"), Request("U", category_id="new", k=50), "seed", NOW).items
    assert len(items) == 50 and "N" not in {item.master_id for item in items} and book.unknown == 0
    for i in range(3000):
        book.apply(Promo(f"X{i}", expiry_s=NOW // 1000 + (i % 30 == 0), version=NOW))
        book.apply(Promo(f"X{i}", boost=2.0, version=NOW - 1))  # older
    kept = {int(pid[1:]) for pid in book.waiting}
    assert book.unknown < 1500 and set(range(0, 3000, 30)) <= kept
    assert all(promo.boost == 1 for promo in book.waiting.values() if int(promo.pid[1:]) % 30 == 0)


def test_a_list_of_a_later_slot_replaces_one_of_the_same_version():
    shelf = Shelf(Catalog(SHOP))
    for as_of in (1, 3, 2):
        new = RankedList(kind="cat:co_view", id="C0", items=(("C1", as_of),), version=7, as_of=as_of)
        assert shelf.apply(new) == (as_of != 2)
        shelf.apply(
            RankedList(kind="cat:bestsellers", id="C0", items=(("M1", as_of),), version=7, as_of=as_of)
        )
    assert shelf.bestsellers.of(0) == [(1, 3.0)]


def test_equally_co_viewed_categories_are_followed_in_the_order_of_the_catalogue():
    shelf = Shelf(Catalog(SHOP))
    for kind, id, items in (
        ("cat:co_view", "C0", (("C3", 1.0), ("C2", 1.0), ("C1", 1.0))),
        *(("cat:bestsellers", f"C{i}", ((f"M{i}", 1.0),)) for i in range(4)),
    ):
        shelf.apply(RankedList(kind=kind, id=id, items=items, version=1))
    query = resolve(shelf, Shopper("U"), Request("U", category_id="C0"), NOW)
    with patch.object(module, "RELATED", 2):
        assert [master for master, _ in module.co_view(query).pairs()] == [1, 2]


def test_a_cold_shop_answers_everybody_with_what_it_can_sell():
    catalog = Catalog(SHOP)
    shelf, book = Shelf(catalog), PromoBook(catalog)
    for request in (
        Request("U", k=200),
        Request("U", "M?", "C?", k=200),
        Request("U", "M5", widget="related", k=200),
    ):
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


@pytest.mark.parametrize("id", ["é" * 33, "é" * 40, "\U0001f426" * 17, "\U0001f426" * 64])
@pytest.mark.parametrize("field", ["user_id", "master_id", "category_id", "exclude"])
def test_an_id_is_refused_by_its_bytes_as_an_event_refuses_it(field, id):
    for good in (False, True):
        id = id[: 64 // len(id[0].encode())] if good else id
        body = {"user_id": "u", field: [id] if field == "exclude" else id}
        for kind, what in ((Request, body), (Batch, {"requests": [body]})):
            if good:
                decode_body(msgspec.json.Decoder(kind), msgspec.json.encode(what))
                continue
            with pytest.raises(InputError, match="bytes") as caught:
                decode_body(msgspec.json.Decoder(kind), msgspec.json.encode(what))
            assert "64" in caught.value.hint


@pytest.mark.parametrize(
    "requests",
    [
        b"",
        b'{"user_id": "u"},' * 10 + b'{"user_id": "u"}',
        b'{"user_id": "u"}, {"user_id": "v"}',
        b"1",
        b"{}",
    ],
)
def test_a_bad_batch_is_an_input_error(requests):
    with pytest.raises(InputError):
        decode_body(msgspec.json.Decoder(Batch), b'{"requests": [%s]}' % requests)


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
