"""The door for events: a table of bad input, and that no bytes whatever make it raise."""

import json
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxrec.errors import DataError, InputError
from voxrec.recs.events import (
    ANONYMOUS,
    MAX_AHEAD_MS,
    MAX_BODY_BYTES,
    MAX_BODY_EVENTS,
    MAX_EVENT_BYTES,
    REQUIRED,
    Event,
    Listing,
    Offer,
    Product,
    Promo,
    RankedList,
    Reason,
    Update,
    anonymous,
    change_of,
    check_bytes,
    decode_event,
    decode_events,
    encode_event,
    event_schema,
    fault,
    is_anonymous,
    key_of,
    listing_of,
    promo_of,
    topic_of,
)

NOW = 1_767_312_000_000
VIEW = {"event_id": "e1", "type": "view", "ts": NOW, "user_id": "u1", "master_id": "M1"}
ORDER = {**VIEW, "type": "order", "qty": 2, "price": 19.9}
PROMO = {"event_id": "e2", "type": "promo", "ts": NOW, "pid": "M1-0"}
CATALOG = {**PROMO, "type": "catalog"}
OFFER = {"pid": "K1", "seller": "Hearth & Co", "price": 39.0, "rating": 4.2, "stock": 3}
KETTLE = {"master_id": "kettle", "title": "Gooseneck kettle", "category_id": "kettles", "offers": [OFFER]}
SHY = {"event_id": "e4", "type": "view", "ts": NOW, "consent": False}
LISTED = {"event_id": "e3", "type": "catalog", "ts": NOW, "product": KETTLE}


def only(body: bytes) -> tuple[str, str]:
    "Reason and detail of the one refusal that the body must give."
    events, refused = decode_events(body, NOW)
    assert not events and len(refused) == 1 and refused[0].index == 0
    return refused[0].reason, refused[0].detail


def without(event: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in event.items() if k != name}


def promo(**props: Any) -> dict[str, Any]:
    return {**PROMO, "props": props}


def listed(**fields: Any) -> dict[str, Any]:
    return {**LISTED, "product": {**KETTLE, **fields}}


def offered(**fields: Any) -> dict[str, Any]:
    return listed(offers=[{**OFFER, **fields}])


def change(**props: Any) -> dict[str, Any]:
    return {**CATALOG, "props": props}


