"Session kNN: kernels against the definition, days against a rebuild, torn arrays, the published figures."

import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxrec.errors import ConfigError, DataError, InputError
from voxrec.recs.baselines import session_recommender
from voxrec.recs.evaluate import evaluate, read_sessions
from voxrec.recs.sessions import (
    DAY_MS,
    TUNED,
    SessionConfig,
    SessionIndex,
    build,
    extend,
    from_arrays,
    make_clicks,
    predict,
    warm_up,
)

N_ITEMS, M = 7, 10
CLICKS = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, N_ITEMS - 1), st.integers(0, 40)), max_size=60
).map(lambda rows: np.array(rows, np.int64).reshape(-1, 3).T)
DECAY = st.sampled_from([0.0, 0.5, 2.0, 9.0])
CONFIGS = st.builds(
    SessionConfig,
    m=st.integers(1, M),
    k=st.integers(1, 8),
    items=st.integers(1, 5),
    click_decay=DECAY,
    match_decay=DECAY,
    length_power=st.sampled_from([0.0, 0.5, 1.0]),
    recency_days=st.sampled_from([0.0, 5 / DAY_MS, 50 / DAY_MS]),
    proximity=DECAY,
    idf_power=st.sampled_from([0.0, 1.0, 1.5]),
)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    warm_up()


def sessions_of(log: np.ndarray) -> list[tuple[int, list[int]]]:
    "(last click, items by last click), newest first: straight from the clicks."
    rows: dict[int, list[tuple[int, int]]] = {}
    for session, item, ms in log.T.tolist():
        rows.setdefault(session, []).append((ms, item))
    found = []
    for session, row in rows.items():
        items = [item for _, item in sorted(row, key=lambda click: click[0])]
        distinct = list(dict.fromkeys(reversed(items)))[::-1]
        found.append((-max(ms for ms, _ in row), session, distinct))
    return [(-ms, items) for ms, _, items in sorted(found)]


def scores_of(sessions: list[tuple[int, list[int]]], clicks: list[int], c: SessionConfig) -> dict[int, float]:
    "All scores, from the definition: every session looked at, every item scored."
    last = clicks[-c.items :]
    ago = {item: len(last) - 1 - n for n, item in enumerate(last)}
    near = sorted(ago, key=lambda item: ago[item])
    found = [r for r, (_, items) in enumerate(sessions) if set(items) & set(near)][: c.m]

    def worth(p: int, decay: float, line: float) -> float:
        return math.exp(-p / decay) if decay else max(0.0, line)

    alike = {}
    for r in found:
        ms, items = sessions[r]
        shared = sum(
            worth(ago[i], c.click_decay, (len(last) - ago[i]) / len(ago)) for i in near if i in items
        )
        age = (sessions[found[0]][0] - ms) / (c.recency_days * DAY_MS) if c.recency_days else 0.0
        alike[r] = shared / len(items) ** c.length_power * math.exp(-age)
    scores: dict[int, float] = {}
    for r in sorted(sorted(found, key=lambda r: (-alike[r], r))[: c.k]):
        items = sessions[r][1]
        anchor = next(i for i in near if i in items)
        vote = alike[r] * worth(ago[anchor], c.match_decay, 1 - 0.1 * (ago[anchor] + 1))
        for place, item in enumerate(items):
            far = abs(place - items.index(anchor))
            scores[item] = scores.get(item, 0.0) + vote * (
                math.exp(-far / c.proximity) if c.proximity else 1.0
            )
    for item in scores:
        scores[item] *= math.log(len(sessions) / sum(item in i for _, i in sessions)) ** c.idf_power
    scores.pop(clicks[-1], None)
    return scores


@settings(max_examples=400, deadline=None)
@given(CLICKS, st.lists(st.integers(0, N_ITEMS), min_size=1, max_size=6), st.integers(1, 9), CONFIGS)
def test_kernels_are_the_definition(
    log: np.ndarray, clicks: list[int], n: int, config: SessionConfig
) -> None:
    ids, scores = predict(build(*log, n_items=N_ITEMS, m=M), clicks, n, config)
    wanted = scores_of(sessions_of(log), clicks, config)
    best = sorted(wanted, key=lambda item: (-wanted[item], item))[:n]
    assert ids.tolist() == best
    assert scores.tolist() == np.array([wanted[item] for item in best], np.float32).tolist()


def same(a: SessionIndex, b: SessionIndex) -> bool:
    one, other = a.arrays(), b.arrays()
    return all(one[k].dtype == other[k].dtype and np.array_equal(one[k], other[k]) for k in one)


@settings(max_examples=150, deadline=None)
@given(
    CLICKS, st.lists(st.integers(0, 41), max_size=4), st.integers(0, 45), st.integers(1, 4), st.integers(2, 7)
)
def test_day_by_day_is_a_rebuild(log: np.ndarray, cuts: list[int], since: int, m: int, widest: int) -> None:
    "Any days, some empty; sessions go on over midnight; each day comes twice; old sessions fall behind."
    log = log[:, np.argsort(log[2], kind="stable")]
    index = build([], [], [], n_items=N_ITEMS, m=m, widest=widest)
    edges = [0, *sorted(cuts), 42]
    for begin, end in pairwise(edges):
        day = log[:, (log[2] >= begin) & (log[2] < end)]
        index = extend(extend(index, *day), *day)
    index = extend(index, [], [], [], since_ms=since)
    assert same(index, build(*log, n_items=N_ITEMS, m=m, widest=widest, since_ms=since))


