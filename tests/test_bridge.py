"""From a device's messages to an utterance and back: the same on the embedded broker and on Mosquitto."""

import asyncio
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiomqtt
import grpc
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxrec.config import Device, Tenant
from voxrec.errors import NotFound, TimedOut, Unavailable
from voxrec.mqtt import Subscription, connect_mqtt
from voxrec.serve.bridge import (
    Begin,
    Bridge,
    BridgeConfig,
    Dropped,
    End,
    Lost,
    Order,
    OrderConfig,
    Sound,
    Step,
    Utterance,
    open_bridge,
    order_step,
)
from voxrec.speech.v1.speech_pb2 import Result
from voxrec.speech.v1.speech_pb2_grpc import SpeechServicer, add_SpeechServicer_to_server
from voxrec.voice.audio import RATE, Frame, pack_frame, write_wav
from voxrec.voice.device import Reply, ReplyMeta, Speaker, State, frames_of, open_wearable

TENANT = Tenant(id="north", devices={f"watch-{n}": Device(zone=f"aisle {n}") for n in range(50)})
LETTERS = " abcdefghij"
FAST = BridgeConfig(order=OrderConfig(hold_ms=400), idle_ms=400)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Loudness(SpeechServicer):
    "Writes a letter for each tenth of a second, by its loudness; '_' for silence. `die_after` bytes it dies."

    async def StreamingRecognize(self, requests: Any, context: Any) -> AsyncIterator[Result]:
        pcm = b""
        async for request in requests:
            pcm += request.audio.pcm
            if request.audio.end:
                break
        heard = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
        levels = [round(float(np.abs(h).max()) * 10) for h in np.split(heard, range(1600, len(heard), 1600))]
        text = "".join(LETTERS[n] if n else "_" for n in levels) if len(heard) else ""
        yield Result(utterance_id="1", is_final=True, text=text, confidence=1, end_ms=len(heard) // 16)


class Speech:
    "The service, on a port that it keeps when it is started again."

    port = 0

    async def start(self) -> None:
        self.server = grpc.aio.server()
        add_SpeechServicer_to_server(Loudness(), self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()


def tones(letters: str) -> np.ndarray:
    levels = np.repeat([LETTERS.index(x) / 10 for x in letters], RATE // 10)
    return levels.astype(np.float32)


def whose(device_id: str) -> tuple[Tenant, Device]:
    if device_id not in TENANT.devices:
        raise NotFound(f"no tenant has a device {device_id!r}")
    return TENANT, TENANT.devices[device_id]


class Scene:
    "A bridge and whatever it was told; a client beside it."

    def __init__(self, broker: Any, bridge: Bridge, mqtt: Any, speech: Speech, heard: list[Utterance]):
        self.broker, self.bridge, self.mqtt, self.speech, self.heard = broker, bridge, mqtt, speech, heard

    @property
    def texts(self) -> list[str]:
        return [u.text for u in self.heard]

    def dropped(self, reason: str) -> float:
        return self.bridge.dropped.labels(reason)._value.get()

    async def send(self, frames: Sequence[Frame | bytes], device: str = "watch-0") -> None:
        for frame in frames:
            body = frame if isinstance(frame, bytes) else pack_frame(frame)
            await self.mqtt.publish(f"wearable/{device}/audio/v1", body)

    async def until(self, true: Callable[[], object], within_s: float = 8.0) -> None:
        async with asyncio.timeout(within_s):
            while not true():
                await asyncio.sleep(0.01)


@pytest.fixture
async def scene(mqtt_broker: Any) -> AsyncIterator[Scene]:
    async with staged(mqtt_broker) as made:
        yield made


@asynccontextmanager
async def staged(broker: Any, config: BridgeConfig = FAST) -> AsyncIterator[Scene]:
    heard: list[Utterance] = []

    async def answer(utterance: Utterance) -> AsyncGenerator[Reply, None]:
        heard.append(utterance)
        yield Reply(ReplyMeta(utterance_id=utterance.id, heard=utterance.text, text="yes"), b"RIFF")

    speech = Speech()
    await speech.start()
    async with (
        open_bridge(broker.url, f"127.0.0.1:{speech.port}", whose, answer, config) as bridge,
        connect_mqtt(broker.url) as mqtt,
    ):
        yield Scene(broker, bridge, mqtt, speech, heard)
    await speech.server.stop(0)


def utterance(letters: str, first_seq: int = 100) -> list[Frame]:
    return frames_of(tones(letters), 100, first_seq)


pytestmark = pytest.mark.anyio


async def test_in_any_order_and_doubled(scene: Scene) -> None:
    frames = utterance("abcdefgh")
    mixed = [*frames, *frames[2:5]]
    random.Random(3).shuffle(mixed)
    await scene.send(mixed)
    await scene.until(lambda: scene.heard and scene.dropped("double") == 3)
    assert scene.texts == ["abcdefgh"] and scene.heard[0].lost_ms == 0


async def test_what_is_lost_for_good_becomes_silence_and_is_told(scene: Scene) -> None:
    frames = utterance("abcdefgh")
    async with scene.mqtt.subscribe("wearable/watch-0/state") as states:
        await scene.send(frames[:3] + frames[5:])
        await scene.until(lambda: scene.heard)
        said = [msgspec.json.decode((await states.get(2)).payload, type=State) for _ in range(2)]
    assert scene.texts == ["abc__fgh"] and scene.heard[0].lost_ms == 200
    assert said[1] == State(state="missing", next_seq=103)


async def test_a_frame_with_half_a_sample_is_refused_and_comes_again(scene: Scene) -> None:
    frames = utterance("abcd")
    broken = pack_frame(frames[1])[:-1]
    await scene.send([frames[0], broken, *frames[2:], frames[1]])
    await scene.until(lambda: scene.heard)
    assert scene.texts == ["abcd"] and scene.dropped("unreadable") == 1


async def test_nonsense_is_counted_and_hurts_nobody(scene: Scene) -> None:
    for part, body in (
        ("audio/v1", b""),
        ("audio/v1", b"\x07" * 20),
        ("audio/v1", pack_frame(Frame(codec="opus", start=True, payload=b"x"))),
        ("audio", b"x" * 70_000),
        ("control", b"{"),
        ("control", b'{"kind": "dance"}'),
        ("control", b"\xff"),
        ("control", b'{"kind": ["hello"]}'),
        ("control", b'{"x": ' + b"[" * 1_000_000),
        ("control", b'{"kind": "' + b"x" * 10_000_000 + b'"}'),
        ("audio", bytes(10_000_000)),
        ("audio/v1", pack_frame(Frame(seq=1, start=True)) + bytes(10_000_000)),
    ):
        await scene.mqtt.publish(f"wearable/watch-0/{part}", body)
    await scene.send(utterance("abc"))
    await scene.until(lambda: scene.heard)
    assert scene.texts == ["abc"] and scene.dropped("unreadable") == 12


async def test_a_topic_that_is_no_text_hurts_nobody(scene: Scene) -> None:
    "Written by hand, since no client sends it: the broker or the bridge passes it over."
    port = int(scene.broker.url.rsplit(":", 1)[1])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    topic = b"wearable/\xff\xfe/audio"
    publish = len(topic).to_bytes(2) + topic + bytes(4)
    writer.write(
        b"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04junk" + b"\x30" + bytes([len(publish)]) + publish
    )
    await writer.drain()
    await asyncio.sleep(0.3)
    writer.close()
    await scene.send(utterance("abc"))
    await scene.until(lambda: scene.heard)
    assert scene.texts == ["abc"]


async def test_what_the_broker_remembers_is_not_heard(mqtt_broker: Any) -> None:
    "A whole order in one retained message, and one in raw sound, from before the bridge was started again."
    whole = pack_frame(Frame(seq=7, start=True, end=True, payload=utterance("a")[0].payload))
    async with aiomqtt.Client("127.0.0.1", int(mqtt_broker.url.rsplit(":", 1)[1])) as careless:
        await careless.publish("wearable/watch-0/audio/v1", whole, qos=1, retain=True)
        await careless.publish("wearable/watch-0/audio", whole[8:], qos=1, retain=True)
    for _ in range(2):
        async with staged(mqtt_broker) as scene:
            await scene.send(utterance("bc"), "watch-1")
            await scene.until(lambda scene=scene: scene.heard)
            await asyncio.sleep(2 * FAST.idle_ms / 1000)
            assert scene.texts == ["bc"] and list(scene.bridge.ears) == ["watch-1"]


async def test_two_orders_in_one_moment_have_two_ids(scene: Scene) -> None:
    "The end of a third one comes last, and lets both through at the same time."
    a, b, c = (utterance(x)[0].payload for x in "abc")
    await scene.send(
        [
            Frame(seq=0, start=True, payload=a),
            Frame(seq=2, start=True, end=True, payload=b),
            Frame(seq=3, start=True, end=True, payload=c),
            Frame(seq=1, end=True),
        ]
    )
    await scene.until(lambda: len(scene.heard) == 3)
    assert sorted(scene.texts) == ["a", "b", "c"] and len({u.id for u in scene.heard}) == 3


async def test_nobody_waits_for_the_answer_to_another_order(scene: Scene) -> None:
    "'Stop the line' while the call before it is not acknowledged; both begin in the order they were said."
    may, begun = asyncio.Event(), []

    async def answer(utterance: Utterance) -> AsyncGenerator[Reply, None]:
        begun.append(utterance.text)
        if utterance.text == "abc":
            await may.wait()
        yield Reply(ReplyMeta(utterance_id=utterance.id, heard=utterance.text, text="yes"), b"RIFF")

    scene.bridge.answer = answer
    async with scene.mqtt.subscribe("wearable/watch-0/reply/meta") as replies:
        await scene.send(utterance("abc"))
        await scene.send(utterance("fed", first_seq=103))
        first = msgspec.json.decode((await replies.get(5)).payload, type=ReplyMeta)
        may.set()
        second = msgspec.json.decode((await replies.get(5)).payload, type=ReplyMeta)
    assert (first.heard, second.heard) == ("fed", "abc") and begun == ["abc", "fed"]


async def test_a_device_that_was_away_is_told_how_it_ended(scene: Scene) -> None:
    await scene.send(utterance("abc"))
    await scene.until(lambda: scene.heard and not scene.bridge.ears["watch-0"].talks)
    async with scene.mqtt.subscribe("wearable/watch-0/state", "wearable/watch-0/reply/meta") as inbox:
        await scene.mqtt.publish("wearable/watch-0/control", b'{"kind": "hello"}')
        while b'"ready"' not in (ready := (await inbox.get(5)).payload):
            pass  # its end, said the first time
        meta, end = [(await inbox.get(5)).payload for _ in range(2)]
    stream = scene.heard[0].id.rsplit("-", 1)[0]
    assert msgspec.json.decode(ready, type=State) == State(state="ready", next_seq=103, stream=stream)
    assert msgspec.json.decode(meta, type=ReplyMeta).utterance_id == scene.heard[0].id
    assert msgspec.json.decode(end, type=State) == State(state="finished", stream=stream)
    assert scene.texts == ["abc"]


async def test_the_reply_is_lost_with_the_broker(scene: Scene) -> None:
    "The device comes back after the bridge has said everything; it asks, and is told."
    may = asyncio.Event()
    good = scene.bridge.answer

    async def answer(utterance: Utterance) -> AsyncGenerator[Reply, None]:
        await may.wait()
        async for reply in good(utterance):
            yield reply

    scene.bridge.answer = answer
    async with connect_mqtt(scene.broker.url) as mqtt, open_wearable(mqtt, "watch-0", speed=0) as watch:
        saying = asyncio.create_task(watch.say(tones("abc"), timeout_s=15))
        await scene.until(lambda: "watch-0" in scene.bridge.ears and scene.bridge.ears["watch-0"].latest)
        inbox, watch._inbox = watch._inbox, Subscription((), 1)  # deaf
        may.set()
        await scene.until(lambda: scene.heard and not scene.bridge.ears["watch-0"].talks)
        await asyncio.to_thread(scene.broker.stop)
        inbox.clear()
        watch._inbox = inbox
        await asyncio.to_thread(scene.broker.start)
        turn = await saying
    assert scene.texts == ["abc"] and [r.meta.heard for r in turn.replies] == ["abc"]


@pytest.mark.parametrize("with_start", [True, False])
async def test_raw_sound_around_an_outage_is_doubtful(scene: Scene, with_start: bool) -> None:
    "Nothing shows that a piece of raw sound is missing, and half an order is another order."
    pcm = (tones("abc") * 32768).astype("<i2").tobytes()

    async def say(body: bytes) -> None:
        await scene.mqtt.publish(f"wearable/watch-0/{'control' if body[:1] == b'{' else 'audio'}", body)

    start, end = b'{"kind": "start"}', b'{"kind": "end"}'
    for body in (start, pcm, end):
        await say(body)
    await scene.until(lambda: scene.heard)
    for body in (start, pcm) if with_start else ():
        await say(body)
    await asyncio.to_thread(scene.broker.stop)
    await asyncio.to_thread(scene.broker.start)
    await scene.until(lambda: min(scene.mqtt.connections, scene.bridge.mqtt.connections) == 2)
    for body in (pcm, end, start, pcm, end):
        await say(body)
    await scene.until(lambda: len(scene.heard) == 3)
    assert [u.lost_ms > 0 for u in scene.heard] == [False, True, False]


async def test_raw_sound_that_a_new_bridge_finds_under_way_is_doubtful(scene: Scene) -> None:
    pcm = (tones("abc") * 32768).astype("<i2").tobytes()
    for device in "watch-0", "watch-1":
        await scene.mqtt.publish(f"wearable/{device}/audio", pcm)
        await scene.until(lambda device=device: device in [u.device_id for u in scene.heard])
        await asyncio.sleep(1.1)
    assert [u.lost_ms > 0 for u in scene.heard] == [True, False]


async def test_more_than_a_tape_holds(scene: Scene) -> None:
    "Two minutes while no recogniser is there. Half a minute is kept, and the rest is told."
    await scene.speech.server.stop(0)
    await scene.send(frames_of(tones("abcdefghij" * 120), 1000, 5))
    await scene.until(lambda: (talk := scene.bridge.ears["watch-0"].latest) and talk.tape.ended)
    await scene.speech.start()
    await scene.until(lambda: scene.heard)
    assert [(u.text, u.lost_ms) for u in scene.heard] == [("abcdefghij" * 30, 90_000)]


async def test_fifty_devices_at_once(scene: Scene) -> None:
    async with AsyncExitStack() as stack:
        mqtts = [await stack.enter_async_context(connect_mqtt(scene.broker.url)) for _ in range(5)]
        watches = [
            await stack.enter_async_context(open_wearable(mqtts[n % 5], device, chunk_ms=200, speed=5))
            for n, device in enumerate(TENANT.devices)
        ]
        said = [LETTERS[1 + n % 10] * (5 + n % 7) for n in range(50)]
        turns = await asyncio.gather(*(w.say(tones(s)) for w, s in zip(watches, said, strict=True)))
    assert [[r.meta.heard for r in turn.replies] for turn in turns] == [[s] for s in said]
    assert scene.dropped("lost") == scene.dropped("inbox full") == scene.dropped("outbox full") == 0


async def test_raw_sound_of_odd_length(scene: Scene) -> None:
    pcm = (tones("abc") * 32768).astype("<i2").tobytes()
    for body in (b'{"kind": "start"}', pcm[:3200] + b"!", b"", b"!", pcm[3200:], b'{"kind": "end"}'):
        part = "control" if body.startswith(b"{") else "audio"
        await scene.mqtt.publish(f"wearable/watch-0/{part}", body)
    await scene.until(lambda: scene.heard)
    assert scene.texts == ["abc"] and scene.dropped("odd byte") == 2


async def test_a_stranger_is_refused(scene: Scene) -> None:
    async with open_wearable(scene.mqtt, "stranger", speed=0) as stranger:
        with pytest.raises(NotFound, match="no tenant has a device 'stranger'"):
            await stranger.say(tones("abc"))
    assert scene.dropped("unknown device") >= 1 and not scene.heard


async def test_devices_do_not_hear_each_other(scene: Scene) -> None:
    said = {f"watch-{n}": utterance("abcd"[n] * 6, first_seq=n) for n in range(4)}
    for turn in zip(*said.values(), strict=True):
        for device, frame in zip(said, turn, strict=True):
            await scene.send([frame], device)
    await scene.until(lambda: len(scene.heard) == 4)
    assert {u.device_id: u.text for u in scene.heard} == {f"watch-{n}": "abcd"[n] * 6 for n in range(4)}
    assert all(u.device == TENANT.devices[u.device_id] and u.id.startswith(u.device_id) for u in scene.heard)


@pytest.mark.parametrize("numbered", [True, False])
async def test_a_whole_turn(scene: Scene, numbered: bool) -> None:
    async with open_wearable(scene.mqtt, "watch-1", chunk_ms=200, speed=20, numbered=numbered) as watch:
        for text in "abcde", "j", "edcba":
            turn = await watch.say(tones(text))
            assert turn.received and [r.meta.heard for r in turn.replies] == [text]
    assert len({u.id for u in scene.heard}) == 3


async def test_the_broker_restarts_in_the_middle(scene: Scene) -> None:
    async with connect_mqtt(scene.broker.url) as mqtt, open_wearable(mqtt, "watch-0", chunk_ms=100) as watch:
        saying = asyncio.create_task(watch.say(tones("abcdefghij" * 2)))
        await asyncio.sleep(0.7)
        await asyncio.to_thread(scene.broker.stop)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(scene.broker.start)
        turn = await saying
    assert scene.texts == ["abcdefghij" * 2] and scene.heard[0].lost_ms == 0
    assert len(turn.replies) == 1 and mqtt.connections >= 2


async def test_a_recogniser_that_stays_away(mqtt_broker: Any) -> None:
    "A final without text, all of whose sound was lost: the worker can be asked. Then it works again."
    async with (
        staged(mqtt_broker, BridgeConfig(patience_s=0.5)) as scene,
        open_wearable(scene.mqtt, "watch-0", chunk_ms=100, speed=5) as watch,
    ):
        await scene.speech.server.stop(0)
        with pytest.raises(Unavailable, match="speech service"):
            await watch.say(tones("abcdefghij"))
        assert [(u.text, u.lost_ms) for u in scene.heard] == [("", 1000)]
        await scene.speech.start()
        assert [r.meta.heard for r in (await watch.say(tones("cba"))).replies] == ["cba"]


async def test_the_recogniser_restarts_in_the_middle(scene: Scene) -> None:
    async with open_wearable(scene.mqtt, "watch-0", chunk_ms=100) as watch:
        saying = asyncio.create_task(watch.say(tones("abcdefghij")))
        await asyncio.sleep(0.5)
        await scene.speech.server.stop(0)
        await scene.speech.start()
        turn = await saying
    assert scene.texts == ["abcdefghij"] and len(turn.replies) == 1


async def test_cancelled_is_not_answered(scene: Scene) -> None:
    frames = utterance("abcdef")
    await scene.send(frames[:4])
    await scene.mqtt.publish("wearable/watch-0/control", b'{"kind": "cancel"}')
    await scene.send(frames[4:])
    await asyncio.sleep(0.8)
    assert not scene.heard
    await scene.send(utterance("fed", first_seq=106))
    await scene.until(lambda: scene.heard)
    assert scene.texts == ["fed"]


class Talker:
    "Answers in six parts, each a tenth of a second of its own level; the third and later ones when it `may`."

    def __init__(self, may: bool = True) -> None:
        self.made: list[int] = []
        self.may, self.closed = asyncio.Event(), asyncio.Event()
        if may:
            self.may.set()

    async def __call__(self, utterance: Utterance) -> AsyncGenerator[Reply, None]:
        try:
            for part in range(1, 7):
                if part > 2:
                    await self.may.wait()
                self.made.append(part)
                id = utterance.id + (f".{part}" if part > 1 else "")
                meta = ReplyMeta(utterance_id=id, heard=utterance.text, text="a lot", part=part)
                yield Reply(meta, write_wav(None, np.full(RATE // 10, part / 10, np.float32)))
        finally:
            self.closed.set()


@asynccontextmanager
async def listening(scene: Scene) -> AsyncIterator[tuple[Any, list[float]]]:
    "A watch with a speaker, and the level of each block that it plays."
    played: list[float] = []
    speaker = Speaker(lambda samples, rate: played.append(round(float(samples[0]), 1)))
    async with open_wearable(scene.mqtt, "watch-0", speed=0, speaker=speaker) as watch:
        yield watch, played


async def cut_in(scene: Scene, talker: Talker) -> None:
    "Once the bridge knows that somebody has cut in: what the talker makes now is not sent, and it is closed."
    await scene.until(lambda: scene.bridge.ears["watch-0"].cut_in > 1)
    talker.may.set()
    await asyncio.wait_for(talker.closed.wait(), 5)
    assert talker.made == [1, 2, 3] and scene.dropped("cut in") == 1


async def test_a_reply_in_parts_is_played_in_order_and_kept_whole(scene: Scene) -> None:
    scene.bridge.answer = Talker()
    async with listening(scene) as (watch, played):
        turn = await watch.say(tones("abc"))
        await scene.until(lambda: not watch.speaker.playing)
    (reply,) = turn.replies
    samples, rate = reply.sound()
    assert [round(float(x), 1) for x in samples[:: RATE // 10]] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert played == [level for level in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6) for _ in range(5)]
    assert reply.meta.size == len(reply.audio) and reply.meta.part == 1 and rate == RATE


async def test_to_a_watch_that_knows_of_no_parts_they_are_replies(scene: Scene) -> None:
    "It reads utterance_id, heard and text, and takes an id that it has had for a double."
    scene.bridge.answer = Talker()
    async with scene.mqtt.subscribe("wearable/watch-0/reply/meta", "wearable/watch-0/reply") as inbox:
        await scene.send(utterance("abc"))
        got = [await inbox.get(5) for _ in range(12)]
    metas = [msgspec.json.decode(m.payload) for m in got[::2]]
    assert len({m["utterance_id"] for m in metas}) == 6 and {m["heard"] for m in metas} == {"abc"}
    assert [m.topic for m in got] == ["wearable/watch-0/reply/meta", "wearable/watch-0/reply"] * 6
    assert all(m.payload[:4] == b"RIFF" for m in got[1::2])


async def test_the_wearer_cuts_in(scene: Scene) -> None:
    "Nothing more is played, sent or made; the turn ends, and the next reply is heard."
    scene.bridge.answer = talker = Talker(may=False)
    async with listening(scene) as (watch, played):
        saying = asyncio.create_task(watch.say(tones("abc")))
        await scene.until(lambda: played)
        await watch.interrupt()
        count = len(played)
        await cut_in(scene, talker)
        assert (await saying).finished
        await asyncio.sleep(0.1)
        assert len(played) == count < 10
        scene.bridge.answer = Talker()
        again = await watch.say(tones("cba"))
        await scene.until(lambda: not watch.speaker.playing)
    assert len(again.replies) == 1 and played[count:].count(0.6) == 5


@pytest.mark.parametrize("numbered", [True, False])
async def test_speaking_is_cutting_in(scene: Scene, numbered: bool) -> None:
    "A watch that knows of no `quiet` begins its next utterance; the reply that has begun ends there."
    scene.bridge.answer = talker = Talker(may=False)
    async with scene.mqtt.subscribe("wearable/watch-0/reply") as replies:
        await scene.send(utterance("abc"))
        await replies.get(5)
        if numbered:
            await scene.send(utterance("cd", first_seq=103)[:1])
        else:
            await scene.mqtt.publish("wearable/watch-0/control", b'{"kind": "start"}')
        await cut_in(scene, talker)


async def test_a_reply_that_has_not_begun_is_not_cut(scene: Scene) -> None:
    "It may be that of another order, and nobody has heard anything of it."
    async with scene.mqtt.subscribe("wearable/watch-0/reply") as replies:
        scene.bridge.answer = Talker()
        for _ in range(3):
            await scene.mqtt.publish("wearable/watch-0/control", b'{"kind": "quiet"}')
        await scene.send(utterance("abc"))
        assert [len((await replies.get(5)).payload) for _ in range(6)]
    assert scene.dropped("cut in") == 0


async def test_cutting_in_on_one_watch_leaves_the_others(scene: Scene) -> None:
    async with scene.mqtt.subscribe("wearable/watch-1/reply") as replies:
        scene.bridge.answer = talker = Talker(may=False)
        await scene.send(utterance("abc"), "watch-1")
        await replies.get(5)
        for _ in range(2):
            await scene.mqtt.publish("wearable/watch-0/control", b'{"kind": "quiet"}')
        await scene.until(lambda: (ear := scene.bridge.ears.get("watch-0")) and ear.cut_in == 2)
        talker.may.set()
        assert [len((await replies.get(5)).payload) for _ in range(5)] and talker.made[-1] == 6


async def test_a_device_that_vanishes_causes_nothing(mqtt_broker: Any) -> None:
    config = BridgeConfig(order=OrderConfig(hold_ms=200), gone_ms=300)
    async with staged(mqtt_broker, config) as scene:
        await scene.send(utterance("abcdef")[:4])
        await scene.until(lambda: scene.bridge.ears and not scene.bridge.ears["watch-0"].talks)
        assert not scene.heard


async def test_no_bridge_there(mqtt_broker: Any) -> None:
    async with connect_mqtt(mqtt_broker.url) as mqtt, open_wearable(mqtt, "watch-0", speed=0) as watch:
        with pytest.raises(TimedOut, match="1 of 1 sent"):
            await watch.say(tones("ab"), timeout_s=0.3)


def folded(frames: Sequence[Frame]) -> list[Step]:
    state, steps = Order(), []
    for now_ms, frame in enumerate(frames):
        state, more = order_step(state, frame, now_ms, OrderConfig(hold_ms=10_000))
        steps += more
    return steps


@given(st.integers(1, 12), st.integers(0, 2**32 - 1), st.randoms(), st.data())
def test_any_order_and_any_doubles_give_the_same_stream(n: int, first: int, chance: Any, data: Any) -> None:
    frames = [
        Frame(seq=(first + i) % 2**32, start=i == 0, end=i == n - 1, payload=bytes([i, 0])) for i in range(n)
    ]
    mixed = [*frames, *data.draw(st.lists(st.sampled_from(frames), max_size=6))]
    chance.shuffle(mixed)
    useful = [s for s in folded(mixed) if isinstance(s, Begin | Sound | End | Lost)]
    assert useful == [Begin(RATE), *(Sound(f.payload) for f in frames), End()]


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), max_size=60))
def test_whatever_comes_sound_lies_between_a_begin_and_an_end(numbers: list[tuple[int, bool, bool]]) -> None:
    "Random starts, ends and numbers, with time passing: never sound outside a stream, never two at once."
    state, opened = Order(), False
    ticks: Iterator[int] = itertools.count(0, 500)
    for seq, start, end in numbers:
        frame = Frame(seq=seq, start=start, end=end, payload=bytes([seq, start]))
        for item in (frame, None):
            state, steps = order_step(state, item, next(ticks), OrderConfig(hold_ms=1000, ahead=20))
            for step in steps:
                match step:
                    case Begin():
                        assert not opened
                        opened = True
                    case End():
                        assert opened
                        opened = False
                    case Sound() | Lost():
                        assert opened
                    case Dropped(reason):
                        assert reason
        assert opened == state.open and len(state.held) <= 22
