"""From a watch to the board and back, while parts of the site die, and with two tenants on one broker."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from voxrec.config import Settings
from voxrec.errors import NotFound, TimedOut, Unavailable
from voxrec.mqtt import MqttClient, connect_mqtt, embedded_broker, free_port
from voxrec.serve.bridge import BridgeConfig, OrderConfig
from voxrec.serve.edge import Site, run_edge, run_on, running_site
from voxrec.serve.speech import running_speech
from voxrec.voice.actions import open_board
from voxrec.voice.audio import RATE, Samples, pack_frame, read_audio, write_wav
from voxrec.voice.device import frames_of, open_wearable
from voxrec.voice.speak import sentences
from voxrec.voice.transcribe import Recognizer, Transcript

DATA = Path(__file__).parent.parent / "data_samples"
CLIP = read_audio(DATA / "summon_maintenance.wav")
NORTH = """
prompt = "Warehouse: dock 7, maintenance."
places = ["dock 7"]
[devices.north-1]
zone = "aisle 12"
[devices.north-2]
zone = "dock 7"
[[people]]
name = "Maria Lopez"
sip = "sip:maria@example.com"
[[teams]]
name = "maintenance"
"""
SOUTH = """
places = ["gate 1"]
[devices.south-1]
zone = "gate 1"
[[people]]
name = "Tom Becker"
sip = "sip:tom@example.com"
[[teams]]
name = "security"
"""
FAST = BridgeConfig(order=OrderConfig(hold_ms=300), patience_s=30)


class Prompter(Recognizer):
    "Hears in any speech what it is told to."

    text, confidence = "Send maintenance to dock 7.", 0.95

    def transcribe(
        self, samples: Samples, *, prompt: str = "", hotwords: Sequence[str] = (), words: bool = False
    ) -> Transcript:
        return Transcript(text=self.text, confidence=self.confidence, duration_s=len(samples) / RATE)


class Beep:
    "The shortest voice: ten milliseconds a sentence."

    name = "beep"

    def __init__(self) -> None:
        self.said: list[str] = []

    def speak(self, text: str) -> tuple[Samples, int]:
        return np.concatenate([samples for samples, _ in self.stream(text)]), RATE

    def stream(self, text: str) -> Iterator[tuple[Samples, int]]:
        for sentence in sentences(text):
            self.said.append(sentence)
            yield np.zeros(160, np.float32), RATE


@pytest.fixture
def tenants(tmp_path: Path) -> Path:
    (tmp_path / "north.toml").write_text(NORTH)
    (tmp_path / "south.toml").write_text(SOUTH)
    return tmp_path


@pytest.fixture
def prompter() -> Prompter:
    return Prompter()


@pytest.fixture
def site(tenants: Path, prompter: Prompter) -> Iterator[Site]:
    with running_site(Settings(tenants=tenants), recognizer=prompter, voice=Beep(), config=FAST) as site:
        yield site


def meanwhile(after_s: float, call: Callable[[], object]) -> threading.Thread:
    "Do something else while somebody speaks."
    thread = threading.Thread(target=lambda: (time.sleep(after_s), call()))
    thread.start()
    return thread


class Service:
    "`voxrec serve` as a process of its own, killed as a power cut would."

    def __init__(self, name: str, **settings: object):
        self.name, self.settings = name, {f"VOXREC_{k.upper()}": str(v) for k, v in settings.items()}

    def start(self) -> None:
        env = os.environ | {"OMP_NUM_THREADS": "1"} | self.settings
        code = "from voxrec.cli import app; app()"
        self.process = subprocess.Popen([sys.executable, "-c", code, "serve", self.name], env=env)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def again(self) -> None:
        self.kill()
        self.start()


@pytest.fixture
def speech() -> Iterator[Service]:
    "The speech service with tiny.en, on a port that it keeps."
    service = Service("speech", host="127.0.0.1", speech_port=free_port())
    service.start()
    with grpc.insecure_channel(target_of(service)) as channel:
        grpc.channel_ready_future(channel).result(60)
    yield service
    service.kill()


def target_of(service: Service) -> str:
    return f"127.0.0.1:{service.settings['VOXREC_SPEECH_PORT']}"


def test_the_speech_service_is_killed_in_the_middle_of_a_sentence(tenants: Path, speech: Service) -> None:
    settings = Settings(tenants=tenants, speech_url=target_of(speech))
    with running_site(settings, voice=Beep(), config=FAST) as site:
        killing = meanwhile(1.5, speech.again)
        said = site.say("north-1", CLIP, speed=1.0)
        killing.join()
        undisturbed = site.say("north-2", CLIP)
    texts = [t.heard.text for t in said.turns]
    assert texts == [t.heard.text for t in undisturbed.turns] == ["Send maintenance to dock 7."]
    assert [(c[1]["team"], c[1]["location"]) for c in said.calls] == [("maintenance", "dock 7")]
    assert len(said.replies) == 1


def test_a_speech_service_that_stays_dead_is_told_by_voice(tenants: Path, speech: Service) -> None:
    "The worker is asked to say it again, nothing is done; and when it is back, it works."
    settings = Settings(tenants=tenants, speech_url=target_of(speech))
    with running_site(settings, voice=Beep(), config=BridgeConfig(patience_s=1)) as site:
        killing = meanwhile(1.5, speech.kill)
        with pytest.raises(Unavailable, match="speech service"):
            site.say("north-1", CLIP, speed=1.0)
        killing.join()
        assert [t.reply for t in site.turned] == ["Sorry, I did not catch that. Please say it again."]
        assert not site.board.calls
        speech.start()
        with grpc.insecure_channel(target_of(speech)) as channel:
            grpc.channel_ready_future(channel).result(60)
        assert len(site.say("north-1", CLIP).calls) == 1


def test_the_broker_is_killed_in_the_middle_of_a_sentence(
    tenants: Path, prompter: Prompter, mqtt_broker: Any
) -> None:
    "Early, in the middle, and while it is recognised: each order is carried out once, and answered."

    def restart() -> None:
        mqtt_broker.stop()
        time.sleep(0.3)
        mqtt_broker.start()

    settings = Settings(tenants=tenants, mqtt_url=mqtt_broker.url)
    with running_site(settings, recognizer=prompter, voice=Beep(), config=FAST) as site:
        for after_s in (0.1, 1.0, len(CLIP) / RATE + 0.05):
            restarting = meanwhile(after_s, restart)
            said = site.say("north-1", CLIP, speed=1.0)
            restarting.join()
            assert [t.heard.lost_ms for t in said.turns] == [0] and len(said.replies) == 1, after_s
            assert [t.outcome and t.outcome.status for t in said.turns] == ["done"], after_s
            assert len(site.say("north-2", CLIP).calls) == 1  # and so it goes on
        assert [c[0] for c in site.board.calls] == ["team/summon"] * 6


def test_the_bridge_is_killed_in_the_middle_of_a_sentence(
    tenants: Path, prompter: Prompter, mqtt_broker: Any, tmp_path: Path
) -> None:
    "The device says it again to the next bridge: one call, and one reply."

    async def up(mqtt: MqttClient) -> None:
        async with mqtt.subscribe("wearable/south-1/state") as states:
            while True:
                await mqtt.publish("wearable/south-1/control", b'{"kind": "hello"}')
                with suppress(TimedOut):
                    await states.get(0.2)
                    return

    async def life(bridge: Service) -> None:
        async with (
            connect_mqtt(mqtt_broker.url) as mqtt,
            open_board(mqtt) as board,
            open_wearable(mqtt, "north-1") as watch,
            asyncio.timeout(120),
        ):
            bridge.start()
            await up(mqtt)
            saying = asyncio.create_task(watch.say(CLIP, timeout_s=60))
            await asyncio.sleep(1.5)
            await asyncio.to_thread(bridge.again)
            assert len((await saying).replies) == len(board.calls) == 1
            await watch.say(CLIP, timeout_s=60)
            assert [call["device_id"] for _, call in board.calls] == ["north-1", "north-1"]

    with running_speech(prompter) as target:
        bridge = Service(
            "bridge",
            mqtt_url=mqtt_broker.url,
            tenants=tenants,
            speech_url=target,
            home=tmp_path / "home",
            piper_voice="hibari",
        )
        try:
            asyncio.run(life(bridge))
        finally:
            bridge.kill()


def test_files_that_are_no_sound_through_a_watch(site: Site, prompter: Prompter) -> None:
    "As raw messages and behind a header: a WAV without sound, one cut in the middle, text, noise, nothing."
    wav = write_wav(None, CLIP)
    noise = np.random.default_rng(0).bytes(40_001)
    files = [wav[:44], wav[:5_001], b"RIFF" + bytes(40), b"Dear Sir or Madam", noise, wav[44:9_000:2], b""]
    prompter.text = "zzz"

    async def send_all() -> None:
        async with connect_mqtt(site.mqtt_url) as mqtt:
            for file in files:
                for part in ("audio", "audio/v1", "control"):
                    await mqtt.publish(f"wearable/north-1/{part}", file)
                await mqtt.publish("wearable/north-1/control", b'{"kind": "end"}')

    run_on(site.loop, send_all())
    for device in ("north-2", "north-1"):
        time.sleep(0.5)
        prompter.text = Prompter.text
        assert [c[0] for c in site.say(device, CLIP).calls] == ["team/summon"]
    assert len(site.board.calls) == 2


def test_a_stranger_is_refused(site: Site) -> None:
    with pytest.raises(NotFound, match="west-1"):
        site.say("west-1", CLIP)
    assert not site.turned and not site.board.calls
    assert site.say("north-1", CLIP).calls


def test_no_place_said_is_the_zone_of_the_device(site: Site, prompter: Prompter) -> None:
    prompter.text = "Send maintenance."
    for device, zone in (("north-1", "aisle 12"), ("north-2", "dock 7")):
        said = site.say(device, CLIP)
        assert [c[1]["location"] for c in said.calls] == [zone] and zone in said.turns[0].reply


def test_a_loss_is_asked_about_and_never_acted_on(site: Site, prompter: Prompter) -> None:
    frames = frames_of(CLIP, 100, 40)

    async def with_a_gap() -> None:
        async with connect_mqtt(site.mqtt_url) as mqtt:
            for frame in frames[:8] + frames[10:]:
                await mqtt.publish("wearable/north-1/audio/v1", pack_frame(frame))
            async with asyncio.timeout(10):
                while not site.turned:
                    await asyncio.sleep(0.02)

    run_on(site.loop, with_a_gap())
    (turned,) = site.turned
    assert turned.heard.lost_ms == 200 and (turned.decision.kind, turned.decision.reason) == (
        "confirm",
        "hearing",
    )
    assert turned.reply == "Shall I call maintenance to dock 7?" and not site.board.calls
    prompter.text = "Yes."
    assert [c[1]["location"] for c in site.say("north-1", CLIP).calls] == ["dock 7"]


def test_a_reply_of_two_sentences_is_one_at_the_watch(site: Site, prompter: Prompter) -> None:
    prompter.text = "Emergency stop!"
    said = site.say("north-1", CLIP)
    (reply,) = said.replies
    assert reply.meta.text == "Emergency stop requested for aisle 12. Say cancel to call it off."
    assert len(reply.sound()[0]) == 320 and reply.meta.utterance_id == said.turns[0].heard.id


def test_usual_replies_are_made_before_anybody_speaks(tenants: Path, prompter: Prompter) -> None:
    voice, usual = Beep(), "Maintenance has been called to aisle 12."
    with running_site(Settings(tenants=tenants), recognizer=prompter, voice=voice, config=FAST) as site:
        ends = time.monotonic() + 10
        while not ("Security has been called to gate 1." in voice.said and usual in voice.said):
            assert time.monotonic() < ends, voice.said
            time.sleep(0.02)
        prompter.text = "Send maintenance."
        assert site.say("north-1", CLIP).turns[0].reply == usual
    assert voice.said.count(usual) == 1


def test_a_tenant_knows_only_its_own(site: Site, prompter: Prompter) -> None:
    "Names, zones and ids of one tenant mean nothing on the device of another."
    prompter.text = "Call Maria Lopez."
    assert site.say("north-1", CLIP).turns[0].decision.kind == "act"
    assert site.say("south-1", CLIP).turns[0].decision.reason == "unknown"
    prompter.text = "Send maintenance to dock 7."
    assert site.say("south-1", CLIP).calls == []
    prompter.text = "Emergency stop!"
    ((_, told),) = site.say("south-1", CLIP).calls
    assert (told["tenant"], told["zone"], told["device_id"]) == ("south", "gate 1", "south-1")


def test_nobody_answers_or_calls_off_for_another_tenant(site: Site, prompter: Prompter) -> None:
    prompter.confidence = 0.5
    assert site.say("north-1", CLIP).turns[0].decision.kind == "confirm"
    prompter.text, prompter.confidence = "Yes.", 0.95
    for device in ("south-1", "north-2"):
        assert site.say(device, CLIP).turns[0].decision.reason == "nothing_pending"
    assert not site.board.calls
    assert len(site.say("north-1", CLIP).calls) == 1
    prompter.text = "Cancel that."
    assert site.say("south-1", CLIP).turns[0].decision.reason == "nothing_pending"
    assert len(site.board.calls) == 1


def test_another_device_hears_nothing_of_it(site: Site) -> None:
    async def overhear() -> None:
        async with connect_mqtt(site.mqtt_url) as mqtt, mqtt.subscribe("wearable/south-1/#") as messages:
            await asyncio.to_thread(site.say, "north-1", CLIP)
            await messages.get(0.2)

    with pytest.raises(TimedOut):
        asyncio.run(overhear())


def test_the_bridge_as_a_process_runs_it(tenants: Path, prompter: Prompter, tmp_path: Path) -> None:
    "From the settings, with an audit log; a new device in a tenant's file is known without a restart."
    home = tmp_path / "home"

    async def life(settings: Settings) -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(run_edge(settings, stop))
        async with (
            connect_mqtt(settings.mqtt_url or "", timeout_s=30) as mqtt,  # models load on this loop meanwhile
            open_board(mqtt) as board,
            open_wearable(mqtt, "south-2", speed=0) as watch,
            asyncio.timeout(60),
        ):
            (tenants / "south.toml").write_text(SOUTH + '[devices.south-2]\nzone = "gate 1"\n')
            prompter.text = "Emergency stop!"
            while not board.calls:
                with suppress(NotFound, TimedOut):
                    await watch.say(CLIP, timeout_s=5)
                await asyncio.sleep(0.2)
        stop.set()
        await asyncio.wait_for(running, 10)
        assert board.calls[0][1]["zone"] == "gate 1"

    with embedded_broker() as url, running_speech(prompter) as target:
        asyncio.run(life(Settings(tenants=tenants, mqtt_url=url, speech_url=target, home=home)))
    assert b'"kind":"stop"' in (home / "audit.jsonl").read_bytes()
