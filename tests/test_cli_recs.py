"""The shop's commands as people and timers meet them: a first day, bad input, torn files, kills."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from voxrec import cli
from voxrec.commands import frame
from voxrec.jobs import batch
from voxrec.recs.baselines import FROM_FILES
from voxrec.recs.catalog import write_catalog
from voxrec.recs.evaluate import POLICIES
from voxrec.recs.events import Product
from voxrec.recs.relations import SnapshotStore
from voxrec.recs.shop import make_products

VOXREC = Path(sys.executable).with_name("voxrec")
SHOP = make_products(seed=1, n_masters=60)


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def told(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        return json.loads(line)  # type: ignore[no-any-return]


Run = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "An empty folder to work in, with a shop of sixty products; the state goes elsewhere."
    for name in [n for n in os.environ if n.startswith("VOXREC_")]:
        monkeypatch.delenv(name)
    write_catalog(SHOP, tmp_path / "shop.jsonl")
    for name, value in {"HOME": "state", "CATALOG": "shop.jsonl", "LOG_LEVEL": "error"}.items():
        monkeypatch.setenv(f"VOXREC_{name}", value)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def voxrec(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    "The console script's `main`, in this process."

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["voxrec", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


def store() -> SnapshotStore:
    return SnapshotStore(Path("state/snapshots"))


def clicks(path: str, sessions: int, seed: int = 0, comma: bool = False) -> str:
    "Sessions that go up a shelf, as a file."
    rows = [["SessionId", "ItemId", "Time"]]
    for s in range(sessions):
        for i in range(3):
            item = SHOP[(7 * s + i + seed) % len(SHOP)].master_id
            rows.append([f"{seed}-{s}", item, str(1_700_000_000 + seed * 86_400 + s * 600 + i)])
    Path(path).write_text("\n".join(("," if comma else "\t").join(row) for row in rows) + "\n")
    return path


# ---- a first day


def test_from_an_empty_folder_to_recommendations(voxrec: Run, home: Path) -> None:
    assert voxrec("snapshot", "list", "--json").told == {"snapshots": []}
    made = voxrec("build", "semantic", "--top", 20)
    assert made.code == 0 and made.told["masters"] == 60 and "search 60 of 60" in made.err
    assert voxrec("events", "generate", "--users", 30, "--days", 2).told["events"] > 100
    sessions = voxrec("build", "sessions").told
    assert sessions["sessions"] > 10 and sessions["job"] == "full"
    assert voxrec("events", "generate", "--users", 10, "--days", 1, "--seed", 5).code == 0
    assert (
        voxrec("build", "sessions", "--since").told["views"] < sessions["views"] + sessions["sessions"] * 100
    )
    assert sorted(p.name for p in home.iterdir()) == ["shop.jsonl", "state"]

    done = voxrec("recommend", "--user", "u0001", "--k", 3, "--why")
    assert done.code == 0 and "semantic" in done.out and done.err == ""
    answer = voxrec("recommend", "--user", "u0001", "--k", 3, "--json").told
    assert {"rec_id", "model", "arm", "degraded", "items"} <= answer.keys() and len(answer["items"]) == 3
    for item in answer["items"]:
        assert {"master_id", "pid", "score", "price", "sources", "rules"} <= item.keys()
        total = sum(part["score"] for part in item["sources"])
        assert item["rules"] or abs(total - item["score"]) < 1e-9


def test_strangers_and_what_nobody_knows(voxrec: Run) -> None:
    "A stranger gets an answer; so does who asks for a product that is not there, and is told."
    done = voxrec("recommend", "--user", "nobody", "--product", "[/x]", "--category", SHOP[0].category_id)
    assert done.code == 0 and "\n 10  m" in done.out
    assert done.err == "no product '[/x]' in the catalogue: answered without it\n"
    here = voxrec(
        "recommend", "--user", "nobody", "--product", SHOP[0].master_id, "--widget", "related", "--json"
    )
    assert here.err == "" and here.told["items"][0]["sources"][0]["name"] == "semantic"
    assert SHOP[0].master_id not in [item["master_id"] for item in here.told["items"]]


def test_several_workers_need_a_store_to_share(voxrec: Run) -> None:
    done = voxrec("serve", "recs", "--workers", 2, "--port", 0)
    assert done.code == 2 and "VOXREC_REDIS_URL" in done.err and len(done.err.splitlines()) == 2, done


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_was_told_to_end_ends_with_0(home: Path, sig: signal.Signals) -> None:
    env = dict(os.environ) | {"OMP_NUM_THREADS": "1", "VOXREC_LOG_LEVEL": "info"}
    with (home / "log.txt").open("w") as log:
        process = subprocess.Popen([VOXREC, "serve", "recs", "--port", "0"], env=env, stderr=log)
    try:
        for _ in range(1200):
            if "replayed" in (home / "log.txt").read_text() or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(sig)
        assert process.wait(30) == 0, (home / "log.txt").read_text()
        assert "Traceback" not in (home / "log.txt").read_text()
    finally:
        process.kill()
        process.wait()


def test_a_day_later(voxrec: Run, home: Path) -> None:
    "New products and titles come, the micro-batch follows; a bad version is taken back."
    voxrec("build", "semantic")
    renamed = [replace(p, title=p.title + " II") if i % 20 == 0 else p for i, p in enumerate(SHOP)]
    write_catalog([*renamed, Product("new", SHOP[3].title, "c")], home / "shop.jsonl")
    assert voxrec("build", "semantic", "--since").told["published"] is False  # the catalogue is yesterday's
    changed = voxrec("build", "catalog").told
    assert (changed["added"], changed["changed"], changed["gone"]) == (1, 3, 0)
    done = voxrec("build", "semantic", "--since").told
    assert (done["version"], done["fresh"], done["gone"]) == (2, 4, 3)
    assert voxrec("build", "catalog").told["published"] is False
    assert voxrec("snapshot", "rollback", "semantic").told == {"kind": "semantic", "version": 1, "was": 2}
    rows = voxrec("snapshot", "list", "--json").told["snapshots"]
    keys = ["kind", "version", "current", "created_ms", "nbytes", "meta", "problem"]
    assert all(list(row) == keys for row in rows)
    current = {row["kind"]: row["version"] for row in rows if row["current"]}
    assert current == {"catalog": 2, "semantic": 1}
    shown = voxrec("snapshot", "list").out
    assert shown.count("*") == 2 and "since" in shown and "61" in shown


def test_sessions_of_a_file(voxrec: Run) -> None:
    for comma in (False, True):
        done = voxrec("build", "sessions", "--from", clicks("clicks.tsv", 9, comma=comma), "--days", 1)
        assert done.code == 0 and done.told["sessions"] == 9, done
    assert voxrec("build", "sessions", "--since").code == 1  # there is no log that this came from


def test_measuring(voxrec: Run) -> None:
    files = ["--train", clicks("train.tsv", 80), "--test", clicks("test.tsv", 12, seed=1)]
    told = voxrec("evaluate", "sessions", *files, "--json", "--policy", "session").told
    assert told["n"] == 24 and told["policy"] == "session"
    assert {"hr@20", "mrr@20", "ndcg@20", "recall@20", "coverage@20"} <= told["metrics"].keys()
    assert 0 <= told["metrics"]["mrr@20"] <= told["metrics"]["hr@20"] <= 1
    assert "hr@5" in voxrec("evaluate", "sessions", *files, "--k", 5, "--recommender", "popular").out
    tuned = voxrec("tune", *files, "--days", 0.2, "--draws", 2, "-o", "knobs.json", "--json")
    assert tuned.code == 0 and {"knobs", "before", "after", "gain"} <= tuned.told.keys()
    assert "settings to try" in tuned.err
    assert voxrec("evaluate", "sessions", *files, "--knobs", "knobs.json").code == 0


def test_a_log_shorter_than_the_days_held_out(voxrec: Run, home: Path) -> None:
    done = voxrec("tune", "--train", clicks("train.tsv", 80), "--draws", 1, "-o", "knobs.json")
    assert done.code == 2 and done.out == "" and not (home / "knobs.json").exists(), done
    assert "the log is 0.55 days long: with the last 7 held out" in done.err
    assert "--days 0.11" in done.err and "--valid" in done.err


def test_what_cannot_be_done_is_told_before_the_work(
    voxrec: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    "A place that cannot be written to, an unknown policy: before anything is read, so it need not be there."
    (home / "kept.json").write_text("mine")
    for words, told in (
        (["-o", "nope/k.json"], "nope/k.json: No such file"),
        (["-o", "state"], "state: Is a directory"),
        (["--policy", "all"], "no repeat policy 'all'"),
        (["-o", "kept.json"], "cannot read the sessions"),
        (["-o", "new.json"], "cannot read the sessions"),
    ):
        (home / "state").mkdir(exist_ok=True)
        done = voxrec("tune", "--train", "gone.tsv", *words)
        assert done.code == 2 and done.out == "" and told in done.err, done
    assert (home / "kept.json").read_text() == "mine" and not (home / "new.json").exists()
    for words, told in (
        (["--policy", "all"], "no repeat policy"),
        (["--recommender", "x"], "no recommender"),
    ):
        done = voxrec("evaluate", "sessions", "--train", "gone.tsv", "--test", "gone.tsv", *words)
        assert done.code == 2 and done.out == "" and told in done.err, done


def test_a_result_that_cannot_be_written_is_told(voxrec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    "The disk is full at the end only."

    def full(path: Path, body: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    done = voxrec(
        "tune", "--train", clicks("train.tsv", 80), "--days", 0.2, "--draws", 1, "-o", "k.json", "--json"
    )
    assert done.code == 2 and "No space left" in done.err and "knobs" in done.told, done


def test_progress_of_measuring_goes_to_standard_error(voxrec: Run) -> None:
    files = ["--train", clicks("train.tsv", 80), "--test", clicks("test.tsv", 12, seed=1), "--json"]
    done = voxrec("evaluate", "sessions", *files)
    assert done.told["n"] == 24 and "predictions 24 of 24" in done.err
    done = voxrec("tune", *files, "--days", 0.2, "--draws", 2)
    assert "knobs" in done.told and "predictions of the test 48 of 48" in done.err
    assert "settings of session kNN" in done.err and "predictions to weigh" in done.err


def test_knobs_of_another_form(voxrec: Run, home: Path) -> None:
    files = ["--train", clicks("train.tsv", 80), "--test", clicks("test.tsv", 12, seed=1)]
    (home / "knobs.json").write_text('{"x": 1}')
    done = voxrec("evaluate", "sessions", *files, "--knobs", "knobs.json")
    assert done.code == 1 and done.out == "" and "knobs.json: no knob 'x'" in done.err
    assert "decay, sessions, weights" in done.err


def test_help_names_what_there_is(voxrec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERMINAL_WIDTH", "300")
    for words in (["evaluate", "sessions"], ["tune"]):
        told = voxrec(*words, "--help").out
        assert f"one of: {', '.join(POLICIES)}" in told and "{" not in told, told
    assert f"one of: {', '.join(FROM_FILES)}" in voxrec("evaluate", "sessions", "--help").out
    wrong = voxrec("evaluate", "sessions", "--train", "x", "--test", "x", "--recommender", "semantic")
    assert wrong.code == 2 and f"one of: {', '.join(FROM_FILES)}" in wrong.err and "titles" in wrong.err


# ---- asked for wrongly: 2, one line and a hint, nothing on standard output


@pytest.mark.parametrize(
    ("words", "told", "hint"),
    [
        (["build", "semantic", "--since"], "no snapshot of 'semantic'", "voxrec build semantic"),
        (["build", "sessions", "--since"], "no snapshot of 'sessions'", "voxrec build sessions"),
        (["build", "semantic", "--index", "annoy"], "no index 'annoy'", "exact, ivf, hnsw"),
        (["build", "semantic", "--embed", "word2vec"], "no embedder", "lsa, minilm"),
        (["build", "sessions", "--from", "gone.tsv"], "gone.tsv: No such file", "SessionId"),
        (["build", "sessions", "--from", "x.tsv", "--since"], "not with a file", "leave one"),
        (["snapshot", "list", "moon"], "no snapshot of 'moon'", "voxrec build"),
        (["snapshot", "rollback", "semantic"], "no snapshot of 'semantic'", "voxrec build"),
        (["recommend", "--user", "", "--k", "3"], "no such request", "1 to 64"),
        (["recommend", "--user", "u" * 65], "has 65 bytes", "at most 64"),
        (["evaluate", "sessions", "--train", "gone", "--test", "gone"], "gone: No such file", "SessionId"),
        (["tune", "--train", "gone"], "gone: No such file", "SessionId"),
    ],
)
def test_asked_for_wrongly_is_2(voxrec: Run, words: list[str], told: str, hint: str) -> None:
    done = voxrec(*words)
    lines = [line for line in done.err.splitlines() if not line.startswith("products ")]
    assert done.code == 2 and done.out == "" and len(lines) == 2, done
    assert lines[0].startswith("error: ") and told in lines[0] and hint in lines[1], done


@pytest.mark.parametrize(
    "words",
    [
        ["build", "moon"], ["build", "semantic", "--top", "0"], ["build", "semantic", "--top", "x"],
        ["build", "semantic", "--effort", "0"], ["build", "sessions", "--days", "0"],
        ["recommend"], ["recommend", "--user", "u", "--widget", "footer"],
        ["recommend", "--user", "u", "--k", "0"], ["recommend", "--user", "u", "--k", "51"],
        ["snapshot", "rollback"], ["evaluate", "sessions", "--train", "x"], ["tune"],
        ["evaluate", "sessions", "--train", "x", "--test", "x", "--k", "0"],
    ],
)  # fmt: skip
def test_what_the_options_do_not_allow_is_2(voxrec: Run, words: list[str]) -> None:
    done = voxrec(*words)
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err


def test_wrong_files(voxrec: Run, home: Path) -> None:
    "Of another form, damaged, of another shop: a line that says which and where."
    good = clicks("good.tsv", 5)
    wrong = {
        "no columns": b"a\tb\nc\td\n",
        "cells": b"SessionId\tItemId\tTime\n1\t2\n",
        "time": b"SessionId\tItemId\tTime\n1\t2\tyesterday\n",
        "empty": b"",
        "binary": os.urandom(300),
    }
    for name, content in wrong.items():
        (home / "bad.tsv").write_bytes(content)
        for words in (["build", "sessions", "--from", "bad.tsv"], ["tune", "--train", "bad.tsv"],
                      ["evaluate", "sessions", "--train", good, "--test", "bad.tsv"]):  # fmt: skip
            done = voxrec(*words)
            assert done.code == 1 and "bad.tsv" in done.err and "Traceback" not in done.err, (name, done)
            assert done.out == "" and (name != "empty" or "bad.tsv is empty" in done.err)
    (home / "other.tsv").write_text("SessionId\tItemId\tTime\n1\tx\t1\n1\ty\t2\n")
    done = voxrec("build", "sessions", "--from", "other.tsv")
    assert done.code == 2 and "none of 2 clicks is on a product of the catalogue" in done.err
    (home / "shop.jsonl").write_text('{"master_id": 7}\n')
    done = voxrec("build", "catalog")
    assert done.code == 1 and "shop.jsonl, line 1" in done.err


def test_parameters_of_a_micro_batch_are_those_of_the_full_build(voxrec: Run) -> None:
    voxrec("build", "semantic")
    voxrec("build", "sessions")
    for words in (
        ["semantic", "--since", "--top", 5],
        ["semantic", "--since", "--learn"],
        ["sessions", "--since", "--m", 5],
    ):
        done = voxrec("build", *words)
        assert done.code == 2 and "parameters" in done.err


def test_homes_that_cannot_be(voxrec: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "file").touch()
    monkeypatch.setenv("VOXREC_HOME", "file")
    for words in (["build", "catalog"], ["events", "generate"], ["recommend", "--user", "u"]):
        done = voxrec(*words)
        assert done.code == 2 and "another VOXREC_HOME" in done.err and "Traceback" not in done.err, done


# ---- tried and failed: 1


def test_torn_snapshots(voxrec: Run, home: Path) -> None:
    "Told by list, refused by what needs them; an earlier version, or a build in full, mends it."
    for _ in range(2):
        voxrec("build", "semantic", "--top", 5)
        voxrec("build", "sessions")
    for kind, name in (("semantic", "index"), ("sessions", "going_who")):
        torn = store().current(kind).folder / f"{name}.npy"
        torn.chmod(0o644)
        torn.write_bytes(b"torn")
        done = voxrec("build", kind, "--since")
        assert done.code == 1 and f"{name}.npy cannot be read" in done.err and "rollback" in done.err, done
        (problem,) = [r for r in voxrec("snapshot", "list", kind, "--json").told["snapshots"] if r["problem"]]
        assert problem["current"] and f"{name}.npy" in problem["problem"]
        assert voxrec("snapshot", "rollback", kind).told["version"] == 1
        assert voxrec("build", kind, "--since").code == 0
    (store().root("semantic") / "current").write_text("torn")
    done = voxrec("build", "semantic", "--since")
    assert done.code == 1 and "current is torn" in done.err
    assert voxrec("build", "semantic").code == 0
    torn = store().current("catalog").folder / "title_data.npy"
    torn.chmod(0o644)
    torn.write_bytes(b"torn")
    done = voxrec("build", "catalog")
    assert done.code == 1 and "delete state/snapshots/catalog" in done.err


def test_two_at_once(voxrec: Run) -> None:
    voxrec("build", "catalog")
    with store().build("semantic"):
        done = voxrec("build", "semantic")
    assert done.code == 1 and "another process is writing 'semantic'" in done.err
    assert len(done.err.splitlines()) == 2


def test_kill_9_and_the_same_command_again(voxrec: Run, home: Path) -> None:
    write_catalog(make_products(seed=1, n_masters=3000), home / "shop.jsonl")
    env = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    building = home / "state/snapshots/semantic/building/floor.npy"
    with subprocess.Popen(
        [VOXREC, "build", "semantic"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for _ in range(2000):
            if building.exists() or process.poll() is not None:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and building.exists()
    assert voxrec("snapshot", "list", "--json").told["snapshots"][0]["kind"] == "catalog"
    again = voxrec("build", "semantic")
    assert again.code == 0 and again.told["version"] == 1 and "embed" not in again.err
    store().current("semantic", verify=True)


def test_a_full_disk_is_told_and_gone_on_from(voxrec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    "The write that fails is faked: the fourth flush of the build finds no room."
    import errno

    voxrec("build", "catalog")
    flush, left = os.fsync, [4]

    def full(fd: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(fd)

    monkeypatch.setattr(os, "fsync", full)
    done = voxrec("build", "semantic")
    assert done.code == 1 and "No space left" in done.err and "goes on from there" in done.err
    monkeypatch.setattr(os, "fsync", flush)
    assert voxrec("build", "semantic").code == 0


# ---- progress


def test_progress_is_a_line_now_and_then_or_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = iter([0.0, *[s / 2 for s in range(100)]])
    with frame.progress(lambda: next(seconds)) as told:
        for n in range(1, 21):
            told("search", n, 20)
        told("search", 20, 20)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "search 20 of 20" and 2 <= len(lines) <= 5 and len(set(lines)) == len(lines)


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    shown = io.StringIO()
    monkeypatch.setattr(frame, "story", Console(file=shown, force_terminal=True, width=80))
    with frame.progress() as told:
        told("[/search]", 1, 2)
        told("[/search]", 2, 2)
    assert "[/search]" in shown.getvalue()


def test_a_first_catalogue_is_made_once(voxrec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    build = batch.build_catalog
    monkeypatch.setattr(batch, "build_catalog", lambda *a: asked.append(a) or build(*a))  # type: ignore[func-returns-value]
    for _ in range(2):
        assert voxrec("build", "sessions").code == 0
    assert len(asked) == 1


def test_another_shop_is_not_read_silently(voxrec: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXREC_LOG_LEVEL", "warning")
    assert voxrec("build", "catalog").told["published"]
    assert not voxrec("build", "catalog").told["published"]
    assert "another file" not in voxrec("recommend", "--user", "u1").err
    write_catalog(SHOP, home / "other.jsonl")
    monkeypatch.setenv("VOXREC_CATALOG", "other.jsonl")
    done = voxrec("recommend", "--user", "u1")
    assert done.code == 0 and "other.jsonl" in done.err and "voxrec build catalog" in done.err
    assert voxrec("build", "catalog").told["published"]  # the same products, but they came from elsewhere
    assert "another file" not in voxrec("recommend", "--user", "u1").err
