"""The speech API over real connections: OpenAI's client, curl, bad files, limits, keys, traces, swaps."""

import gzip
import json
import logging
import os
import resource
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from voxrec.bench import find_root
from voxrec.config import Settings
from voxrec.errors import ConfigError, VoxrecError
from voxrec.serve import asr_api
from voxrec.serve.asr_api import AsrApi, Pieces, Routes, encoded, open_asr, running_asr
from voxrec.serve.batcher import Batcher, BatchLimits
from voxrec.serve.models import Models
from voxrec.service import running
from voxrec.telemetry import new_registry, new_tracer, sample
from voxrec.voice.audio import RATE, Samples, read_audio, resample, write_wav
from voxrec.voice.speak import HibariVoice
from voxrec.voice.transcribe import Ask, Recognizer, Transcript, model_folder

SAMPLES = find_root() / "data_samples"
COMMAND = SAMPLES / "summon_maintenance.wav"
KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, AsrApi]]:
    with running_asr(Settings(whisper_model="domain")) as (url, api):
        yield url, api


@pytest.fixture(scope="module")
def http(service: tuple[str, AsrApi]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service[0], timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def client(service: tuple[str, AsrApi]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def long() -> Samples:
    "Some two minutes: a sentence, a pause, and again."
    voice, rate = HibariVoice().speak("Send maintenance to dock seven.")
    pause = np.random.default_rng(1).normal(0, 1e-4, 2 * RATE).astype(np.float32)
    return np.concatenate([np.concatenate([resample(voice, rate, RATE), pause])] * 30)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["text"]
    return found


def test_openai_client_reads_every_format(client: openai.OpenAI) -> None:
    def ask(**said: Any) -> Any:
        with COMMAND.open("rb") as file:
            return client.audio.transcriptions.create(file=file, model="whisper-1", **said)

    text = ask().text
    assert "maintenance" in text
    assert ask(response_format="text").strip() == text
    assert ask(response_format="srt").splitlines()[2] == text
    assert ask(response_format="vtt").startswith("WEBVTT\n\n00:00:0")
    whole = ask(response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert whole.text == text and whole.language == "en" and 2 < whole.duration < 3
    (segment,) = whole.segments
    assert segment.text == text and 0 <= segment.start < segment.end <= whole.duration
    assert " ".join(w.word for w in whole.words) == text
    assert all(a.end <= b.start + 1e-6 for a, b in zip(whole.words, whole.words[1:], strict=False))
    assert ask(response_format="verbose_json").words is None
    assert ask(language="en-GB", temperature=0, prompt="Dock seven.", extra_body={"hotwords": "dock"}).text
    assert ask(chunking_strategy="auto").text == text


def test_openai_client_streams_segments(client: openai.OpenAI, long: Samples) -> None:
    sound = ("long.wav", write_wav(None, long[: 30 * RATE]))
    events = list(client.audio.transcriptions.create(file=sound, model="domain", stream=True))
    assert [e.type for e in events][-1] == "transcript.text.done" and len(events) > 3
    deltas = [e.delta for e in events if e.type == "transcript.text.delta"]
    assert "".join(deltas) == getattr(events[-1], "text", None)
    whole = client.audio.transcriptions.create(file=sound, model="domain")
    assert whole.text == "".join(deltas)


def test_openai_client_is_told_what_it_cannot_have(client: openai.OpenAI) -> None:
    def ask(**said: Any) -> None:
        client.audio.transcriptions.create(**({"file": COMMAND, "model": "domain"} | said))

    for said, param in (
        ({"temperature": 0.3}, "temperature"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ({"include": ["logprobs"]}, "include"),
        ({"language": "de"}, None),
        ({"file": ("a.wav", b"no sound")}, None),
    ):
        with pytest.raises(openai.BadRequestError) as told:
            ask(**said)
        assert told.value.param == param and told.value.type == "invalid_request_error"
        assert told.value.request_id
    with pytest.raises(openai.NotFoundError, match="no model 'large'"):
        ask(model="large")
    with pytest.raises(openai.BadRequestError, match="English only"), pytest.warns(DeprecationWarning):
        client.audio.translations.create(file=COMMAND, model="domain")


def test_openai_client_lists_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["domain", "tiny.en", "domain-rescored", "whisper-1"]
    assert client.models.retrieve("tiny.en").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize("kind", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_openai_client_is_spoken_to(client: openai.OpenAI, kind: Any) -> None:
    said = "Send maintenance to dock seven."
    sound = client.audio.speech.create(model="tts-1", voice="nova", input=said, response_format=kind).read()
    if kind == "pcm":
        sound = write_wav(None, np.frombuffer(sound, "<i2").astype(np.float32) / 32_768, 24_000)
    assert 1 < len(read_audio(sound)) / RATE < 5
    answer = client.audio.transcriptions.create(file=("a", sound), model="domain")
    assert "maintenance" in answer.text.lower()


def test_speech_refuses(client: openai.OpenAI, http: httpx.Client) -> None:
    for said in (
        {"voice": "darth"},
        {"model": "tts-9"},
        {"speed": 1.5},
        {"input": ""},
        {"instructions": "sing"},
    ):
        with pytest.raises(openai.BadRequestError):
            client.audio.speech.create(**({"model": "tts-1", "voice": "nova", "input": "Yes."} | said))
    with pytest.raises(openai.APIStatusError, match="at most 1000"):
        client.audio.speech.create(model="tts-1", voice="nova", input="yes " * 900)
    for body in (b"", b"[]", b"{", b'{"input": 1}', b"\xff", b"[" * 60_000):
        assert http.post("/v1/audio/speech", content=body).status_code == 400
    assert http.post("/v1/audio/speech", content=b" " * 70_000).status_code == 413


def test_speech_of_many_sentences(http: httpx.Client) -> None:
    "Longer than the voice takes at once; OpenAI's limit holds, and null is as good as nothing."
    text = "The belt at line three is jammed. " * 35
    asked = {"input": text, "response_format": "wav", "instructions": None}
    spoken = http.post("/v1/audio/speech", json=asked)
    assert spoken.status_code == 200 and len(read_audio(spoken.content)) > 35 * 1.2 * RATE
    refused = http.post("/v1/audio/speech", json={"input": text * 4})
    assert refused.status_code == 413 and "4,096" in refused.json()["error"]["hint"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(service: tuple[str, AsrApi]) -> None:
    command = [
        "curl",
        "-sS",
        f"{service[0]}/transcribe",
        "-F",
        f"file=@{COMMAND}",
        "-F",
        "hotwords=dock, aisle",
    ]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    answer = json.loads(done.stdout)
    assert answer.keys() == {"text", "language", "duration_s", "model", "segments", "rejected"}
    assert answer["text"] and answer["segments"][0]["confidence"] > 0.5 and not answer["rejected"]


def test_any_format_mono_or_stereo(http: httpx.Client) -> None:
    sound = read_audio(COMMAND)
    text = text_of(http.post("/transcribe", files={"file": COMMAND.read_bytes()}))
    for kind in ("mp3", "opus", "aac", "flac"):
        heard = text_of(http.post("/transcribe", files={"file": encoded(sound, RATE, kind)}))
        assert "maintenance" in heard, kind
    wav = write_wav(None, np.repeat(sound, 2))  # each sample twice: the same in two channels
    stereo = bytearray(wav)
    stereo[22:24] = (2).to_bytes(2, "little")
    stereo[28:34] = (4 * RATE).to_bytes(4, "little") + (4).to_bytes(2, "little")
    assert text_of(http.post("/transcribe", files={"file": bytes(stereo)})) == text


def malformed() -> dict[str, bytes]:
    wav = COMMAND.read_bytes()
    mp3 = encoded(read_audio(COMMAND), RATE, "mp3")
    return {
        "empty": b"",
        "text": b"hello " * 1000,
        "header": wav[:44],
        "half a header": wav[:20],
        "no samples": write_wav(None, np.empty(0, np.float32)),
        "noise": np.random.default_rng(1).bytes(10_000),
        "zeros": bytes(100_000),
        "playlist": b"#EXTM3U\nfile:///etc/passwd\n",
        "concat": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "html": b"<!doctype html><title>404</title>",
        "json": b"{}",
        "mp3 tag": b"ID3\x04\x00\x00\x00\x00\x0f\x76" + bytes(2000),
        "cut mp3 head": mp3[:30],
        "impossible rate": wav[:24] + (2**31 - 1).to_bytes(4, "little") + wav[28:],
        "no channels": wav[:22] + bytes(2) + wav[24:],
        "255 channels": wav[:22] + (255).to_bytes(2, "little") + wav[24:],
    }


@pytest.mark.parametrize("name", malformed())
def test_malformed_sound_is_refused_or_silent(http: httpx.Client, name: str) -> None:
    content = malformed()[name]
    ours = http.post("/transcribe", files={"file": (f"{name}.wav", content)})
    theirs = http.post("/v1/audio/transcriptions", files={"file": (f"{name}.wav", content)})
    assert ours.status_code == theirs.status_code
    assert ours.status_code == 400 or (ours.status_code == 200 and ours.json()["text"] == ""), ours.text
    if ours.status_code == 400:
        assert ours.json().keys() == {"error", "message", "hint"} and ours.json()["hint"]
        assert theirs.json()["error"].keys() == {"message", "type", "param", "code", "hint"}
    assert "passwd" not in ours.text and "root:" not in ours.text


def test_malformed_data_set(http: httpx.Client) -> None:
    folder = Path(os.environ.get("VOXREC_DATA", "")) / "speech/malformed"
    if not os.environ.get("VOXREC_DATA") or not folder.is_dir():
        pytest.skip("VOXREC_DATA has no malformed files")
    for path in sorted(folder.iterdir()):
        answer = http.post("/transcribe", files={"file": path.read_bytes()})
        assert answer.status_code in (200, 400), f"{path.name}: {answer.status_code} {answer.text}"
        assert answer.status_code == 200 or answer.json()["hint"]


def test_silence_is_empty(http: httpx.Client) -> None:
    hum = (0.05 * np.sin(np.arange(5 * RATE) * 2 * np.pi * 50 / RATE)).astype(np.float32)
    for sound in (np.zeros(RATE, np.float32), hum, np.zeros(8, np.float32)):
        answer = http.post("/v1/audio/transcriptions", files={"file": write_wav(None, sound)})
        assert text_of(answer) == ""
        vtt = http.post(
            "/v1/audio/transcriptions",
            files={"file": write_wav(None, sound)},
            data={"response_format": "vtt"},
        )
        assert vtt.text == "WEBVTT\n"


def test_bad_forms(http: httpx.Client) -> None:
    boundary = {"content-type": "multipart/form-data; boundary=b"}
    wav = COMMAND.read_bytes()
    for given in (
        {},
        {"content": wav, "headers": {"content-type": "audio/wav"}},
        {"data": {"file": "a"}},
        {"files": {"sound": wav}},
        {"files": [("file", wav), ("file", wav)]},
        {"files": {"file": wav}, "data": {"model": ["a", "b"]}},
        {"files": {"file": wav}, "data": {f"f{n}": "x" for n in range(40)}},
        {"files": {"file": wav}, "data": {"prompt": "x" * 70_000}},
        {"content": b"", "headers": boundary},
        {"content": b"--b\r\nnonsense", "headers": boundary},
        {"content": b"--b\r\n\r\nno disposition\r\n--b--", "headers": boundary},
        {"content": wav, "headers": {"content-type": "multipart/form-data"}},
    ):
        answer = http.post("/transcribe", **given)  # type: ignore[arg-type]
        assert answer.status_code == 400 and answer.json()["message"], given.keys()


def test_unknown_routes_have_the_shape_of_their_place(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").json()["error"]["code"] == "not_found"
    assert http.get("/nothing").json()["error"] == "not_found"
    wrong = http.get("/v1/audio/transcriptions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["code"] == "method_not_allowed"


def test_doors(http: httpx.Client) -> None:
    for path in ("/health", "/ready", "/version", "/metrics", "/docs", "/openapi.json"):
        assert http.get(path).status_code == 200
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]) == {"multipart/form-data"}


def test_request_ids(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("voxrec").propagate = True
    caplog.set_level(logging.INFO, "voxrec.serve.asr_api")
    answer = http.get("/v1/models", headers={"X-Request-ID": "order-66"})
    assert answer.headers["x-request-id"] == "order-66"
    made = {
        http.get("/v1/models", headers=h).headers["x-request-id"] for h in ({}, {"X-Request-ID": "a b\tc"})
    }
    assert len(made) == 2 and all(len(m) == 32 for m in made)
    until(lambda: "order-66" in {getattr(r, "request_id", "") for r in caplog.records})


def until(what: Any, patience_s: float = 20) -> Any:
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.02)
    return found


@contextmanager
def small(tmp_path: Path, **given: Any) -> Iterator[tuple[httpx.Client, AsrApi]]:
    settings = Settings(whisper_model="domain", **given)
    with running_asr(settings) as (url, api), httpx.Client(base_url=url, timeout=30) as client:
        yield client, api


def test_keys_and_rates(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"ann {KEY}\nbob {OTHER}\n")
    sound = {"file": COMMAND.read_bytes()}
    with small(tmp_path, api_keys=keys, speech_per_minute=2) as (http, _):
        for path in ("/transcribe", "/v1/audio/transcriptions"):
            refused = http.post(path, files=sound)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert http.get("/v1/models").status_code == 401 and http.get("/health").status_code == 200
        ann, bob = ({"Authorization": f"Bearer {key}"} for key in (KEY, OTHER))
        assert [http.post("/transcribe", files=sound, headers=ann).status_code for _ in range(3)] == [
            200,
            200,
            429,
        ]
        late = http.post("/v1/audio/transcriptions", files=sound, headers=ann)
        assert late.status_code == 429 and 1 <= int(late.headers["retry-after"]) <= 60
        assert late.json()["error"]["type"] == "rate_limit_error"
        assert http.post("/transcribe", files=sound, headers=bob).status_code == 200
        assert http.get("/v1/models", headers=ann).status_code == 200
        base = str(http.base_url.join("/v1"))
        with (
            openai.OpenAI(base_url=base, api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()


def test_a_refusal_reaches_who_is_still_uploading(tmp_path: Path) -> None:
    "A connection closed with bytes unread would be reset, and the answer lost with it."
    keys = tmp_path / "keys"
    keys.write_text(f"ann {KEY}\n")
    with small(tmp_path, api_keys=keys) as (http, _):
        for _ in range(5):
            assert http.post("/transcribe", files={"file": bytes(5 << 20)}).status_code == 401


def test_what_goes_wrong_in_a_stream_is_raised_by_the_client(tmp_path: Path, long: Samples) -> None:
    with (
        small(tmp_path, speech_max_minutes=1) as (http, _),
        openai.OpenAI(base_url=str(http.base_url.join("/v1")), api_key="none", max_retries=0) as client,
    ):
        sound = ("long.wav", write_wav(None, long))
        heard = list[str]()
        with pytest.raises(openai.APIError, match="longer than 60 s"):
            for event in client.audio.transcriptions.create(file=sound, model="domain", stream=True):
                heard.append(event.type)
        assert len(heard) > 5 and set(heard) == {"transcript.text.delta"}


def test_who_does_not_read_is_left(
    service: tuple[str, AsrApi], http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, api = service
    monkeypatch.setattr(asr_api, "WRITE_S", 0.3)
    monkeypatch.setattr(asr_api, "encoded", lambda samples, rate, kind: bytes(64 << 20))
    body = b'{"input": "Yes."}'
    head = f"POST /v1/audio/speech HTTP/1.1\nHost: a\nContent-Length: {len(body)}"
    with raw(url, head, body) as line:
        until(lambda: api.routes.places.taken.total() == 1)
        until(lambda: not api.routes.places.taken)
        left = 0
        while part := line.recv(1 << 20):  # what was under way, and no more is held for it
            left += len(part)
    assert left < 32 << 20
    assert len(http.post("/v1/audio/speech", content=body).content) == 64 << 20


def test_limits_of_size_and_length(tmp_path: Path, long: Samples) -> None:
    with small(tmp_path, speech_max_mib=2, speech_max_minutes=1) as (http, _):
        large = http.post("/v1/audio/transcriptions", files={"file": bytes(3 << 20)})
        assert large.status_code == 413 and large.json()["error"]["code"] == "too_large"
        lasting = encoded(long, RATE, "mp3")
        assert len(lasting) < 2 << 20
        assert http.post("/transcribe", files={"file": lasting}).status_code == 413

        def endless() -> Iterator[bytes]:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(100):
                yield bytes(1 << 20)

        form = {"content-type": "multipart/form-data; boundary=b"}
        assert http.post("/transcribe", content=endless(), headers=form).status_code == 413
        assert http.post("/transcribe", files={"file": COMMAND.read_bytes()}).status_code == 200


def raw(url: str, head: str, body: bytes = b"") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)), timeout=20)
    line.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    return line


FORM = "POST /transcribe HTTP/1.1\nHost: a\nContent-Type: multipart/form-data; boundary=b\n"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'


def test_two_gigabytes_are_refused_unread(service: tuple[str, AsrApi]) -> None:
    with raw(service[0], FORM + f"Content-Length: {2 << 30}", FILE) as line:
        answer = line.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 413 ") and b"over 512 MiB" in answer
        assert line.recv(1) == b""  # and nobody reads the rest


def test_a_large_upload_stays_on_the_disk(http: httpx.Client) -> None:
    size, before = 200 << 20, psutil.Process().memory_info().rss

    def body() -> Iterator[bytes]:
        yield FILE
        for _ in range(size >> 20):
            yield b"\xa5" * (1 << 20)
        yield b"\r\n--b--\r\n"

    form = {"content-type": "multipart/form-data; boundary=b"}
    peak, over = [before], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], psutil.Process().memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        answer = http.post("/transcribe", content=body(), headers=form)
    finally:
        over.set()
        watching.join()
    assert answer.status_code == 400, answer.text  # it was no sound
    assert peak[0] - before < 60 << 20


def test_a_slow_upload_times_out(service: tuple[str, AsrApi], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asr_api, "BODY_S", 0.3)
    with raw(service[0], FORM + "Content-Length: 1000000", FILE) as line:
        assert line.recv(65_536).startswith(b"HTTP/1.1 408 ")


def test_who_hangs_up_is_not_heard_any_further(service: tuple[str, AsrApi], long: Samples) -> None:
    url, api = service
    sound = FILE + write_wav(None, np.tile(long, 10)) + b"\r\n--b--\r\n"  # twenty minutes

    def heard() -> float:
        return sample(api.registry, "voxrec_speech_batch_size_sum", model="domain", kind="piece")

    before = heard()
    with raw(url, FORM + f"Content-Length: {len(sound)}", sound):
        until(lambda: heard() > before)
    until(lambda: not api.routes.places.taken)
    time.sleep(0.5)  # what was under way may end
    so_far = heard()
    assert so_far - before < 150  # of the 300
    time.sleep(1)
    assert heard() == so_far


def test_full_is_said_with_a_time_to_come_back(service: tuple[str, AsrApi], http: httpx.Client) -> None:
    url, api = service
    places = api.routes.places
    lines = [raw(url, FORM + "Content-Length: 1000", FILE) for _ in range(asr_api.OF_EACH)]
    try:
        until(lambda: places.taken.total() == asr_api.OF_EACH)
        refused = http.post("/transcribe", files={"file": COMMAND.read_bytes()})
        assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
        assert refused.json()["error"] == "overloaded" and "Try again" in refused.json()["hint"]
        assert http.get("/health").status_code == 200
        with places.enter("somebody else"):  # one caller alone keeps nobody out
            pass
    finally:
        for line in lines:
            line.close()
    until(lambda: not places.taken)
    text_of(http.post("/transcribe", files={"file": COMMAND.read_bytes()}))


def test_a_final_that_gives_way_is_heard_later() -> None:
    "One caller fills the line of finals, another comes; all are heard."

    class Waiting(Recognizer):
        cue = threading.Event()

        def transcribe_batch(self, asks: Sequence[Ask]) -> list[Transcript | VoxrecError]:
            assert self.cue.wait(20)
            return [Transcript(text="yes") for _ in asks]

    batcher = Batcher(Waiting(), new_registry("test"), BatchLimits(waiting=4, at_once=1))
    asks = [Ask(samples=np.zeros(16, np.float32))]

    def heard(caller: str) -> str:
        (told,) = Pieces(batcher, caller, None, threading.Event()).transcribe_batch(asks)
        assert isinstance(told, Transcript)
        return told.text

    with ThreadPoolExecutor(6) as pool:
        many = [pool.submit(heard, "many") for _ in range(5)]
        until(lambda: len(batcher.queue.lines.finals) == 4)
        one = pool.submit(heard, "one")
        until(lambda: len(batcher.queue.lines.pieces) == 1)
        Waiting.cue.set()
        assert [answer.result(20) for answer in (*many, one)] == ["yes"] * 6
    batcher.close()


def test_a_long_recording_in_any_order_with_others(http: httpx.Client, long: Samples) -> None:
    "Every sentence is there, once, at its place; short requests are answered meanwhile."
    with ThreadPoolExecutor(4) as callers:
        sound = {"file": write_wav(None, long)}
        whole = callers.submit(http.post, "/transcribe", files=sound)
        short = [
            callers.submit(http.post, "/transcribe", files={"file": COMMAND.read_bytes()}) for _ in range(6)
        ]
        assert len({text_of(s.result()) for s in short}) == 1
        answer = whole.result().json()
    starts = [s["start_ms"] for s in answer["segments"]]
    period = len(long) / 30 * 1000 / RATE
    assert len(starts) == 30 and np.allclose(np.diff(starts), period, atol=70)


class Linguist(Recognizer):
    "Knows every language, and says back what it was asked; a prompt of `bad` spoils its batch."

    def check(self, ask: Ask) -> None:
        pass

    def transcribe_batch(self, asks: Sequence[Ask]) -> list[Transcript | VoxrecError]:
        if any(ask.prompt == "bad" for ask in asks):
            raise ZeroDivisionError
        return [
            Transcript(
                text=f"{a.task} {a.language} {a.prompt} {'+'.join(a.hotwords)}", language=a.language or "vi"
            )
            for a in asks
        ]


@contextmanager
def linguist() -> Iterator[httpx.Client]:
    settings, registry = Settings(), new_registry("asr")
    models = Models({"all": "all"}, registry, opener=lambda source: Linguist())
    api = AsrApi(Routes(models, settings, registry, new_tracer("asr")), registry)
    with running(api) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client
    models.close()


def test_translations_where_the_model_can() -> None:
    with linguist() as http:
        sound, verbose = {"file": COMMAND.read_bytes()}, {"response_format": "verbose_json"}
        answer = http.post("/v1/audio/translations", files=sound, data=verbose | {"language": "VI-vn"}).json()
        assert answer["text"].split() == ["translate", "vi"]
        assert answer["task"] == "translate" and answer["language"] == "vi"


def test_nothing_of_one_caller_reaches_another() -> None:
    "Callers with prompts and hotwords of their own, one of whom spoils every batch that he is in."
    sound = COMMAND.read_bytes()
    with linguist() as http, ThreadPoolExecutor(8) as callers:

        def ask(n: int) -> tuple[int, httpx.Response]:
            said = {"prompt": "bad" if n % 7 == 0 else f"p{n}", "hotwords": f"h{n}, g{n}", "language": "de"}
            return n, http.post("/transcribe", files={"file": sound}, data=said)

        for n, answer in callers.map(ask, range(64)):
            if n % 7 == 0:
                assert answer.status_code == 500 and answer.json()["message"] == "internal error"
            else:
                assert text_of(answer) == f"transcribe de p{n} h{n}+g{n}"


class Collector(ThreadingHTTPServer):
    "An OTLP collector that keeps its spans."

    def __init__(self) -> None:
        spans = self.spans = list[Span]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                plain = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
                for of in ExportTraceServiceRequest.FromString(plain).resource_spans:
                    for scope in of.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *said: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def test_spans_reach_a_collector(tmp_path: Path) -> None:
    trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    with Collector() as collector:
        address = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        with small(tmp_path, otlp_url=address) as (http, _):
            headers = {"traceparent": f"00-{trace}-{caller}-01", "X-Request-ID": "traced"}
            text_of(http.post("/transcribe", files={"file": COMMAND.read_bytes()}, headers=headers))
        collector.shutdown()
    spans = {s.name: s for s in collector.spans if s.trace_id.hex() == trace}
    assert spans.keys() == {"POST /transcribe", "decode", "queue", "recognise"}
    root = spans["POST /transcribe"]
    assert root.parent_span_id.hex() == caller
    assert all(s.parent_span_id == root.span_id for name, s in spans.items() if s is not root)
    facts = {f.key: f.value for s in spans.values() for f in s.attributes}
    assert (
        facts["request_id"].string_value == "traced" and facts["http.response.status_code"].int_value == 200
    )
    assert facts["batch.size"].int_value == 1 and facts["queue_ms"].double_value >= 0
    assert facts["http.route"].string_value == "/transcribe"


def test_models_are_swapped_under_load_without_a_failure(tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(model_folder("domain"), site)
    sound = {"file": COMMAND.read_bytes()}
    with small(tmp_path, speech_models=f"site={site}") as (http, api):
        over = threading.Event()

        def ask() -> list[int]:
            found = []
            while not over.is_set():
                found.append(http.post("/transcribe", files=sound, data={"model": "site"}).status_code)
            return found

        with ThreadPoolExecutor(3) as callers:
            asking = [callers.submit(ask) for _ in range(3)]
            try:
                for n in range(5):
                    before = {m.batcher for m in api.routes.models.loaded() if m.name == "site"}
                    if n:
                        api.routes.models.swap("site")
                    else:
                        os.utime(site / "model.bin", (1e9, 1e9))  # the service sees it by itself
                    until(
                        lambda b=before: (
                            b != {m.batcher for m in api.routes.models.loaded() if m.name == "site"}
                        )
                    )
                    time.sleep(0.1)
            finally:
                over.set()
            statuses = [status for asked in asking for status in asked.result()]
        assert set(statuses) == {200} and len(statuses) > 10
        assert len(api.routes.models.loaded()) == 2


def test_wrong_settings_stop_it_at_once(tmp_path: Path) -> None:
    for wrong in ({"whisper_model": "domain", "speech_models": "a=/nowhere"}, {"speech_models": "a"}):
        with pytest.raises(ConfigError), open_asr(Settings(**wrong)):  # type: ignore[arg-type]
            pass


@contextmanager
def command() -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    "`voxrec serve asr`, a process of its own."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"VOXREC_WHISPER_MODEL": "domain"}
    words = [str(Path(sys.executable).with_name("voxrec")), "serve", "asr", "--port", str(port)]
    process = subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:

            def up() -> bool:
                assert process.poll() is None
                try:
                    return http.get("/ready").status_code == 200
                except httpx.TransportError:
                    return False

            until(up, 60)
            yield process, http
    finally:
        process.kill()
        process.wait()


def test_the_command_serves_and_drains() -> None:
    with command() as (process, http):
        text_of(http.post("/transcribe", files={"file": COMMAND.read_bytes()}))
        process.terminate()
        text_of(http.post("/transcribe", files={"file": COMMAND.read_bytes()}))  # a second's notice
        assert process.wait(30) == 0


def ended(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return not connection.recv(4096)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def test_ten_thousand_that_say_nothing() -> None:
    "Or as many as there may be files. While they are there somebody is heard; after a while they are gone."
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    n = min(10_000, (files if files != resource.RLIM_INFINITY else 20_000) - 600)
    with command() as (process, http), ExitStack() as held:
        text_of(http.post("/transcribe", files={"file": COMMAND.read_bytes()}))
        service = psutil.Process(process.pid)
        before, address = service.memory_info().rss, (http.base_url.host, http.base_url.port)
        silent = [held.enter_context(socket.create_connection(address, timeout=20)) for _ in range(n)]
        assert service.num_fds() > n // 2
        with httpx.Client(base_url=http.base_url, timeout=30) as somebody:
            text_of(somebody.post("/transcribe", files={"file": COMMAND.read_bytes()}))
        assert service.memory_info().rss - before < 400 << 20
        until(lambda: all(map(ended, silent)), 60)
        until(lambda: service.num_fds() < n // 2)
        text_of(http.post("/transcribe", files={"file": COMMAND.read_bytes()}))
