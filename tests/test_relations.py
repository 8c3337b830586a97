"""Snapshots: round trips, damage at every byte, writers killed anywhere, readers beside them, rollback."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import voxrec.recs.relations as module
from voxrec.errors import DataError, InputError, NotFound, Unavailable, VoxrecError
from voxrec.recs.catalog import Catalog
from voxrec.recs.events import Product
from voxrec.recs.relations import (
    STEPS,
    Live,
    Relations,
    SnapshotReader,
    SnapshotStore,
    append_rows,
    built_on,
    fits,
    pack_text,
    quantise,
    relations_in,
    unpack_text,
)

fast = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAME = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
ARRAYS = st.dictionaries(
    NAME,
    hnp.arrays(
        st.sampled_from(["u1", "u2", "<u4", ">u4", "<i8", "<f4", "<f8", "?", "S3"]),
        hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
    ),
    min_size=1,
    max_size=4,
)


def three() -> dict[str, np.ndarray]:
    relations = Relations([0, 2, 2, 3], [1, 2, 0], [0.9, 0.3, 0.6])
    return {"start": relations.start, "index": relations.index, "score": relations.score}


@fast
@given(ARRAYS, st.dictionaries(st.text(max_size=5), st.integers(0, 2**40) | st.text(max_size=9), max_size=3))
def test_what_is_read_is_what_was_written(tmp_path: Path, arrays: dict[str, np.ndarray], meta: dict) -> None:
    store = SnapshotStore(tmp_path, clock=lambda: 7)
    version = store.publish("any", arrays, meta)
    got = SnapshotReader(tmp_path).current("any", verify=True)
    assert (got.version, got.meta, got.created_ms) == (version, meta, 7) and set(got.arrays) == set(arrays)
    for name, array in arrays.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype.newbyteorder("<")
        assert got[name].tobytes() == array.astype(got[name].dtype).tobytes()
        assert not got[name].flags.writeable


@fast
@given(hnp.arrays("f4", hnp.array_shapes(max_dims=1), elements=st.floats(0, 2.0**20, width=32)))
def test_a_score_is_wrong_by_half_a_step_at_most(scores: np.ndarray) -> None:
    relations = Relations([0, len(scores)], np.zeros(len(scores), int), scores)
    bound = relations.step / 2 + 1e-6 * scores + 2e-45  # and what float32 rounds
    assert (np.abs(relations.of(0)[1] - scores) <= bound).all()
    order = np.argsort(-scores, kind="stable")
    assert (np.diff(quantise(scores[order], relations.step).astype(int)) <= 0).all()


@fast
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9)))
def test_texts_come_back(texts: list[str]) -> None:
    assert unpack_text(*pack_text(texts)) == texts


@fast
@given(st.lists(st.lists(st.integers(0, STEPS), max_size=4), max_size=12), st.integers(1, 12))
def test_blocks_of_any_size_make_the_same_file(tmp_path: Path, rows: list[list[int]], block: int) -> None:
    store, n = SnapshotStore(tmp_path, keep=1), max(1, len(rows))
    with store.build("rows") as build:
        for i in range(0, n, block):
            part = rows[i : i + block]
            flat = np.array([s for row in part for s in row], np.uint16)
            append_rows(build, [len(row) for row in part], np.zeros(len(flat), np.uint32), flat, n)
        build.publish({"step": 1.0})
    got = relations_in(store.current("rows", verify=True))
    assert [got.of(i)[1].astype(int).tolist() for i in range(len(rows))] == rows


# ---- damage


def same(got: module.Snapshot) -> bool:
    return all((got[name] == array).all() for name, array in three().items())


def refused_or_harmless(store: SnapshotStore) -> bool:
    "Whether reading it all is refused by a typed error; what is not refused must be the very content."
    try:
        assert same(store.current("k", verify=True))
    except VoxrecError:
        return True
    return False


FILES = ["current", "v00000001/snapshot.json", *(f"v00000001/{name}.npy" for name in three())]


@pytest.fixture
def published(tmp_path: Path) -> SnapshotStore:
    store = SnapshotStore(tmp_path)
    store.publish("k", three(), {"step": 0.5})
    for path in tmp_path.rglob("*.npy"):
        path.chmod(0o644)
    return store


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_byte_is_refused(published: SnapshotStore, name: str) -> None:
    path = published.root("k") / name
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        assert refused_or_harmless(published) or (n == len(whole) - 1 and whole.endswith(b"\n"))
    path.write_bytes(whole + b"x")
    assert refused_or_harmless(published)
    path.unlink()
    with pytest.raises((DataError, NotFound)):
        published.current("k")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_anywhere_is_refused_or_changes_nothing(published: SnapshotStore, name: str) -> None:
    path = published.root("k") / name
    whole, refused = path.read_bytes(), 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        refused += refused_or_harmless(published)
    payload = len(whole) - (128 if name.endswith(".npy") else 1)
    assert refused >= payload  # all but the padding of a header, which says nothing


@pytest.mark.parametrize("name", FILES[1:])
def test_opening_without_checksums_refuses_what_is_short(published: SnapshotStore, name: str) -> None:
    path = published.root("k") / name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError):
        published.current("k")


def test_a_file_of_another_type_or_a_pickle_is_refused(published: SnapshotStore) -> None:
    path = published.root("k") / "v00000001/score.npy"
    for other in (np.zeros(3, np.int16), np.zeros((3, 1), np.uint16), np.array([{}], object)):
        np.save(path, other)
        with pytest.raises(DataError):
            published.current("k")


def test_a_lost_pointer_is_told_and_mended(published: SnapshotStore) -> None:
    published.publish("k", three())
    live = Live(published, "k", lambda s: s.version, 0)
    assert live.refresh()
    (published.root("k") / "current").write_text("[9")
    with pytest.raises(DataError, match="torn"):
        published.current("k")
    assert not live.refresh() and live.value == 2 and isinstance(live.error, DataError)
    assert [line.version for line in published.list("k")] == [2, 1]
    assert published.rollback("k", to=1) == 1 and published.current("k").version == 1
    (published.root("k") / "current").write_text("")
    assert published.publish("k", three()) == 3 and published.rollback("k") == 2


def test_rollback_does_not_go_to_a_damaged_version(published: SnapshotStore) -> None:
    published.publish("k", three())
    (published.root("k") / "v00000001/index.npy").write_bytes(b"")
    with pytest.raises(DataError):
        published.rollback("k")
    assert published.current("k").version == 2 and published.list("k")[1].problem


def test_relations_that_do_not_say_their_step_are_refused(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    for meta in ({}, {"step": 0.0}, {"step": "1"}):
        store.publish("k", three(), meta)
        with pytest.raises(DataError, match="step"):
            relations_in(store.current("k"))
    store.publish("k", three() | {"index": np.zeros(9, np.uint32)}, {"step": 1.0})
    live = Live(store, "k", relations_in, Relations.none(3))
    assert not live.refresh() and len(live.value) == 3 and "fit" in str(live.error)


# ---- rollback


@fast
@given(st.lists(st.sampled_from(["publish", "rollback"]), max_size=12), st.integers(1, 4))
def test_the_stack_is_a_stack(tmp_path: Path, steps: list[str], keep: int) -> None:
    shutil.rmtree(tmp_path / "k", ignore_errors=True)
    store, stack, newest = SnapshotStore(tmp_path, keep=keep), [], 0
    for step in steps:
        if step == "publish":
            version = store.publish("k", {"a": np.array([newest])})
            assert version > max([newest, *stack]) or version not in stack
            newest, stack = version, [version, *stack][:keep]
        elif len(stack) > 1:
            stack.pop(0)
            assert store.rollback("k") == stack[0]
        else:
            with pytest.raises(NotFound):
                store.rollback("k")
        assert store.current_version("k") == (stack[0] if stack else None)
        assert set(stack) <= {line.version for line in store.list("k")}
        for version in stack:
            store.open("k", version, verify=True)


# ---- writers killed, readers beside

BUILD = """
import os, signal, sys
import numpy as np
import voxrec.recs.relations as m

