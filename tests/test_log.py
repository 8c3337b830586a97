"""The contract of EventLog over every engine, and what a crash may do to the files of the embedded one."""

import asyncio
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voxrec.config import Settings
from voxrec.errors import ConfigError, DataError, InputError, TooLarge, Unavailable
from voxrec.stores import kafka
from voxrec.stores.kafka import MAX_KEY_BYTES, MAX_VALUE_BYTES, EventLog, FileLog, Record, follow, open_log

NOW = 1_767_312_000_000
TOPIC = "shop.events"

# An engine joins the contract by a line here: opens the same log each time it is called with the same folder.
ENGINES: dict[str, Callable[[Path], EventLog]] = {
    "file": lambda folder: FileLog(folder, clock=lambda: NOW),
    "file-fsync": lambda folder: FileLog(folder, clock=lambda: NOW, fsync=True),
    "file-shared": lambda folder: FileLog(folder, clock=lambda: NOW, shared=True),
}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Callable[[Path], EventLog]:
    return ENGINES[request.param]


@pytest.fixture
def log(engine: Callable[[Path], EventLog], tmp_path: Path) -> Iterator[EventLog]:
    log = engine(tmp_path)
    yield log
    log.close()


def values(log: EventLog, topic: str = TOPIC, offset: int = 0) -> list[bytes]:
    return [r.value for r in log.read(topic, offset)]


# The contract.


def test_what_is_appended_is_read_in_order(log: EventLog) -> None:
    sent = [(f"u{i % 3}", bytes([i]) * i) for i in range(50)]  # the first value is empty
    offsets = [log.append(TOPIC, key, value) for key, value in sent]
    got = list(log.read(TOPIC))
    assert [(r.key, r.value) for r in got] == sent
    assert [r.offset for r in got] == offsets == sorted(set(offsets))
    assert {(r.topic, r.ts_ms) for r in got} == {(TOPIC, NOW)}


def test_reading_goes_on_after_any_record(log: EventLog) -> None:
    for i in range(10):
        log.append(TOPIC, "u", b"%d" % i)
    for record in list(log.read(TOPIC)):
        rest = [b"%d" % i for i in range(int(record.value) + 1, 10)]
        assert values(log, offset=record.offset + 1) == rest


def test_topics_are_apart_and_an_unknown_one_is_empty(log: EventLog) -> None:
    log.append(TOPIC, "u", b"event")
    log.append("shop.promos", "p", b"promo")
    assert values(log) == [b"event"] and values(log, "shop.promos") == [b"promo"]
    assert log.end("shop.dead") == 0 and values(log, "shop.dead") == []


def test_end_is_where_the_next_record_goes(log: EventLog) -> None:
    assert log.end(TOPIC) == 0
    offset = log.append(TOPIC, "u", b"a")
    assert log.end(TOPIC) == offset + 1 and values(log, offset=offset + 1) == []


def test_a_read_ends_at_the_end_it_found(log: EventLog) -> None:
    log.append(TOPIC, "u", b"a")
    reading = log.read(TOPIC)
    log.append(TOPIC, "u", b"b")
    assert [r.value for r in reading] == [b"a"] and values(log) == [b"a", b"b"]


def test_two_readings_do_not_disturb_each_other(log: EventLog) -> None:
    for i in range(5):
        log.append(TOPIC, "u", b"%d" % i)
    assert all(a == b for a, b in zip(log.read(TOPIC), log.read(TOPIC), strict=True))


def test_all_is_there_after_opening_again(engine: Callable[[Path], EventLog], tmp_path: Path) -> None:
    for turn in range(3):
        log = engine(tmp_path)
        assert len(values(log)) == log.end(TOPIC) == turn
        assert log.append(TOPIC, "u", b"x") == turn
        log.close()
        log.close()


@pytest.mark.parametrize("topic", ["", ".", "..", "a/b", "../a", "a b", "ä", "a\n", "x" * 201])
def test_bad_topics(log: EventLog, topic: str) -> None:
    for call in (lambda: log.append(topic, "u", b""), lambda: log.read(topic), lambda: log.end(topic)):
        with pytest.raises(InputError, match="no name for a topic"):
            call()


