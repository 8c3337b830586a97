"""The three folds against their definitions, on random events: any order, doubles, restarts, any ticks."""

from __future__ import annotations

from collections import defaultdict
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxrec.errors import ConfigError
from voxrec.recs.bestsellers import BESTSELLERS, BestsellerConfig, bestsellers
from voxrec.recs.coview import COVIEW, CoviewConfig, Fold, coview_at
from voxrec.recs.events import Event, RankedList
from voxrec.recs.interests import DAY_MS, INTERESTS, InterestConfig, erase

MINUTE = 60_000
START = 19_700 * DAY_MS  # aligned to every slot
CATEGORIES = {f"m{n}": f"c{n % 4}" for n in range(10)}  # m10 and m11 are unknown to the catalogue
FOLDS = [COVIEW, BESTSELLERS, INTERESTS]
# Small limits, so that few events reach them.
CONFIGS: dict[str, Any] = {
    "coview": CoviewConfig(widest=3),
    "bestsellers": BestsellerConfig(top=1),
    "interests": InterestConfig(views=4, cats_read=2, orders=3, impressions=6),
}

Key = tuple[str, str]
Call = Event | int  # an event to step, or a time to tell
many = settings(max_examples=60, deadline=None)


@st.composite
def shop_events(draw: st.DrawFn, span_ms: int = 240 * MINUTE) -> list[Event]:
    "Events of two shoppers, by time, each with an id of its own; often just at the bound of a slot or gap."
    grid_ms = span_ms // 48
    rows = st.tuples(
        st.builds(lambda n, off: max(0, n * grid_ms + off), st.integers(0, 48), st.integers(-1, 1)),
        st.sampled_from(["view", "view", "view", "cart", "order", "rec_viewed", "rec_viewed", "rec_clicked"]),
        st.integers(0, 1),
        st.integers(0, 11),
        st.integers(1, 3),
    )
    size = draw(st.integers(0, 30))  # drawn first, else most lists are short
    picked = sorted(draw(st.lists(rows, min_size=size, max_size=size)))
    return [
        Event(
            event_id=f"e{n}",
            type=kind,  # type: ignore[arg-type]
            ts=START + ts,
            user_id=f"u{user}",
            master_id=f"m{master}",
            rec_id="r" if kind.startswith("rec_") else None,
            qty=qty if kind == "order" else None,
        )
        for n, (ts, kind, user, master, qty) in enumerate(picked)
    ]


@st.composite
def disorder(draw: st.DrawFn, span_ms: int = 240 * MINUTE) -> tuple[list[Event], list[Event]]:
    "(events by time, the same in any order and some of them twice)."
    events = draw(shop_events(span_ms))
    doubles = draw(st.lists(st.sampled_from(events), max_size=8)) if events else []
    return events, draw(st.permutations(events + doubles))


