"""Callers that nobody would invite, at both doors of the recogniser; somebody decent beside each is heard.

The doors are a process of their own, with Whisper behind them and shorter times than usual, so that its
memory and its sockets can be watched.
"""

import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
from msgspec import Struct
from wyoming.asr import Transcribe, Transcript
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event

from voxrec.errors import InputError, VoxrecError
from voxrec.serve.speech import QUIET_S, connect_speech, exchange, recognize
from voxrec.speech.v1.speech_pb2 import Audio, Config, Request, Result
from voxrec.voice.audio import RATE, Samples, chunks, read_audio, samples_to_pcm, write_wav

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
CLIP = read_audio(ROOT / "data_samples/summon_maintenance.wav")
SPOKEN = np.concatenate([np.zeros(RATE // 2, np.float32), CLIP, np.zeros(RATE, np.float32)])
MONO = {"rate": RATE, "width": 2, "channels": 1}
CONFIG = Config(tenant="demo", device="watch-1", sample_rate=RATE)
IDLE_S, WRITE_S = 4.0, 2.0

SITE = """
import json, sys
from voxrec.serve.speech import SERVER_OPTIONS, Limits, running_speech
from voxrec.serve.wyoming import DoorLimits, running_wyoming
from voxrec.telemetry import new_registry, sample
from voxrec.voice.speak import HibariVoice
from voxrec.voice.transcribe import Recognizer, Transcript, open_recognizer

class Ears(Recognizer):
    "Whisper; but to the prompt `flood` the answer is half a megabyte."

    def __init__(self):
        self.whisper = open_recognizer(None, threads=1)
        self.check = self.whisper.check

    def transcribe_batch(self, asks):
        found = self.whisper.transcribe_batch(asks)
        return [Transcript(text="x" * 500_000) if a.prompt == "flood" else t for a, t in zip(asks, found)]

idle_s, write_s = map(float, sys.argv[1:])
sooner = {"grpc.server_handshake_timeout_ms": 3000, "grpc.max_connection_idle_ms": 3000}
SERVER_OPTIONS[:] = [(name, sooner.get(name, value)) for name, value in SERVER_OPTIONS]
limits = Limits(idle_s=idle_s, write_s=write_s)
door = DoorLimits(idle_s=idle_s, write_s=write_s, longest_s=120, linger_s=0.5)
ears = Ears()
registry, voice = new_registry("speech"), HibariVoice()
with running_speech(ears, registry=registry, limits=limits) as grpc:
    with running_wyoming(ears, voice, limits=door) as port:
        print(json.dumps([grpc, port]), flush=True)
        for code in sys.stdin:
            print(sample(registry, "voxrec_speech_ended_total", code=code.strip()), flush=True)
"""


class Site(Struct, frozen=True):
    "The two doors."

    process: subprocess.Popen[str]
    grpc: str
    wyoming: int

    @property
    def pid(self) -> int:
        return self.process.pid

    def mib(self) -> float:
        "What the process holds in memory."
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def ended(self, code: str) -> float:
        "How many streams ended with that code."
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(code + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def sockets(self) -> int:
        "How many it has open; some are closed while they are counted."
        count = 0
        for file in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                count += "socket" in str(file.readlink())
        return count


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    command = [sys.executable, "-c", SITE, str(IDLE_S), str(WRITE_S)]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("VOXREC_")} | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdin and process.stdout
    try:
        address, port = json.loads(process.stdout.readline())
        site = Site(process, address, port)
        asyncio.run(decent(site))  # what is loaded at the first call is loaded now
        yield site
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# ---- somebody decent


def wyoming(site: Site, read_timeout: float = 60) -> AsyncTcpClient:
    return AsyncTcpClient("127.0.0.1", site.wyoming, connect_timeout=20, read_timeout=read_timeout)


async def heard_by_grpc(site: Site, samples: Samples, config: Config = CONFIG) -> list[Result]:
    async with connect_speech(site.grpc) as stub:
        return [r async for r in recognize(stub, config, chunks(samples, 200))]


async def send(client: AsyncTcpClient, *events: Any) -> None:
    for event in events:
        await client.write_event(event.event())


async def heard_by_wyoming(site: Site, samples: Samples) -> list[Event]:
    async with wyoming(site) as client:
        await send(client, Transcribe(language="en"), AudioStart(**MONO))
        for pcm in chunks(samples, 200):
            await send(client, AudioChunk(**MONO, audio=pcm))
        await send(client, AudioStop())
        return await rest(client)


async def rest(client: AsyncTcpClient) -> list[Event]:
    "What comes up to the end of a request, or of the connection."
    events: list[Event] = []
    while (event := await client.read_event()) is not None:
        events.append(event)
        if event.type in ("transcript-stop", "error"):
            break
    return events


async def decent(site: Site) -> None:
    "Send maintenance to dock 7, said at each door; both hear it."
    (final,) = await heard_by_grpc(site, SPOKEN)
    events = await heard_by_wyoming(site, SPOKEN)
    (text,) = (Transcript.from_event(e).text for e in events if Transcript.is_type(e.type))
    for said in (final.text, text):
        assert said.startswith("Send maintenance to ") and "7" in said, said


def beside(site: Site, hostile: Callable[[asyncio.Event], Awaitable[T]], most_s: float = 120) -> T:
    "The hostile story, and somebody decent from the time when it says that it is at its worst."

    async def both() -> T:
        worst = asyncio.Event()
        story = asyncio.ensure_future(hostile(worst))
        told = asyncio.create_task(worst.wait())
        await asyncio.wait({story, told}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        await decent(site)
        return await story

    return asyncio.run(asyncio.wait_for(both(), most_s))


# ---- broken recordings


def broken(folder: Path) -> list[Path]:
    "Ours, and those of VOXREC_DATA where they are."
    wav = write_wav(None, CLIP)
    made = {
        "empty.wav": b"",
        "header.wav": wav[:44],
        "short.wav": wav[:45],
        "cut.wav": wav[: len(wav) // 2 + 1],
        "longer_than_it_is.wav": wav[:4] + b"\xff" * 4 + wav[8:40] + b"\xff" * 4 + wav[44:],
        "no_channels.wav": wav[:22] + b"\0\0" + wav[24:],
        "no_rate.wav": wav[:24] + bytes(8) + wav[32:],
        "text.wav": b"this is no sound at all\n" * 200,
        "random.wav": np.random.default_rng(0).bytes(50_000),
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    data_folder = os.environ.get("VOXREC_DATA", "")
    return sorted([*folder.iterdir(), *Path(data_folder or folder / "none").glob("speech/malformed/*")])


async def grpc_outcome(site: Site, samples: Samples) -> str:
    "The text, or the error."
    try:
        return " ".join(r.text for r in await heard_by_grpc(site, samples))
    except VoxrecError as e:
        return type(e).__name__


async def wyoming_outcome(site: Site, samples: Samples) -> str:
    events = await heard_by_wyoming(site, samples)
    return " ".join(e.data.get("text", e.type) for e in events if e.type in ("transcript", "error"))


def test_broken_recordings_decoded_and_streamed(site: Site, tmp_path: Path) -> None:
    "Each is a typed error, or samples that both doors take; as raw PCM none of them is a text."
    outcomes: dict[str, str] = {}

    async def story(worst: asyncio.Event) -> None:
        worst.set()
        for path in broken(tmp_path):
            try:
                samples = read_audio(path)
            except InputError as e:
                assert e.hint, path
                outcomes[path.name] = "refused"
            else:
                by_grpc, by_wyoming = await asyncio.gather(
                    grpc_outcome(site, samples), wyoming_outcome(site, samples)
                )
                assert by_grpc == by_wyoming, path
                outcomes[path.name] = by_grpc
            raw = path.read_bytes()[:40_000]
            noise = np.frombuffer(raw[: len(raw) // 2 * 2], "<i2").astype(np.float32) / 32_768
            if path.name not in ("cut.wav", "longer_than_it_is.wav", "no_channels.wav", "no_rate.wav"):
                assert await grpc_outcome(site, noise) == await wyoming_outcome(site, noise) == "", path

    beside(site, story)
    assert {outcomes[name] for name in ("empty.wav", "header.wav", "text.wav", "random.wav")} == {"refused"}
    assert "aintenance" in outcomes["longer_than_it_is.wav"], "a wrong length is no reason to hear nothing"


# ---- without an end


async def flood(call: Any, seconds: float, block: bytes, at: dict[float, Callable[[], None]]) -> None:
    "So much sound, as fast as it is taken; `at` so many seconds something is done."
    sent, seq, todo = 0.0, 0, sorted(at)
    while sent < seconds:
        await call.write(Request(audio=Audio(seq=seq, pcm=block)))
        sent, seq = sent + len(block) / 2 / RATE, seq + 1
        while todo and sent >= todo[0]:
            at[todo.pop(0)]()


def test_zeros_without_an_end_by_grpc(site: Site) -> None:
    "Ten minutes of them, as fast as they are taken: no text, no memory; others are heard."
    held: list[float] = []

    async def story(worst: asyncio.Event) -> list[Result]:
        async with connect_speech(site.grpc) as stub:
            call = stub.StreamingRecognize()
            await call.write(Request(config=Config(sample_rate=RATE, partials=True)))

            def note() -> None:
                held.append(site.mib())

            await flood(call, 600, bytes(64_000), {60: worst.set, 120: note, 599: note})
            await call.done_writing()
            return [r async for r in call]

    assert beside(site, story) == []
    assert held[1] - held[0] < 32, f"grew from {held[0]:.0f} to {held[1]:.0f} MiB"


def test_zeros_without_an_end_by_wyoming(site: Site) -> None:
    "They end where the longest request does, with an error that says so."
    before = site.mib()

    async def story(worst: asyncio.Event) -> list[Event]:
        async with wyoming(site) as client:
            await send(client, AudioStart(**MONO))
            with suppress(ConnectionError):
                for i in range(200):
                    await send(client, AudioChunk(**MONO, audio=bytes(64_000)))
                    if i == 20:
                        worst.set()
            return await rest(client)

    (error,) = beside(site, story)
    assert error.data["code"] == "too_large" and "over 120 s" in error.data["text"]
    assert site.mib() - before < 32


# ---- faster than anybody speaks


N_COMMANDS = 20


def test_faster_than_real_time_by_grpc(site: Site) -> None:
    "Commands one after another, all at once: each has its final, in order, and others are heard."
    before = site.mib()
    most = before

    async def story(worst: asyncio.Event) -> list[Result]:
        nonlocal most

        async def all_at_once() -> AsyncIterator[bytes]:
            for i in range(N_COMMANDS):
                yield samples_to_pcm(SPOKEN)
                if i == 2:
                    worst.set()

        found = []
        async with connect_speech(site.grpc) as stub:
            async for result in recognize(stub, CONFIG, all_at_once()):
                found.append(result)
                most = max(most, site.mib())
        return found

    found = beside(site, story)
    assert len(found) == N_COMMANDS and all("aintenance" in r.text for r in found)
    assert [r.start_ms for r in found] == sorted(r.start_ms for r in found)
    assert most - before < 64, f"grew from {before:.0f} to {most:.0f} MiB"


def test_faster_than_real_time_by_wyoming(site: Site) -> None:
    before = site.mib()
    n = 100 * RATE // len(SPOKEN)  # a request has 120 s

    async def story(worst: asyncio.Event) -> list[Event]:
        async with wyoming(site) as client:
            await send(client, AudioStart(**MONO))
            sending = asyncio.create_task(
                send(
                    client,
                    *[AudioChunk(**MONO, audio=samples_to_pcm(SPOKEN))] * n,
                    AudioStop(),
                )
            )
            worst.set()
            events = await rest(client)
            await sending
            return events

    events = beside(site, story)
    (text,) = (e.data["text"] for e in events if e.type == "transcript")
    assert text.lower().count("maintenance") == n == sum(e.type == "transcript-chunk" for e in events)
    assert site.mib() - before < 64


# ---- never reads


def test_results_that_nobody_reads_by_grpc(site: Site) -> None:
    "Half a megabyte a result: the stream ends `write_s` after the last that could be written."
    before = site.ended("DEADLINE_EXCEEDED")

    async def story(worst: asyncio.Event) -> None:
        async with connect_speech(site.grpc) as stub:
            call = stub.StreamingRecognize()
            await call.write(Request(config=Config(sample_rate=RATE, prompt="flood")))
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                for seq in range(40):  # they are not all taken, since the door waits with the first result
                    async with asyncio.timeout(1):
                        await call.write(Request(audio=Audio(seq=seq, pcm=samples_to_pcm(SPOKEN))))
            worst.set()
            until = time.monotonic() + 30
            while site.ended("DEADLINE_EXCEEDED") == before:
                assert time.monotonic() < until, "the stream is still open"
                await asyncio.sleep(0.1)
            call.cancel()

    beside(site, story)


def test_speech_that_nobody_listens_to_by_wyoming(site: Site) -> None:
    "Minutes of it are asked for, and no byte is taken: cut off after `write_s`, with little made in vain."
    before = site.mib()

    async def story(worst: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            await loop.sock_connect(deaf, ("127.0.0.1", site.wyoming))
            text = "The line at dock three stands still, and nobody knows why. " * 80
            line = json.dumps({"type": "synthesize", "data": {"text": text}})
            await loop.sock_sendall(deaf, line.encode() + b"\n")
            worst.set()
            await gone(site, deaf.getsockname()[1], 60)

    beside(site, story)
    assert site.mib() - before < 64


async def gone(site: Site, port: int, most_s: float) -> None:
    "Until the door has let go of its end of the connection from that port."
    until = time.monotonic() + most_s
    there = f":{site.wyoming:04X} 0100007F:{port:04X} 01"
    while there in Path("/proc/net/tcp").read_text():
        assert time.monotonic() < until, "still connected"
        await asyncio.sleep(0.2)


# ---- says nothing


def many(port: int, wanted: int, greeting: bytes) -> list[socket.socket]:
    "So many connections, each with a greeting."
    made = []
    for _ in range(wanted):
        connection = socket.create_connection(("127.0.0.1", port), timeout=20)
        if greeting:
            connection.sendall(greeting)
        made.append(connection)
    return made


def ended(connection: socket.socket) -> bool:
    "Whether the other side has closed it; what it said before is thrown away."
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
DOORS = ("wyoming", "grpc", "grpc after a greeting")


@pytest.mark.parametrize("door", DOORS)
def test_ten_thousand_that_say_nothing(site: Site, door: str, record_property: Any) -> None:
    "Or as many as there may be files. While they are there somebody is heard; after a while they are gone."
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    n = min(10_000, (files if files != resource.RLIM_INFINITY else 20_000) - 600)
    record_property("connections", n)
    print(f"{n} connections")
    before, sockets = site.mib(), site.sockets()
    port = site.wyoming if door == "wyoming" else int(site.grpc.rsplit(":", 1)[1])
    silent = many(port, n, PREFACE if "greeting" in door else b"")
    try:
        began = time.monotonic()
        assert site.sockets() - sockets > n // 2 or any(map(ended, silent)), "they are there, or were"
        asyncio.run(asyncio.wait_for(decent(site), 60))
        grown = site.mib() - before
        assert grown < 400, f"{grown:.0f} MiB for {n} connections"
        while not all(map(ended, silent)):
            left = sum(not ended(c) for c in silent)
            assert time.monotonic() - began < 30, f"{left} are left"
            time.sleep(0.2)
    finally:
        for connection in silent:
            connection.close()
    until = time.monotonic() + 10
    while site.sockets() > sockets + 10:
        assert time.monotonic() < until, "the sockets are still held"
        time.sleep(0.1)
    asyncio.run(decent(site))


def test_streams_that_say_nothing(site: Site) -> None:
    "As many as there may be. Whoever comes after them is heard, and they end after a while."

    async def story(worst: asyncio.Event) -> list[str]:
        async def hold() -> AsyncIterator[Request]:
            yield Request(config=CONFIG)
            await asyncio.sleep(60)

        async def one(stub: Any) -> str:
            try:
                return str([r async for r in exchange(stub, hold())])
            except VoxrecError as e:
                return type(e).__name__

        async with connect_speech(site.grpc) as stub:
            streams = [asyncio.create_task(one(stub)) for _ in range(64)]
            await asyncio.sleep(QUIET_S + 0.5)
            worst.set()
            return await asyncio.gather(*streams)

    told = beside(site, story)
    assert (told.count("Overloaded"), told.count("TimedOut")) == (1, 63), "one made room"


def test_one_connection_that_wants_it_all(site: Site) -> None:
    "All places are taken by streams that speak without an end and come again; others are heard."
    sentence = samples_to_pcm(np.concatenate([SPOKEN, np.zeros(RATE, np.float32)]))
    told = Counter[str]()

    async def story(worst: asyncio.Event) -> None:
        async def talk() -> AsyncIterator[bytes]:
            while True:
                yield sentence

        async def again_and_again(stub: Any) -> None:
            while True:
                try:
                    async for _ in recognize(stub, Config(sample_rate=RATE), talk()):
                        told["heard"] += 1
                except VoxrecError as e:
                    told[type(e).__name__] += 1

        async with connect_speech(site.grpc) as stub:
            streams = [asyncio.create_task(again_and_again(stub)) for _ in range(64)]
            await asyncio.sleep(5)
            worst.set()
            await asyncio.sleep(10)
            for stream in streams:
                stream.cancel()
            await asyncio.wait(streams)

    beside(site, story)
    assert told["heard"] and told["Overloaded"] and set(told) == {"heard", "Overloaded"}, told


def test_a_byte_now_and_then(site: Site) -> None:
    "An event must be there whole within `idle_s`, however it trickles."

    async def story(worst: asyncio.Event) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.wyoming)
        began = time.monotonic()
        worst.set()
        with suppress(ConnectionError):
            for letter in b'{"type": "ping", "data": {"text": "' + b"x" * 100:
                writer.write(bytes([letter]))
                await writer.drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.3):
                        if not await reader.read(4096):
                            break
        took = time.monotonic() - began
        writer.close()
        return took

    assert IDLE_S - 0.5 < beside(site, story) < IDLE_S + 10


# ---- garbage


HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(range(200))
GARBAGE = {
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": HELLO + b"\n",
    "zeros": bytes(200_000),
    "no type": b'{"data": {}}\n',
    "a list": b"[1, 2]\n",
    "nested": b"[" * 60_000 + b"\n",
    "no UTF-8": b'{"type": "ping", "data": {"text": "\xff\xfe"}}\n',
    "a long line": b"x" * 1_000_000,
    "a huge payload": b'{"type": "audio-chunk", "payload_length": 1000000000000}\n',
    "a negative payload": b'{"type": "audio-chunk", "payload_length": -5}\n',
    "data that is a number": b'{"type": "audio-start", "data": 7}\n',
    "data that is no JSON": b'{"type": "ping", "data_length": 4}\n\x00\x01\x02\x03',
    "half an event": b'{"type": "audio-chunk", "payload_length": 100}\nabc',
}


def test_garbage_by_wyoming(site: Site) -> None:
    async def one(sent: bytes) -> dict[str, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.wyoming)
        with suppress(OSError):
            writer.write(sent)
            writer.write_eof()
        said = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        head, _, data = said.partition(b"\n")
        assert json.loads(head)["type"] == "error"
        return dict(json.loads(data))

    async def story(worst: asyncio.Event) -> dict[str, dict[str, Any]]:
        worst.set()
        return {name: await one(sent) for name, sent in GARBAGE.items()}

    told = beside(site, story)
    large = {name for name, error in told.items() if error["code"] == "too_large"}
    assert large == {"zeros", "a long line", "a huge payload"}
    assert {error["code"] for error in told.values()} == {"too_large", "input_error"}
    assert all(". " in error["text"] for error in told.values()), "with a hint"


def test_garbage_by_grpc(site: Site) -> None:
    "Not even HTTP/2; then HTTP/2 whose messages are none of ours, or too large."

    async def story(worst: asyncio.Event) -> None:
        worst.set()
        host, port = site.grpc.rsplit(":", 1)
        for sent in GARBAGE.values():
            reader, writer = await asyncio.open_connection(host, int(port))
            with suppress(OSError):
                writer.write(sent)
                writer.write_eof()
                await asyncio.wait_for(reader.read(), 20)
            writer.close()
        async with grpc.aio.insecure_channel(site.grpc) as channel:
            raw = channel.stream_stream("/voxrec.speech.v1.Speech/StreamingRecognize")
            for sent in (b"\xff" * 100, HELLO):
                code = await asyncio.wait_for(raw(iter([sent])).code(), 20)
                assert code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT), code
            assert await raw(iter([bytes(5 << 20)])).code() == grpc.StatusCode.RESOURCE_EXHAUSTED

    beside(site, story)


def audio(seq: int, pcm: bytes = bytes(640)) -> Request:
    return Request(audio=Audio(seq=seq, pcm=pcm))


UNRULY = {
    "audio before Config": [audio(0)],
    "a Config twice": [Request(config=CONFIG), audio(0), Request(config=CONFIG)],
    "numbers that go back": [Request(config=CONFIG), audio(7), audio(3)],
    "half a sample": [Request(config=CONFIG), audio(0, bytes(641))],
    "nothing": [Request(config=CONFIG), Request()],
    **{
        f"in {language}": [Request(config=Config(sample_rate=RATE, language=language)), audio(0)]
        for language in ("fi", "de-DE", "zh", "xx", "english", "\U0001f600")
    },
}


def test_unruly_by_grpc(site: Site) -> None:
    async def story(worst: asyncio.Event) -> None:
        worst.set()
        async with connect_speech(site.grpc) as stub:
            for name, messages in UNRULY.items():

                async def each(messages: list[Request] = messages) -> AsyncIterator[Request]:
                    for message in messages:
                        yield message

                with pytest.raises(InputError) as told:
                    [r async for r in exchange(stub, each())]
                assert ". " in told.value.message, f"{name}: no hint in {told.value.message!r}"

    beside(site, story)


def test_other_languages_by_wyoming(site: Site) -> None:
    async def story(worst: asyncio.Event) -> None:
        worst.set()
        for language in ("fi", "de-DE", "zh", "xx", "english", "\U0001f600"):
            async with wyoming(site) as client:
                await send(client, Transcribe(language=language))
                (error,) = await rest(client)
                assert error.data["code"] == "input_error" and "Served: en" in error.data["text"]

    beside(site, story)


# ---- after all that


def test_the_doors_are_as_they_were(site: Site) -> None:
    "No file left open, and both hear."
    until = time.monotonic() + 2 * IDLE_S
    while site.sockets() > 12:
        assert time.monotonic() < until, f"{site.sockets()} sockets are open"
        time.sleep(0.2)
    asyncio.run(decent(site))