point, when, skip = sys.argv[2], sys.argv[3], int(sys.argv[4])
if point:
    real, seen = getattr(m, point), [0]
    def dying(*args, **kwargs):
        seen[0] += 1
        dead = seen[0] > skip
        if dead and when == "before": os.kill(os.getpid(), signal.SIGKILL)
        done = real(*args, **kwargs)
        if dead: os.kill(os.getpid(), signal.SIGKILL)
        return done
    setattr(m, point, dying)
store = m.SnapshotStore(sys.argv[1])
with store.build("k", key="same") as build:
    print(build.blocks)
    for i in range(build.blocks, 4):
        build.append(a=np.full(1000, i), b=np.full((10, 2), i, np.float32))
    build.publish({"n": 4})
"""


def run(folder: Path, point: str = "", when: str = "", skip: int = 0) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", BUILD, str(folder), point, when, str(skip)]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("point", "when", "skip", "blocks"),
    [
        ("_extend", "before", 5, 2),
        ("_extend", "after", 4, 2),
        ("_write", "before", 2, 2),
        ("_write", "after", 2, 3),
        ("_seal", "before", 0, 4),
        ("_seal", "after", 0, 4),
        ("_sync", "before", 5, None),  # the version is there, the pointer is not
    ],
)
def test_a_writer_killed_anywhere_leaves_the_old_and_is_resumed(
    tmp_path: Path, point: str, when: str, skip: int, blocks: int | None
) -> None:
    store = SnapshotStore(tmp_path)
    store.publish("k", {"a": np.zeros(1)})
    assert run(tmp_path, point, when, skip).returncode == -signal.SIGKILL
    assert store.current("k", verify=True).version == 1
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    if blocks is not None:
        assert int(done.stdout) == blocks
    new = store.current("k", verify=True)
    assert new.version > 1 and new.meta == {"n": 4}
    assert new["a"].tolist() == np.repeat(range(4), 1000).tolist() and new["b"].shape == (40, 2)
    assert sorted(p.name for p in store.root("k").iterdir())[:2] == ["current", "lock"]


READ = """
import sys
import numpy as np
from voxrec.recs.relations import SnapshotReader, Live