@st.composite
def calls(draw: st.DrawFn, span_ms: int = 240 * MINUTE) -> list[Call]:
    "Events in any order with doubles, and times told in between, some of which run backwards."
    _, arrived = draw(disorder(span_ms))
    ticks = draw(st.lists(st.integers(0, 96).map(lambda n: START + n * (span_ms // 48)), max_size=8))
    return draw(st.permutations([*arrived, *ticks]))


def run(fold: Fold, state: Any, calls: list[Call]) -> tuple[Any, list[list[RankedList]]]:
    "The state after all calls, and what each returned."
    outputs, config = [], CONFIGS[fold.name]
    for call in calls:
        if isinstance(call, Event):
            state, lists = fold.step(state, call, config, CATEGORIES.get)
        else:
            state, lists = fold.tick(state, call, config)
        outputs.append(lists)
    return state, outputs


def latest(outputs: list[list[RankedList]]) -> dict[Key, RankedList]:
    "The lists as a store has them in the end."
    return {(r.kind, r.id): r for lists in outputs for r in lists}


# -- the definitions, written without clocks, heaps or running sums


def coview_reference(events: list[Event], now_ms: int, config: CoviewConfig) -> dict[Key, float]:
    "score(one, other), from all sessions."
    scores: dict[Key, float] = defaultdict(float)
    own: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=lambda e: e.ts):
        if event.type in ("view", "cart", "order"):
            own[str(event.user_id)].append(event)
    for shopper in own.values():
        cuts = [n for n in range(1, len(shopper)) if shopper[n].ts - shopper[n - 1].ts > config.gap_ms]
        for start, end in zip([0, *cuts], [*cuts, len(shopper)], strict=True):
            session = shopper[start:end]
            seen = {CATEGORIES[str(e.master_id)] for e in session if e.master_id in CATEGORIES}
            age = now_ms // config.every_ms - session[-1].ts // config.every_ms
            for pair in permutations(seen if len(seen) <= config.widest else (), 2):
                scores[pair] += config.decay**age
    return scores


def bestseller_reference(events: list[Event], now_ms: int, config: BestsellerConfig) -> dict[str, tuple]:
    scores: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    first = (now_ms // config.bucket_ms - config.buckets + 1) * config.bucket_ms
    for e in events:
        if e.ts >= first and e.master_id in CATEGORIES and e.type in ("view", "order"):
            scores[CATEGORIES[e.master_id]][e.master_id] += 0.5 if e.type == "view" else float(e.qty or 0)
    by_score = {c: sorted(s.items(), key=lambda item: (-item[1], item[0])) for c, s in scores.items()}
    return {category: tuple(ranked[: config.top]) for category, ranked in by_score.items()}


def interest_reference(events: list[Event], now_ms: int, config: InterestConfig) -> dict[Key, tuple]:
    times: dict[Key, dict[str, int]] = defaultdict(dict)
    for e in sorted(events, key=lambda e: e.ts):
        user, master = str(e.user_id), str(e.master_id)
        if e.type == "view":
            times["user:views", user][master] = e.ts
        if e.type == "order":
            times["user:orders", user][master] = e.ts
        if e.type in ("view", "cart", "order") and master in CATEGORIES:
            times["user:recent_cats", user][CATEGORIES[master]] = e.ts
    lists = {}
    for (kind, user), entries in times.items():
        most = {
            "user:views": config.views,
            "user:recent_cats": config.cats_read,
            "user:orders": config.orders,
        }
        keep_ms = (config.ttl_days if kind == "user:recent_cats" else config.keep_days) * DAY_MS
        newest = max(entries.values())
        kept = [(m, ts) for m, ts in entries.items() if ts > newest - keep_ms and newest > now_ms - keep_ms]
        lists[kind, user] = tuple(sorted(kept, key=lambda item: (-item[1], item[0]))[: most[kind]])
    return lists


def impressions_reference(events: list[Event], now_ms: int, config: InterestConfig) -> dict[Key, tuple]:
    "Of each shopper's newest few events of this kind: how often each was shown after its last click."
    lists, keep_ms = {}, config.ttl_days * DAY_MS
    for user in {str(e.user_id) for e in events}:
        all_of_them = {
            (e.ts, e.type == "rec_clicked", str(e.master_id))
            for e in events
            if e.user_id == user and e.type in ("rec_viewed", "rec_clicked")
        }
        entries = sorted(all_of_them, key=lambda e: (e[0], e[2], e[1]))[-config.impressions :]
        kept = [e for e in entries if e[0] > entries[-1][0] - keep_ms and entries[-1][0] > now_ms - keep_ms]
        counts = defaultdict(float)
        for ts, click, master in kept:
            clicks = [t for t, c, m in kept if c and m == master]
            if not click and ts > max(clicks, default=0):
                counts[master] += 1
        lists["user:impressions", user] = tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return {key: items for key, items in lists.items() if items}


# -- each fold equals its definition


def assert_coview(outputs: list[list[RankedList]], events: list[Event], now_ms: int) -> None:
    config = CONFIGS["coview"]
    slot = now_ms // config.every_ms
    brought = [coview_at(ranked, slot, config.decay) for ranked in latest(outputs).values()]
    for r in latest(outputs).values():
        assert list(r.items) == sorted(r.items, key=lambda item: (-item[1], item[0]))
    scores = {(r.id, other): score for r in brought for other, score in r.items}
    assert scores == pytest.approx(coview_reference(events, now_ms, config), rel=1e-9)


@many
@given(disorder())
def test_coview_in_any_order_and_with_doubles(drawn: tuple[list[Event], list[Event]]) -> None:
    events, arrived = drawn
    end = START + 300 * MINUTE
    state, outputs = run(COVIEW, COVIEW.state(), [*arrived, end])
    assert_coview(outputs, events, end)
    assert not state.open and not state.due and not state.late


@many
@given(shop_events(), st.integers(1, 90))
def test_coview_with_the_clock_told_on_the_way(events: list[Event], every_min: int) -> None:
    "A live clock, told now and then: sessions close early or late, the scores are those of the definition."
    live: list[Call] = [
        *events,
        *range(START, START + 300 * MINUTE + 1, every_min * MINUTE),
        START + 300 * MINUTE,
    ]
    live.sort(key=lambda call: call.ts if isinstance(call, Event) else call)
    state, outputs = run(COVIEW, COVIEW.state(), live)
    assert_coview(outputs, events, START + 300 * MINUTE)
    assert not state.late


def test_coview_lists_only_the_top() -> None:
    "The best companions, ties by id."
    pairs = [("m0", "m3"), ("m0", "m2"), ("m0", "m1"), ("m0", "m3")]
    config, state = CoviewConfig(top=2), COVIEW.state()
    for n, pair in enumerate(pairs):
        for master in pair:
            event = Event(event_id=f"{n}{master}", type="view", ts=START, user_id=f"u{n}", master_id=master)
            state, _ = COVIEW.step(state, event, config, CATEGORIES.get)
    _, lists = COVIEW.tick(state, START + 31 * MINUTE, config)
    assert [c for c, _ in latest([lists])["cat:co_view", "c0"].items] == ["c3", "c1"]


@many
@given(disorder(), st.integers(0, 240))
def test_coview_forgets_doubles_of_closed_sessions(
    drawn: tuple[list[Event], list[Event]], minute: int
) -> None:
    "All events before a moment, the clock, then everything once more: only what is new counts."
    events, arrived = drawn
    now = START + minute * MINUTE
    state, outputs = run(COVIEW, COVIEW.state(), [*(e for e in events if e.ts <= now), now, *arrived])
    state, more = run(COVIEW, state, [START + 300 * MINUTE])
    assert_coview(outputs + more, events, START + 300 * MINUTE)


@many
@given(disorder(), st.integers(0, 120))
def test_bestsellers_in_any_order_and_with_doubles(
    drawn: tuple[list[Event], list[Event]], later_min: int
) -> None:
    events, arrived = drawn
    now = max((e.ts for e in events), default=START) + later_min * MINUTE
    state, outputs = run(BESTSELLERS, BESTSELLERS.state(), arrived)
    config = CONFIGS["bestsellers"]
    asked = {c: bestsellers(state, c, now, config).items for c in set(CATEGORIES.values())}
    state, more = run(BESTSELLERS, state, [now])
    shown = {category: ranked.items for (_, category), ranked in latest(outputs + more).items()}
    expected = bestseller_reference(events, now, config)
    for category in asked:
        assert asked[category] == shown.get(category, ()) == expected.get(category, ())


@many
@given(calls())
def test_bestseller_lists_published_are_always_the_current_ones(drawn: list[Call]) -> None:
    state, config, shown = BESTSELLERS.state(), CONFIGS["bestsellers"], {}
    for call in drawn:
        state, outputs = run(BESTSELLERS, state, [call])
        shown |= latest(outputs)
        for category in state.rankings:
            now = bestsellers(state, category, 0, config)
            ranked = shown.get(("cat:bestsellers", category))
            assert now.items == (ranked.items if ranked else ())
            assert now.version == (ranked.version if ranked else 0)


@many
@given(disorder(span_ms=40 * DAY_MS), st.integers(0, 40))
def test_interests_in_any_order_and_with_doubles(
    drawn: tuple[list[Event], list[Event]], later_days: int
) -> None:
    events, arrived = drawn
    now = max((e.ts for e in events), default=START) + later_days * DAY_MS
    _, outputs = run(INTERESTS, INTERESTS.state(), [*arrived, max(START, now - 9 * DAY_MS), now])
    told = {key: ranked.items for key, ranked in latest(outputs).items()}
    impressions = {key: told.pop(key) for key in list(told) if key[0] == "user:impressions"}
    assert told == interest_reference(events, now, CONFIGS["interests"])
    impressions = {key: items for key, items in impressions.items() if items}
    assert impressions == impressions_reference(events, now, CONFIGS["interests"])


@many
@given(disorder(), st.sets(st.integers(0, 29)))
def test_an_impression_of_no_product_changes_nothing_and_is_counted(
    drawn: tuple[list[Event], list[Event]], places: set[int]
) -> None:
    _, arrived = drawn
    whole = [Event(event_id=f"w{n}", type="rec_viewed", ts=START, user_id="u0", rec_id="r") for n in places]
    nobody = [msgspec.structs.replace(e, user_id=user) for e in whole for user in ("anonymous:a", None)]
    mixed: list[Call] = [*arrived]
    for place, event in zip([*places, *places, *places], [*whole, *nobody], strict=True):
        mixed.insert(place, event)
    state, outputs = run(INTERESTS, INTERESTS.state(), mixed)
    without, others = run(INTERESTS, INTERESTS.state(), [*arrived])
    assert state.unnamed == len(places) and without.unnamed == 0
    assert [lists for lists in outputs if lists] == [lists for lists in others if lists]
    assert msgspec.structs.replace(state, unnamed=0) == without


@many
@given(drawn=calls(span_ms=10 * DAY_MS), cut=st.integers(0, 40))
def test_an_erased_shopper_is_as_one_who_never_was(drawn: list[Call], cut: int) -> None:
    "And the others' lists are the same, to the version."
    state, before = run(INTERESTS, INTERESTS.state(), drawn[:cut])
    state, after = run(INTERESTS, erase(state, "u0"), drawn[cut:])
    _, others = run(INTERESTS, INTERESTS.state(), drawn)
    assert [r for lists in before + after for r in lists if r.id == "u1"] == [
        r for lists in others for r in lists if r.id == "u1"
    ]
    late = [call for call in drawn[cut:] if isinstance(call, Event)]
    told = latest(after)
    times = {(kind, ts) for kind in ("view", "order") for e in late if e.type == kind for ts in [e.ts]}
    for kind in ("view", "order"):
        items = told.get((f"user:{kind}s", "u0"), RankedList(kind="", id="", items=(), version=0)).items
        assert all((kind, ts) in times for _, ts in items)


# -- what all three have in common


@pytest.mark.parametrize("fold", FOLDS, ids=lambda fold: fold.name)
@many
@given(
    drawn=calls(span_ms=10 * DAY_MS) | calls(),
    cut=st.integers(0, 40),
    codec=st.sampled_from(["json", "msgpack"]),
)
def test_restart_in_the_middle(fold: Fold, drawn: list[Call], cut: int, codec: str) -> None:
    "Written out and read back at any point, the fold returns the same lists with the same versions."
    whole, outputs = run(fold, fold.state(), drawn)
    half, before = run(fold, fold.state(), drawn[:cut])
    wire = getattr(msgspec, codec)
    again, after = run(fold, wire.decode(wire.encode(half), type=fold.state), drawn[cut:])
    assert before + after == outputs and again == whole


@pytest.mark.parametrize("fold", FOLDS, ids=lambda fold: fold.name)
@many
@given(drawn=calls(span_ms=40 * DAY_MS) | calls(span_ms=90 * MINUTE))
def test_versions_grow_and_every_list_is_a_change(fold: Fold, drawn: list[Call]) -> None:
    shown: dict[Key, RankedList] = {}
    for ranked in (r for lists in run(fold, fold.state(), drawn)[1] for r in lists):
        last = shown.get((ranked.kind, ranked.id))
        if last is not None:
            assert ranked.version > last.version
            assert ranked.items != last.items
        shown[ranked.kind, ranked.id] = ranked


@pytest.mark.parametrize("fold", FOLDS, ids=lambda fold: fold.name)
@many
@given(drawn=calls())
def test_a_replay_of_everything_changes_no_list(fold: Fold, drawn: list[Call]) -> None:
    "At least once is enough: what was delivered comes again, and nothing is published."
    state, _ = run(fold, fold.state(), [*drawn, START + 500 * MINUTE])
    _, outputs = run(fold, state, [*drawn, START + 500 * MINUTE])
    assert not any(outputs)


@pytest.mark.parametrize("fold", FOLDS, ids=lambda fold: fold.name)
def test_settings_are_checked(fold: Fold) -> None:
    for name in fold.config.__struct_fields__:
        with pytest.raises(ConfigError) as caught:
            fold.config(**{name: -1})
        assert caught.value.hint
