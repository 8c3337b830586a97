"""The voice commands as people and programs meet them: bad files, long files, pipes, a site of processes."""

import io
import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import wave
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from voxrec import cli
from voxrec.commands import voice as voice_commands
from voxrec.demo import show
from voxrec.mqtt import EmbeddedBroker, background_loop, connect_mqtt, free_port
from voxrec.serve.edge import run_on
from voxrec.voice import intent_train
from voxrec.voice.actions import open_board
from voxrec.voice.audio import RATE, Samples, read_audio, resample, samples_to_pcm, write_wav

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "data_samples"
CLIP = read_audio(SAMPLES / "summon_maintenance.wav")
VOXREC = Path(sys.executable).with_name("voxrec")


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Done]


@pytest.fixture(autouse=True)
def logger_as_it_was() -> Iterator[None]:
    log = logging.getLogger("voxrec")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "An environment without settings, and a place outside any checkout."
    for name in [n for n in os.environ if n.startswith("VOXREC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def voxrec(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    "The console script's `main`, in this process."

    def run(*words: object, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["voxrec", *map(str, words)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


def wav(path: Path, form: int, channels: int, rate: int, bits: int, data: bytes) -> Path:
    "A WAV file of any form: 1 is PCM, 7 is mu-law."
    block = channels * bits // 8
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, form, channels, rate,
                       rate * block, block, bits)  # fmt: skip
    path.write_bytes(head + struct.pack("<4sI", b"data", len(data)) + data)
    return path


def mu_law(samples: Samples) -> bytes:
    "G.711: eight bits a sample."
    level = np.minimum(np.abs(samples * 32768).astype(int) + 132, 32767)
    exponent = np.floor(np.log2(level)).astype(int) - 7
    code = np.where(samples < 0, 0x80, 0) | exponent << 4 | level >> exponent + 3 & 0x0F
    return (~code & 0xFF).astype(np.uint8).tobytes()


def malformed(folder: Path) -> tuple[list[Path], list[Path]]:
    "Files that are heard all the same, and files that are not."
    pcm, fast = samples_to_pcm(CLIP), resample(CLIP, RATE, 44_100)
    good = [
        wav(folder / "eight bit.wav", 1, 1, RATE, 8, ((CLIP + 1) * 127.5).astype(np.uint8).tobytes()),
        wav(folder / "stereo.wav", 1, 2, RATE, 16, samples_to_pcm(np.repeat(CLIP, 2))),
        wav(folder / "44100 [hz].wav", 1, 1, 44_100, 16, samples_to_pcm(fast)),
        wav(folder / "mu-law.wav", 7, 1, 8_000, 8, mu_law(resample(CLIP, RATE, 8_000))),
        wav(folder / "truncated.wav", 1, 1, RATE, 16, pcm),
    ]
    good[-1].write_bytes(good[-1].read_bytes()[: -RATE // 2])  # a quarter of a second is missing
    bad = [folder / "empty.wav", wav(folder / "silent.wav", 1, 1, RATE, 16, b""), folder / "text.wav"]
    bad[0].touch()
    bad[2].write_text("RIFF is what I would say. " * 100)
    return good, [*bad, folder / "nowhere.wav", folder]


def test_transcribe_does_the_good_files_and_tells_the_bad_ones(voxrec: Run, home: Path) -> None:
    good, bad = malformed(home)
    done = voxrec("transcribe", *bad[:2], *good, *bad[2:], "--json")
    assert done.code == 1
    assert [r["path"] for r in done.rows] == [str(p) for p in good]
    for row in done.rows:
        assert list(row) == ["path", "text", "language", "duration_s", "segments"]
        assert "maintenance" in row["text"], row
        ((start, end),) = [(s["start_ms"], s["end_ms"]) for s in row["segments"]]
        assert 0 <= start < end <= row["duration_s"] * 1000
    errors = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert [e.rsplit("(", 1)[1] for e in errors] == ["input_error)"] * 3 + ["not_found)"] * 2, done.err
    for path, error in zip(bad, errors, strict=True):
        assert path.name in error


def test_a_file_of_any_length_is_heard_piece_by_piece(voxrec: Run, home: Path) -> None:
    names = ["summon_first_aid", "question", "report_spill", "emergency_stop"] * 4
    pause = np.random.default_rng(0).normal(0, 1e-4, RATE).astype(np.float32)
    parts = [s for name in names for s in (read_audio(SAMPLES / f"{name}.wav"), pause)]
    write_wav(home / "long.wav", np.concatenate(parts))
    done = voxrec("transcribe", "long.wav", "--words", "--prompt", "aisle 12, dock 3", "--hotwords", "spill,")
    (row,) = done.rows
    assert done.code == 0 and row["duration_s"] > 45
    for words, times in (("first aid", 4), ("label", 4), ("spill", 4), ("mergency stop", 4)):
        assert row["text"].count(words) == times, row["text"]
    segments = row["segments"]
    assert len(segments) >= 8 and segments[-1]["end_ms"] > 45_000
    assert all(a["end_ms"] <= b["start_ms"] for a, b in pairwise(segments))
    for s in segments:
        assert s["start_ms"] <= s["words"][0]["start_ms"] <= s["words"][-1]["end_ms"] <= s["end_ms"] + 40


def test_transcribe_for_people_is_a_line(voxrec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_commands, "for_programs", lambda as_json: as_json)
    clip = SAMPLES / "emergency_stop.wav"
    # whether a full stop is heard depends on the processor's arithmetic
    assert voxrec("transcribe", clip).out.lower().rstrip(".!\n") == f"{clip}: emergency stop".lower()


@pytest.mark.parametrize(
    ("words", "env", "told"),
    [
        (["transcribe"], {}, "Missing argument"),
        (["transcribe", "a.wav", "--prompt", "forklift " * 300], {}, "tokens, 200 are allowed"),
        (["transcribe", "a.wav"], {"WHISPER_MODEL": "/"}, "no CTranslate2 Whisper"),
        (["understand", "stop", "--tenant", "moon"], {}, "There are: demo"),
        (["understand", "stop"], {"TENANTS": "gone"}, "the folder gone does not exist"),
        (["understand", "stop"], {"INTENT_MODEL": "gone"}, "no intent model in gone"),
        (["understand", "stop", "--device", "watch-99"], {}, "no device 'watch-99'"),
        (["say", "Ready."], {}, "Missing option"),
        (["say", "...", "-o", "a.wav"], {}, "nothing to say"),
        (["say", "word " * 300, "-o", "a.wav"], {}, "at most 1000"),
        (["say", "Ready.", "-o", "gone/a.wav"], {}, "gone/a.wav: No such file"),
        (["say", "Ready.", "-o", "a.wav"], {"PIPER_VOICE": "gone.onnx"}, "no file gone.onnx"),
        (["device", "a.wav"], {}, "VOXREC_MQTT_URL is needed"),
        (["device", "a.wav", "--mqtt", "http://here"], {}, "no address of a broker"),
        (["serve", "bridge"], {}, "VOXREC_MQTT_URL is needed"),
        (["serve", "bridge"], {"MQTT_URL": "mqtt://127.0.0.1"}, "VOXREC_TENANTS is needed"),
        (["serve", "speech"], {"SPEECH_PORT": "99999"}, "VOXREC_SPEECH_PORT"),
        (["serve", "speech"], {"API_KEYS": "none.txt"}, "cannot read the keys in none.txt"),
        (["serve", "speech", "--tls-cert", "a.pem"], {}, "a certificate or its key is not named"),
    ],
)
def test_asked_for_wrongly_is_2_and_says_what_is_missing(
    voxrec: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], env: dict[str, str], told: str
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(f"VOXREC_{name}", value)
    done = voxrec(*words)
    assert done.code == 2 and told in done.err and done.out == "", done


def test_no_broker_is_1(voxrec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXREC_MQTT_URL", f"mqtt://127.0.0.1:{free_port()}")
    monkeypatch.setenv("VOXREC_TENANTS", str(SAMPLES / "tenants"))
    for words in (["serve", "bridge"], ["device", SAMPLES / "noise.wav"]):
        done = voxrec(*words)
        assert done.code == 1 and "no MQTT broker at 127.0.0.1" in done.err, done


def test_a_port_that_is_taken_is_2(voxrec: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = voxrec("serve", "speech", "--port", taken.getsockname()[1])
    assert done.code == 2 and "cannot listen on" in done.err


def test_a_store_that_refuses_us_stops_serve_recs(voxrec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            with client:
                while client.recv(4096):
                    client.sendall(b"-NOAUTH Authentication required.\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=refuse, args=[server], daemon=True).start()
        monkeypatch.setenv("VOXREC_REDIS_URL", f"redis://127.0.0.1:{server.getsockname()[1]}")
        done = voxrec("serve", "recs", "--port", 0)
    assert done.code == 2 and "error:" in done.err and len(done.err.splitlines()) == 2, done.err


def test_understand_answers_line_by_line() -> None:
    "A conversation with the real command: each answer comes before the next question."
    env = {k: v for k, v in os.environ.items() if not k.startswith("VOXREC_")}
    command = [VOXREC, "understand"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin and process.stdout and process.stderr

        def ask(line: bytes) -> dict[str, Any]:
            process.stdin.write(line + b"\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return json.loads(process.stdout.readline())  # type: ignore[union-attr, no-any-return]

        first = ask(b"Send maintenance to dock seven, please")
        assert list(first) == ["text", "intent", "confidence", "slots", "decision"]
        assert first["intent"] == "SUMMON_TEAM" and first["confidence"] > 0.85
        assert first["slots"] == {"team": "maintenance", "place": "dock seven"}
        assert first["decision"]["kind"] == "act" and first["decision"]["why"]
        assert first["decision"]["action"]["location"] == "dock 7"
        assert ask(b"")["decision"] == {"kind": "ignore", "why": "nothing was said"}
        long = ask(b"call security to the gate " * 2000)
        assert len(long["text"].split()) == 10_000 and long["decision"]["kind"] != "act"
        assert ask(b"stop " * 500_000)["error"] == "too_large"
        assert ask(b"caf\xe9")["error"] == "input_error"
        assert ask("Ruf Maria Lopez an! 🛑\u2028\x00".encode())["text"].startswith("Ruf")
        assert ask(b"yes")["decision"]["kind"] == "ignore"
        assert ask(b"Emergency stop!\r")["decision"]["action"]["kind"] == "stop"
        process.stdin.close()
        told = process.stderr.read().decode()
        assert process.wait(10) == 1 and told.count("error:") == 2 and "line 4" in told, told


def test_understand_in_an_installed_package(home: Path) -> None:
    "Without a checkout there are no samples: that is said, teams count as said, and no person is known."
    shutil.copytree(ROOT / "voxrec", home / "voxrec", ignore=shutil.ignore_patterns("__pycache__", "domain"))
    command = [sys.executable, "-c", "from voxrec.cli import main; main()", "understand"]

    def ask(*words: str) -> Done:
        done = subprocess.run([*command, *words], cwd=home, capture_output=True, text=True, timeout=60)
        return Done(done.returncode, done.stdout, done.stderr)

    done = ask("Send maintenance to dock seven.", "Call Maria Lopez.")
    team, person = (row["decision"] for row in done.rows)
    assert done.code == 0 and "VOXREC_TENANTS is not set" in done.err
    assert team["kind"] == "act" and team["action"]["location"] == "dock seven"
    assert person["kind"] == "confirm" and "no person" in person["why"]
    named = ask("stop", "--tenant", "demo")
    assert named.code == 2 and "VOXREC_TENANTS is needed to find the tenant demo" in named.err


def test_understand_for_whom(voxrec: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "north.toml").write_text('[devices.n1]\nzone = "gate 9"\n[[teams]]\nname = "security"\n')
    (home / "south.toml").write_text("places = []")
    (home / "west.toml").write_text("places = 7")
    monkeypatch.setenv("VOXREC_TENANTS", str(home))
    done = voxrec("understand", "We need security here.")
    assert done.code == 2 and "There are: north, south" in done.err and "west.toml" in done.err
    assert voxrec("understand", "stop", "--tenant", "west").code == 2
    monkeypatch.setattr(voice_commands, "for_programs", lambda as_json: as_json)
    done = voxrec("understand", "--tenant", "north", "--device", "n1", stdin=b"We need security here.\n")
    assert done.code == 0 and done.out.startswith("SUMMON_TEAM ") and "-> act: " in done.out
    done = voxrec("understand", "We need security.", "--tenant", "north", "--device", "n1", "--json")
    assert done.rows[0]["decision"]["action"]["location"] == "gate 9"


@pytest.mark.parametrize(("voice", "rate"), [("", 22_050), ("hibari", 24_000)])
def test_say(voxrec: Run, home: Path, monkeypatch: pytest.MonkeyPatch, voice: str, rate: int) -> None:
    monkeypatch.setenv("VOXREC_PIPER_VOICE", voice)
    done = voxrec("say", "Maintenance is on its way.", "-o", "reply.wav")
    assert done.code == 0 and done.rows[0]["path"] == "reply.wav"
    with wave.open(str(home / "reply.wav")) as spoken:
        assert spoken.getparams()[:3] == (1, 2, rate)
        assert 1 < spoken.getnframes() / rate < 4


def test_train_intent_needs_torch(voxrec: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    done = voxrec("train", "intent")
    assert done.code == 2 and "make .venv-train/ready" in done.err


def test_train_intent_on_one_thread(voxrec: Run, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "What the command gives to the training, whose own test needs the real torch."
    asked: list[Any] = []

    def train(out: Path, data: Path | None, *, plan: Any, progress: Callable[[str], None]) -> Any:
        asked.extend([out, data, plan.seed])
        progress("teacher 7 of [9]")
        return SimpleNamespace(trained={"calibration_accuracy": 0.9})

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_num_threads=asked.append))
    monkeypatch.setattr(intent_train, "train_intent", train)
    monkeypatch.setenv("VOXREC_DATA", "/data")
    done = voxrec("train", "intent", "-o", "model", "--seed", "3")
    assert asked == [1, Path("model"), Path("/data"), 3]
    assert done.rows == [{"path": "model", "calibration_accuracy": 0.9}] and "teacher 7 of [9]" in done.err


class Service:
    "A `voxrec serve ...` of its own."

    def __init__(self, log: Path, env: dict[str, str], *words: str):
        self.log = log
        with log.open("w") as out:
            self.process = subprocess.Popen([VOXREC, "serve", *words], env=env, stdout=out, stderr=out)

    def wait(self) -> None:
        "Until it says that it is ready."
        for _ in range(600):
            if "listening" in self.log.read_text() or self.process.poll() is not None:
                break
            threading.Event().wait(0.1)
        assert "listening" in self.log.read_text(), self.log.read_text()

    def stopped(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., Service]]:
    "Starts services in the environment of now; whatever happens, none is left."
    started: list[Service] = []

    def start(*words: str) -> Service:
        started.append(Service(home / f"{words[0]}.log", dict(os.environ), *words))
        return started[-1]

    yield start
    for service in started:
        service.process.kill()
        service.process.wait()


@pytest.fixture
def board(home: Path) -> Iterator[Any]:
    "A broker, and a board that acknowledges what it is told."
    broker = EmbeddedBroker()
    broker.start()
    with background_loop("board") as loop:
        mqtt = connect_mqtt(broker.url)
        opened = open_board(run_on(loop, mqtt.__aenter__()))
        board = run_on(loop, opened.__aenter__())
        yield SimpleNamespace(broker=broker, calls=board.calls)
        run_on(loop, opened.__aexit__(None, None, None))
        run_on(loop, mqtt.__aexit__(None, None, None))
    broker.stop()


def test_from_a_file_to_a_reply_through_real_processes(
    voxrec: Run, home: Path, monkeypatch: pytest.MonkeyPatch, board: Any, serve: Callable[..., Service]
) -> None:
    "Speech service, bridge and device as commands; a bad file, a stranger, a broker restarted; SIGTERM."
    port = str(free_port())
    monkeypatch.setenv("VOXREC_MQTT_URL", board.broker.url)
    monkeypatch.setenv("VOXREC_TENANTS", str(SAMPLES / "tenants"))
    monkeypatch.setenv("VOXREC_SPEECH_URL", f"127.0.0.1:{port}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    bridge, speech = serve("bridge"), serve("speech", "--port", port)
    for service in (bridge, speech):
        service.wait()
    (home / "text.wav").write_text("no sound")
    clip, stop = SAMPLES / "summon_maintenance.wav", SAMPLES / "emergency_stop.wav"

    command = [VOXREC, "device", clip, "text.wav", stop, "-o", "kept", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and "text.wav: not readable as audio" in done.stderr, done.stderr
    assert [r["path"] for r in rows] == [str(clip), str(stop)]
    (summon,), (stopped,) = (r["replies"] for r in rows)
    assert summon["heard"].lower().startswith("send maintenance to dock") and summon["kind"] == "act"
    assert summon["text"] == "Maintenance has been called to dock 7."
    assert "emergency stop requested for aisle 12" in stopped["text"].lower()
    assert [p.name for p in sorted((home / "kept").glob("*.wav"))] == ["reply-1.wav", "reply-2.wav"]
    for told in (summon, stopped):
        assert len(read_audio(home / told["path"])) > RATE
    assert [topic for topic, _ in board.calls] == ["team/summon", "site/stop"]

    done = voxrec("device", clip, "--device", "nobody", "--speed", 0)
    assert done.code == 2 and "nobody" in done.err
    board.broker.stop()
    board.broker.start()
    done = voxrec("device", clip, "--device", "watch-02", "--speed", 0, "-o", "kept")
    assert done.code == 0 and done.rows[0]["replies"][0]["path"] == "kept/reply-3.wav"
    assert (bridge.stopped(), speech.stopped()) == (0, 0)


@pytest.mark.parametrize(
    ("words", "terminal", "ci", "pages"),
    [([], True, "", 1), (["--no-ui"], True, "", 0), ([], False, "", 0), ([], True, "true", 0)],
)
def test_demo_opens_the_page_for_who_can_see_it(
    voxrec: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], terminal: bool, ci: str, pages: int
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(show, "play", lambda settings, out, now_ms, console: done.append(out))
    monkeypatch.setattr(show, "open_page", lambda settings, console: done.append("page"))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("CI", ci)
    assert voxrec("demo", "-o", "pictures", *words).code == 0
    assert done == [Path("pictures"), *["page"] * pages]