@given(CLICKS, st.randoms(use_true_random=False))
def test_the_order_of_clicks_does_not_matter(log: np.ndarray, random) -> None:
    log[2] = np.arange(log.shape[1])  # at one time, the order given decides
    mixed = log[:, random.sample(range(log.shape[1]), log.shape[1])]
    assert same(build(*mixed, n_items=N_ITEMS), build(*log, n_items=N_ITEMS))


def test_lists_hold_the_newest_m() -> None:
    index = build(np.arange(9), np.zeros(9, int), np.arange(9), n_items=1, m=4)
    assert index.item_sessions.tolist() == [0, 1, 2, 3] and index.item_counts.tolist() == [9]
    assert index.session_ids[:4].tolist() == [8, 7, 6, 5]


@pytest.mark.parametrize(
    "values",
    [{"m": 0}, {"k": -1}, {"items": 0}]
    + [
        {name: bad}
        for name in ("click_decay", "recency_days", "idf_power")
        for bad in (-1.0, math.nan, math.inf)
    ],
)
def test_a_nonsense_config_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        SessionConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "clicks",
    [
        ([0], [3], [0]),  # no such item
        ([0], [-1], [0]),
        ([-1], [0], [0]),
        ([0], [0], [-1]),
        ([0.5], [0], [0]),
        (["a"], [0], [0]),
        ([0, 1], [0], [0]),
        ([[0]], [[0]], [[0]]),
    ],
)
def test_clicks_that_are_none_are_refused(clicks: tuple[list, list, list]) -> None:
    with pytest.raises(InputError):
        build(*clicks, n_items=3)
    with pytest.raises(InputError):
        extend(build([], [], [], n_items=3), *clicks)
    for values in ({"m": 0}, {"widest": 0}, {"n_items": -1}):
        with pytest.raises(ConfigError):
            build([], [], [], **{"n_items": 3} | values)


INDEX = build([0, 0, 1, 1], [0, 1, 1, 2], [0, 1, 2, 3], n_items=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("item_sessions", None),
        ("item_sessions", INDEX.item_sessions.astype(np.int64)),
        ("item_sessions", INDEX.item_sessions + np.uint32(1)),
        ("session_items", INDEX.session_items + np.uint32(1)),
        ("session_items", INDEX.session_items[:-1]),
        ("session_start", INDEX.session_start[::-1]),
        ("session_start", INDEX.session_start[:-1]),
        ("item_start", np.array([0, 3, 2, 4])),
        ("item_counts", INDEX.item_counts[1:]),
        ("item_counts", np.zeros(3, np.uint32)),
        ("last_ms", INDEX.last_ms[1:]),
        ("settings", np.array([500])),
        ("settings", np.array([0, 1])),
    ],
)
def test_torn_arrays_are_refused(name: str, value: np.ndarray | None) -> None:
    arrays = INDEX.arrays() | {name: value}
    if value is None:
        del arrays[name]
    with pytest.raises(DataError):
        from_arrays(arrays)


def test_a_memory_mapped_index_answers_the_same(tmp_path: Path) -> None:
    index = build(*make_clicks(1, 2000, 300), n_items=300)
    for name, a in index.arrays().items():
        np.save(tmp_path / name, a)
    mapped = from_arrays({name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in index.arrays()})
    assert same(mapped, index)
    for one, other in zip(predict(mapped, [5, 9], 20, TUNED), predict(index, [5, 9], 20, TUNED), strict=True):
        assert one.tolist() == other.tolist()


def test_made_clicks_are_of_their_seed_and_shape() -> None:
    session, item, ms = make_clicks(3, 5000, 1000)
    again = make_clicks(3, 5000, 1000)
    assert all(np.array_equal(a, b) for a, b in zip((session, item, ms), again, strict=True))
    assert not np.array_equal(item, make_clicks(4, 5000, 1000)[1][: len(item)])
    lengths = np.bincount(session)
    assert lengths.min() == 2 and 3.5 < lengths.mean() < 5.5
    assert (np.diff(ms)[np.diff(session) == 0] > 0).all() and item.max() < 1000
    top = np.sort(np.bincount(item))[::-1]
    assert top[0] > 20 * np.median(top)


def test_importing_costs_no_compiler() -> None:
    code = "import sys, voxrec.recs.sessions; print(*sorted({'numba', 'scipy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


DATA = Path(os.environ.get("VOXREC_DATA", "")) / "serenade_example"


@pytest.mark.skipif(
    not os.environ.get("VOXREC_DATA") or not DATA.is_dir(), reason="VOXREC_DATA has no serenade_example"
)
def test_serenades_published_figures() -> None:
    "bolcom/serenade, README and assets/example/example.toml: m = 500, k = 50, 2 items; n = 931."
    train, test = read_sessions(DATA / "train.txt"), read_sessions(DATA / "test.txt")
    scores = evaluate(session_recommender(train, SessionConfig(m=500, k=50, items=2), n=21), test)
    metrics = scores.metrics()
    assert len(scores.ranks) == 931
    for name, published in {"mrr@20": 0.3277, "ndcg@20": 0.3553, "hr@20": 0.6402}.items():
        assert abs(metrics[name] - published) <= 0.005, (name, metrics[name])
