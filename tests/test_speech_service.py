"""The speech service's contract over a real connection: order, isolation, limits, life after bad clients."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count, pairwise
from typing import Any

import grpc
import numpy as np
import pytest
from msgspec import Struct
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from voxrec.errors import (
    ConfigError,
    DataError,
    InputError,
    Overloaded,
    TimedOut,
    TooLarge,
    Unavailable,
    VoxrecError,
)
from voxrec.mqtt import free_port
from voxrec.serve.speech import Limits, connect_speech, exchange, recognize, running_speech
from voxrec.speech.v1.speech_pb2 import Audio, Config, Request, Result
from voxrec.telemetry import new_registry, new_tracer, sample
from voxrec.voice.audio import RATE, Samples, chunks, resample, samples_to_pcm
from voxrec.voice.endpoint import EndpointConfig
from voxrec.voice.speak import HibariVoice
from voxrec.voice.transcribe import Recognizer, Transcript

CONFIG = Config(tenant="demo", device="watch-1", sample_rate=RATE)
QUICK = EndpointConfig(silence_ms=320)
PAUSE = np.zeros(RATE // 2, np.float32)


class Heard(Struct):
    "A call of the recogniser."

    seconds: float
    prompt: str
    hotwords: tuple[str, ...]
    words: bool


class Echo(Recognizer):
    "Says back its prompt and the level it heard; waits, fails or floods when told to."

    def __init__(self) -> None:
        self.heard: list[Heard] = []
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None
        self.text = ""

    def transcribe(
        self, samples: Samples, *, prompt: str = "", hotwords: tuple[str, ...] = (), words: bool = False
    ) -> Transcript:
        self.heard.append(Heard(len(samples) / RATE, prompt, tuple(hotwords), words))
        assert self.go.wait(20)
        if self.error:
            raise self.error
        text = self.text or f"{prompt} {','.join(hotwords)} #{len(self.heard)}"
        return Transcript(
            text=text,
            language="en",
            duration_s=len(samples) / RATE,
            confidence=0.9,
            no_speech=0.0,
            avg_logprob=-0.1,
            compression_ratio=1.0,
        )

    def wait_for(self, calls: int) -> None:
        "Until it has been called so often."
        until = time.monotonic() + 10
        while len(self.heard) < calls:
            assert time.monotonic() < until, f"{len(self.heard)} calls, not {calls}"
            time.sleep(0.005)


@pytest.fixture(scope="module")
def word() -> Samples:
    "A spoken command without silence around it."
    samples, rate = HibariVoice().speak("Call the safety officer.")
    heard = resample(samples, rate, RATE)
    loud = np.flatnonzero(np.abs(heard) > 0.02)
    return heard[loud[0] : loud[-1]]


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.go.set()


def spoken(word: Samples, times: int) -> Samples:
    "The word so often, with pauses."
    return np.concatenate([PAUSE, *[word, PAUSE] * times])


def with_stub(address: str, story: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with connect_speech(address) as stub:
            return await asyncio.wait_for(story(stub), 60)

    return asyncio.run(run())


async def results(stub: Any, config: Config, samples: Samples, chunk_ms: int = 200) -> list[Result]:
    return [r async for r in recognize(stub, config, chunks(samples, chunk_ms))]


def still_alive(address: str, word: Samples) -> None:
    "A stream of a well-behaved client works."
    found = with_stub(address, lambda stub: results(stub, CONFIG, spoken(word, 1)))
    assert [r.is_final for r in found] == [True]


# ---- what is said


def test_finals_words_and_clock_with_whisper(whisper: Recognizer, word: Samples) -> None:
    config = Config(sample_rate=RATE, words=True)
    with running_speech(whisper) as address:
        found = with_stub(
            address, lambda s: results(s, config, np.concatenate([spoken(word, 1), PAUSE, spoken(word, 1)]))
        )
    assert [r.is_final for r in found] == [True, True]
    second = (2 * len(PAUSE) + len(word) + 2 * len(PAUSE)) * 1000 / RATE
    for r, start_ms in zip(found, (len(PAUSE) * 1000 / RATE, second), strict=True):
        assert "safety officer" in r.text.lower()
        assert 0 < r.confidence <= 1 and r.stability == 1 and r.language == "en"
        assert -450 < r.start_ms - start_ms < 100, "pre-roll included"
        assert r.words and "".join(w.text for w in r.words).lower().replace(" ", "").find("officer") >= 0
        for w in r.words:
            assert r.start_ms <= w.start_ms <= w.end_ms <= r.end_ms + 100
            assert 0 <= w.probability <= 1
    assert len({r.utterance_id for r in found}) == 2


def test_other_rates_hear_the_same(whisper: Recognizer, word: Samples) -> None:
    with running_speech(whisper) as address:
        for rate in (8_000, 44_100):
            pcm = samples_to_pcm(resample(spoken(word, 1), RATE, rate))
            parts = [pcm[i : i + 9_998] for i in range(0, len(pcm), 9_998)]

            async def story(stub: Any, rate: int = rate, parts: list[bytes] = parts) -> list[Result]:
                return [r async for r in recognize(stub, Config(sample_rate=rate), parts)]

            (final,) = with_stub(address, story)
            assert "safety" in final.text.lower(), (rate, final.text)


@pytest.mark.parametrize("config", [CONFIG, Config(sample_rate=RATE, push_to_talk=True, partials=True)])
def test_silence_says_nothing(echo: Echo, config: Config) -> None:
    noise = np.random.default_rng(0).normal(0, 0.003, 3 * RATE).astype(np.float32)
    with running_speech(echo) as address:
        assert with_stub(address, lambda s: results(s, config, noise)) == []
        assert with_stub(address, lambda s: results(s, config, noise[:0])) == []
    assert echo.heard == []


def test_push_to_talk_is_one_utterance(echo: Echo, word: Samples) -> None:
    "Pauses of half a second end an utterance, but not while the button is held."
    with running_speech(echo, endpoint=QUICK) as address:
        free = with_stub(address, lambda s: results(s, CONFIG, spoken(word, 3)))
        held = Config(sample_rate=RATE, push_to_talk=True)
        pressed = with_stub(address, lambda s: results(s, held, spoken(word, 3)))
    assert (len(free), len(pressed)) == (3, 1)
    assert echo.heard[-1].seconds > 3 * len(word) / RATE


def test_what_is_asked_for_reaches_the_recogniser(echo: Echo, word: Samples) -> None:
    config = Config(sample_rate=RATE, prompt="Dock 3.", hotwords=["forklift", "pallet"], words=True)
    with running_speech(echo, endpoint=QUICK) as address:
        with_stub(address, lambda s: results(s, config, spoken(word, 1)))
        with_stub(address, lambda s: results(s, CONFIG, spoken(word, 1)))
    asked = [(h.prompt, h.hotwords, h.words) for h in echo.heard]
    assert asked == [("Dock 3.", ("forklift", "pallet"), True), ("", (), False)]


def test_partials_come_before_their_final_and_share_its_id(echo: Echo, word: Samples) -> None:
    config = Config(sample_rate=RATE, partials=True, prompt="the same words")
    echo.text = "call the safety officer"

    async def paced() -> AsyncIterator[bytes]:
        for pcm in chunks(spoken(word, 2), 100):
            yield pcm
            await asyncio.sleep(0.02)

    async def story(stub: Any) -> list[Result]:
        return [r async for r in recognize(stub, config, paced())]

    with running_speech(echo, endpoint=QUICK, limits=Limits(partial_ms=300)) as address:
        found = with_stub(address, story)
    ids = list(dict.fromkeys(r.utterance_id for r in found))
    assert len(ids) == 2
    for utterance in ids:
        of_it = [r for r in found if r.utterance_id == utterance]
        assert [r.is_final for r in of_it] == [False] * (len(of_it) - 1) + [True]
        partials = of_it[:-1]
        assert len(partials) >= 2
        assert [r.stability for r in partials] == [0] + [1] * (len(partials) - 1)
        ends = [r.end_ms for r in partials]
        assert ends == sorted(set(ends)) and ends[0] - partials[0].start_ms >= 300
        assert {r.start_ms for r in of_it} == {of_it[0].start_ms}


# ---- nothing of one stream reaches another


def test_streams_side_by_side_keep_to_themselves(echo: Echo, word: Samples) -> None:
    n, said = 12, 3

    async def one(stub: Any, i: int) -> None:
        config = Config(
            device=f"watch-{i}", sample_rate=RATE, prompt=f"site{i}", hotwords=[f"hot{i}"], partials=True
        )
        audio = np.concatenate([np.zeros(i * 800, np.float32), spoken(word, said)])
        found = await results(stub, config, audio, chunk_ms=100 + 17 * i)
        finals = [r for r in found if r.is_final]
        assert len(finals) == said
        assert all(r.text.startswith(f"site{i} hot{i} #") for r in found), [r.text for r in found]
        assert len({r.utterance_id.rsplit("-", 1)[0] for r in found}) == 1
        own = 1000 * (len(PAUSE) + i * 800) / RATE
        assert -450 < finals[0].start_ms - own < 100, "its own clock"

    async def story(stub: Any) -> None:
        await asyncio.gather(*[one(stub, i) for i in range(n)])

    with running_speech(echo, endpoint=QUICK) as address:
        with_stub(address, story)


def test_a_prompt_does_not_leak_with_whisper(whisper: Recognizer, word: Samples) -> None:
    "The same sound on three streams at once: text and confidence are those of the stream alone."
    prompts = ["", "Call the safety officer. Dock three.", "Bakery: croissants, baguettes, muffins."]
    configs = [Config(sample_rate=RATE, prompt=p) for p in prompts]

    async def alone(stub: Any) -> list[list[Result]]:
        return [await results(stub, c, spoken(word, 1)) for c in configs]

    async def together(stub: Any) -> list[list[Result]]:
        return await asyncio.gather(*[results(stub, c, spoken(word, 1)) for c in configs])

    with running_speech(whisper) as address:
        first, second = with_stub(address, alone), with_stub(address, together)
    for a, b in zip(first, second, strict=True):
        assert [(r.text, round(r.confidence, 4)) for r in a] == [(r.text, round(r.confidence, 4)) for r in b]


# ---- full


def test_full_is_said_with_the_time_to_stay_away(echo: Echo, word: Samples) -> None:
    echo.go.clear()
    registry = new_registry("test")

    async def story(stub: Any) -> None:
        config = Config(sample_rate=RATE)
        taken = [asyncio.create_task(results(stub, config, spoken(word, 1)))]
        await asyncio.to_thread(echo.wait_for, 1)
        taken += [asyncio.create_task(results(stub, config, spoken(word, 1))) for _ in range(2)]
        until = time.monotonic() + 10
        while time.monotonic() < until:  # one is recognised, two wait
            try:
                await results(stub, config, spoken(word, 1)[: RATE // 10])
                await asyncio.sleep(0.05)
            except Overloaded as e:
                assert e.retry_after_s >= 0.1 and "2 utterances wait" in e.message
                break
        else:
            pytest.fail("never full")
        echo.go.set()
        assert [len(t) for t in await asyncio.gather(*taken)] == [1, 1, 1]

    with running_speech(echo, registry=registry, endpoint=QUICK, limits=Limits(waiting=2)) as address:
        with_stub(address, story)
        still_alive(address, word)
    assert sample(registry, "voxrec_speech_ended_total", code="RESOURCE_EXHAUSTED") == 1
    assert sample(registry, "voxrec_speech_results_total", kind="final") == 4
    assert sample(registry, "voxrec_speech_streams") == 0


def test_too_many_streams(echo: Echo, word: Samples) -> None:
    with running_speech(echo, limits=Limits(streams=2)) as address:

        async def hold() -> AsyncIterator[Request]:
            yield Request(config=CONFIG)
            await asyncio.sleep(30)

        async def one(stub: Any) -> list[Result]:
            return [r async for r in exchange(stub, hold())]

        async def story(stub: Any) -> None:
            streams = [asyncio.create_task(one(stub)) for _ in range(3)]
            (refused,), open_ = await asyncio.wait(streams, return_when=asyncio.FIRST_COMPLETED)
            error = refused.exception()
            assert isinstance(error, Overloaded) and error.retry_after_s == 1
            for stream in open_:
                stream.cancel()
            await asyncio.wait(open_)

        with_stub(address, story)
        still_alive(address, word)


# ---- bad clients


def audio(seq: int, pcm: bytes = bytes(640), end: bool = False) -> Request:
    return Request(audio=Audio(seq=seq, pcm=pcm, end=end))


BAD = {
    "no config": [audio(0)],
    "nothing in the message": [Request()],
    "two configs": [Request(config=CONFIG), Request(config=CONFIG)],
    "an empty message": [Request(config=CONFIG), Request()],
    "no rate": [Request(config=Config())],
    "rate too low": [Request(config=Config(sample_rate=4_000))],
    "rate too high": [Request(config=Config(sample_rate=2**32 - 1))],
    "Opus": [Request(config=Config(sample_rate=RATE, codec="OPUS"))],
    "codec unknown": [Request(config=Config(sample_rate=RATE, codec=77))],  # type: ignore[arg-type]
    "another language": [Request(config=Config(sample_rate=RATE, language="fi"))],
    "long prompt": [Request(config=Config(sample_rate=RATE, prompt="x" * 1_001))],
    "many hotwords": [Request(config=Config(sample_rate=RATE, hotwords=["x"] * 600))],
    "one long hotword": [Request(config=Config(sample_rate=RATE, hotwords=["x" * 2_000]))],
    "long language": [Request(config=Config(sample_rate=RATE, language="en" * 3_000))],
    "long device": [Request(config=Config(sample_rate=RATE, device="é" * 33))],
    "odd bytes": [Request(config=CONFIG), audio(0, bytes(641))],
    "doubled": [Request(config=CONFIG), audio(0), audio(1), audio(1)],
    "out of order": [Request(config=CONFIG), audio(5), audio(4)],
    "after the end": [Request(config=CONFIG), audio(0, end=True), audio(1)],
}


async def exchanged(stub: Any, messages: list[Request]) -> list[Result]:
    async def each() -> AsyncIterator[Request]:
        for message in messages:
            yield message

    return [r async for r in exchange(stub, each())]


def test_bad_messages_are_refused_and_the_service_lives(echo: Echo, word: Samples) -> None:
    registry = new_registry("test")

    async def story(stub: Any) -> None:
        for name, messages in [*BAD.items(), ("nothing at all", [])]:
            with pytest.raises(InputError) as told:
                await asyncio.wait_for(exchanged(stub, messages), 10)
            assert ". " in told.value.message, f"{name}: no hint in {told.value.message!r}"

    with running_speech(echo, registry=registry, endpoint=QUICK) as address:
        with_stub(address, story)
        still_alive(address, word)
    assert sample(registry, "voxrec_speech_ended_total", code="INVALID_ARGUMENT") == len(BAD) + 1
    assert sample(registry, "voxrec_speech_ended_total", code="INTERNAL") == 0


def test_the_reason_reaches_a_client_that_still_writes(echo: Echo) -> None:
    "Writes that fail because the stream has ended do not hide its status."

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(6_400)
            await asyncio.sleep(0)

    async def one(stub: Any, rate: int) -> str:
        try:
            return str([r async for r in recognize(stub, Config(sample_rate=rate), endless())])
        except VoxrecError as e:
            return type(e).__name__

    async def story(stub: Any) -> list[str]:
        return await asyncio.gather(*[one(stub, 1 + i) for i in range(60)])

    with running_speech(echo) as address:
        assert set(with_stub(address, story)) == {"InputError"}


def test_bytes_that_are_no_message(echo: Echo, word: Samples) -> None:
    with running_speech(echo, endpoint=QUICK) as address:

        async def story(_: Any) -> None:
            async with grpc.aio.insecure_channel(address) as channel:
                raw = channel.stream_stream("/voxrec.speech.v1.Speech/StreamingRecognize")
                for junk in (b"\xff" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x0a\x03\x32\x01\xff"):
                    code = await asyncio.wait_for(raw(iter([junk])).code(), 10)
                    assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT), code
                code = await asyncio.wait_for(raw(iter([bytes(5 << 20)])).code(), 10)
                assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, "a message of 5 MiB"

        with_stub(address, story)
        still_alive(address, word)


@pytest.mark.parametrize("size", [(1 << 20) + 2, 5 << 20])
def test_a_message_that_is_too_large_is_not_to_be_sent_again(echo: Echo, word: Samples, size: int) -> None:
    with running_speech(echo, endpoint=QUICK) as address:

        async def story(stub: Any) -> None:
            with pytest.raises((InputError, TooLarge)) as told:
                _ = [r async for r in recognize(stub, Config(sample_rate=RATE), [bytes(size)])]
            assert told.value.hint or "At most" in told.value.message

        with_stub(address, story)
        still_alive(address, word)


def test_gaps_and_odd_chunks_are_fine(echo: Echo, word: Samples) -> None:
    "Numbers may jump; chunks may be of any whole number of samples, and empty."
    pcm = samples_to_pcm(spoken(word, 1))
    cuts = [0, 2, 2, 700, 701 * 2, len(pcm) // 4 * 2, len(pcm)]
    messages = [Request(config=CONFIG)]
    messages += [audio(10 * i, pcm[a:b]) for i, (a, b) in enumerate(pairwise(cuts))]

    with running_speech(echo, endpoint=QUICK) as address:
        (final,) = with_stub(
            address, lambda s: exchanged(s, messages)
        )  # the client closes its side without `end`
    assert final.is_final


@pytest.mark.parametrize(
    ("error", "kind"), [(RuntimeError("secret"), VoxrecError), (DataError("torn"), DataError)]
)
def test_a_recogniser_that_fails(
    echo: Echo, word: Samples, error: Exception, kind: type[VoxrecError]
) -> None:
    with running_speech(echo, endpoint=QUICK) as address:
        echo.error = error
        with pytest.raises(kind) as told:
            with_stub(address, lambda s: results(s, CONFIG, spoken(word, 1)))
        assert type(told.value) is kind and "secret" not in str(told.value)
        echo.error = None
        still_alive(address, word)


def test_a_client_that_sends_nothing(echo: Echo, word: Samples) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield bytes(640)
        await asyncio.sleep(30)

    async def story(stub: Any) -> None:
        async for _ in recognize(stub, CONFIG, silent()):
            pass

    with running_speech(echo, endpoint=QUICK, limits=Limits(idle_s=0.3)) as address:
        with pytest.raises(TimedOut, match=r"no message for 0\.3 s"):
            with_stub(address, story)
        still_alive(address, word)


def test_a_client_that_stops_reading(echo: Echo, word: Samples) -> None:
    "Results that nobody takes fill gRPC's window; then the stream ends, and the others never notice."
    echo.text = "x" * 500_000
    registry = new_registry("test")
    with running_speech(echo, registry=registry, endpoint=QUICK, limits=Limits(write_s=0.5)) as address:

        async def story(stub: Any) -> None:
            call = stub.StreamingRecognize()
            await call.write(Request(config=CONFIG))
            for seq, pcm in enumerate(chunks(spoken(word, 20), 500)):
                try:
                    await asyncio.wait_for(call.write(audio(seq, pcm)), 1)
                except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    break
            until = time.monotonic() + 20
            ended = "voxrec_speech_ended_total"
            while not sample(registry, ended, code="DEADLINE_EXCEEDED"):
                assert time.monotonic() < until, "the stream is still open"
                await asyncio.sleep(0.05)
            call.cancel()

        with_stub(address, story)
        echo.text = ""
        still_alive(address, word)
    assert sample(registry, "voxrec_speech_streams") == 0


@pytest.mark.parametrize("how", ["cancel", "close the channel"])
def test_a_client_that_goes_away(echo: Echo, word: Samples, how: str) -> None:
    "While its final is worked on, and while its second one waits: neither is written, and nobody else waits."
    echo.go.clear()
    registry = new_registry("test")
    with running_speech(echo, registry=registry, endpoint=QUICK) as address:

        async def story(_: Any) -> None:
            async with grpc.aio.insecure_channel(address) as channel:
                from voxrec.speech.v1.speech_pb2_grpc import SpeechStub

                calls = [SpeechStub(channel).StreamingRecognize() for _ in range(2)]
                for call in calls:
                    await call.write(Request(config=CONFIG))
                    for seq, pcm in enumerate(chunks(spoken(word, 1), 200)):
                        await call.write(audio(seq, pcm))
                await asyncio.to_thread(echo.wait_for, 1)
                for call in calls if how == "cancel" else []:
                    call.cancel()
            until = time.monotonic() + 10
            while sample(registry, "voxrec_speech_ended_total", code="CANCELLED") < 2:
                assert time.monotonic() < until, "the streams are still open"
                await asyncio.sleep(0.02)

        with_stub(address, story)
        echo.go.set()
        still_alive(address, word)
    assert len(echo.heard) <= 3
    assert sample(registry, "voxrec_speech_results_total", kind="final") == 1
    assert sample(registry, "voxrec_speech_streams") == 0


def test_audio_that_fails_is_told_to_the_caller(echo: Echo, word: Samples) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(640)
        raise InputError("the microphone is gone")

    async def story(stub: Any) -> None:
        async for _ in recognize(stub, CONFIG, broken()):
            pass

    with running_speech(echo, endpoint=QUICK) as address:
        with pytest.raises(InputError, match="microphone"):
            with_stub(address, story)
        still_alive(address, word)


def test_results_may_be_left_early(echo: Echo, word: Samples) -> None:
    async def story(stub: Any) -> str:
        found = recognize(stub, CONFIG, chunks(spoken(word, 3), 200))
        async for first in found:
            await found.aclose()
            return first.text
        return ""

    with running_speech(echo, endpoint=QUICK) as address:
        assert with_stub(address, story)
        still_alive(address, word)


def test_no_service_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        with_stub(f"127.0.0.1:{free_port()}", lambda s: results(s, CONFIG, PAUSE))


def test_a_port_that_is_taken(echo: Echo) -> None:
    with (
        running_speech(echo) as address,
        pytest.raises(ConfigError, match="cannot listen"),
        running_speech(echo, port=int(address.split(":")[1])),
    ):
        pass


# ---- stopping


def test_stopping_lets_an_utterance_end(echo: Echo, word: Samples) -> None:
    "Of two streams, the one that is silent ends at once with UNAVAILABLE, the other after its final."
    numbers, told, stop = count(), [], threading.Event()

    async def story(stub: Any) -> None:
        async def sent(samples: Samples, after: Samples) -> AsyncIterator[bytes]:
            for pcm in chunks(samples, 100):
                yield pcm
            await asyncio.sleep(0.3)
            stop.set()
            await asyncio.sleep(0.5)
            for pcm in chunks(after, 100):
                yield pcm
            await asyncio.sleep(5)

        async def one(name: str, samples: Samples, after: Samples) -> None:
            try:
                async for r in recognize(stub, CONFIG, sent(samples, after)):
                    told.append((next(numbers), name, r.text != ""))
            except Unavailable:
                told.append((next(numbers), name, "unavailable"))

        spoken_now = np.concatenate([PAUSE, word])
        await asyncio.gather(one("silent", PAUSE, PAUSE), one("speaking", spoken_now, PAUSE))

    with running_speech(echo, endpoint=QUICK, drain_s=10) as address:
        client = threading.Thread(target=with_stub, args=(address, story))
        client.start()
        assert stop.wait(20)
    client.join(10)
    assert not client.is_alive()
    assert told == [
        (0, "silent", "unavailable"),
        (1, "speaking", True),
        (2, "speaking", "unavailable"),
    ]


def test_who_goes_on_speaking_is_heard_before_the_end(echo: Echo, word: Samples) -> None:
    told, stop = list[str](), threading.Event()

    async def story(stub: Any) -> None:
        async def for_ever() -> AsyncIterator[bytes]:
            for n, pcm in enumerate(chunks(np.tile(word, 100), 100)):
                yield pcm
                await asyncio.sleep(0.1)
                if n == 15:
                    stop.set()

        try:
            async for r in recognize(stub, CONFIG, for_ever()):
                told.append(r.text)
        except Unavailable:
            told.append("unavailable")

    with running_speech(echo, endpoint=EndpointConfig(silence_ms=5_000), drain_s=5) as address:
        client = threading.Thread(target=with_stub, args=(address, story))
        client.start()
        assert stop.wait(20)
    client.join(10)
    assert not client.is_alive() and len(told) == 2 and told[0] and told[1] == "unavailable"


def test_an_utterance_whose_sound_stops_coming_is_heard(echo: Echo, word: Samples) -> None:
    "A watch that loses its network has said what it has said, and keeps no place by having spoken."
    limits = Limits(stall_s=0.4)

    async def story(stub: Any) -> None:
        async def stalls() -> AsyncIterator[bytes]:
            for pcm in chunks(np.concatenate([PAUSE, word]), 100):
                yield pcm
            await asyncio.sleep(20)

        began = time.monotonic()
        async for r in recognize(stub, CONFIG, stalls()):
            assert r.is_final and r.text and time.monotonic() - began < 10
            return
        raise AssertionError("no final")

    with running_speech(echo, endpoint=EndpointConfig(silence_ms=5_000), limits=limits) as address:
        with_stub(address, story)


def test_a_slow_final_does_not_cut_what_comes_after_it(word: Samples) -> None:
    "While it is heard, nothing is read; that is no pause of the speaker's."

    class Slow(Echo):
        def transcribe(self, *args: Any, **how: Any) -> Transcript:
            time.sleep(1.0)
            return super().transcribe(*args, **how)

    how = {"endpoint": EndpointConfig(max_ms=1500), "limits": Limits(stall_s=0.5)}
    with running_speech(Slow(), **how) as address:  # type: ignore[arg-type]
        told = with_stub(address, lambda stub: results(stub, CONFIG, np.tile(word, 12)[: 6 * RATE]))
    assert len(told) >= 3 and all(r.end_ms - r.start_ms > 1000 for r in told[:-1]), told


async def hold(stub: Any, tenant: str, word: Samples) -> None:
    "Speech, and then a sample now and then."

    async def drip() -> AsyncIterator[Request]:
        yield Request(config=Config(tenant=tenant, sample_rate=RATE))
        yield audio(0, samples_to_pcm(word[: RATE // 2]))
        for seq in count(1):
            await asyncio.sleep(0.1)
            yield audio(seq, bytes(2))

    async for _ in exchange(stub, drip()):
        pass


def test_a_sample_now_and_then_holds_no_place(echo: Echo, word: Samples) -> None:
    "The utterance ends after the time of the longest one; the place is lost when no more is said."
    limits, endpoint = Limits(streams=4, stall_s=0.5), EndpointConfig(max_ms=1000)
    registry = new_registry("speech")

    async def story(stub: Any) -> None:
        drips = [asyncio.create_task(hold(stub, f"t{i}", word)) for i in range(4)]
        await until(lambda: sample(registry, "voxrec_speech_streams") == 4)
        with pytest.raises(Overloaded):
            await results(stub, CONFIG, word)
        await until(lambda: len(echo.heard) == 4)  # the four utterances are over
        await asyncio.sleep(0.5)
        assert await results(stub, CONFIG, word)
        for task in drips:
            task.cancel()
        await asyncio.wait(drips)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("voxrec.serve.speech.SPEECHLESS_S", 0.3)
        with running_speech(echo, endpoint=endpoint, limits=limits, registry=registry) as address:
            with_stub(address, story)


def test_places_have_an_end(echo: Echo, word: Samples) -> None:
    "Who is told to go may end the sentence; so there are more streams than places, but not twice as many."
    registry, limits = new_registry("speech"), Limits(streams=4, stall_s=60)

    async def story(stub: Any) -> None:
        drips = []
        for tenant in "abcdef":
            for _ in range(4):
                drips.append(asyncio.create_task(hold(stub, tenant, word)))
                await asyncio.sleep(0.05)
        assert 4 < sample(registry, "voxrec_speech_streams") <= 8
        for task in drips:
            task.cancel()
        await asyncio.wait(drips)

    with running_speech(echo, limits=limits, registry=registry) as address:
        with_stub(address, story)


async def until(what: Callable[[], bool], patience_s: float = 20) -> None:
    async with asyncio.timeout(patience_s):
        while not what():
            await asyncio.sleep(0.02)


def test_a_stream_is_a_span_and_its_work_lies_within(echo: Echo, word: Samples) -> None:
    memory = InMemorySpanExporter()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    async def story(stub: Any) -> None:
        call = stub.StreamingRecognize(metadata=(("traceparent", parent),))
        await call.write(Request(config=CONFIG))
        await call.write(audio(0, samples_to_pcm(np.concatenate([PAUSE, word, PAUSE])), end=True))
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass

    with running_speech(echo, endpoint=QUICK, tracer=new_tracer("test", memory)) as address:
        with_stub(address, story)
    spans = {span.name: span for span in memory.get_finished_spans()}
    stream = spans["StreamingRecognize"]
    assert f"{stream.context.trace_id:032x}" == parent.split("-")[1] and stream.attributes["code"] == "OK"
    assert all(spans[n].parent.span_id == stream.context.span_id for n in ("queue", "recognise"))


SERVE = """
import sys
from voxrec.serve.speech import serve_speech
from voxrec.telemetry import new_registry, setup_logging
from voxrec.voice.transcribe import Recognizer