BAD: list[tuple[str, Any, str, str]] = [
    ("no id", without(VIEW, "event_id"), "missing_field", "event_id"),
    ("no type", without(VIEW, "type"), "missing_field", "type"),
    ("no time", without(VIEW, "ts"), "missing_field", "ts"),
    ("view of nothing", without(VIEW, "master_id"), "missing_field", "master_id"),
    ("view by nobody", {**VIEW, "user_id": None}, "missing_field", "user_id"),
    ("order without quantity and price", {**VIEW, "type": "order"}, "missing_field", "qty and price"),
    ("promo without an offer", without(PROMO, "pid"), "missing_field", "pid"),
    ("click without an answer", {**VIEW, "type": "rec_clicked"}, "missing_field", "rec_id"),
    ("unknown type", {**VIEW, "type": "like"}, "unknown_type", "like"),
    ("unknown field", {**VIEW, "catgory_id": "kettles"}, "unknown_field", "catgory_id"),
    ("a later schema", {**VIEW, "v": 2}, "bad_version", "$.v"),
    ("future", {**VIEW, "ts": NOW + MAX_AHEAD_MS + 1}, "future_time", "300001"),
    ("far future", {**VIEW, "ts": 10**30}, "future_time", "ahead"),
    ("seconds", {**VIEW, "ts": NOW // 1000}, "bad_time", "seconds"),
    ("before 1970", {**VIEW, "ts": -1}, "bad_value", "$.ts"),
    ("time as text", {**VIEW, "ts": "2026-01-02"}, "bad_value", "$.ts"),
    ("time as fraction", {**VIEW, "ts": 1.5}, "bad_value", "$.ts"),
    ("negative price", {**ORDER, "price": -0.01}, "bad_value", "$.price"),
    ("absurd price", {**ORDER, "price": 1e13}, "bad_value", "$.price"),
    ("no pieces", {**ORDER, "qty": 0}, "bad_value", "$.qty"),
    ("absurd quantity", {**ORDER, "qty": 10**18}, "bad_value", "$.qty"),
    ("quantity as boolean", {**ORDER, "qty": True}, "bad_value", "$.qty"),
    ("negative position", {**VIEW, "position": -1}, "bad_value", "$.position"),
    ("empty id", {**VIEW, "user_id": ""}, "bad_value", "$.user_id"),
    ("number as id", {**VIEW, "user_id": 42}, "bad_value", "$.user_id"),
    ("65 characters", {**VIEW, "user_id": "u" * 65}, "bad_value", "$.user_id"),
    ("66 bytes in 33 characters", {**VIEW, "master_id": "ü" * 33}, "bad_id", "66 bytes"),
    ("66 bytes of pid", {**PROMO, "pid": "ü" * 33}, "bad_id", "pid"),
    ("nested props", {**VIEW, "props": {"a": {"b": 1}}}, "bad_value", "$.props"),
    ("too much in props", {**VIEW, "props": {"a": "x" * MAX_EVENT_BYTES}}, "too_large", str(MAX_EVENT_BYTES)),
    ("negative boost", promo(boost=-1), "bad_promo", "$.boost"),
    ("absurd boost", promo(boost=1001), "bad_promo", "$.boost"),
    ("boost as text", promo(boost="high"), "bad_promo", "$.boost"),
    ("negative bid", promo(ad_bid=-0.5), "bad_promo", "$.ad_bid"),
    ("flash sale as number", promo(flash_sale=1), "bad_promo", "$.flash_sale"),
    ("expiry in milliseconds", promo(expiry=NOW), "bad_promo", "$.expiry"),
    ("expiry before 1970", promo(expiry=-1), "bad_promo", "$.expiry"),
    ("unknown promo prop", promo(bost=2), "bad_promo", "bost"),
    ("version set by hand", promo(version=9), "bad_promo", "version"),
    ("catalog without an offer", without(CATALOG, "pid"), "missing_field", "pid"),
    ("no change", CATALOG, "bad_catalog", "nothing to change"),
    ("no change in no props", change(), "bad_catalog", "nothing to change"),
    ("free of charge", {**CATALOG, "price": 0}, "bad_catalog", "above 0"),
    ("free, with a stock", {**change(stock=1), "price": 0}, "bad_catalog", "above 0"),
    ("negative new price", {**CATALOG, "price": -1}, "bad_value", "$.price"),
    ("negative stock", change(stock=-1), "bad_catalog", "-1"),
    ("more stock than a column holds", change(stock=2**31), "bad_catalog", "2147483647"),
    ("absurd stock", change(stock=10**300), "bad_catalog", "whole number"),
    ("half a piece", change(stock=1.5), "bad_catalog", "1.5"),
    ("stock with a point", change(stock=3.0), "bad_catalog", "3.0"),
    ("stock as boolean", change(stock=True), "bad_catalog", "True"),
    ("stock as text", change(stock="many"), "bad_catalog", "many"),
    ("stock as null", {**change(stock=None), "price": 5}, "bad_catalog", "None"),
    ("unknown catalog prop", change(stok=2), "bad_catalog", "stok"),
    ("price among the props", change(stock=2, price=5.0), "bad_catalog", "price"),
    ("promo prop in a catalog event", change(boost=2), "bad_catalog", "boost"),
    ("a product without a title", {**LISTED, "product": without(KETTLE, "title")}, "missing_field", "title"),
    ("a product of nothing", {**LISTED, "product": None}, "missing_field", "pid or product"),
    ("an empty title", listed(title=" "), "bad_catalog", "title is empty"),
    ("66 bytes of master", listed(master_id="ü" * 33), "bad_catalog", "64 bytes"),
    ("an empty category", listed(category_id=""), "bad_catalog", "category_id"),
    ("an offer for nothing", offered(price=0), "bad_catalog", "above 0"),
    ("a rating of six", offered(rating=6), "bad_catalog", "from 0 to 5"),
    ("an offer with too much stock", offered(stock=2**31), "bad_catalog", "2147483647"),
    ("an offer with a half piece", offered(stock=1.5), "bad_value", "$.product.offers"),
    ("an offer twice", listed(offers=[OFFER, OFFER]), "bad_catalog", "listed twice"),
    ("an offer misspelt", listed(offer=[OFFER]), "unknown_field", "offer"),
    ("two masters in one event", {**LISTED, "master_id": "mug"}, "bad_catalog", "mug"),
    ("a product and an offer", {**LISTED, "pid": "K1"}, "bad_catalog", "pid"),
    ("a product and a price", {**LISTED, "price": 5.0}, "bad_catalog", "price"),
    ("a product and a stock", {**LISTED, "props": {"stock": 5}}, "bad_catalog", "props"),
    ("a product looked at", {**VIEW, "product": KETTLE}, "bad_catalog", "states no product"),
    ("a pseudonym made up", {**VIEW, "user_id": ANONYMOUS + "0" * 32}, "bad_id", "stands for nobody"),
    ("consent as a word", {**VIEW, "consent": "no"}, "bad_value", "$.consent"),
    ("consent as nothing", {**VIEW, "consent": None}, "bad_value", "$.consent"),
    ("no consent to nothing", SHY, "missing_field", "master_id"),
    ("not an object", 7, "bad_value", "object"),
    ("null", None, "bad_value", "object"),
]


@pytest.mark.parametrize(("event", "reason", "says"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_event_is_refused_alone_and_whole(event: Any, reason: str, says: str) -> None:
    one = json.dumps(event).encode()
    got, detail = only(one)
    assert got == reason and says in detail

    body = json.dumps([VIEW, event, ORDER]).encode()
    events, refused = decode_events(body, NOW)
    assert [e.type for e in events] == ["view", "order"]
    assert [(r.index, r.reason) for r in refused] == [(1, reason)]
    assert len(one) > MAX_EVENT_BYTES or json.loads(refused[0].raw) == event


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "broken_json"),
        (b"hello", "broken_json"),
        (b'{"event_id": "e1"', "broken_json"),
        (json.dumps(VIEW).encode()[:-1], "broken_json"),
        (json.dumps(VIEW).encode() * 2, "broken_json"),  # JSON lines are not a list
        (b'{"price": NaN}', "broken_json"),  # Python's json.dumps writes this, but it is no JSON
        (b'[{"price": NaN}]', "broken_json"),
        (b'{"price": 1e999}', "bad_value"),
        (b'{"user_id": "\xff"}', "broken_json"),
        (b'{"user_id": "\\ud800"}', "broken_json"),
        (b"[" * 100_000, "broken_json"),
        (b'{"props":' * 5_000, "bad_value"),
        (b'{"ts": ' + b"1" * 5_000 + b"}", "bad_value"),
        (b"[" + b"1," * MAX_BODY_EVENTS + b"1]", "too_large"),
        (b" " * 10_000_000, "too_large"),
        (json.dumps([VIEW] * 100_000).encode(), "too_large"),
    ],
)
def test_bad_body_is_one_refusal(body: bytes, reason: str) -> None:
    assert only(body)[0] == reason
    _, (refused,) = decode_events(body, NOW)
    assert len(refused.raw) <= 4 * MAX_EVENT_BYTES and len(refused.detail) <= 300


def test_good_ones_around_bad_utf8_are_kept() -> None:
    good = json.dumps(VIEW).encode()
    events, refused = decode_events(b"[" + good + b', {"user_id": "\xff"}, ' + good + b"]", NOW)
    assert len(events) == 2 and [(r.index, r.reason) for r in refused] == [(1, "broken_json")]


def test_edges_that_are_good() -> None:
    edges = [
        {**VIEW, "ts": NOW + MAX_AHEAD_MS},
        {**ORDER, "price": 0},
        {**VIEW, "user_id": "u" * 64},
        {**VIEW, "user_id": "}{ \n'\"\\"},
        {**VIEW, "props": {"a": None, "b": 1.5, "c": True, "d": "x", "e": 10**30}},
        {**VIEW, "v": 1, "session_id": None},
        {
            **PROMO,
            "props": {"boost": 0, "ad_bid": 1000, "expiry": 0, "flash_sale": True, "out_of_stock": True},
        },
        PROMO,
        change(stock=0),
        change(stock=2**31 - 1),
        {**CATALOG, "price": 0.01},
        {**change(stock=7), "price": 1e12},
        LISTED,
        listed(offers=[]),
        {**LISTED, "master_id": "kettle", "category_id": "anything"},
        {**VIEW, "user_id": "anonymous"},
        {**VIEW, "consent": False},
        {**without(VIEW, "user_id"), "consent": False},
        {**VIEW, "user_id": ANONYMOUS, "consent": False},
    ]
    events, refused = decode_events(json.dumps(edges).encode(), NOW)
    assert len(events) == len(edges) and not refused
    assert decode_events(b"[]", NOW) == ([], []) and decode_events(b" \n[ ]\t", NOW) == ([], [])


@pytest.mark.parametrize("body", [json.dumps(VIEW), json.dumps([VIEW, ORDER]), " [7, null]", "", "hello"])
def test_byte_order_mark_before_a_body_is_skipped(body: str) -> None:
    plain, marked = (decode_events(text.encode(), NOW) for text in (body, "\ufeff" + body))
    assert marked[0] == plain[0]
    assert [(r.reason, r.detail) for r in marked[1]] == [(r.reason, r.detail) for r in plain[1]]


def test_full_body_is_taken_whole() -> None:
    item = json.dumps(VIEW)
    count = min(MAX_BODY_EVENTS, (MAX_BODY_BYTES - 2) // (len(item) + 1))
    events, refused = decode_events(f"[{','.join([item] * count)}]".encode(), NOW)
    assert len(events) == count and not refused


@given(st.binary(max_size=200))
def test_no_bytes_make_the_door_raise(body: bytes) -> None:
    _, refused = decode_events(body, NOW)
    assert all(r.reason in get_args(Reason) for r in refused)


scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70)
loose = st.recursive(
    scalar, lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=5), s, max_size=3)
)
near_event = st.fixed_dictionaries(
    {"event_id": loose, "type": st.sampled_from([*REQUIRED, "like"]), "ts": st.just(NOW) | loose},
    optional={name: loose for name in Event.__struct_fields__ if name not in ("event_id", "type", "ts")},
)


