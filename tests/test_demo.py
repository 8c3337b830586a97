"The demo where something is missing, and its page: served, and ended as people and service managers end it."

import os
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from voxrec.config import Device, Settings
from voxrec.demo import show
from voxrec.demo.shop_story import Step
from voxrec.demo.show import find_samples, has_screen, open_page, play
from voxrec.demo.voice_story import Exchange, Line, headline, stages_table
from voxrec.errors import ConfigError, Unavailable
from voxrec.recs.rerank import Answer
from voxrec.serve.edge import Said
from voxrec.voice.actions import Outcome
from voxrec.voice.decide import Action, Decision, Heard
from voxrec.voice.device import Turn as Sent
from voxrec.voice.intent import Slot, Understood
from voxrec.voice.turn import Turned

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"


@pytest.mark.parametrize(
    ("no_ui", "terminal", "ci", "served"),
    [
        (False, True, None, True),
        (False, True, "", True),
        (False, True, "false", True),
        (False, True, "true", False),
        (False, True, "TRUE", False),
        (False, True, "1", False),
        (True, True, None, False),
        (False, False, None, False),
        (True, False, "true", False),
    ],
)
def test_when_the_page_is_served(no_ui: bool, terminal: bool, ci: str | None, served: bool) -> None:
    assert has_screen(no_ui, terminal, {} if ci is None else {"CI": ci}) is served


def without(name: str) -> Any:
    return lambda wanted: None if wanted == name else find_spec(wanted)


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> Console:
    "A console to read from, and a shop that opens at once."
    monkeypatch.setattr(show, "play_shop", lambda *_: [Step("a stranger", Answer("r", "u", "seed", [], []))])
    return Console(width=300, record=True, file=StringIO())


def test_without_a_checkout_the_shop_is_shown_and_the_reason_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, story: Console
) -> None:
    monkeypatch.setattr(show, "checkouts", list)
    with pytest.raises(ConfigError) as failed:
        find_samples(Settings())
    assert "VOXREC_TENANTS" in failed.value.hint
    play(Settings(), tmp_path, 0, story)
    open_page(Settings(), story)
    said = story.export_text()
    assert "The voice story is left out: the voice samples are not here" in said
    assert "In 0 seconds" in said and "The page is left out" in said


def test_a_copy_of_the_samples_is_found_by_its_tenants(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(show, "checkouts", list)
    assert find_samples(Settings(tenants=SAMPLES / "tenants")) == SAMPLES
    (tmp_path / "tenants").mkdir()
    with pytest.raises(ConfigError):
        find_samples(Settings(tenants=tmp_path / "tenants"))  # somebody's tenants without clips


@pytest.mark.parametrize("package", ["amqtt", "faster_whisper"])
def test_without_the_extra_voice(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, story: Console
) -> None:
    monkeypatch.setattr(show, "find_spec", without(package))
    play(Settings(), tmp_path, 0, story)
    assert f"left out: not installed: {package}. pip install 'voxrec[voice]'" in story.export_text()


def test_without_streamlit_the_page_is_left_out(monkeypatch: pytest.MonkeyPatch, story: Console) -> None:
    monkeypatch.setattr(show, "find_spec", without("streamlit"))
    open_page(Settings(), story)
    assert "pip install 'voxrec[dash]'" in story.export_text()


def exchange(text: str, status: Any, calls: list[tuple[str, dict[str, Any]]]) -> Exchange:
    "Somebody asks for a team, and this came of it."
    import numpy as np

    action = Action(id="x", kind="summon", team="[/]", location="dock 7")
    turned = Turned(
        heard=Heard(text=text, confidence=0.9),
        understood=Understood(
            text=text, intent="SUMMON_TEAM", confidence=0.9, scores={}, slots=[Slot("team", "[/]", 0, 3)],
            out_of_scope=0.0,
        ),
        decision=Decision(kind="act", action=action, why="sure"),
        outcome=Outcome(id="x", status=status, detail="nobody has acknowledged it"),
        reply="[bold]",
    )  # fmt: skip
    said = Said(Sent([]), [turned], calls, 1.5)
    device = Device(worker="[/red]", zone="[x]")
    return Exchange(Line("w", "c"), device, "[/]", np.zeros(16_000, np.float32), [], 1.2, said)


def shown(made: Exchange) -> str:
    console = Console(width=80, file=StringIO(), record=True)
    console.print(headline(made))
    console.print(stages_table(made))
    return console.export_text()


def test_what_people_say_is_not_markup_and_fits_a_terminal() -> None:
    told = shown(
        exchange("[/] send " + "somebody " * 20, "done", [("team/summon", {"id": "x", "team": "[/]"})])
    )
    assert told.count("[/]") >= 4 and "[/red]" in told and "[bold]" in told
    assert max(map(len, told.splitlines())) <= 80
    assert "acknowledged" in told and "team/summon" in told


def test_what_nobody_received_is_not_shown_as_done() -> None:
    told = shown(exchange("send", "unacknowledged", [("team/summon", {"id": "another's", "team": "x"})]))
    assert "nothing" in told and "team/summon" not in told and "nobody has acknowledged" in told


PAGE = """
import sys
from rich.console import Console
from voxrec.config import Settings
from voxrec.demo.show import open_page
open_page(Settings(), Console(width=100, force_terminal=False), int(sys.argv[1]))
print("and on it goes")
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_page_is_served_beside_a_taken_port_and_ends_without_failure(how: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-c", PAGE, str(port)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as served:
            assert served.stdout is not None and served.stderr is not None
            line = next(line for line in served.stdout if "http://" in line)
            url = line.split()[2]
            assert url.startswith("http://127.0.0.1:") and url != f"http://127.0.0.1:{port}"
            assert httpx.get(url, timeout=20).status_code == 200
            if how is signal.SIGINT:
                os.killpg(served.pid, how)  # Ctrl-C reaches all that a terminal runs, Streamlit too
            else:
                served.send_signal(how)
            rest, problems = served.communicate(timeout=30)
    assert (served.returncode, rest, problems) == (0, "and on it goes\n", "")
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=5)


def test_a_page_that_dies_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, story: Console) -> None:
    (tmp_path / "app.py").touch()
    monkeypatch.setattr(show, "find_page", lambda: tmp_path / "app.py")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Unavailable, match="exit code 1"):
        open_page(Settings(), story)