class Deaf(Recognizer):
    pass

setup_logging()
serve_speech(Deaf(), "127.0.0.1", int(sys.argv[1]), new_registry("speech"), drain_s=5)
"""


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_with_exit_code_0(sig: signal.Signals) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("VOXREC_")},
    )
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        assert "listening" in said, said + process.stderr.read()
        process.send_signal(sig)
        assert process.wait(10) == 0, process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def test_running_leaves_no_thread_behind(echo: Echo, word: Samples) -> None:
    own = ("speech", "recogniser", "vad")
    for _ in range(2):
        with running_speech(echo, endpoint=QUICK) as address:
            still_alive(address, word)
        assert not [t.name for t in threading.enumerate() if t.name.startswith(own)]
    with pytest.raises(Unavailable):
        with_stub(address, lambda s: results(s, CONFIG, PAUSE))


# ---- early ends


@pytest.mark.parametrize("whole", [True, False])
def test_a_pause_after_a_whole_command_ends_it(echo: Echo, word: Samples, whole: bool) -> None:
    "The partial asked for in a short pause is complete, so nobody waits for the long one."
    asked: list[tuple[str, str]] = []

    def complete(text: str, tenant: str) -> bool:
        asked.append((text, tenant))
        return whole

    pause = np.zeros(int(0.5 * RATE), np.float32)  # shorter than the 0.7 s that end an utterance
    sound = np.concatenate([PAUSE, word, pause, word, PAUSE, PAUSE])
    echo.text = "Stop."

    async def story(stub: Any) -> list[Result]:
        async def as_spoken() -> AsyncIterator[bytes]:
            for pcm in chunks(sound, 100):
                yield pcm
                await asyncio.sleep(0.05)

        config = Config(sample_rate=RATE, partials=True, tenant="north")
        return [r async for r in recognize(stub, config, as_spoken()) if r.is_final]

    with running_speech(echo, complete=complete) as address:
        finals = with_stub(address, story)
    assert set(asked) == {("Stop.", "north")}
    assert len(finals) == (2 if whole else 1)
