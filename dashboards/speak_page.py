"""Speak: say something to a watch, and see what becomes of it: heard, understood, decided, done, said."""

import atexit
import csv
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pieces
import streamlit as st
from msgspec.structs import replace

from voxrec.config import Settings, Tenant, TenantBook, load_settings
from voxrec.errors import VoxrecError

if TYPE_CHECKING:  # these and what they need take seconds: they are imported once the page is to be seen
    from voxrec.serve.edge import Said, Site
    from voxrec.voice.audio import Samples
    from voxrec.voice.endpoint import Vad
    from voxrec.voice.intent import Understood
    from voxrec.voice.speak import Voice
    from voxrec.voice.turn import Turned

CLIPS = Path(__file__).resolve().parent.parent / "data_samples"
LONGEST_S = 30
SOURCES = ("Sample", "Upload", "Record", "Type")
KINDS = {
    "act": ("good", "Do it"),
    "confirm": ("ask", "Ask first"),
    "cloud": ("off", "Not for this site"),
    "ignore": ("off", "Do nothing"),
}


@dataclass(frozen=True)
class Exchange:
    "Something said to a device, and what came of it. `partials`: seconds after the first sound, and text."

    what: str
    device_id: str
    seconds: float
    partials: list[tuple[float, str]]
    said: "Said"


def close(opened: "tuple[Any, Site]") -> None:
    with suppress(RuntimeError):  # an interpreter that ends starts no more threads
        opened[0].__exit__(None, None, None)


OPENING = "Opening recogniser, bridge and voice ..."


@st.cache_resource(hash_funcs={Settings: repr}, show_spinner=OPENING, on_release=close)
def open_site(settings: Settings) -> "tuple[Any, Site]":
    "A site with what the settings name, and the rest of it started here; open as long as this process."
    from voxrec.serve.edge import running_site

    running = running_site(settings, voice=open_voice(settings))
    return running, running.__enter__()


atexit.register(open_site.clear)


@st.cache_resource(hash_funcs={Settings: repr}, show_spinner=False)
def open_voice(settings: Settings) -> "Voice":
    from voxrec.voice.speak import open_voice

    return open_voice(str(settings.piper_voice) if settings.piper_voice else None)


@st.cache_resource(show_spinner=False)
def open_vad() -> "Vad":
    from voxrec.voice.endpoint import Vad

    return Vad()


@st.cache_resource(show_spinner=False)
def mouth(device_id: str) -> threading.Lock:
    "Two visitors do not speak into one watch at once."
    return threading.Lock()


@st.cache_data(hash_funcs={Settings: repr}, show_spinner=False, max_entries=50)
def pronounced(settings: Settings, text: str) -> "Samples":
    "The voice says it, as a watch records it."
    from voxrec.demo.voice_story import recorded

    return recorded(open_voice(settings), text)


def show(mqtt_url: str, speech_url: str) -> None:
    st.title("Say it to the watch")
    try:
        settings = load_settings()
        settings = replace(
            settings,
            tenants=settings.tenants or CLIPS / "tenants",
            mqtt_url=mqtt_url or settings.mqtt_url,
            speech_url=speech_url or settings.speech_url,
        )
        page(settings, TenantBook(settings.tenants))
    except VoxrecError as e:
        pieces.problem(e.message, e.hint)
        if e.retryable:
            st.button("Try again", on_click=st.session_state.update, args=(st.session_state.pop("now", {}),))


def page(settings: Settings, book: TenantBook) -> None:
    for problem in book.problems.values():
        pieces.problem("A tenant's file cannot be used.", problem)
    devices = {id: (tenant, tenant.devices[id]) for tenant in book.tenants.values() for id in tenant.devices}
    if not devices:
        return pieces.problem("No tenant has a device.", f"Name one under [devices] in {book.folder}.")
    left, right = st.columns([3, 2])
    device_id = right.selectbox("Into the watch of", devices, format_func=lambda id: worn(id, *devices[id]))
    with left:
        source = st.segmented_control("What is said", SOURCES, default=SOURCES[0], required=True)
        sound, what = chosen(source)
    samples = read(sound, what) if sound is not None else None
    if samples is not None and sound is not None:
        right.markdown(":small[Hear it]")
        right.audio(sound)
        draw_wave(samples)
    mute = samples is None and source != "Type"
    if st.button("Speak", type="primary", icon=":material/mic:", disabled=mute):
        st.session_state.say = (what, device_id, samples)
    listen(settings, book)
    return None