reader, seen = SnapshotReader(sys.argv[1]), set()
live = Live(reader, "k", lambda s: (s.version, s["a"], s["b"]), None)
print("ready", flush=True)
while max(seen, default=0) < int(sys.argv[2]):
    snapshot = reader.current("k", verify=True)
    assert (snapshot["a"] == snapshot.meta["v"]).all() and (snapshot["b"] == snapshot.meta["v"]).all()
    live.refresh()
    version, a, b = live.value
    assert live.error is None and a[0] == b[0] and (a == a[0]).all()
    seen |= {snapshot.version, version}
print(len(seen))
"""


def test_readers_in_other_processes_see_only_whole_versions(tmp_path: Path) -> None:
    store, last = SnapshotStore(tmp_path, keep=1), 40

    def publish(v: int) -> None:
        assert store.publish("k", {"a": np.full(50_000, v), "b": np.full(500, v)}, {"v": v}) == v

    publish(1)
    words = [sys.executable, "-c", READ, str(tmp_path), str(last)]
    readers = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None and reader.stdout.readline() == "ready\n"
        for v in range(2, last + 1):
            publish(v)
        for reader in readers:
            out, err = reader.communicate(timeout=60)
            assert reader.returncode == 0, err
            assert int(out) >= 2
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


def test_requests_go_on_while_versions_are_swapped(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path, keep=1)
    live = Live(store, "k", relations_in, Relations.none(3))
    failed: list[Exception] = []
    stop = threading.Event()

    def requests() -> None:
        while not stop.is_set():
            try:
                version, relations = live.held
                ids, scores = relations.of(0)
                assert len(ids) == len(scores) == (2 if version else 0)
            except Exception as e:
                failed.append(e)
                return

    thread = threading.Thread(target=requests)
    thread.start()
    for _ in range(15):
        store.publish("k", three(), {"step": 0.1})
        assert live.refresh() and live.error is None
    stop.set()
    thread.join()
    assert not failed and live.held.version == 15


def test_a_refused_version_is_not_read_again_and_again(tmp_path: Path) -> None:
    store, calls = SnapshotStore(tmp_path), []

    def load(snapshot: module.Snapshot) -> int:
        calls.append(snapshot.version)
        if snapshot.version == 2:
            raise DataError("of another catalogue")
        return snapshot.version

    live = Live(store, "k", load, 0)
    assert not live.refresh()  # nothing there yet is no error
    assert live.error is None and live.held == (0, 0)
    for _ in range(3):
        store.publish("k", three())
        for _ in range(3):
            live.refresh()
    assert calls == [1, 2, 3] and live.value == 3 and live.error is None


# ---- the disk


@pytest.mark.parametrize("point", ["_extend", "_write", "_seal", "_adopt"])
def test_a_full_disk_is_told_and_the_build_goes_on_later(tmp_path: Path, point: str) -> None:
    store = SnapshotStore(tmp_path)
    store.publish("k", {"a": np.zeros(3)})

    def job() -> int:
        with store.build("k", key="x") as build:
            for i in range(build.blocks, 2):
                build.append(a=np.full(3, i))
            return build.publish()

    full = OSError(errno.ENOSPC, "no space left")
    with patch.object(module, point, side_effect=full), pytest.raises(Unavailable, match="no space"):
        job()
    assert store.current("k", verify=True)["a"].tolist() == [0, 0, 0]
    assert store.open("k", job(), verify=True)["a"].tolist() == [0, 0, 0, 1, 1, 1]


def test_an_unfinished_build_of_another_key_is_dropped(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    for key, expected in (("one", 0), ("one", 1), ("two", 0), ("", 0), ("", 0), ("two", 0)):
        with store.build("k", key) as build:
            assert build.blocks == expected
            if not build.blocks:
                build.append(a=np.zeros(2))
                assert build.read("a").tolist() == [0, 0] and build.rows("b") == 0
    (store.root("k") / "building/a.npy").write_bytes(b"")  # shorter than its journal says
    with store.build("k", "two") as build:
        assert build.blocks == 0


# ---- bad input


@pytest.mark.parametrize(
    "wrong",
    [
        lambda b: b.append(a=np.zeros(2, np.float32)),
        lambda b: b.append(a=np.zeros((2, 2))),
        lambda b: b.append(a=np.float64(1)),
        lambda b: b.append(a=[object()]),
        lambda b: b.append(**{"a/b": np.zeros(1)}),
        lambda b: b.append(A=np.zeros(1)),
        lambda b: append_rows(b, [1], np.array([5], np.uint32), np.array([1], np.uint16), n=5),
        lambda b: b.publish({"x": object()}),
    ],
)
def test_wrong_blocks_are_refused_and_nothing_is_finished(
    tmp_path: Path, wrong: Callable[[module.Build], object]
) -> None:
    with SnapshotStore(tmp_path).build("k", "key") as build:
        build.append(a=np.zeros(2))
        with pytest.raises(InputError):
            wrong(build)
        assert build.blocks == 1 and build.rows("a") == 2
    with pytest.raises(NotFound):
        SnapshotReader(tmp_path).current("k")


def test_two_writers_of_two_kinds_do_not_meet(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path)
    with store.build("a"), pytest.raises(Unavailable) as refused:
        store.publish("b", three())
        store.publish("a", three())
    assert refused.value.retryable and store.kinds() == ("b",)


def test_the_format_is_what_it_says(published: SnapshotStore) -> None:
    "numpy reads an array; a person reads the manifest."
    folder = published.root("k") / "v00000001"
    assert np.load(folder / "score.npy").tolist() == three()["score"].tolist()
    assert json.loads((folder / "snapshot.json").read_text().splitlines()[0])["kind"] == "k"


@pytest.mark.parametrize(
    ("meta", "told"),
    [
        (lambda c: {}, "does not say"),
        (lambda c: {"catalog": 3}, "does not say"),
        (lambda c: {"catalog": {"masters": "3"}}, "does not say"),
        (lambda c: {"catalog": {"masters": -1, "digest": c.digest(1)}}, "another catalogue"),
        (lambda c: {"catalog": {"masters": 3}}, "another catalogue"),
        (lambda c: {"catalog": {"masters": 2, "digest": c.digest(3)}}, "another catalogue"),
        (lambda c: {"catalog": {"masters": 4, "digest": c.digest(3)}}, "on 4 masters, here are 3"),
    ],
)
def test_a_snapshot_of_another_catalogue_is_refused(
    tmp_path: Path, meta: Callable[[Catalog], dict], told: str
) -> None:
    catalog = Catalog(Product(f"M{i}", "Thing", "C") for i in range(3))
    store = SnapshotStore(tmp_path)
    live = Live(store, "k", lambda s: fits(s, catalog), 0)
    store.publish("k", {"a": np.zeros(1)}, built_on(catalog, 2))
    assert live.refresh() and live.value == 2
    store.publish("k", {"a": np.zeros(1)}, meta(catalog))
    assert not live.refresh() and told in str(live.error) and live.value == 2


def test_what_did_not_fit_is_tried_again_with_a_new_catalogue(tmp_path: Path) -> None:
    catalog = Catalog([Product("M0", "Thing", "C")])
    newer = Catalog(Product(f"M{i}", "Thing", "C") for i in range(3))
    store = SnapshotStore(tmp_path)
    live = Live(store, "k", lambda s: fits(s, catalog), 0)
    store.publish("k", {"a": np.zeros(1)}, built_on(newer))
    assert not live.refresh() and not live.refresh(again=True)
    catalog = newer
    assert not live.refresh() and live.error, "what was refused is not read again and again"
    assert live.refresh(again=True) and live.value == 3 and live.error is None


def test_what_is_written_into_a_writable_map_stays_in_it(published: SnapshotStore) -> None:
    snapshot = published.current("k", verify=True)
    mine, other = snapshot.writable(), snapshot.writable()
    before = {name: array.copy() for name, array in snapshot.arrays.items()}
    for array in mine.values():
        array[:] = 1
    for arrays in (snapshot.arrays, other, published.current("k", verify=True).arrays):
        assert all((arrays[name] == before[name]).all() for name in before)
    (snapshot.folder / "index.npy").chmod(0o644)
    (snapshot.folder / "index.npy").write_bytes(b"?")
    with pytest.raises(DataError, match="cannot be read"):
        snapshot.writable()


def test_a_trouble_is_logged_once_not_each_second(
    published: SnapshotStore, caplog: pytest.LogCaptureFixture
) -> None:
    live = Live(published, "k", lambda s: s.version, 0)
    assert live.refresh()
    (published.root("k") / "current").write_text("[9")
    for _ in range(5):
        assert not live.refresh() and isinstance(live.error, DataError)
    assert [r.message for r in caplog.records if r.levelname == "ERROR"] == ["snapshot refused"]
    published.rollback("k", to=1)
    assert not live.refresh() and live.error is None and live.value == 1
