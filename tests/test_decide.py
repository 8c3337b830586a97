"""Who wins between hearing, intent, names, limits and an open question: tables made by hand."""

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxrec.config import Device, Person, Team, Tenant, Threshold
from voxrec.voice.actions import WAYS, Way, message_of
from voxrec.voice.decide import Action, Decision, Heard, Pending, decide
from voxrec.voice.directory import Directory
from voxrec.voice.intent import INTENTS, Intent, Slot, Understood
from voxrec.voice.turn import question_of

SITE = Tenant(
    id="north",
    devices={"watch-1": Device(zone="aisle 12"), "nowhere": Device()},
    people=(
        Person("John Kowalski", sip="sip:100@site"),
        Person("Anna Schmidt"),
        Person("Anna Novak"),
        Person("Carl Depot", sip="sip:+4855512@out"),
        Person("Tessa Depot", sip="tel:112"),
    ),
    teams=(Team("maintenance"), Team("first aid")),
    places=("dock 7", "dock 17", "zone B"),
)
STRICT = Tenant(
    id="strict",
    people=SITE.people,
    teams=SITE.teams,
    devices=SITE.devices,
    thresholds={
        "SUMMON_TEAM": Threshold(act=0.95, confirm=0.9),
        "EMERGENCY_STOP": Threshold(act=0.9, confirm=0.6),
        "HEARING": Threshold(act=0.8, confirm=0.7),
    },
)
SUMMON = "[team](maintenance) to [place](dock seven)"
STOPPED = Action(id="s1", kind="stop", location="zone B", tenant="north", device_id="watch-1")
CALLED = Action(id="c1", kind="summon", team="maintenance", location="dock 7")


def decided(
    marked: str,
    intent: str,
    confidence: float = 0.97,
    hearing: float = 0.9,
    *,
    pending: Pending | None = None,
    tenant: Tenant = SITE,
    ts: int = 1_000,
    foreign: float = 0.0,
    truncated: bool = False,
    **heard: Any,
) -> Decision:
    text, slots = "", []
    for part in re.split(r"(\[\w+\]\([^)]*\))", marked):
        slot = re.fullmatch(r"\[(\w+)\]\(([^)]*)\)", part)
        if slot:
            slots.append(Slot(slot[1], slot[2], len(text), len(text) + len(slot[2])))
        text += slot[2] if slot else part
    understood = Understood(
        text=text, intent=intent, confidence=confidence, scores={}, slots=slots, out_of_scope=foreign,
        truncated=truncated,
    )  # fmt: skip
    fields: dict[str, Any] = {"text": text, "confidence": hearing, "device_id": "watch-1", "ts": ts} | heard
    return decide(understood, Heard(**fields), Directory(tenant), tenant, pending)


def waiting(asks: Any, action: Action = CALLED, candidates: tuple[str, ...] = ()) -> Pending:
    return Pending(action, asks, 10_000, candidates)


@pytest.mark.parametrize(
    ("marked", "intent", "confidence", "hearing", "kind", "reason"),
    [
        (SUMMON, "SUMMON_TEAM", 0.97, 0.90, "act", "sure"),
        (SUMMON, "SUMMON_TEAM", 0.851, 0.60, "act", "sure"),
        (SUMMON, "SUMMON_TEAM", 0.85, 0.90, "confirm", "intent"),
        (SUMMON, "SUMMON_TEAM", 0.80, 0.90, "confirm", "intent"),
        (SUMMON, "SUMMON_TEAM", 0.799, 0.90, "cloud", "question"),
        (SUMMON, "SUMMON_TEAM", 1.00, 0.599, "confirm", "hearing"),
        (SUMMON, "SUMMON_TEAM", 1.00, 0.40, "confirm", "hearing"),
        (SUMMON, "SUMMON_TEAM", 1.00, 0.399, "ignore", "unclear"),
        (SUMMON, "SUMMON_TEAM", 1.00, 0.00, "ignore", "unclear"),
        ("stop", "EMERGENCY_STOP", 0.71, 0.90, "act", "sure"),
        ("stop", "EMERGENCY_STOP", 0.70, 0.90, "confirm", "intent"),
        ("stop", "EMERGENCY_STOP", 0.49, 0.90, "cloud", "question"),
        ("stop", "EMERGENCY_STOP", 1.00, 0.50, "confirm", "hearing"),
        ("stop", "EMERGENCY_STOP", 1.00, 0.30, "ignore", "unclear"),
        ("how high is it", "GENERAL_QUERY", 1.00, 1.00, "cloud", "question"),
        ("a new intent", "WATER_PLANTS", 1.00, 1.00, "cloud", "question"),
        ("   ", "EMERGENCY_STOP", 1.00, 1.00, "ignore", "silence"),
        ("[team](maintenance)", "SUMMON_TEAM", 1.00, 0.50, "confirm", "hearing"),
        ("somebody come", "SUMMON_TEAM", 1.00, 0.50, "ignore", "unclear"),  # heard badly, and no team
        ("oil at [place](bay nine)", "REPORT_HAZARD", 0.97, 0.9, "act", "sure"),
    ],
)
def test_hearing_and_intent(
    marked: str, intent: str, confidence: float, hearing: float, kind: str, reason: str
) -> None:
    d = decided(marked, intent, confidence, hearing)
    assert (d.kind, d.reason) == (kind, reason), d.why


