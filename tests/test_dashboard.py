"The pages, run as Streamlit runs them, against the real services that they start."

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from voxrec.mqtt import free_port
from voxrec.serve.speech import running_speech
from voxrec.voice.audio import RATE, Samples, write_wav
from voxrec.voice.transcribe import Recognizer, Transcript

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "dashboards/app.py"
ALONE = """
import sys
sys.path.insert(0, {folder!r})
import {page}
{page}.show({urls})
"""


def alone(page: str, *urls: str) -> AppTest:
    "A page without the navigation, which AppTest cannot use."
    code = ALONE.format(folder=str(PAGE.parent), page=page, urls=", ".join(map(repr, urls)))
    return AppTest.from_string(code, default_timeout=90)


def texts(page: AppTest) -> list[str]:
    return [m.value for m in page.markdown]


def drawn(page: AppTest) -> str:
    return "".join(h.proto.body for h in page.get("html"))


def press(page: AppTest, label: str) -> AppTest:
    shown = next(b for b in page.button if b.label == label).click().run()
    assert not shown.exception
    return shown


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    "What the pages have opened."
    yield
    st.cache_resource.clear()


@pytest.fixture(scope="module")
def shop() -> AppTest:
    shown = alone("shop_page", "").run()
    assert not shown.exception and not shown.error
    return shown


@pytest.fixture
def speak() -> AppTest:
    shown = AppTest.from_file(str(PAGE), default_timeout=90).run()  # it is the first page
    assert not shown.exception and not shown.error
    return shown


def test_cards_say_why(shop: AppTest) -> None:
    assert len([b for b in shop.button if b.label == "Look"]) == 8
    assert any("sells well" in text for text in texts(shop))


def test_a_look_changes_the_list_and_a_sale_leads_it(shop: AppTest) -> None:
    looks = [b for b in shop.button if b.label == "Look"]
    shop = looks[1].click().run()
    assert not shop.exception and "looked at" in shop.success[0].value
    assert any("others went on to it" in text for text in texts(shop))
    sale = [b for b in shop.button if b.label == "Flash sale"][5]
    master = sale.key.removeprefix("Flash sale-")
    shop = sale.click().run()
    assert not shop.exception
    assert next(b for b in shop.button if b.label == "Look").key == f"look-{master}"
    assert any("flash sale +2.0" in text for text in texts(shop))


def test_a_shop_that_is_gone_is_told() -> None:
    shown = alone("shop_page", "http://127.0.0.1:9").run()
    assert not shown.exception and "does not answer" in shown.error[0].value
    assert [b.label for b in shown.button] == ["Try again"]


def test_a_command_is_heard_understood_decided_done_and_said(speak: AppTest) -> None:
    speak = press(speak, "Speak")
    for part in (
        "Send maintenance to dock 7.",
        "Summon team",
        "Do it",
        "acknowledged after",
        "has been called",
    ):
        assert part in drawn(speak), part
    assert speak.code[0].value.startswith("team/summon") and '"location": "dock 7"' in speak.code[0].value
    assert len(speak.get("audio")) == 2  # what was said, and the reply


def test_a_doubtful_hearing_does_nothing(speak: AppTest) -> None:
    doubtful = next(o for o in speak.selectbox[0].options if "eleven" in o)
    speak = press(speak.selectbox[0].select(doubtful).run(), "Speak")
    assert "Do nothing" in drawn(speak) and "Please say it again" in drawn(speak) and not speak.code


def test_noise_is_nobody(speak: AppTest) -> None:
    speak = press(speak.selectbox[0].select("Noise").run(), "Speak")
    assert "No speech" in drawn(speak) and "Nobody was heard" in speak.info[0].value and not speak.code


def test_a_question_is_answered_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    "Of a site that is never sure enough to send anybody."
    tenant = (ROOT / "data_samples/tenants/demo.toml").read_text()
    never = "[thresholds.SUMMON_TEAM]\nact = 1.0\nconfirm = 0.5\n"
    (tmp_path / "careful.toml").write_text(tenant + never)
    monkeypatch.setenv("VOXREC_TENANTS", str(tmp_path))
    speak = press(alone("speak_page", "", "").run(), "Speak")
    assert "Shall I call maintenance to dock 7?" in drawn(speak) and not speak.code
    speak = press(speak, "Yes")
    assert "it was confirmed" in drawn(speak) and '"team": "maintenance"' in speak.code[0].value
    speak = press(speak, "No, cancel that")
    assert "called off" in drawn(speak) and speak.code[0].value.startswith("team/summon/cancel")


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("notes.txt", b"Dear diary", "not readable as audio"),
        ("empty.wav", b"", "not readable as audio"),
        ("header.wav", write_wav(None, np.zeros(0, np.float32)), "no audio in it"),
        ("torn.wav", write_wav(None, np.zeros(RATE, np.float32))[:30], "not readable as audio"),
        ("hour.wav", write_wav(None, np.zeros(3600 * RATE, np.float32))[: 40 << 20], "longer than 30 s"),
    ],
)
def test_an_upload_that_cannot_be_used_is_told(speak: AppTest, name: str, data: bytes, told: str) -> None:
    speak = speak.segmented_control[0].set_value("Upload").run()
    speak = speak.file_uploader[0].set_value((name, data, "audio/wav")).run()
    assert not speak.exception and name in speak.error[0].value and told in speak.error[0].value
    assert next(b for b in speak.button if b.label == "Speak").disabled


def test_what_no_voice_can_say_is_told(speak: AppTest) -> None:
    speak = speak.segmented_control[0].set_value("Type").run()
    speak = press(speak.text_input[0].set_value("?!").run(), "Speak")
    assert "nothing to say" in speak.error[0].value and not speak.code


class Yes(Recognizer):
    "Hears the same in everything."

    def transcribe(self, samples: Samples, **how: object) -> Transcript:
        return Transcript(text="Yes.", confidence=0.9, duration_s=1)


def test_a_speech_service_that_is_gone_is_told_and_tried_again() -> None:
    port = free_port()
    page = press(alone("speak_page", "", f"127.0.0.1:{port}").run(), "Speak")
    assert "speech service" in page.error[0].value
    with running_speech(Yes(), port=port):
        page = press(page, "Try again")
    assert not page.error and "no question is open" in drawn(page)


def test_a_broker_that_is_gone_is_told() -> None:
    page = alone("speak_page", "mqtt://127.0.0.1:9", "").run()
    assert not page.exception and page.error and page.button[-1].label == "Try again"


def test_a_missing_folder_of_tenants_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXREC_TENANTS", "nowhere")
    shown = alone("speak_page", "", "").run()
    assert not shown.exception and "nowhere does not exist" in shown.error[0].value