@given(st.lists(near_event | loose, max_size=4))
def test_what_nearly_is_an_event_is_let_in_or_refused_never_lost(items: list[Any]) -> None:
    body = json.dumps(items).encode()
    events, refused = decode_events(body, NOW)
    whole = [r for r in refused if r.reason == "broken_json" and r.index == 0]  # a NaN breaks the whole list
    assert whole or len(events) + len(refused) == len(items)
    for event in events:
        assert fault(event, NOW) is None and decode_event(encode_event(event)) == event
        assert key_of(event) and topic_of(event)


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=16)
good_event = st.builds(
    Event,
    event_id=ids,
    type=st.sampled_from(["view", "cart", "order"]),
    ts=st.integers(NOW - 10**10, NOW),
    user_id=ids,
    master_id=ids,
    qty=st.integers(1, 1_000_000),
    price=st.floats(0, 1e12),
    props=st.none()
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.booleans(), max_size=3),
)


@given(st.lists(good_event, max_size=5))
def test_what_is_sent_is_what_is_read(events: list[Event]) -> None:
    body = b"[" + b",".join(map(encode_event, events)) + b"]"
    assert decode_events(body, NOW) == (events, [])


def test_schema_agrees_with_the_door() -> None:
    validator = jsonschema.Draft202012Validator(event_schema())
    validator.check_schema(event_schema())
    shy = {**without(VIEW, "user_id"), "consent": False}
    for event in (VIEW, ORDER, PROMO, change(stock=1), LISTED, shy, {**VIEW, "session_id": None}):
        assert validator.is_valid(event)
    beyond = {
        "bad_id",
        "bad_time",
        "future_time",
        "bad_promo",
        "bad_catalog",
        "too_large",
    }  # what JSON Schema cannot say
    for name, event, reason, _ in BAD:
        assert validator.is_valid(event) == (reason in beyond), name


