"Session files that must be refused; metrics by hand; the protocol against a plain loop."

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxrec.errors import ConfigError, DataError, InputError
from voxrec.recs.candidates import ARMS
from voxrec.recs.coview import CoviewConfig
from voxrec.recs.evaluate import (
    Scores,
    Session,
    coview_lists,
    coview_recommender,
    evaluate,
    popularity,
    rank_of,
    read_sessions,
    session_recommender,
    split_by_time,
    view_sessions,
)
from voxrec.recs.events import Event

HEADER = "SessionId\tItemId\tTime\n"
BAD_FILES = {  # name: (bytes or text, the line that is wrong)
    "empty": ("", 0),
    "no header": ("1\ttea\t5\n", 1),
    "column missing": ("SessionId\tItemId\n1\ttea\n", 1),
    "column twice": ("SessionId\tItemId\tTime\tTime\n1\ttea\t5\t5\n", 1),
    "other delimiter": ("SessionId;ItemId;Time\n1;tea;5\n", 1),
    "delimiters mixed": (HEADER + "1,tea,5\n", 2),
    "cell missing": (HEADER + "1\ttea\t5\n1\ttea\n", 3),
    "cell too many": (HEADER + "1\ttea\t5\t6\n", 2),
    "torn": (HEADER + "1\ttea\t5\n\n1\tte", 4),
    "spaces only": (HEADER + "  \n", 2),
    "session empty": (HEADER + "\ttea\t5\n", 2),
    "item empty": (HEADER + "1\t \t5\n", 2),
    "item long": (HEADER + f"1\t{'x' * 65}\t5\n", 2),
    "item long in bytes": (HEADER + f"1\t{'ü' * 33}\t5\n", 2),
    "time empty": (HEADER + "1\ttea\t\n", 2),
    "time a date": (HEADER + "1\ttea\t2020-07-01\n", 2),
    "time negative": (HEADER + "1\ttea\t-1\n", 2),
    "time NaN": (HEADER + "1\ttea\tnan\n", 2),
    "time infinite": (HEADER + "1\ttea\t1e999\n", 2),
    "time in milliseconds": (HEADER + "1\ttea\t1593536687000\n", 2),
    "quote not closed": (HEADER + '1\t"tea\t5\n', 2),
    "cell enormous": (HEADER + f"1\t{'x' * 200_000}\t5\n", 2),
    "not text": (HEADER.encode() + b"1\ttea\t5\n2\tt\xff\t5\n", 3),
    "compressed": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", 1),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    content, line = BAD_FILES[name]
    path = tmp_path / "clicks.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"clicks.txt, line {line}: .") as e:
        read_sessions(path)
    assert e.value.hint and len(e.value.message) < 500


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "header.txt").write_text(HEADER)
    with pytest.raises(DataError, match="holds no click"):
        read_sessions(tmp_path / "header.txt")
    for path in (tmp_path / "absent.txt", tmp_path):
        with pytest.raises(InputError, match="cannot read the sessions"):
            read_sessions(path)


@pytest.mark.parametrize(
    "text",
    [
        "SessionId\tItemId\tTime\n07\tmug\t9.0004\n07\ttea\t2\n8\t7\t3\n",
        "SessionId,ItemId,Time\r\n07,mug,9.0004\r\n07,tea,2\r\n\r\n8,7,3",
        '\ufeff Time ,shop,ItemId,SessionId\n9.0004,x,mug,07\n2,"x, y",tea , 07\n3,,7,8\n',
    ],
)
def test_the_same_clicks_in_other_dress(tmp_path: Path, text: str) -> None:
    (tmp_path / "clicks").write_bytes(text.encode())
    expected = [Session("07", ("tea", "mug"), (2000, 9000)), Session("8", ("7",), (3000,))]
    assert read_sessions(tmp_path / "clicks") == expected


def test_metrics_by_hand() -> None:
    zeros = np.zeros(4)
    scores = Scores(20, np.array([1, 0, 4, 20]), zeros > 0, zeros + 0.5, zeros, np.arange(4), [()] * 4)
    assert scores.hits.tolist() == [1, 0, 1, 1]
    assert scores.reciprocal_ranks.tolist() == [1, 0, 0.25, 0.05]
    assert scores.metrics() == {"hr@20": 0.75, "mrr@20": 1.3 / 4, "ndcg@20": 0.5, "recall@20": 0.0}


def test_protocol_by_hand() -> None:
    "One list for all: a b c d. The list is cut after the item just clicked was taken out of it."
    session = Session("s", ("a", "c", "a", "a", "e", "d"), (0, 1, 2, 3, 4, 5))
    scores = evaluate(lambda clicked: ["a", "b", "c", "d"], [session, Session("one", ("a",), (9,))], k=2)
    #  after a: b c | after c: a b | after a: b c | after a: b c | after e: a b
    assert scores.ranks.tolist() == [2, 1, 0, 0, 0]
    assert scores.returns.tolist() == [False, True, True, False, False]


