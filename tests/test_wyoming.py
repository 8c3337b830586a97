"""The Wyoming door as Home Assistant's client meets it, in this process and in one of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event, async_read_event
from wyoming.info import Describe, Info, SelectProgram
from wyoming.ping import Ping
from wyoming.tts import Synthesize, SynthesizeChunk, SynthesizeStart, SynthesizeStop, SynthesizeVoice

from voxrec.errors import ConfigError, VoxrecError
from voxrec.mqtt import free_port
from voxrec.serve.wyoming import DoorLimits, Form, mono, running_wyoming
from voxrec.telemetry import new_registry, sample
from voxrec.voice.audio import RATE, Samples, resample, samples_to_pcm
from voxrec.voice.endpoint import EndpointConfig
from voxrec.voice.speak import HibariVoice, Voice
from voxrec.voice.transcribe import Ask, Recognizer
from voxrec.voice.transcribe import Transcript as Heard

MONO = {"rate": RATE, "width": 2, "channels": 1}
PAUSE = np.zeros(RATE, np.float32)


class Echo(Recognizer):
    "Says back what it was asked with; waits or fails when told to."

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None

    def transcribe_batch(self, asks: Sequence[Ask]) -> list[Heard | VoxrecError]:
        self.asked += asks
        assert self.go.wait(20)
        if self.error:
            raise self.error
        return [Heard(text=f"{a.prompt}|{','.join(a.hotwords)}|{a.language}", language="en") for a in asks]


class Tone:
    "A voice of a second of 440 Hz for each sentence."

    name = "tone"

    def __init__(self) -> None:
        self.said: list[str] = []

    def speak(self, text: str) -> tuple[Samples, int]:
        self.said.append(text)
        return np.sin(2 * np.pi * 440 * np.arange(22_050) / 22_050).astype(np.float32) / 2, 22_050

    def stream(self, text: str) -> Iterator[tuple[Samples, int]]:
        yield self.speak(text)


@pytest.fixture(scope="module")
def voice() -> Voice:
    return HibariVoice()


@pytest.fixture(scope="module")
def word(voice: Voice) -> Samples:
    "A spoken command with a second of silence on either side, at 16 kHz."
    samples, rate = voice.speak("Call the safety officer.")
    return np.concatenate([PAUSE, resample(samples, rate, RATE), PAUSE])


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.go.set()


def with_client(port: int, story: Callable[[AsyncTcpClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with AsyncTcpClient("127.0.0.1", port, connect_timeout=5, read_timeout=20) as client:
            return await asyncio.wait_for(story(client), 60)

    return asyncio.run(run())


async def ask(client: AsyncTcpClient, pcm: bytes, form: dict[str, int], wanted: Transcribe | None) -> None:
    "Send a request to hear, a quarter of a second at a time."
    size = form["rate"] // 4 * form["width"] * form["channels"]
    if wanted:
        await client.write_event(wanted.event())
    await client.write_event(AudioStart(**form).event())
    for at in range(0, len(pcm), size):
        await client.write_event(AudioChunk(**form, audio=pcm[at : at + size]).event())
    await client.write_event(AudioStop().event())


def texts_of(events: list[Event]) -> list[str]:
    return [Transcript.from_event(e).text for e in events if Transcript.is_type(e.type)]


async def up_to(client: AsyncTcpClient, last: str) -> list[Event]:
    "Events until one of that type, or until the connection ends."
    events: list[Event] = []
    while (event := await client.read_event()) is not None:
        events.append(event)
        if event.type == last:
            break
    return events


def heard(
    port: int, pcm: bytes, form: dict[str, int] = MONO, wanted: Transcribe | None = None
) -> tuple[str, list[str]]:
    "The transcript of a request, and the types of all that came."

    async def story(client: AsyncTcpClient) -> tuple[str, list[str]]:
        await ask(client, pcm, form, wanted)
        events = await up_to(client, "transcript-stop")
        texts = texts_of(events)
        assert len(texts) == 1, [(e.type, e.data) for e in events]
        return texts[0], [e.type for e in events]

    return with_client(port, story)  # type: ignore[no-any-return]


def refused(port: int, *events: Any) -> dict[str, Any]:
    "The error that ends the connection after those events."

    async def story(client: AsyncTcpClient) -> dict[str, Any]:
        for event in events:
            await client.write_event(event.event())
        *_, last = await up_to(client, "nothing")
        assert last.type == "error", (last.type, last.data)
        return last.data

    return with_client(port, story)  # type: ignore[no-any-return]


# ---- hearing


def test_a_command_is_heard_and_streamed(whisper: Recognizer, word: Samples) -> None:
    registry = new_registry("test")
    with running_wyoming(whisper, registry=registry) as port:
        text, kinds = heard(port, samples_to_pcm(word), wanted=Transcribe(language="en"))
    assert "safety officer" in text.lower()
    assert kinds == ["transcript-start", "transcript-chunk", "transcript", "transcript-stop"]
    assert sample(registry, "voxrec_wyoming_requests_total", kind="transcribe") == 1
    assert sample(registry, "voxrec_wyoming_ended_total", code="ok") == 1
    assert sample(registry, "voxrec_wyoming_connections") == 0


def packed(samples: Samples, width: int, channels: int) -> bytes:
    "PCM of that width, the sound on the first channel of all."
    whole = np.zeros((len(samples), channels))
    whole[:, 0] = samples * 0.99
    if width == 1:
        return np.round(whole * 127 + 128).astype(np.uint8).tobytes()
    scaled = np.round(whole * (2 ** (8 * width - 1) - 1)).astype("<i4")
    return scaled.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()


@pytest.mark.parametrize(
    ("rate", "width", "channels"),
    [(8_000, 2, 1), (44_100, 3, 2), (48_000, 4, 1), (22_050, 1, 1), (16_000, 2, 5)],
)
def test_any_form_of_sound(whisper: Recognizer, word: Samples, rate: int, width: int, channels: int) -> None:
    pcm = packed(resample(word, RATE, rate) * (2 if channels > 2 else 1), width, channels)
    back = mono(pcm, Form(rate, width, channels)) * channels
    wanted = resample(word, RATE, rate) * (2 if channels > 2 else 1) * 0.99
    assert np.abs(back - wanted).max() < channels * (0.01 if width == 1 else 1e-3)
    with running_wyoming(whisper) as port:
        text, _ = heard(port, pcm, {"rate": rate, "width": width, "channels": channels})
    assert "safety" in text.lower(), text


def test_silence_has_no_text(echo: Echo) -> None:
    noise = np.random.default_rng(0).normal(0, 0.003, 3 * RATE).astype(np.float32)
    with running_wyoming(echo) as port:
        for samples in (noise, noise[:0], noise[:100]):
            assert heard(port, samples_to_pcm(samples)) == (
                "", ["transcript-start", "transcript", "transcript-stop"]
            )  # fmt: skip
    assert echo.asked == []


def test_what_is_asked_for_reaches_the_recogniser_and_no_other(echo: Echo, word: Samples) -> None:
    "Names before terms, as many as fit; the next request on the connection begins anew."
    wanted = Transcribe(language="en-GB", transcript_names=["Okafor"], transcript_terms=["dock", "x" * 400])

    async def story(client: AsyncTcpClient) -> list[str]:
        texts = []
        for each in (wanted, None):
            await ask(client, samples_to_pcm(word), MONO, each)
            texts += texts_of(await up_to(client, "transcript-stop"))
        return texts

    with running_wyoming(echo, prompt="Packing line.") as port:
        assert with_client(port, story) == ["Packing line.|Okafor,dock|en", "Packing line.||"]


def test_a_long_request_is_told_utterance_by_utterance(echo: Echo, word: Samples) -> None:
    with running_wyoming(echo, prompt="a") as port:
        text, kinds = heard(port, samples_to_pcm(np.tile(word, 3)))
    assert text == "a|| a|| a||" and kinds.count("transcript-chunk") == 3
    assert max(len(a.samples) for a in echo.asked) < len(word), "each by itself, without its silence"


def test_an_utterance_is_told_before_the_end(echo: Echo, word: Samples) -> None:
    async def story(client: AsyncTcpClient) -> list[str]:
        await client.write_event(AudioStart(**MONO).event())
        await client.write_event(AudioChunk(**MONO, audio=samples_to_pcm(word)).event())
        return [e.type for e in await up_to(client, "transcript-chunk")]

    with running_wyoming(echo) as port:
        assert with_client(port, story) == ["transcript-start", "transcript-chunk"]


@pytest.mark.parametrize("version", ["1.5.4", "1.6.2", "", "x"])
def test_an_older_client_gets_the_transcript_alone(echo: Echo, word: Samples, version: str) -> None:
    "What `async_write_event` sends, with another version; the data within the line, which is allowed too."

    async def story() -> list[str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for event in (AudioStart(**MONO), AudioChunk(**MONO, audio=samples_to_pcm(word)), AudioStop()):
            made = event.event()
            line = {"type": made.type, "version": version, "data": made.data}
            writer.write(json.dumps({**line, "payload_length": len(made.payload or b"")}).encode() + b"\n")
            writer.write(made.payload or b"")
        writer.write_eof()
        kinds = []
        while event := await asyncio.wait_for(async_read_event(reader), 20):
            kinds.append(event.type)
        writer.close()
        return kinds

    with running_wyoming(echo) as port:
        assert asyncio.run(story()) == ["transcript"]


def test_callers_side_by_side(echo: Echo, word: Samples) -> None:
    async def one(port: int, i: int) -> None:
        async with AsyncTcpClient("127.0.0.1", port, connect_timeout=5, read_timeout=30) as client:
            await ask(client, samples_to_pcm(word), MONO, Transcribe(transcript_names=[f"name{i}"]))
            events = await up_to(client, "transcript-stop")
            assert texts_of(events) == [f"|name{i}|"]

    async def all_of(port: int) -> None:
        await asyncio.gather(*[one(port, i) for i in range(12)])

    with running_wyoming(echo) as port:
        asyncio.run(all_of(port))


# ---- speaking


def test_a_sentence_at_a_time(echo: Echo) -> None:
    tone = Tone()
    registry = new_registry("test")
    with running_wyoming(echo, tone, registry=registry) as port:

        async def story(client: AsyncTcpClient) -> list[Event]:
            asked = Synthesize("Dock 3 is free. Who drives?", SynthesizeVoice("tone"))
            await client.write_event(asked.event())
            return await up_to(client, "audio-stop")

        start, *chunks, stop = with_client(port, story)
    assert (start.type, stop.type) == ("audio-start", "audio-stop")
    assert start.data["rate"] == 22_050 and {c.type for c in chunks} == {"audio-chunk"}
    pcm = b"".join(AudioChunk.from_event(c).audio for c in chunks)
    assert 2 * 22_050 <= len(pcm) / 2 <= 2.5 * 22_050
    assert tone.said == ["Dock 3 is free.", "Who drives?"]
    assert sample(registry, "voxrec_wyoming_requests_total", kind="synthesize") == 1


def test_text_that_is_still_being_written(echo: Echo) -> None:
    "A sentence is spoken before the next one is there; the `synthesize` for older doors says nothing twice."
    tone = Tone()
    with running_wyoming(echo, tone) as port:

        async def story(client: AsyncTcpClient) -> list[str]:
            await client.write_event(SynthesizeStart().event())
            for text in ("The line ", "is stopped. Ma", "intenance "):
                await client.write_event(SynthesizeChunk(text).event())
            early = await up_to(client, "audio-chunk")
            assert [e.type for e in early] == ["audio-start", "audio-chunk"]
            assert tone.said == ["The line is stopped."]
            await client.write_event(SynthesizeChunk("comes.").event())
            await client.write_event(Synthesize("The line is stopped. Maintenance comes.").event())
            await client.write_event(SynthesizeStop().event())
            return [e.type for e in await up_to(client, "synthesize-stopped") if e.type != "audio-chunk"]

        assert with_client(port, story) == ["audio-stop", "synthesize-stopped"]
    assert tone.said == ["The line is stopped.", "Maintenance comes."]


# ---- what is told about it


def test_what_is_on_offer(whisper: Recognizer, voice: Voice) -> None:
    async def story(client: AsyncTcpClient) -> Info:
        await client.write_event(SelectProgram("voxrec").event())
        await client.write_event(Event("something-from-the-future", {"a": [1]}))
        await client.write_event(Ping("here").event())
        await client.write_event(Describe().event())
        pong, info = await client.read_event(), await client.read_event()
        assert pong and pong.type == "pong" and pong.data == {"text": "here"}
        assert info
        return Info.from_event(info)

    with running_wyoming(whisper, voice) as port:
        info = with_client(port, story)
    (ears,), (mouth,) = info.asr, info.tts
    (model,), (spoken,) = ears.models, mouth.voices
    assert (model.name, model.languages, model.installed) == ("tiny.en", ["en"], True)
    assert model.attribution.name == "OpenAI" and ears.supports_transcript_streaming
    assert (spoken.name, spoken.languages, spoken.installed) == ("hibari", ["en"], True)
    assert mouth.supports_synthesize_streaming and spoken.attribution.url.startswith("https://")


def test_a_door_without_a_voice(echo: Echo) -> None:
    async def story(client: AsyncTcpClient) -> Info:
        await client.write_event(Describe().event())
        info = await client.read_event()
        assert info
        return Info.from_event(info)

    with running_wyoming(echo) as port:
        assert with_client(port, story).tts == []
        assert refused(port, Synthesize("Hello."))["code"] == "not_found"


class Raw:
    "An event whose data is not what its class would say."

    def __init__(self, type: str, data: Any, payload: bytes | None = None):
        self._event = Event(type, data, payload)

    def event(self) -> Event:
        return self._event


START = AudioStart(**MONO)
BAD = {
    "audio before audio-start": ([AudioChunk(**MONO, audio=bytes(640))], "input_error", "outside a request"),
    "a stop before a start": ([AudioStop()], "input_error", "outside a request"),
    "two starts": ([START, START], "input_error", "within a request"),
    "half a sample": ([START, AudioChunk(**MONO, audio=bytes(641))], "input_error", "no whole number"),
    "another form": ([START, AudioChunk(8_000, 2, 1, bytes(640))], "input_error", "Keep to one form"),
    "no rate": ([Raw("audio-start", {"width": 2, "channels": 1})], "input_error", "rate"),
    "a rate of 0": ([AudioStart(0, 2, 1)], "input_error", "rate"),
    "a rate in words": ([Raw("audio-start", {**MONO, "rate": "16k"})], "input_error", "rate"),
    "a width of 7": ([AudioStart(RATE, 7, 1)], "input_error", "width"),
    "no channels": ([AudioStart(RATE, 2, 0)], "input_error", "channels"),
    "a million channels": ([AudioStart(RATE, 2, 1_000_000)], "input_error", "channels"),
    "another language": ([Transcribe(language="fi")], "input_error", "Served: en"),
    "a language that is a number": ([Raw("transcribe", {"language": 7})], "input_error", "language"),
    "another model": ([Transcribe(name="large-v3")], "not_found", "tiny.en"),
    "names that are none": ([Raw("transcribe", {"transcript_names": 1})], "input_error", "_names"),
    "nothing to say": ([Synthesize("...")], "input_error", "at least one word"),
    "no text": ([Raw("synthesize", {"text": None})], "input_error", "text"),
    "a book": ([Synthesize("word " * 2_000)], "too_large", "characters"),
    "another voice": ([Synthesize("Hello.", SynthesizeVoice("joe"))], "not_found", "tone"),
    "Finnish": ([Synthesize("Hei.", SynthesizeVoice(language="fi"))], "input_error", "Spoken: en"),
    "SSML": ([Synthesize("<p/>", text_format="ssml")], "input_error", "plain text"),
    "text outside a stream": ([SynthesizeChunk("Hello.")], "input_error", "outside a request"),
}  # fmt: skip


@pytest.fixture(scope="module")
def open_door() -> Iterator[int]:
    with running_wyoming(Echo(), Tone()) as port:
        yield port


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_with_code_and_hint(open_door: int, name: str) -> None:
    events, code, words = BAD[name]
    told = refused(open_door, *events)
    assert told["code"] == code and words in told["text"], told


@pytest.mark.parametrize("error", [RuntimeError("secret"), None])
def test_a_recogniser_that_fails(echo: Echo, word: Samples, error: Exception | None) -> None:
    echo.error = error or ConfigError("no such model")
    with running_wyoming(echo) as port:
        told = refused(port, START, AudioChunk(**MONO, audio=samples_to_pcm(word)), AudioStop())
        assert told["code"] == ("voxrec_error" if error else "config_error") and "secret" not in told["text"]
        echo.error = None
        assert heard(port, samples_to_pcm(word))[0] == "||"


# ---- limits


def test_a_request_without_an_end(echo: Echo) -> None:
    with running_wyoming(echo, limits=DoorLimits(longest_s=2)) as port:
        told = refused(port, START, *[AudioChunk(**MONO, audio=bytes(RATE))] * 5)
    assert told["code"] == "too_large" and "over 2 s" in told["text"]


def test_a_request_that_only_pings(echo: Echo) -> None:
    "Signs of life do not keep a place for ever."
    with running_wyoming(echo, limits=DoorLimits(longest_s=1)) as port:
        told = refused(port, START, Ping())
    assert told["code"] == "timed_out" and "more than 1 s" in told["text"]


def test_full_is_said_with_the_time_to_stay_away(echo: Echo, word: Samples) -> None:
    "One request is under way; a second has to come back, a question is answered."

    async def story(client: AsyncTcpClient) -> str:
        await client.write_event(START.event())
        await client.write_event(Ping().event())
        await up_to(client, "pong")
        async with AsyncTcpClient("127.0.0.1", port, connect_timeout=5, read_timeout=20) as other:
            await other.write_event(Ping().event())
            await up_to(other, "pong")
            await other.write_event(START.event())
            (error,) = await up_to(other, "error")
            assert error.data["code"] == "overloaded" and "Try again in 1.0 s" in error.data["text"]
        await client.write_event(AudioStop().event())
        return (await up_to(client, "transcript-stop"))[-1].type

    with running_wyoming(echo, limits=DoorLimits(requests=1)) as port:
        assert with_client(port, story) == "transcript-stop"
        assert heard(port, samples_to_pcm(word))[0] == "||"


def test_who_is_silent_longest_makes_room(echo: Echo, word: Samples) -> None:
    "Of three callers without a request and one with one, the eldest quiet one goes when a fifth comes."

    async def story() -> list[bool]:
        busy, *quiet = [AsyncTcpClient("127.0.0.1", port, 5, 20) for _ in range(4)]
        for client in (busy, *quiet):
            await client.connect()
            await client.write_event(Ping().event())
            await up_to(client, "pong")
        await busy.write_event(START.event())
        await quiet[0].write_event(Ping().event())
        await up_to(quiet[0], "pong")  # so that it is not the eldest
        async with AsyncTcpClient("127.0.0.1", port, 5, 20) as fifth:
            await fifth.write_event(Ping().event())
            assert await up_to(fifth, "pong")
            gone = []
            for client in quiet:
                try:
                    await client.write_event(Ping().event())
                    gone.append(not await up_to(client, "pong"))
                except ConnectionError:
                    gone.append(True)
        await busy.write_event(AudioStop().event())
        assert (await up_to(busy, "transcript-stop"))[-1].type == "transcript-stop"
        for client in (busy, *quiet):
            with suppress(ConnectionError):
                await client.disconnect()
        return gone

    with running_wyoming(echo, limits=DoorLimits(connections=4)) as port:
        assert asyncio.run(story()) == [False, True, False]


# ---- a process of its own


VOXREC = Path(sys.executable).with_name("voxrec")


@pytest.fixture
def process() -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VOXREC_")}
    environ |= {"VOXREC_WYOMING_PORT": str(port), "VOXREC_LOG_FORMAT": "json", "OMP_NUM_THREADS": "1"}
    made = subprocess.Popen([VOXREC, "serve", "wyoming"], stderr=subprocess.PIPE, text=True, env=environ)
    assert made.stderr is not None
    try:
        said = made.stderr.readline()
        assert '"listening"' in said, said + made.stderr.read()
        yield made, port
    finally:
        made.kill()
        made.stderr.close()
        made.wait()


def test_the_command_hears_speaks_and_drains(
    process: tuple[subprocess.Popen[str], int], word: Samples
) -> None:
    "SIGTERM comes in the middle of a request: it is answered, a quiet caller goes, and the exit code is 0."
    made, port = process
    text, _ = heard(port, samples_to_pcm(word), wanted=Transcribe(language="en"))
    assert "safety officer" in text.lower()

    async def story(client: AsyncTcpClient) -> str:
        await client.write_event(Synthesize("Dock three is free.").event())
        assert (await up_to(client, "audio-stop"))[-1].type == "audio-stop"
        async with AsyncTcpClient("127.0.0.1", port, 5, 20) as quiet:
            await quiet.write_event(Ping().event())
            await up_to(quiet, "pong")
            pcm, half = samples_to_pcm(word), len(word) // 2 * 2
            await client.write_event(START.event())
            await client.write_event(AudioChunk(**MONO, audio=pcm[:half]).event())
            await asyncio.sleep(0.3)
            made.send_signal(signal.SIGTERM)
            assert await quiet.read_event() is None
        with pytest.raises(OSError):
            await AsyncTcpClient("127.0.0.1", port, 5, 5).connect()
        await client.write_event(AudioChunk(**MONO, audio=pcm[half:]).event())
        await client.write_event(AudioStop().event())
        return texts_of(await up_to(client, "transcript-stop"))[0]

    assert "safety officer" in with_client(port, story).lower()
    assert made.wait(20) == 0


def test_a_port_that_is_taken(echo: Echo) -> None:
    with (
        running_wyoming(echo, endpoint=EndpointConfig()) as port,
        pytest.raises(ConfigError, match="cannot listen"),
        running_wyoming(echo, port=port),
    ):
        pass


def test_running_leaves_no_thread_behind(echo: Echo, word: Samples) -> None:
    before = set(threading.enumerate())
    with running_wyoming(echo, Tone()) as port:
        assert heard(port, samples_to_pcm(word))[0] == "||"
        assert set(threading.enumerate()) - before
    for thread in set(threading.enumerate()) - before:
        thread.join(5)  # a closed loop tells its helpers to end, and does not wait for them
    assert set(threading.enumerate()) <= before