def test_log_reader_refuses_what_is_no_event() -> None:
    with pytest.raises(DataError, match="not a shop event"):
        decode_event(b'{"hello": 1}')
    with pytest.raises(DataError):
        decode_event(b"\xff")
    with pytest.raises(DataError, match="not a shop event: product kettle"):
        decode_event(json.dumps(listed(title="")).encode())


@pytest.mark.parametrize("boost", [float("nan"), float("inf"), -1.0])
def test_promo_made_in_python_is_checked_too(boost: float) -> None:
    event = Event(event_id="e", type="promo", ts=NOW, pid="P", props={"boost": boost})
    with pytest.raises(InputError, match="boost"):
        promo_of(event)
    assert fault(event, NOW) is not None
    with pytest.raises(InputError, match="no promotion"):
        promo_of(Event(event_id="e", type="view", ts=NOW))
    with pytest.raises(InputError, match="user_id"):
        key_of(Event(event_id="e", type="view", ts=NOW))


def test_catalog_change_made_in_python_is_checked_too() -> None:
    for price in (float("nan"), float("inf"), -1.0, 0.0):
        event = Event(event_id="e", type="catalog", ts=NOW, pid="P", price=price)
        with pytest.raises(InputError, match="price"):
            change_of(event)
        assert fault(event, NOW) is not None
    with pytest.raises(InputError, match="no offer"):
        change_of(Event(event_id="e", type="view", ts=NOW))