@pytest.mark.parametrize(
    ("marked", "intent", "confidence", "hearing", "kind"),
    [
        ("[team](maintenance)", "SUMMON_TEAM", 0.96, 0.9, "act"),
        ("[team](maintenance)", "SUMMON_TEAM", 0.93, 0.9, "confirm"),
        ("[team](maintenance)", "SUMMON_TEAM", 0.87, 0.9, "cloud"),
        ("[team](maintenance)", "SUMMON_TEAM", 0.99, 0.75, "confirm"),
        ("[team](maintenance)", "SUMMON_TEAM", 0.99, 0.65, "ignore"),
        ("stop", "EMERGENCY_STOP", 0.85, 0.9, "confirm"),
        ("call [person](Kowalski)", "DIAL_PERSON", 0.86, 0.9, "act"),  # not in its file: the defaults
    ],
)
def test_limits_of_a_tenant(marked: str, intent: str, confidence: float, hearing: float, kind: str) -> None:
    assert decided(marked, intent, confidence, hearing, tenant=STRICT).kind == kind


@pytest.mark.parametrize(
    ("marked", "intent", "asks", "reason", "candidates"),
    [
        ("call [person](Anna)", "DIAL_PERSON", "person", "which", ("Anna Schmidt", "Anna Novak")),
        ("call [person](Marta)", "DIAL_PERSON", "person", "unknown", ()),
        ("call [person](him)", "DIAL_PERSON", "person", "unknown", ()),
        ("call", "DIAL_PERSON", "person", "missing", ()),
        ("call [person](John Brown)", "DIAL_PERSON", "yes", "name", ()),
        ("call [person](John) and [person](Carl)", "DIAL_PERSON", "yes", "name", ()),
        ("call [person](Carl)", "DIAL_PERSON", "yes", "risk", ()),
        ("call [person](Tessa)", "DIAL_PERSON", "yes", "risk", ()),
        ("send someone to [place](dock seven)", "SUMMON_TEAM", "team", "missing", ()),
        ("[team](maintenance) to [place](dock nine)", "SUMMON_TEAM", "place", "unknown", ()),
        ("[team](maintenance) to [place](the dock)", "SUMMON_TEAM", "place", "which", ("dock 7", "dock 17")),
    ],
)
def test_what_is_asked(marked: str, intent: str, asks: str, reason: str, candidates: tuple[str, ...]) -> None:
    d = decided(marked, intent)
    assert (d.kind, d.asks, d.reason, d.candidates) == ("confirm", asks, reason, candidates)


def test_words_of_a_name_heard_badly_are_confirmed() -> None:
    words = (("Call", 0.99), ("John", 0.9), ("Kowalski.", 0.3))
    call = "Call [person](John Kowalski)."
    assert decided(call, "DIAL_PERSON", words=words).reason == "name"
    assert decided(call, "DIAL_PERSON", words=(("Call", 0.1), *words[1:2])).kind == "act"


def test_whoever_lost_a_piece_of_the_sound_asks() -> None:
    for marked, intent in ((SUMMON, "SUMMON_TEAM"), ("stop", "EMERGENCY_STOP")):
        assert decided(marked, intent, 1.0, 1.0, lost_ms=100).reason == "hearing"
    assert decided("yes", "CONFIRM", 1.0, 1.0, lost_ms=100, pending=waiting("yes")).kind == "confirm"
    assert decided("no", "DENY", 1.0, 1.0, lost_ms=100, pending=waiting("yes")).reason == "dropped"