def worn(device_id: str, tenant: Tenant, device: Any) -> str:
    return " · ".join(filter(None, (device.worker, device_id, device.zone, tenant.id)))


def chosen(source: str) -> tuple[Path | bytes | None, str]:
    "What is to be said: its file, if there is one, and its name."
    if source == "Type":
        text = st.text_input(
            "A voice says", "We need the cleaning team and security at dock two.", max_chars=200
        )
        return None, text.strip()
    if source == "Sample":
        clips = clips_of(CLIPS / "clips.tsv")
        what = st.selectbox("Sample", clips)
        return CLIPS / f"{clips[what]}.wav", what
    if source == "Upload":
        hint = f"any format that FFmpeg reads, up to {LONGEST_S} s"
        file = st.file_uploader(f"A sound file: {hint}", max_upload_size=50)
        what = file.name if file is not None else ""
    else:
        file = st.audio_input(f"Your voice, up to {LONGEST_S} s", sample_rate=16_000)
        what = "What was recorded"
    return (file.getvalue(), what) if file is not None else (None, "")


def read(sound: Path | bytes, what: str) -> "Samples | None":
    "The sound in a file; a file without one is told."
    from voxrec.voice.audio import read_audio

    try:
        return read_audio(sound, max_s=LONGEST_S)
    except VoxrecError as e:
        pieces.problem(f"{what}: {e.message}", e.hint)
        return None


def clips_of(table: Path) -> dict[str, str]:
    "The sample clips: what is said in them, and their names."
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    noise = " (in noise)"
    return {(r["says"] or r["clip"].capitalize()) + noise * bool(r["snr_db"]): r["clip"] for r in rows}