@pytest.mark.parametrize("offset", [-1, 2, 10**20])
def test_offsets_outside_the_log(log: EventLog, offset: int) -> None:
    log.append(TOPIC, "u", b"a")
    with pytest.raises(InputError, match="offsets 0 to 1"):
        log.read(TOPIC, offset)
    with pytest.raises(InputError):
        log.read("shop.dead", 1)


def test_sizes(log: EventLog) -> None:
    log.append(TOPIC, "k" * MAX_KEY_BYTES, bytes(MAX_VALUE_BYTES))
    with pytest.raises(TooLarge, match="at most 1000000"):
        log.append(TOPIC, "k", bytes(MAX_VALUE_BYTES + 1))
    with pytest.raises(TooLarge):
        log.append(TOPIC, "ü" * 501, b"")
    with pytest.raises(InputError, match="no text"):
        log.append(TOPIC, "\ud800", b"")
    assert log.end(TOPIC) == 1 and len(values(log)[0]) == MAX_VALUE_BYTES


def test_many_in_one_append(log: EventLog) -> None:
    log.append(TOPIC, "u", b"first")
    assert log.append_many(TOPIC, [("a", b"1"), ("b", b""), ("a", b"3")]) == 1 and log.end(TOPIC) == 4
    assert log.append_many(TOPIC, []) == 4 == log.end(TOPIC)
    assert [(r.key, r.value) for r in log.read(TOPIC, 1)] == [("a", b"1"), ("b", b""), ("a", b"3")]
    with pytest.raises(TooLarge):  # all or none
        log.append_many(TOPIC, [("a", b""), ("a", bytes(MAX_VALUE_BYTES + 1))])
    assert log.end(TOPIC) == 4


def test_a_closed_log_says_so(log: EventLog) -> None:
    log.append(TOPIC, "u", b"a")
    log.close()
    for call in (lambda: log.append(TOPIC, "u", b""), lambda: log.read(TOPIC), lambda: log.end(TOPIC)):
        with pytest.raises(Unavailable, match="closed"):
            call()