def test_place_when_none_is_said() -> None:
    assert decided("[team](maintenance)", "SUMMON_TEAM").action.location == "aisle 12"  # type: ignore[union-attr]
    here = "[team](maintenance) [place](right here)"
    assert decided(here, "SUMMON_TEAM").action.location == "aisle 12"  # type: ignore[union-attr]
    assert decided(here, "SUMMON_TEAM", device_id="nowhere").asks == "place"
    assert decided(here, "SUMMON_TEAM", device_id="stranger").asks == "place"


@pytest.mark.parametrize(
    ("marked", "location"),
    [
        ("stop", "aisle 12"),
        ("stop [place](zone be)", "zone B"),
        ("stop [place](dock nine)", ""),  # unknown: the whole site
        ("stop [place](the dock)", ""),  # two fit
    ],
)
def test_stop_is_not_held_up_by_names(marked: str, location: str) -> None:
    d = decided(marked, "EMERGENCY_STOP", 0.9)
    assert d.kind == "act" and d.action is not None and d.action.location == location


def test_foreign_and_truncated_texts_are_confirmed() -> None:
    assert decided(SUMMON, "SUMMON_TEAM", foreign=0.6).reason == "foreign"
    assert decided("stop", "EMERGENCY_STOP", foreign=0.6).reason == "foreign"
    assert decided(SUMMON, "SUMMON_TEAM", truncated=True).reason == "truncated"


@pytest.mark.parametrize("intent", ["CONFIRM", "DENY", "CANCEL"])
@pytest.mark.parametrize("pending", [None, Pending(CALLED, "yes", 1_000), Pending(CALLED, "undo", 999)])
def test_dialogue_without_anything_pending(intent: str, pending: Pending | None) -> None:
    d = decided("so", intent, 0.99, pending=pending)
    assert (d.kind, d.reason, d.action) == ("ignore", "nothing_pending", None)


@pytest.mark.parametrize(
    ("intent", "confidence", "hearing", "asks", "kind", "reason"),
    [
        ("CONFIRM", 0.99, 0.9, "yes", "act", "confirmed"),
        ("CONFIRM", 0.70, 0.9, "yes", "confirm", "intent"),
        ("CONFIRM", 0.99, 0.5, "yes", "confirm", "hearing"),
        ("CONFIRM", 0.99, 0.3, "yes", "ignore", "unclear"),
        ("CONFIRM", 0.99, 0.9, "person", "confirm", "missing"),
        ("CONFIRM", 0.99, 0.9, "undo", "ignore", "nothing_pending"),
        ("DENY", 0.99, 0.9, "yes", "ignore", "dropped"),
        ("DENY", 0.40, 0.5, "yes", "ignore", "dropped"),  # holding back needs no certainty
        ("DENY", 0.99, 0.9, "undo", "ignore", "nothing_pending"),
        ("CANCEL", 0.40, 0.5, "yes", "ignore", "dropped"),
        ("CANCEL", 0.99, 0.9, "team", "ignore", "dropped"),
        ("CANCEL", 0.99, 0.9, "undo", "act", "undone"),
        ("CANCEL", 0.70, 0.9, "undo", "confirm", "intent"),
        ("REPEAT", 0.99, 0.9, "yes", "ignore", "repeat"),
        ("GENERAL_QUERY", 0.99, 0.9, "yes", "cloud", "question"),
    ],
)
def test_dialogue(intent: str, confidence: float, hearing: float, asks: str, kind: str, reason: str) -> None:
    d = decided("well", intent, confidence, hearing, pending=waiting(asks))
    assert (d.kind, d.reason) == (kind, reason)
    if reason == "confirmed":
        assert d.action == CALLED
    if reason == "undone":
        assert d.action is not None and d.action.kind == "cancel" and d.action.cancels == "c1"


def test_calling_off_a_stop_takes_a_yes() -> None:
    asked = decided("cancel", "CANCEL", 0.999, 1.0, pending=waiting("undo", STOPPED))
    assert (asked.kind, asked.reason) == ("confirm", "risk")
    assert asked.action is not None and asked.action.cancels == "s1"
    done = decided("yes", "CONFIRM", pending=waiting("yes", asked.action), ts=2_000)
    assert done.kind == "act" and done.action == asked.action


def test_a_stop_goes_before_any_question() -> None:
    for asks in ("yes", "team", "person", "place", "undo"):
        d = decided("stop it", "EMERGENCY_STOP", 0.9, pending=waiting(asks))
        assert d.kind == "act" and d.action is not None and d.action.kind == "stop", asks


DIAL = Action(id="d1", kind="dial", tenant="north", device_id="watch-1")