def test_updates_share_a_channel() -> None:
    for update in (
        Listing(Product("kettle", "Kettle", "kettles", (Offer("K1", "Hearth & Co", 39.0, 4.2, 3),)), NOW),
        Promo("P", boost=2.0, version=NOW),
        RankedList("cat:co_view", "a", (("b", 1.0),), NOW, as_of=3),
    ):
        assert msgspec.json.decode(msgspec.json.encode(update), type=Update) == update


def test_a_product_is_stated_whole() -> None:
    (event,), refused = decode_events(json.dumps(LISTED).encode(), NOW)
    listing = listing_of(event)
    assert not refused and msgspec.to_builtins(listing.product) == {**KETTLE, "offers": (OFFER,)}
    assert listing.version == NOW and (topic_of(event), key_of(event)) == ("shop.catalog", "kettle")
    with pytest.raises(InputError, match="changes no offer"):
        change_of(event)
    with pytest.raises(InputError, match="states no product"):
        listing_of(Event(event_id="e", type="catalog", ts=NOW, pid="P", price=1.0))


NO_CONSENT = st.fixed_dictionaries(
    {"type": st.sampled_from(["view", "cart"]), "event_id": ids, "consent": st.just(False)},
    optional={"user_id": ids | st.just(ANONYMOUS + "x"), "session_id": ids},
)


@given(st.lists(NO_CONSENT, max_size=6))
def test_without_consent_no_user_gets_past_the_door(items: list[dict[str, Any]]) -> None:
    body = json.dumps([{**item, "ts": NOW, "master_id": "M1"} for item in items]).encode()
    events, refused = decode_events(body, NOW)
    assert not refused and all(is_anonymous(e.user_id) and not e.consent for e in events)
    for item, event in zip(items, events, strict=True):
        named = Event(**{**item, "ts": NOW, "master_id": "M1", "user_id": "somebody else"})
        assert is_anonymous(item.get("user_id")) or event == anonymous(named), "the user changes nothing"
        assert decode_events(encode_event(event), NOW) == ([event], []), "a log may be read in again"


@given(st.text(min_size=1, max_size=80))
def test_a_body_s_ids_are_held_to_the_bytes_that_an_event_s_are(id: str) -> None:
    too_long = fault(Event(event_id="e", type="view", ts=NOW, user_id="u", master_id=id), NOW) is not None
    try:
        check_bytes("u", None, id)
    except InputError as e:
        assert too_long and e.hint
    else:
        assert not too_long


def test_a_pseudonym_keeps_a_visit_together_and_no_more() -> None:
    def who(**fields: Any) -> Event:
        return decode_events(json.dumps({**VIEW, "consent": False, **fields}).encode(), NOW)[0][0]

    first, second = who(session_id="s1"), who(session_id="s1", event_id="e9", user_id="u2")
    assert first.user_id == second.user_id == first.session_id and len(first.user_id or "") <= 64
    assert who(session_id="s2").user_id != first.user_id != who(event_id="s1").user_id
    assert who().user_id != who(event_id="e9").user_id and who().session_id is None
    promo = anonymous(Event(event_id="p", type="promo", ts=NOW, pid="P", user_id="u1", consent=False))
    assert promo.user_id is None
