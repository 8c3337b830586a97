"Session files that must be refused; metrics by hand; the protocol against a plain loop."

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxrec.errors import ConfigError, DataError, InputError
from voxrec.recs.baselines import (
    DAILY,
    FROM_FILES,
    RECOMMENDERS,
    Knobs,
    SessionModel,
    coview_recommender,
    evaluate_files,
    evaluate_sessions,
    learn,
    read_knobs,
    session_recommender,
    shares,
    together,
    weigh,
)
from voxrec.recs.baselines import Path as ServingPath
from voxrec.recs.candidates import ARMS, gather
from voxrec.recs.coview import CoviewConfig, CoviewState, close, coview_step
from voxrec.recs.evaluate import (
    DRAWN,
    POLICIES,
    Scores,
    Session,
    diversity_of,
    estimate,
    evaluate,
    event_sessions,
    gain,
    popularity,
    rank_of,
    read_sessions,
    remarks,
    session_vectors,
    split_by_time,
    split_last_days,
    summary,
)
from voxrec.recs.events import Event
from voxrec.recs.replay import Exposure, exposures, lists_policy, replay, snips
from voxrec.recs.sessions import SessionConfig
from voxrec.recs.tune import collect, goal_of, hold_out, tune, tune_files, tune_weights

HEADER = "SessionId\tItemId\tTime\n"
BAD_FILES = {  # name: (bytes or text, the line that is wrong)
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
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty.txt is empty\n") as e:
        read_sessions(tmp_path / "empty.txt")
    assert "SessionId" in e.value.hint
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
    for taught in (popularity, coview_recommender, session_recommender):
        assert set(evaluate(taught([]), two).metrics().values()) == {0.0}


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
    assert together(mixed, config) == together(train, config)


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
    sessions = event_sessions(events)
    assert sessions == [Session("s2", ("a", "d"), (5, 9)), Session("s1", ("b",), (1,))]
    assert event_sessions(events, "cart") == [Session("s1", ("c",), (2,))]
    assert split_by_time(sessions, 9) == (sessions[1:], sessions[:1])
    assert split_by_time(sessions, 10) == (sessions, [])
    assert split_by_time(sessions, 1, 9) == ([], sessions[1:], sessions[:1])
    assert split_by_time(sessions, 2, 10) == (sessions[1:], sessions[:1], [])
    with pytest.raises(InputError, match="do not ascend"):
        split_by_time(sessions, 9, 1)
    with pytest.raises(InputError, match="view 7 lacks session_id"):
        event_sessions([view(7, None, "a")])


def test_the_last_days() -> None:
    day = 86_400_000
    sessions = [
        Session(str(n), ("a", "b"), (n * day // 2, n * day // 2)) for n in range(9)
    ]  # 0, .5, .. 4 days
    train, valid, test = split_last_days(sessions, 1, 1)
    assert [[s.id for s in part] for part in (train, valid, test)] == [list("01234"), list("56"), list("78")]
    assert split_last_days([], 1) == ([], [])


# Policies, against a plain loop


@given(
    SESSIONS,
    st.lists(st.sampled_from(ITEMS), unique=True),
    st.integers(1, 5),
    st.sampled_from(list(POLICIES)),
)
def test_each_policy_is_the_plain_loop(
    sessions: list[Session], order: list[str], k: int, policy: str
) -> None:
    expected = []
    for session in sessions:
        for n in range(1, len(session.items)):
            seen, click = session.items[:n], session.items[n]
            hidden = {"current": seen[-1:], "session": seen, "none": ()}[policy]
            if policy == "session" and click in seen:
                continue
            shown = [item for item in order if item not in hidden][:k]
            expected.append(shown.index(click) + 1 if click in shown else 0)
    if expected:
        assert evaluate(lambda clicked: order, sessions, k, policy).ranks.tolist() == expected


def test_unknown_policies_and_recommenders() -> None:
    two = [Session("s", ("a", "b"), (0, 1))]
    with pytest.raises(ConfigError, match="no repeat policy 'all'"):
        evaluate(popularity(two), two, policy="all")
    with pytest.raises(ConfigError, match="no recommender 'all'"):
        evaluate_sessions(two, two, "all")
    with pytest.raises(InputError, match="no titles"):
        learn("semantic", two)
    with pytest.raises(InputError, match="different predictions"):
        gain(evaluate(popularity(two), two, 1), evaluate(popularity(two), two, 2))


@given(
    SESSIONS,
    st.lists(st.lists(st.sampled_from([*ITEMS, "i?"]), unique=True, max_size=4), min_size=1, max_size=4),
)
def test_diversity_is_the_mean_over_pairs(train: list[Session], lists: list[list[str]]) -> None:
    seen = {item: {n for n, s in enumerate(train) if item in s.items} for item in ITEMS}
    for row, got in zip(lists, diversity_of(lists, session_vectors(train)), strict=True):
        known = [seen[item] for item in row if seen.get(item)]
        pairs = [1 - len(a & b) / (len(a) * len(b)) ** 0.5 for i, a in enumerate(known) for b in known[:i]]
        assert np.isclose(got, np.mean(pairs), atol=1e-9) if pairs else np.isnan(got)


def test_intervals_reckon_with_sessions() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(
        100
    ):  # sessions that say the same ten times: as wide as a tenth of the clicks would make it
        values = np.repeat(rng.random(60) < 0.3, 10)
        e = estimate(values, np.repeat(np.arange(60), 10), resamples=300)
        held += e.low <= 0.3 <= e.high
    assert 88 <= held <= 99


# Baselines


@settings(max_examples=50)
@given(SESSIONS, st.sampled_from([0.8, 0.95, 1.0]))
def test_pairs_by_matrix_are_the_folds(train: list[Session], decay: float) -> None:
    config = CoviewConfig(every_ms=DAILY.every_ms, decay=decay)
    state = CoviewState()
    for s in train:
        for item, ts in zip(s.items, s.times_ms, strict=True):
            view = Event(event_id=s.id, type="view", ts=ts, user_id=s.id, master_id=item)
            coview_step(state, view, config, lambda item: item)
    end = max((s.times_ms[-1] for s in train), default=0)
    folded = {r.id: dict(r.items) for r in close(state, end + config.gap_ms + 1, config)[1]}
    found = {item: dict(row) for item, row in together(train, config)[0].items()}
    for item in found.keys() | folded.keys():  # the fold forgets scores below 1e-12
        kept = {other: score for other, score in found.get(item, {}).items() if score > 1e-11}
        assert kept == pytest.approx({o: s for o, s in folded.get(item, {}).items() if s > 1e-11}, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(SESSIONS, st.lists(st.sampled_from([*ITEMS, "i?"]), min_size=1, max_size=5))
def test_every_recommender_shows_known_items_once(train: list[Session], clicked: list[str]) -> None:
    known = {item for s in train for item in s.items}
    for name in sorted(set(RECOMMENDERS) - {"semantic"}):
        shown = list(learn(name, train)(clicked))
        assert len(set(shown)) == len(shown) and set(shown) <= known, name


@settings(max_examples=30, deadline=None)
@given(SESSIONS, st.lists(st.sampled_from(ITEMS), min_size=1, max_size=4))
def test_weighing_is_what_the_arm_serves(train: list[Session], clicked: list[str]) -> None:
    path = ServingPath(train)
    if any(len(set(s.items)) > 1 for s in train):
        served = [path.items[i] for i in gather(path.query(clicked), "blend").ids.tolist()]
        assert [i for i in weigh(path, ARMS["blend"])(clicked) if i != clicked[-1]] == served


def test_diversity_of_many_lists_is_that_of_a_draw() -> None:
    train = [Session(f"s{n}", (f"i{n}", f"i{n + 1}"), (0, 1)) for n in range(60)]
    n = 3 * DRAWN
    shown = [(f"i{j % 59}", f"i{j % 59 + 1 + j % 2}") for j in range(n)]
    scores = Scores(2, *(np.zeros(n) for _ in range(4)), np.arange(n), shown)
    vectors = session_vectors(train)
    told, kinds = (
        summary(scores, {"i0": 1}, 200, vectors=vectors)["diversity@2"],
        diversity_of(shown, vectors),
    )
    assert told.value != kinds.mean() and told.low < kinds.mean() < told.high


def test_what_moves_figures_is_told() -> None:
    train = [Session("a", ("x", "y"), (0, 3_600_000))]
    test = [Session("a", ("x", "x", "z"), (1_800_000, 1_800_001, 1_800_002)), Session("b", ("x",), (9, 9))]
    assert remarks(train, test) == [
        "1 of 2 predictions are clicks on items that training never saw: misses",
        "1 of 2 predictions are clicks on the item just clicked, which is not shown: misses",
        "1 of 2 test sessions have one click: nothing to predict",
        "1 session ids are in training and test",
        "the test begins 1.0 hours before training ends",
    ]
    assert remarks(train, test, "none")[1].startswith("1 of 2 test sessions")
    assert remarks([], [Session("b", ("x", "x"), (9, 9))], "none")[0].startswith("1 of 1 predictions")


@pytest.mark.parametrize("tab", ["\t", ","])
def test_two_files_in_one_json_out(tmp_path: Path, tab: str) -> None:
    def write(name: str, rows: list[tuple[str, str, float]]) -> Path:
        header = ("SessionId", "ItemId", "Time")
        (tmp_path / name).write_text("".join(tab.join(map(str, row)) + "\n" for row in (header, *rows)))
        return tmp_path / name

    rows = [
        (f"s{n}", item, 100 * n + t) for n in range(40) for t, item in enumerate(("a", "b", "c")[: 1 + n % 3])
    ]
    train = write("train", rows[::-1])  # neither sorted nor grouped
    test = write(
        "test", [("t", "a", 5001), ("t", "c", 5003), ("t", "b", 5002), ("u", "b", 6000), ("u", "?", 6001)]
    )
    told = evaluate_files(train, test)
    body = json.loads(msgspec.json.encode(told))
    assert body["n"] == 3 and body["policy"] == "current" and told.recommender == "vmis-knn"
    metrics = body["metrics"]
    assert (metrics["hr@20"], metrics["mrr@20"]) == (2 / 3, 1 / 2)  # after a, c: a may return, then b
    names = {"hr", "mrr", "ndcg", "recall", "coverage", "popularity", "diversity"}
    assert {f"{name}@20" for name in names} == set(body["metrics"])
    assert set(body["intervals"]) == set(body["metrics"]) - {"coverage@20"}
    knobs = tmp_path / "knobs.json"
    knobs.write_bytes(msgspec.json.encode(tune_files(train, test, test, draws=1).knobs))
    assert evaluate_files(train, test, "blend", knobs=knobs).n == 3
    with pytest.raises(DataError, match="test, line 3"):
        write("test", [("t", "a", 1.0), ("t", "b", float("nan"))])
        evaluate_files(train, test)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"decay": 0}', '{"weights": {"luck": 1}}', '{"weights": {"sessions": -1}}', "\xff"],
)
def test_knobs_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "knobs").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="knobs: "):
        read_knobs(tmp_path / "knobs")
    with pytest.raises(InputError, match="cannot read the knobs"):
        read_knobs(tmp_path / "none")
    with pytest.raises(ConfigError):
        Knobs(decay=float("nan"))