@pytest.mark.parametrize(
    ("marked", "intent", "confidence", "kind", "person"),
    [
        ("Novak", "GENERAL_QUERY", 0.5, "act", "Anna Novak"),
        ("[person](Schmidt)", "DIAL_PERSON", 0.9, "act", "Anna Schmidt"),
        ("[person](John Kowalski)", "STATUS_QUERY", 0.5, "act", "John Kowalski"),  # neither of the two
        ("Carl Depot", "GENERAL_QUERY", 0.5, "confirm", "Carl Depot"),  # outside the site
        ("Anna", "GENERAL_QUERY", 0.5, "cloud", None),  # no wiser than before
        ("what is for lunch", "GENERAL_QUERY", 0.9, "cloud", None),
        (SUMMON, "SUMMON_TEAM", 0.97, "act", ""),  # another command
    ],
)
def test_answers(marked: str, intent: str, confidence: float, kind: str, person: str | None) -> None:
    d = decided(
        marked, intent, confidence, pending=waiting("person", DIAL, ("Anna Schmidt", "Anna Novak")), ts=5_000
    )
    assert d.kind == kind
    assert (d.action.person if d.action else None) == person
    late = decided(marked, intent, confidence, pending=waiting("person", DIAL), ts=10_000)
    assert late.action is None or late.action.id != "d1"


def test_answer_is_a_place_by_its_number_alone() -> None:
    lost = Action(id="q1", kind="summon", team="maintenance")
    d = decided("seventeen", "GENERAL_QUERY", 0.4, pending=waiting("place", lost, ("dock 7", "dock 17")))
    assert d.kind == "act" and d.action is not None and d.action.location == "dock 17"


def test_a_site_without_names_takes_the_words() -> None:
    bare = Tenant(id="bare")
    d = decided("[team](the fitters) to [place](ramp one)", "SUMMON_TEAM", tenant=bare)
    assert d.kind == "act" and d.action is not None
    assert (d.action.team, d.action.location) == ("the fitters", "ramp one")
    assert decided("call [person](Anna)", "DIAL_PERSON", tenant=bare).asks == "person"  # nobody to dial


def test_every_kind_of_action_has_its_words() -> None:
    kinds = [row.kind for row in INTENTS.values() if row.kind]
    assert len(set(kinds)) == 6 and {*kinds, "cancel"} == set(WAYS)


def test_a_new_intent_is_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe of 15_intent: decided, asked for, described and sent, with nothing else changed."""
    row = Intent("ask for supplies", "supplies", needs=("place",), limits=Threshold(act=0.9, confirm=0.7))
    way = Way(lambda a: f"order supplies for {a.location}", topic="site/supplies")
    monkeypatch.setitem(INTENTS, "ORDER_SUPPLIES", row)
    monkeypatch.setitem(WAYS, "supplies", way)
    more = "more labels for [place](zone B)"
    assert [decided(more, "ORDER_SUPPLIES", c).kind for c in (0.69, 0.7, 0.9, 0.91)] == [
        "cloud",
        "confirm",
        "confirm",
        "act",
    ]
    assert decided("more labels", "ORDER_SUPPLIES", device_id="nowhere").asks == "place"
    asked = decided(more, "ORDER_SUPPLIES", 0.8)
    assert question_of(asked) == "Shall I order supplies for zone B?"
    yes = decided("yes", "CONFIRM", pending=Pending(asked.action, "yes", 11_000))  # type: ignore[arg-type]
    assert yes.action is not None and message_of(yes.action, "zone B")["location"] == "zone B"
    strict = msgspec.structs.replace(SITE, thresholds={"ORDER_SUPPLIES": Threshold(act=0.99, confirm=0.9)})
    assert decided(more, "ORDER_SUPPLIES", 0.98, tenant=strict).kind == "confirm"


@given(
    intent=st.sampled_from(list(INTENTS)),
    confidence=st.floats(0, 1),
    hearing=st.floats(0, 1),
    text=st.sampled_from(["stop", SUMMON, "call [person](John)", "call [person](Carl)", "yes"]),
    asks=st.sampled_from(["", "yes", "team", "person", "place", "undo"]),
)
def test_never_acts_on_a_doubtful_hearing(
    intent: str, confidence: float, hearing: float, text: str, asks: str
) -> None:
    d = decided(text, intent, confidence, hearing, pending=waiting(asks) if asks else None)
    assert d.kind != "act" or hearing >= 0.6
    assert d.kind != "act" or d.reason in ("answered", "sure", "confirmed", "undone")
    assert (d.action is not None) == (d.kind in ("act", "confirm")) and d.why
