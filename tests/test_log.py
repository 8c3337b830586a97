"""The contract of EventLog over every engine, and what a crash may do to the files of the embedded one."""

import itertools
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
from voxrec.stores.kafka import MAX_KEY_BYTES, MAX_VALUE_BYTES, EventLog, FileLog, open_log

NOW = 1_767_312_000_000
TOPIC = "shop.events"

# An engine joins the contract by a line here: opens the same log each time it is called with the same folder.
ENGINES: dict[str, Callable[[Path], EventLog]] = {
    "file": lambda folder: FileLog(folder, clock=lambda: NOW),
    "file-fsync": lambda folder: FileLog(folder, clock=lambda: NOW, fsync=True),
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


append = st.tuples(st.sampled_from(["a", "b"]), st.text("kü", max_size=4), st.binary(max_size=40))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(append | st.just("open again"), max_size=20))
def test_any_history_reads_like_lists(
    engine: Callable[[Path], EventLog], tmp_path_factory: pytest.TempPathFactory, actions: list
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log, model = engine(folder), {"a": [], "b": []}
    for action in actions:
        if action == "open again":
            log.close()
            log = engine(folder)
        else:
            topic, key, value = action
            assert log.append(topic, key, value) == len(model[topic])
            model[topic].append((key, value))
    for topic, want in model.items():
        assert [(r.key, r.value) for r in log.read(topic)] == want and log.end(topic) == len(want)
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
    with monkeypatch.context() as patch:
        patch.setattr(kafka.os, "pwrite", refused)
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


def child(code: str, folder: Path) -> subprocess.Popen[str]:
    "A process that runs the code with a log of the folder open."
    start = f"""
        import os, signal
        from pathlib import Path
        from voxrec.stores import kafka
        log = kafka.FileLog(Path({str(folder)!r}))
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


def test_open_log(tmp_path: Path) -> None:
    log = open_log(Settings(home=tmp_path))
    log.append(TOPIC, "u", b"a")
    log.close()
    assert (tmp_path / "log" / f"{TOPIC}.log").exists()