@pytest.mark.parametrize(
    ("text", "told", "known"),
    [
        ('{"x": 1}', "no knob 'x'", "decay, sessions, weights"),
        ('{"decay": 0.9, "Weights": {}}', "no knob 'Weights'", "decay, sessions, weights"),
        ('{"sessions": {"k": 50, "half_life": 3}}', "no knob 'sessions.half_life'", "sessions.recency_days"),
        ('{"weights": {"luck": 1}}', "no source 'luck'", "co_view"),
    ],
)
def test_a_knob_that_does_not_exist_is_named_with_those_that_do(
    tmp_path: Path, text: str, told: str, known: str
) -> None:
    (tmp_path / "knobs").write_text(text)
    with pytest.raises(DataError) as e:
        read_knobs(tmp_path / "knobs")
    assert told in e.value.message and known in e.value.hint


def test_what_is_asked_for_wrongly_is_told_before_files_are_read(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for wrong, told in (
        ({"policy": "all"}, "no repeat policy 'all'"),
        ({"recommender": "magic"}, "no recommender 'magic'"),
        ({"recommender": "semantic"}, "no recommender 'semantic' for files of sessions"),
    ):
        with pytest.raises(ConfigError, match=told):
            evaluate_files(gone, gone, **wrong)
    assert set(FROM_FILES) == set(RECOMMENDERS) - {"semantic"}


def test_what_a_basket_holds_does_not_shorten_its_lists() -> None:
    items = tuple(f"i{n}" for n in range(160))
    train = [Session(str(n), items[n : n + 80], tuple(range(80))) for n in range(80)]
    shown = SessionModel(train).recommend(items[:100], SessionConfig(), n=20)
    assert len(set(shown) - set(items[:100])) >= 20


# Tuning


@settings(max_examples=30, deadline=None)
@given(SESSIONS, SESSIONS, st.lists(st.sampled_from([0, 0.001, 0.3, 1.0]), min_size=3, max_size=3))
def test_counted_ranks_are_those_of_the_lists(train, sessions, weights) -> None:
    names, path = ("sessions", "co_view", "best_sellers"), ServingPath(train)
    for policy in POLICIES:
        try:
            shown = evaluate(weigh(path, dict(zip(names, weights, strict=True))), sessions, 3, policy)
        except InputError:
            continue
        assert collect(path, sessions, names, policy).ranks(weights, 3).tolist() == shown.ranks.tolist()


def test_tuning_never_loses_on_validation_and_repeats() -> None:
    rng = np.random.default_rng(0)
    rows = [tuple(f"i{(n + d) % 30}" for d in rng.integers(0, 4, 4)) for n in range(120)]
    made = [Session(str(n), row, tuple(n * 3_600_000 + i for i in range(4))) for n, row in enumerate(rows)]
    won = tune(made[:80], made[80:100], made[100:], draws=3)
    assert won.after >= won.before and won == tune(made[:80], made[80:100], made[100:], draws=3)
    assert won.gain is not None and set(won.gain) == {"hr@20", "mrr@20", "ndcg@20", "recall@20"}
    heard = collect(ServingPath(made[:80]), made[80:100], ("sessions", "semantic"))
    goal, weights = tune_weights(heard, {"sessions": 0.0, "semantic": 0.7}, draws=5)
    assert weights["semantic"] == 0.7  # nobody has titles: it never spoke
    assert goal == goal_of(heard.ranks([weights["sessions"], 0.7]))


def test_a_log_no_longer_than_the_days_held_out_is_refused() -> None:
    day = 86_400_000
    made = [Session(str(n), ("a", "b"), (n * day, n * day + 1)) for n in range(4)]  # 3 days and 1 ms
    assert [len(part) for part in hold_out(made, 2)] == [2, 2] and [*map(len, hold_out(made, 3))] == [1, 3]
    for days in (3.1, 7):
        with pytest.raises(InputError, match=rf"3\.00 days long: with the last {days:g} held out") as e:
            hold_out(made, days)
        assert "--days 0.60" in e.value.hint and "--valid" in e.value.hint
    with pytest.raises(InputError, match=r"the log is 0\.00 days long") as e:
        hold_out([Session("s", ("a", "b"), (5, 5))], 7)
    assert "--days" not in e.value.hint and "--valid" in e.value.hint


def test_what_cannot_be_tuned_is_refused_before_the_search() -> None:
    two, one = [Session("s", ("a", "b"), (0, 1))], [Session("s", ("a",), (0,))]
    again = [Session("s", ("a", "a"), (0, 1))]
    asked: list[str] = []
    for train, valid, test, told in (
        ([], two, None, "nothing to learn from: no session of 0"),
        (one + again, two, None, "nothing to learn from: no session of 2"),
        (two, one, None, "nothing to predict"),
        (two, two, one, "nothing to predict"),
    ):
        with pytest.raises(InputError, match=told):
            tune(train, valid, test, draws=1, progress=lambda what, done, of: asked.append(what))
    with pytest.raises(ConfigError, match="no repeat policy"):
        tune(two, two, draws=1, policy="all", progress=lambda what, done, of: asked.append(what))
    assert not asked


def test_progress_of_what_takes_long_goes_up_to_its_end() -> None:
    made = [Session(str(n), (f"i{n % 7}", f"i{(n + 1) % 7}", "x"), (n, n, n)) for n in range(120)]
    told: dict[str, list[tuple[int, int]]] = {}

    def hear(what: str, done: int, of: int) -> None:
        told.setdefault(what, []).append((done, of))

    evaluate(popularity(made), made, progress=hear)
    assert told == {"predictions": [(100, 240), (200, 240), (240, 240)]}
    told.clear()
    tune(made[:40], made, made[40:], draws=2, progress=hear)
    assert list(told) == ["settings of session kNN", "predictions to weigh", "predictions of the test"]
    for counts in told.values():
        done, of = zip(*counts, strict=True)
        assert sorted(set(done)) == list(done) and set(of) == {done[-1]}
    assert len(told["settings of session kNN"]) >= 3 and told["predictions to weigh"][0] == (100, 6 * 240)


def test_shares_have_one_for_the_largest() -> None:
    train = [Session("s", ("a", "b", "c"), (0, 1, 2)), Session("t", ("a", "b"), (3, 4))]
    _, found = shares(ServingPath(train), ["a"], ("sessions", "co_view", "semantic"))
    assert found.max(axis=0).tolist() == [1.0, 1.0, 0.0]


# Replay


def test_snips_by_hand_and_when_the_policies_agree() -> None:
    same = snips([1, 0, 0, 1], [0.5] * 4, [0.5] * 4, range(4), least=1, clicks=0)
    assert same.value == same.logged.value == 0.5 and same.effective == 4 and same.sound
    two = snips([1, 0], [0.5, 0.1], [1.0, 0.1], [0, 1], least=1, clicks=0)
    assert two.value == 2 / 3 and np.isclose(two.effective, 9 / 5)
    cut = snips([1, 0], [0.01, 0.5], [1.0, 0.5], [0, 1], most=10, least=1, clicks=0)
    assert cut.clipped == 1 and cut.value == 10 / 11 and cut.high <= 1 and cut.low == 0
    assert np.isclose(cut.control.value, 50.5)


@pytest.mark.parametrize(
    ("propensity", "target", "owner", "told"),
    [
        ([0.5, np.nan], [1, 1], [0, 1], "1 of 2 propensities"),
        ([0.5, 0.0], [1, 1], [0, 1], "1 of 2 propensities"),
        ([1.5, -1], [1, 1], [0, 1], "2 of 2 propensities"),
        ([0.5, 0.5], [1, 1.1], [0, 1], "probabilities outside"),
        ([0.5, 0.5], [0, 0], [0, 1], "0 effective exposures"),
        ([0.5, 0.5], [1, 1], [0, 0], "one shopper"),
        ([0.5], [1, 1], [0, 1], "one of each"),
        ([], [], [], "one of each"),
    ],
)
def test_logs_that_cannot_be_replayed(propensity, target, owner, told) -> None:
    with pytest.raises(InputError) as e:
        snips([1, 0][: len(owner)], propensity, target, owner, least=1, clicks=0)
    assert told in str(e.value)


def test_exposures_are_counted_once_and_clicks_belong_to_their_answer() -> None:
    def event(kind: str, rec: str, item: str, n: int, **more) -> Event:
        return Event(event_id=f"e{n}", type=kind, ts=n, user_id="u", rec_id=rec, master_id=item, **more)

    events = [
        event("rec_clicked", "r1", "b", 0),  # topics may swap them
        event("rec_viewed", "r1", "a", 1, position=0, props={"propensity": 0.5}),
        event("rec_viewed", "r1", "b", 2, position=1, props={"propensity": 1}),
        event("rec_viewed", "r1", "a", 1, position=0, props={"propensity": 0.5}),
        event("rec_viewed", "r2", "b", 3, position=0, props={"propensity": True}),
        event("rec_clicked", "r1", "b", 4),
    ]
    assert exposures(events) == [
        Exposure("r1", "u", "a", 0, 0.5, False),
        Exposure("r1", "u", "b", 1, 1, True),
        Exposure("r2", "u", "b", 0, None, False),
    ]
    with pytest.raises(InputError, match="1 of 3 propensities are missing"):
        replay(exposures(events), lists_policy({"r1": ["a"]}))
    assert [lists_policy({"r1": ["b"]}, first=1)(e) for e in exposures(events)] == [0, 1, 0]