def draw_wave(samples: "Samples") -> None:
    "The loudest and the lowest sample of each stretch, over what Silero takes for speech."
    from voxrec.voice.audio import RATE
    from voxrec.voice.endpoint import utterances

    width = max(1, len(samples) // 500)
    stretches = [samples[i : i + width] for i in range(0, len(samples), width)]
    wave = [
        {"s": round(i * width / RATE, 4), "high": round(float(s.max()), 4), "low": round(float(s.min()), 4)}
        for i, s in enumerate(stretches)
    ]
    end = len(samples) / RATE
    cuts = [0.0, *(ms / 1000 for u in utterances(samples, open_vad()) for ms in (u.start_ms, u.end_ms)), end]
    bands = [
        {"from": a, "to": b, "what": ("silence", "speech")[i % 2]}
        for i, (a, b) in enumerate(pairwise(cuts))
        if b > a
    ]
    spoken = ", ".join(f"{b['from']:.1f} to {b['to']:.1f} s" for b in bands if b["what"] == "speech")
    st.vega_lite_chart(
        wave_chart(wave, bands, end), alt=f"Waveform of {end:.1f} s, speech: {spoken or 'none'}"
    )


def wave_chart(wave: list[dict[str, float]], bands: list[dict[str, Any]], end: float) -> dict[str, Any]:
    time_axis = {"title": None, "grid": False, "labelExpr": "datum.label + ' s'", "tickCount": 8}
    colour = {
        "field": "what",
        "type": "nominal",
        "scale": {"domain": ["speech", "silence"], "range": ["#0f9d8a", "#8a8f98"]},
        "legend": {"orient": "top", "title": None, "symbolOpacity": 0.5},
    }
    loudest = max([0.05, *(abs(w[side]) for w in wave for side in ("high", "low"))])
    scale = {"domain": [-loudest, loudest], "nice": False}
    amplitude = {"field": "high", "type": "quantitative", "axis": None, "scale": scale}
    x = {"type": "quantitative", "axis": time_axis, "scale": {"domain": [0, end], "nice": False}}
    return {
        "height": 190,
        "layer": [
            {
                "data": {"values": bands},
                "mark": {"type": "rect", "opacity": 0.18},
                "encoding": {"x": x | {"field": "from"}, "x2": {"field": "to"}, "color": colour},
            },
            {
                "data": {"values": wave},
                "mark": {"type": "area", "color": "#3d6f8e", "interpolate": "monotone"},
                "encoding": {"x": x | {"field": "s"}, "y": amplitude, "y2": {"field": "low"}},
            },
        ],
    }


def listen(settings: Settings, book: TenantBook) -> None:
    "Say what is to be said, and show what came of it."
    state, place = st.session_state, st.empty()
    if "say" in state:
        what, device_id, samples = state.pop("say")
        state.now = {"say": (what, device_id, samples)}  # for another try
        _, site = open_site(settings)
        if samples is None:
            samples = pronounced(settings, what)
        state.exchange, state.fresh = speak(site, what, device_id, samples, place), True
        state.pop("now")
    if "exchange" in state:
        with place.container():
            draw(state.exchange, book, state.pop("fresh", False))
    else:
        place.html(f'<div class="vx">{pieces.steps(waiting())}</div>')
        open_site(settings)  # while the visitor looks around


def waiting(text: str = "", detail: str = "") -> list[tuple[str, str, str, str]]:
    names = ("Heard", "Understood", "Decided", "Done", "Said")
    heard = [("Heard", "good", text, detail)] if detail else []
    return heard + [(name, "off", "–", "") for name in names[len(heard) :]]


def speak(site: "Site", what: str, device_id: str, samples: "Samples", place: Any) -> Exchange:
    "In real time, as a person would; the text so far is shown meanwhile."
    from voxrec.voice.audio import RATE

    partials: list[tuple[float, str]] = []
    began = time.perf_counter()

    def heard(text: str) -> None:
        partials.append((time.perf_counter() - began, text))

    with mouth(device_id), ThreadPoolExecutor(1) as pool:
        began = time.perf_counter()
        saying = pool.submit(site.say, device_id, samples, speed=1.0, partial=heard)
        while not saying.done():
            text = f"{partials[-1][1]} …" if partials else "…"
            place.html(f'<div class="vx">{pieces.steps(waiting(text, "listening"))}</div>')
            time.sleep(0.1)
    return Exchange(what, device_id, len(samples) / RATE, partials, saying.result())


def draw(exchange: Exchange, book: TenantBook, fresh: bool) -> None:
    tenant, device = book.of_device(exchange.device_id)
    st.subheader(f"{device.worker or exchange.device_id} said: {exchange.what}", anchor=False)
    turns = exchange.said.turns
    if not turns:
        heard = ("Heard", "off", "No speech", f"in {exchange.seconds:.1f} s of sound")
        pieces.html(pieces.steps([heard, *waiting()[1:]]))
        st.info("Nobody was heard to speak, so nothing happens.", icon=":material/hearing_disabled:")
    for turned in turns:
        pieces.html(pieces.steps(cards(exchange, turned)))
        reply = next((r for r in exchange.said.replies if r.meta.utterance_id == turned.heard.id), None)
        if reply is not None:
            st.audio(reply.audio, autoplay=fresh and turned is turns[-1])
        if turned is turns[-1]:
            answers(exchange.device_id, turned)
        details(exchange, turned, tenant)


def cards(exchange: Exchange, turned: "Turned") -> list[tuple[str, str, str, str]]:
    "The five steps of a turn: name, state, text, detail."
    heard, understood, decision = turned.heard, turned.understood, turned.decision
    after_s = exchange.said.seconds - exchange.seconds
    slots = [f"{s.name}: {s.text}" for s in understood.slots] if understood else []
    state, kind = KINDS[decision.kind]
    hearing = "ask" if decision.reason in ("unclear", "hearing") else "good"
    return [
        ("Heard", hearing, heard.text or "Nothing", f"{heard.confidence:.2f} sure"),
        ("Understood", "good", understood.intent.replace("_", " ").capitalize(),
         " · ".join([f"{understood.confidence:.2f} sure", *slots]))
        if understood else ("Understood", "off", "–", ""),
        ("Decided", state, kind, decision.why),
        done_card(turned),
        ("Said", "good", turned.reply, f"{after_s:.1f} s after the last sound")
        if turned.reply else ("Said", "off", "Nothing", ""),
    ]  # fmt: skip


def done_card(turned: "Turned") -> tuple[str, str, str, str]:
    from voxrec.voice.turn import describe, sentence

    action, outcome = turned.decision.action, turned.outcome
    if action is None or outcome is None:
        return ("Done", "off", "Nothing", "no message was sent")
    what = sentence(describe(action))
    if outcome.status == "done":
        return ("Done", "good", what, f"acknowledged after {1000 * outcome.seconds:.0f} ms")
    return ("Done", "bad", f"Not done: {what}", outcome.detail or outcome.status)


def answers(device_id: str, turned: "Turned") -> None:
    "What can be said to it now, as buttons that a voice says into the same watch, as long as it waits."
    from voxrec.voice.actions import WAYS
    from voxrec.voice.turn import ASK_MS, UNDO_MS

    decision, outcome = turned.decision, turned.outcome
    if decision.kind == "confirm":
        said = ["Yes.", "No."] if decision.asks == "yes" else [f"{c}." for c in decision.candidates]
        offer_until(device_id, said, turned.heard.ts + ASK_MS, "The watch waits for an answer")
    elif outcome and outcome.status == "done" and decision.action and WAYS[decision.action.kind].undoable:
        offer_until(device_id, ["No, cancel that."], turned.heard.ts + UNDO_MS, "It can be called off")


def offer_until(device_id: str, said: list[str], until_ms: int, why: str) -> None:
    if time.time() * 1000 < until_ms:
        offer(device_id, said, until_ms, why)
    else:
        st.caption(f"{why} no longer.")


@st.fragment(run_every=1.0)
def offer(device_id: str, said: list[str], until_ms: int, why: str) -> None:
    "Counts down."
    left_s = until_ms / 1000 - time.time()
    if left_s <= 0:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        for text in said:
            if st.button(text.rstrip("."), key=f"answer-{text}-{until_ms}"):
                st.session_state.say = (text, device_id, None)
                st.rerun()
        st.caption(f"{why}: {left_s:.0f} s" + ("" if said else ". Choose Type, or record one"))


def details(exchange: Exchange, turned: "Turned", tenant: Tenant) -> None:
    "Why, and what exactly went over the wires."
    from voxrec.voice.decide import HEARING, limits_of

    heard, understood, decision = turned.heard, turned.understood, turned.decision
    hearing = limits_of(HEARING, tenant)
    known = heard.words or ((heard.text, heard.confidence),)
    left, right = st.columns(2)
    with left.container(border=True, height="stretch"):
        pieces.html(
            pieces.title("Heard, as it came"),
            pieces.times([(f"{s:.1f} s", text) for s, text in exchange.partials]),
            pieces.words(known, hearing.confirm),
            pieces.bar("hearing", heard.confidence, hearing.act, hearing.confirm, True),
            pieces.KEY,
        )
    with right.container(border=True, height="stretch"):
        pieces.html(pieces.title("Understood"), *(meaning(understood, tenant) if understood else ["–"]))
    left, right = st.columns(2)
    with left.container(border=True, height="stretch"):
        why = pieces.said(KINDS[decision.kind][1], decision.why)
        rows = pieces.times(times(exchange, turned))
        pieces.html(pieces.title("Decided, and why"), why, pieces.title("How long it took"), rows)
    with right.container(border=True, height="stretch"):
        pieces.html(pieces.title("Done: what the floor was told over MQTT"))
        mine = decision.action.id if decision.action else ""
        told = [call for call in exchange.said.calls if call[1]["id"] == mine]
        for topic, message in told:
            st.code(f"{topic}\n{json.dumps(message, indent=2)}", language="json", wrap_lines=True)
        if not told:
            st.text("No message.")


def times(exchange: Exchange, turned: "Turned") -> list[tuple[str, str]]:
    rows = [
        (f"{exchange.seconds:.1f} s", "of sound, said in real time"),
        (f"{exchange.said.seconds - exchange.seconds:.1f} s", "from the last sound to the end of the turn"),
        (f"{1000 * turned.seconds:.0f} ms", "of it to understand, decide and do"),
    ]
    if turned.outcome:
        rows.append((f"{1000 * turned.outcome.seconds:.0f} ms", "of these for the floor to acknowledge"))
    return rows


def meaning(understood: "Understood", tenant: Tenant) -> list[str]:
    "The text with its slots, and the best intents' scores against the tenant's limits for them."
    from voxrec.voice.decide import limits_of
    from voxrec.voice.intent import GENERAL

    drawn = [pieces.marked(understood.text, [(s.start, s.end, s.name) for s in understood.slots])]
    for intent, score in sorted(understood.scores.items(), key=lambda known: -known[1])[:5]:
        limits = None if intent == GENERAL else limits_of(intent, tenant)
        act, confirm = (limits.act, limits.confirm) if limits else (None, None)
        name = intent.replace("_", " ").lower()
        drawn.append(pieces.bar(name, score, act, confirm, intent == understood.intent))
    return [*drawn, pieces.KEY, f"<small>out of scope: {understood.out_of_scope:.2f}</small>"]