def test_many_threads_append(log: EventLog) -> None:
    got: list[int] = []

    def work(name: str) -> None:
        got.extend(log.append(TOPIC, name, b"%d" % i) for i in range(100))

    threads = [threading.Thread(target=work, args=(f"u{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(400))
    records = sorted(log.read(TOPIC), key=lambda r: r.key)
    for _, mine in itertools.groupby(records, key=lambda r: r.key):
        assert [r.value for r in mine] == [b"%d" % i for i in range(100)]  # each key in its order


def of(*keys: str) -> Callable[[Record], bool]:
    return lambda record: record.key in keys


def test_a_purge_leaves_holes(engine: Callable[[Path], EventLog], tmp_path: Path) -> None:
    "What goes is gone for every reader; the others keep their offsets, now and after opening again."
    log = engine(tmp_path)
    for i in range(20):
        log.append(TOPIC, f"u{i % 4}", b"%d" % i)
    log.append("shop.dead", "u1", b"of another topic")
    reading, early = log.read(TOPIC), log.read(TOPIC, 5)
    assert next(early).value == b"5"
    assert log.purge(TOPIC, of("u1", "u3")) == 10 and log.purge(TOPIC, of("u1", "u3")) == 0
    left = [(i, f"u{i % 4}", b"%d" % i) for i in range(0, 20, 2)]
    for turn in range(2):
        assert [(r.offset, r.key, r.value) for r in log.read(TOPIC)] == left
        assert log.end(TOPIC) == 20 + turn and values(log, "shop.dead") == [b"of another topic"]
        assert values(log, offset=19) == [b"n"] * turn and values(log, offset=18) == [b"18"] + [b"n"] * turn
        assert log.append(TOPIC, "new", b"n") == 20 + turn
        left.append((20 + turn, "new", b"n"))
        log.close()
        log = engine(tmp_path)
    assert len(list(reading)) == 20 and len(list(early)) == 14  # what was being read is read to its end
    assert log.purge("shop.unheard-of", of("u1")) == 0
    assert log.purge(TOPIC, lambda record: True) == 12 and values(log) == [] and log.end(TOPIC) == 22
    log.close()


def modes(folder: Path) -> dict[str, str]:
    return {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}


@pytest.fixture
def careless() -> Iterator[None]:
    "A umask that hides nothing."
    before = os.umask(0)
    yield
    os.umask(before)


def test_the_log_is_its_owners_alone(
    careless: None, engine: Callable[[Path], EventLog], tmp_path: Path
) -> None:
    "Every file at every step, the draft of a purge as well; and the folder, where the log makes it."
    folder, drafts = tmp_path / "log", list[str]()

    def gone(record: Record) -> bool:
        drafts.append(modes(folder)[f"{TOPIC}.purging"])
        return record.key == "zoe"

    for _ in range(2):
        log = engine(folder)
        log.append_many(TOPIC, [("zoe", b"view"), ("u", b"view")])
        assert log.claim("jobs") and log.purge(TOPIC, gone) == 1
        assert log.append(TOPIC, "u", b"after") and log.purge(TOPIC, of("nobody")) == 0
        assert set(modes(folder).values()) == {"0o600"} == set(drafts)
        log.close()
        with (folder / f"{TOPIC}.log").open("ab") as file:
            file.write(b"torn")
    engine(folder).close()
    assert any(".torn-" in name for name in modes(folder)) and set(modes(folder).values()) == {"0o600"}
    assert oct(folder.stat().st_mode & 0o777) == "0o700"


def test_a_log_that_others_could_read_no_longer_is(careless: None, tmp_path: Path) -> None:
    "As older versions left it: a writer opens or purges it. A reader changes nothing."
    log = FileLog(tmp_path)
    log.append(TOPIC, "u", b"a")
    for name in (f"{TOPIC}.log", f"{TOPIC}.torn-8", f"{TOPIC}.purging", "lock", "purge.lock"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    before = modes(tmp_path)
    FileLog(tmp_path, read_only=True).close()
    assert modes(tmp_path) == before and set(before.values()) == {"0o644"}
    private = lambda record: modes(tmp_path)[f"{TOPIC}.purging"] == "0o600"  # noqa: E731
    assert log.purge(TOPIC, private) == 1
    log.close()
    FileLog(tmp_path).close()
    assert set(modes(tmp_path).values()) == {"0o600"}


def test_a_file_that_cannot_be_made_private_is_told(
    three: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("not yours")

    path, _ = three
    with monkeypatch.context() as patch:
        patch.setattr(kafka.os, "fchmod", refused)
        with pytest.raises(ConfigError, match="not yours"):
            FileLog(path.parent)
    FileLog(path.parent).close()


def test_one_of_a_name(engine: Callable[[Path], EventLog], tmp_path: Path) -> None:
    log = engine(tmp_path)
    assert log.claim("jobs") and log.claim("jobs") and log.claim("others")
    log.close()
    log = engine(tmp_path)
    assert log.claim("jobs")
    log.close()


def test_following(log: EventLog) -> None:
    "Each record once, in the order of its topic, however many come at once; holes are passed over."

    async def heard() -> list[tuple[str, bytes]]:
        got: list[tuple[str, bytes]] = []
        following = follow(log, {"shop.promos": 1, TOPIC: 0}, 0.001, most=3)
        appends = iter(range(40))
        while len(got) < 7 + 40 + 1:
            got += [(r.topic, r.value) for r in await asyncio.wait_for(anext(following), 5)]
            for n in itertools.islice(appends, random.Random(len(got)).randrange(9)):
                log.append(TOPIC, "u", b"%d" % n)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(following), 0.05)
        return got

    for n in range(10):
        log.append(TOPIC, "go" if n % 3 == 2 else "u", b"first %d" % n)
    log.append("shop.promos", "p", b"0")
    log.append("shop.promos", "p", b"1")
    assert log.purge(TOPIC, of("go")) == 3
    got = asyncio.run(heard())
    first = [b"first %d" % n for n in range(10) if n % 3 < 2]
    assert [v for topic, v in got if topic == TOPIC] == first + [b"%d" % n for n in range(40)]
    assert [v for topic, v in got if topic != TOPIC] == [b"1"]


append = st.tuples(st.sampled_from(["a", "b"]), st.text("kü", max_size=4), st.binary(max_size=40))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(append | st.sampled_from(["open again", "purge k", "purge "]), max_size=20))
def test_any_history_reads_like_lists(
    engine: Callable[[Path], EventLog], tmp_path_factory: pytest.TempPathFactory, actions: list
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log, model = engine(folder), {"a": [], "b": []}
    for action in actions:
        if action == "open again":
            log.close()
            log = engine(folder)
        elif action[0] == "p" and isinstance(action, str):
            key = action.removeprefix("purge ")
            assert log.purge("a", of(key)) == sum(kept is not None and kept[0] == key for kept in model["a"])
            model["a"] = [None if kept and kept[0] == key else kept for kept in model["a"]]
        else:
            topic, key, value = action
            assert log.append(topic, key, value) == len(model[topic])
            model[topic].append((key, value))
    for topic, want in model.items():
        kept = [(offset, *record) for offset, record in enumerate(want) if record]
        assert [(r.offset, r.key, r.value) for r in log.read(topic)] == kept and log.end(topic) == len(want)
    log.close()


# The files of the embedded engine.


@pytest.fixture
def three(tmp_path: Path) -> tuple[Path, list[int]]:
    "A closed log of three records: its file, and where each record starts, then where the last ends."
    log = FileLog(tmp_path, clock=lambda: NOW)
    path = tmp_path / f"{TOPIC}.log"
    starts = [8]
    for i in range(3):
        log.append(TOPIC, "u", b"value %d" % i)
        starts.append(path.stat().st_size)
    log.close()
    return path, starts


def test_cut_anywhere_the_whole_records_stay(three: tuple[Path, list[int]]) -> None:
    path, starts = three
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = sum(length >= end for end in starts[1:])
        torn = length - starts[kept] if length >= 8 else 0
        reader = FileLog(path.parent, read_only=True)
        assert reader.end(TOPIC) == kept and path.stat().st_size == length  # a reader mends nothing
        reader.close()
        log = FileLog(path.parent, clock=lambda: NOW)
        assert log.torn == ({TOPIC: torn} if torn else {})
        assert log.append(TOPIC, "u", b"next") == kept
        assert values(log) == [b"value %d" % i for i in range(kept)] + [b"next"]
        log.close()
        for aside in path.parent.glob("*.torn-*"):
            assert aside.read_bytes() == whole[starts[kept] : length]
            aside.unlink()


@pytest.mark.parametrize("zeros", [1, 12, 4096, 3_000_000])
def test_zeros_at_the_end_are_torn(three: tuple[Path, list[int]], zeros: int) -> None:
    path, _ = three
    path.write_bytes(path.read_bytes() + bytes(zeros))
    log = FileLog(path.parent)
    assert log.torn == {TOPIC: zeros} and log.end(TOPIC) == 3
    log.close()


def test_a_changed_byte_before_good_records_is_never_cut_off(three: tuple[Path, list[int]]) -> None:
    path, starts = three
    whole = path.read_bytes()
    for at in range(starts[2]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
        for read_only in (False, True):
            with pytest.raises(DataError, match=r"damaged at byte|no event log"):
                FileLog(path.parent, read_only=read_only)
        assert path.stat().st_size == len(whole)


def test_a_changed_byte_in_the_last_record_is_told(three: tuple[Path, list[int]]) -> None:
    path, starts = three
    whole = path.read_bytes()
    for at in range(starts[2], starts[3]):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
        try:
            log = FileLog(path.parent)
        except DataError:
            continue
        assert log.end(TOPIC) == 2 and log.torn == {TOPIC: starts[3] - starts[2]}
        log.close()


def test_damage_under_a_running_log_is_told(three: tuple[Path, list[int]]) -> None:
    path, starts = three
    log = FileLog(path.parent)
    whole = path.read_bytes()
    path.write_bytes(whole[: starts[1]] + b"?" + whole[starts[1] + 1 :])
    with pytest.raises(DataError, match="record 1"):
        values(log)
    log.close()


def test_one_writer(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    with pytest.raises(ConfigError, match="already writes"):
        FileLog(tmp_path)
    code = (
        f"from voxrec.stores.kafka import FileLog; from pathlib import Path; FileLog(Path({str(tmp_path)!r}))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert other.returncode != 0 and "already writes" in other.stderr
    log.close()
    FileLog(tmp_path).close()


def test_sharers_and_one_alone(tmp_path: Path) -> None:
    alone = FileLog(tmp_path)
    with pytest.raises(ConfigError, match="already writes"):
        FileLog(tmp_path, shared=True)
    alone.close()
    one, two = FileLog(tmp_path, shared=True), FileLog(tmp_path, shared=True)
    with pytest.raises(ConfigError, match="already writes"):
        FileLog(tmp_path)
    assert one.claim("jobs") and not two.claim("jobs") and one.claim("jobs")
    one.close()
    assert two.claim("jobs")
    two.close()
    FileLog(tmp_path).close()


def test_two_of_one_process_take_turns(tmp_path: Path) -> None:
    "Each knows the other's records by the time it appends; purges come in between."
    logs, model, rng = [FileLog(tmp_path, shared=True) for _ in range(3)], [], random.Random(5)
    for n in range(300):
        log, key = rng.choice(logs), rng.choice("abc")
        assert log.append(TOPIC, key, b"%d" % n) == n
        model.append((n, key))
        if rng.random() < 0.05:
            gone = rng.choice("abc")
            rng.choice(logs).purge(TOPIC, of(gone))
            model = [(n, key) for n, key in model if key != gone]
        assert [(r.offset, r.key) for r in rng.choice(logs).read(TOPIC)] == model
    for log in logs:
        log.close()


def test_a_log_that_was_deleted_is_unavailable(tmp_path: Path) -> None:
    log = FileLog(tmp_path)
    log.append(TOPIC, "u", b"a")
    (tmp_path / f"{TOPIC}.log").unlink()
    for call in (lambda: log.append(TOPIC, "u", b""), lambda: log.read(TOPIC), lambda: log.end(TOPIC)):
        with pytest.raises(Unavailable):
            call()
    log.close()


def test_damage_lets_the_lock_go(three: tuple[Path, list[int]]) -> None:
    path, _ = three
    good = path.read_bytes()
    path.write_bytes(b"not a log at all")
    with pytest.raises(DataError, match="no event log of this version"):
        FileLog(path.parent)
    path.write_bytes(good)
    log = FileLog(path.parent)
    assert log.end(TOPIC) == 3
    log.close()


def test_readers_beside_the_writer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no event log"):
        FileLog(tmp_path / "absent", read_only=True)
    log = FileLog(tmp_path)
    reader = FileLog(tmp_path, read_only=True)
    assert reader.end(TOPIC) == 0
    for i in range(3):
        log.append(TOPIC, "u", b"%d" % i)
        assert len(values(reader)) == i + 1
    with pytest.raises(ConfigError, match="read only"):
        reader.append(TOPIC, "u", b"")
    reader.close()
    log.close()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot keep an event log"):
        FileLog(tmp_path / "file" / "log")


def test_files_of_somebody_else(three: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError("not yours")

    path, _ = three
    opened = kafka.os.open
    with monkeypatch.context() as patch:
        logs = lambda path, *how: refused() if str(path).endswith(".log") else opened(path, *how)  # noqa: E731
        patch.setattr(kafka.os, "open", logs)
        with pytest.raises(ConfigError, match="not yours"):
            FileLog(path.parent)
    log = FileLog(path.parent)
    with monkeypatch.context() as patch:
        patch.setattr(kafka.os, "pwrite", refused)
        with pytest.raises(Unavailable, match="not yours"):
            log.append("shop.promos", "p", b"")
    assert log.append("shop.promos", "p", b"promo") == 0 and values(log, "shop.promos") == [b"promo"]
    log.close()


def test_a_full_disk_keeps_the_log_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = FileLog(tmp_path)
    log.append(TOPIC, "u", b"a")
    pwrite = kafka.os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(kafka.os, "pwrite", lambda fd, data, at: pwrite(fd, data[:10], at))
        with pytest.raises(Unavailable, match="only a part"):
            log.append(TOPIC, "u", b"b" * 100)
    assert log.append(TOPIC, "u", b"c") == 1 and values(log) == [b"a", b"c"]
    log.close()
    log = FileLog(tmp_path)
    assert log.torn == {} and values(log) == [b"a", b"c"]
    log.close()


def child(code: str, folder: Path, shared: bool = False) -> subprocess.Popen[str]:
    "A process that runs the code with a log of the folder open."
    start = f"""
        import os, signal
        from pathlib import Path
        from voxrec.stores import kafka
        log = kafka.FileLog(Path({str(folder)!r}), shared={shared})
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_in_the_middle_of_an_append(tmp_path: Path) -> None:
    code = """
        for i in range(5):
            log.append("shop.events", "u", b"%d" % i)
        pwrite = os.pwrite
        def half(fd, data, at):
            pwrite(fd, data[: len(data) // 2], at)
            os.kill(os.getpid(), signal.SIGKILL)
        os.pwrite = half
        log.append("shop.events", "u", b"never acknowledged")
    """
    process = child(code, tmp_path)
    assert process.wait(60) == -signal.SIGKILL
    assert process.stdout
    process.stdout.close()
    log = FileLog(tmp_path)  # the dead process's lock is gone with it
    assert log.torn[TOPIC] > 0 and values(log) == [b"0", b"1", b"2", b"3", b"4"]
    assert log.append(TOPIC, "u", b"5") == 5
    log.close()


def test_killed_at_any_time_what_was_acknowledged_is_there(tmp_path: Path) -> None:
    code = """
        i = 0
        while True:
            print(log.append("shop.events", "u", b"%d" % i * 1000), flush=True)
            i += 1
    """
    process = child(code, tmp_path)
    assert process.stdout
    acknowledged = [int(line) for line in itertools.islice(process.stdout, 200)]
    process.kill()
    acknowledged += [
        int(line) for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")
    ]
    process.wait(60)
    process.stdout.close()
    log = FileLog(tmp_path)
    got = values(log)
    assert acknowledged == list(range(len(acknowledged))) and len(got) >= len(acknowledged)
    assert all(value == b"%d" % i * 1000 for i, value in enumerate(got))
    log.close()


def test_processes_share_a_topic(tmp_path: Path) -> None:
    "Every offset is given once; each process's records stay in its order."
    code = """
        for i in range(250):
            print(log.append("shop.events", str(os.getpid()), b"%d" % i), flush=True)
    """
    children = [child(code, tmp_path, shared=True) for _ in range(4)]
    offsets: dict[int, str] = {}
    for process in children:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and not offsets.keys() & set(map(int, out.split()))
        offsets |= dict.fromkeys(map(int, out.split()), str(process.pid))
    log = FileLog(tmp_path, shared=True)
    got = list(log.read(TOPIC))
    assert [r.offset for r in got] == list(range(1000)) and not log.torn
    assert all(offsets[r.offset] == r.key for r in got)
    for process in children:
        assert [r.value for r in got if r.key == str(process.pid)] == [b"%d" % i for i in range(250)]
    log.close()


def test_the_living_mend_what_the_dead_left(tmp_path: Path) -> None:
    code = """
        pwrite = os.pwrite
        def half(fd, data, at):
            pwrite(fd, data[: len(data) // 2], at)
            os.kill(os.getpid(), signal.SIGKILL)
        os.pwrite = half
        log.append("shop.events", "u", b"never acknowledged")
    """
    log, reader = FileLog(tmp_path, shared=True), FileLog(tmp_path, read_only=True)
    log.append(TOPIC, "u", b"0")
    process = child(code, tmp_path, shared=True)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert values(reader) == [b"0"] and values(log) == [b"0"] and not log.torn  # readers pass over it
    assert log.append(TOPIC, "u", b"1") == 1 and log.torn[TOPIC] > 0
    assert values(reader) == values(log) == [b"0", b"1"] and len(list(tmp_path.glob("*.torn-*"))) == 1
    assert log.purge(TOPIC, of("u")) == 2 and not list(tmp_path.glob("*.torn-*"))
    log.close()


def test_a_purge_while_others_append_and_follow(tmp_path: Path) -> None:
    code = """
        import time
        for i in range(3000):
            log.append("shop.events", "go" if i % 2 else "stay", b"%d" % i)
            time.sleep(0.0001)
    """

    async def followed() -> list[int]:
        got: list[int] = []
        async for batch in follow(log, {TOPIC: 0}, 0.002):
            got += [r.offset for r in batch if r.key == "stay"]
            if len(got) >= 1500:
                return got
        return got

    log, purger = FileLog(tmp_path, shared=True), FileLog(tmp_path, shared=True)
    process = child(code, tmp_path, shared=True)
    stop, counts = threading.Event(), list[int]()

    def purge() -> None:
        while not stop.is_set():
            counts.append(purger.purge(TOPIC, of("go")))

    thread = threading.Thread(target=purge)
    thread.start()
    try:
        got = asyncio.run(asyncio.wait_for(followed(), 60))
    finally:
        stop.set()
        thread.join()
        assert process.wait(60) == 0 and process.stdout
        process.stdout.close()
    counts.append(purger.purge(TOPIC, of("go")))
    assert got == list(range(0, 3000, 2)) and sum(counts) == 1500 and sum(map(bool, counts)) > 1
    assert [(r.offset, r.value) for r in log.read(TOPIC)] == [(i, b"%d" % i) for i in range(0, 3000, 2)]
    assert log.end(TOPIC) == 3000 and not list(tmp_path.glob("*.purging"))
    log.close()
    purger.close()


@pytest.mark.parametrize("step", range(5))
def test_killed_in_the_middle_of_a_purge(tmp_path: Path, step: int) -> None:
    "At each call that touches the disk: all that should stay is there, and the purge can be done again."
    log = FileLog(tmp_path)
    for i in range(100):
        log.append(TOPIC, f"u{i % 2}", b"%d" % i)
    log.close()
    code = f"""
        calls = iter(range(1000))
        def dying(call):
            def step(*args, **more):
                if next(calls) == {step}:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **more)
            return step
        os.fsync, os.rename, os.unlink = map(dying, (os.fsync, os.rename, os.unlink))
        print(log.purge("shop.events", lambda record: record.key == "u1"))
    """
    process = child(code, tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    log = FileLog(tmp_path)
    keys = {r.key for r in log.read(TOPIC)}  # fsync, fsync, rename, fsync of the folder, unlink
    assert [r.offset for r in log.read(TOPIC) if r.key == "u0"] == list(range(0, 100, 2))
    assert keys == ({"u0", "u1"} if step < 3 else {"u0"})
    assert not list(tmp_path.glob("*.purging")) and log.end(TOPIC) == 100 and not log.torn
    assert log.purge(TOPIC, of("u1")) == (50 if "u1" in keys else 0)
    assert log.append(TOPIC, "u1", b"back") == 100
    log.close()


def test_a_damaged_log_is_not_purged(three: tuple[Path, list[int]]) -> None:
    path, starts = three
    log = FileLog(path.parent)
    whole = path.read_bytes()
    path.write_bytes(whole[: starts[1]] + b"?" + whole[starts[1] + 1 :])
    before = path.read_bytes()
    with pytest.raises(DataError, match="damaged"):
        log.purge(TOPIC, of("u"))
    assert path.read_bytes() == before and not list(path.parent.glob("*.purging"))
    log.close()


def test_a_full_disk_stops_a_purge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    log = FileLog(tmp_path)
    log.append(TOPIC, "u", b"a")
    with monkeypatch.context() as patch:
        patch.setattr(kafka.os, "fsync", full)
        with pytest.raises(Unavailable, match="No space"):
            log.purge(TOPIC, of("u"))
    assert values(log) == [b"a"] and {p.name for p in tmp_path.iterdir()} == {
        "lock",
        "purge.lock",
        f"{TOPIC}.log",
    }
    log.close()


def test_the_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    process = child("print(log.claim('jobs'), flush=True)\nsignal.pause()", tmp_path, shared=True)
    log = FileLog(tmp_path, shared=True)
    assert process.stdout and process.stdout.readline() == "True\n" and not log.claim("jobs")
    process.kill()
    process.communicate(timeout=60)
    assert log.claim("jobs")
    log.close()


def test_open_log(tmp_path: Path) -> None:
    log = open_log(Settings(home=tmp_path))
    log.append(TOPIC, "u", b"a")
    log.close()
    assert (tmp_path / "log" / f"{TOPIC}.log").exists()