def test_nothing_to_evaluate() -> None:
    two = [Session("s", ("a", "b"), (0, 1))]
    for sessions, k in (([], 20), ([Session("s", ("a",), (0,))], 20), (two, 0)):
        with pytest.raises(InputError):
            evaluate(lambda clicked: [], sessions, k)
    for learn in (popularity, coview_recommender, session_recommender):
        assert set(evaluate(learn([]), two).metrics().values()) == {0.0}


ITEMS = [f"i{n}" for n in range(6)]
SESSIONS = st.lists(
    st.lists(st.tuples(st.sampled_from(ITEMS), st.integers(0, 10**10)), min_size=1, max_size=6), max_size=8
).map(
    lambda rows: [
        Session(f"s{n}", tuple(item for item, _ in row), tuple(sorted(ts for _, ts in row)))
        for n, row in enumerate(rows)
    ]
)


@given(SESSIONS, st.lists(st.sampled_from(ITEMS), unique=True), st.integers(1, 5))
def test_evaluate_is_the_plain_loop(sessions: list[Session], order: list[str], k: int) -> None:
    expected = []
    for session in sessions:
        items = list(session.items)
        while len(items) > 1:
            click = items.pop()
            shown = [item for item in order if item != items[-1]][:k]
            expected.append((session.id, len(items), shown.index(click) + 1 if click in shown else 0))
    expected.sort(key=lambda row: (int(row[0][1:]), row[1]))
    if expected:
        assert evaluate(lambda clicked: order, sessions, k).ranks.tolist() == [rank for *_, rank in expected]


@settings(max_examples=50)
@given(SESSIONS, SESSIONS, st.randoms(use_true_random=False))
def test_the_order_of_training_sessions_does_not_matter(train, test, random) -> None:
    mixed = random.sample(train, len(train))
    assert popularity(mixed)(["i0"]) == popularity(train)(["i0"])
    config = CoviewConfig(decay=1.0)  # sums of whole numbers: the order of adding cannot show
    assert coview_lists(mixed, config) == coview_lists(train, config)


@settings(max_examples=50)
@given(SESSIONS, st.lists(st.sampled_from([*ITEMS, "i?"]), min_size=1, max_size=5))
def test_the_thin_path_shows_each_item_once_and_co_viewed_ones_first(
    train: list[Session], clicked: Sequence[str]
) -> None:
    shown = list(coview_recommender(train, CoviewConfig(gap_ms=10**11, decay=1.0))(clicked))
    known = {item for session in train for item in session.items}
    assert len(set(shown)) == len(shown) and set(shown) == known - {clicked[-1]}
    beside = {item for s in train if set(clicked) & set(s.items) for item in s.items} - set(clicked)
    never = [rank_of(item, shown, 99) for item in known - beside - set(clicked)]
    assert all(rank_of(item, shown, 99) < place for item in beside for place in never)


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"semantic": 1.0}, "semantic"),
        ({"semantic": 0.6, "catalogue": 1e-6}, "semantic, catalogue"),
        ({"co_view": 0.0, "catalogue": 1.0}, "catalogue"),
        ({}, "it has none"),
        (None, "no arm 'new'"),
    ],
)
def test_an_arm_that_cannot_be_measured_is_refused(
    monkeypatch: pytest.MonkeyPatch, weights: dict[str, float] | None, told: str
) -> None:
    if weights is not None:
        monkeypatch.setitem(ARMS, "new", weights)
    with pytest.raises(ConfigError, match=told):
        coview_recommender([Session("s", ("a", "b"), (0, 1))], arm="new")


def test_another_arm_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    train = [Session("s", ("a", "b"), (0, 1)), Session("t", ("c", "d"), (0, 1))]
    monkeypatch.setitem(ARMS, "new", {"co_view": 1.0})
    assert coview_recommender(train, arm="new")(["a"]) == ["b"]
    assert coview_recommender(train)(["a"]) == ["b", "c", "d"]


def test_views_become_sessions_and_time_parts_them() -> None:
    def view(ts: int, session: str | None, master: str, kind: str = "view") -> Event:
        return Event(event_id=f"{ts}", type=kind, ts=ts, user_id="u", session_id=session, master_id=master)

    events = [view(5, "s2", "a"), view(1, "s1", "b"), view(2, "s1", "c", "cart"), view(9, "s2", "d")]
    sessions = view_sessions(events)
    assert sessions == [Session("s2", ("a", "d"), (5, 9)), Session("s1", ("b",), (1,))]
    assert split_by_time(sessions, at_ms=9) == (sessions[1:], sessions[:1])
    assert split_by_time(sessions, at_ms=10) == (sessions, [])
    with pytest.raises(InputError, match="view 7 lacks session_id"):
        view_sessions([view(7, None, "a")])
