"The page in a real Chromium, as a visitor has it; what was seen is kept in demo_out/screens."

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from voxrec.mqtt import free_port

pytestmark = pytest.mark.chromium
ROOT = Path(__file__).resolve().parent.parent
SCREENS = ROOT / "demo_out/screens"
CHROMIUM = Path("/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
WIDE, NARROW = (1280, 900), (390, 844)
PATIENCE_MS = 60_000  # models are opened, and sentences said in real time


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    "Of a server that runs as `make dash` runs it."
    port, log = free_port(), tmp_path_factory.mktemp("page") / "streamlit.log"
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(ROOT / "dashboards/app.py"),
        "--server.headless=true",
    ]
    command += [f"--server.port={port}", "--server.address=127.0.0.1", "--browser.gatherUsageStats=false"]
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.terminate()
        assert server.wait(20) is not None  # it ends what it started
        assert "Traceback" not in log.read_text()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM} (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    "A visitor's page on which nothing goes wrong, and which asks nobody but its server."
    page = browser.new_page(base_url=address, viewport={"width": WIDE[0], "height": WIDE[1]})
    page.set_default_timeout(PATIENCE_MS)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(f"{said.text} {said.location}") if ours(said) else None)
    page.on("request", lambda asked: problems.append(asked.url) if outside(asked.url) else None)
    yield page
    assert page.get_by_test_id("stException").count() == 0
    page.close()
    assert problems == []


def ours(said: ConsoleMessage) -> bool:
    """Chromium tells of what is not there. Streamlit looks for its own parts below /shop first, and drops the
    sound of a player that is being replaced."""
    return said.type == "error" and not re.search("/_stcore/|/media/", said.location["url"])


def outside(url: str) -> bool:
    return urlsplit(url).scheme in ("http", "https", "ws", "wss") and urlsplit(url).hostname != "127.0.0.1"


def keep(page: Page, name: str) -> None:
    "A picture of the whole page, wide and narrow, neither wider than its screen."
    for width, height in (WIDE, NARROW):
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(500)  # charts are drawn anew
        tall = page.get_by_test_id("stMain").evaluate("main => main.scrollHeight")
        page.set_viewport_size({"width": width, "height": max(height, tall)})
        page.wait_for_timeout(500)
        SCREENS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENS / f"{name}_{width}.png")
        for part in ("html", "[data-testid=stMain]"):
            assert page.locator(part).evaluate("part => part.scrollWidth <= part.clientWidth"), (part, width)
    page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})


ANY = re.compile(".")


def expect_steps(page: Page, *texts: str | re.Pattern[str]) -> None:
    "What the five steps say, as soon as the page has drawn them."
    expect(page.locator(".steps li b")).to_have_text(list(texts), timeout=PATIENCE_MS)


def speak(page: Page, what: str) -> None:
    page.get_by_role("button", name="Speak", exact=True).click()
    expect(page.get_by_role("heading", name=f"said: {what}")).to_be_visible(timeout=PATIENCE_MS)


def pick(page: Page, what: str) -> None:
    page.get_by_role("combobox", name="Sample").click()
    page.get_by_role("option", name=re.compile(f"^{re.escape(what)}")).click()


def test_speak(page: Page, record_property: Callable[[str, object], None]) -> None:
    "A command is done; the doubtful one is not; noise is nobody."
    page.goto("/")
    expect(page.get_by_role("heading", name="Say it to the watch")).to_be_visible()
    paints = "performance.getEntriesByType('paint').map(paint => [paint.name, paint.startTime])"
    for name, at_ms in page.evaluate(paints):
        record_property(name, at_ms)
    speak(page, "Send maintenance to dock seven.")
    heard, said = re.compile("^send maintenance to dock", re.IGNORECASE), re.compile("has been called")
    expect_steps(page, heard, "Summon team", "Do it", "Call maintenance to dock 7.", said)
    expect(page.get_by_test_id("stCode")).to_contain_text("team/summon")
    expect(page.get_by_test_id("stAudio")).to_have_count(2)  # what was said, and the reply
    page.wait_for_function("[...document.querySelectorAll('audio')].every(sound => sound.duration > 1)")
    expect(page.locator("mark")).to_have_text(["maintenanceteam", "dock 7place"])
    expect(page.get_by_role("meter", name="hearing")).to_be_visible()
    expect(page.get_by_test_id("stVegaLiteChart").locator("canvas, svg").first).to_be_visible()
    keep(page, "speak_done")

    pick(page, "Send maintenance to dock eleven.")
    speak(page, "Send maintenance to dock eleven.")
    expect_steps(page, ANY, ANY, "Do nothing", "Nothing", ANY)
    expect(page.get_by_test_id("stCode")).to_have_count(0)
    keep(page, "speak_doubtful")

    pick(page, "Noise")
    speak(page, "Noise")
    expect_steps(page, "No speech", "–", "–", "–", "–")
    keep(page, "speak_noise")


def test_speak_what_is_typed_and_cancel_it(page: Page) -> None:
    page.goto("/")
    page.get_by_role("button", name="Type").or_(page.get_by_role("radio", name="Type")).first.click()
    page.get_by_role("textbox", name="A voice says").fill("Send maintenance to dock 7.")
    page.get_by_role("textbox", name="A voice says").press("Enter")
    speak(page, "Send maintenance to dock 7.")
    keep(page, "speak_typed")
    page.get_by_role("button", name="No, cancel that").click()
    expect(page.get_by_role("heading", name="said: No, cancel that.")).to_be_visible(timeout=PATIENCE_MS)
    expect_steps(page, ANY, ANY, ANY, ANY, re.compile("has been called off"))


def test_an_upload_that_is_no_sound_is_told(page: Page) -> None:
    page.goto("/")
    page.get_by_role("button", name="Upload").or_(page.get_by_role("radio", name="Upload")).first.click()
    files = page.locator("input[type=file]")
    files.set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"Dear diary"})
    expect(page.get_by_test_id("stAlert")).to_contain_text("notes.txt: 10 bytes: not readable as audio")
    expect(page.get_by_role("button", name="Speak", exact=True)).to_be_disabled()
    keep(page, "speak_no_sound")
    files.set_input_files(ROOT / "data_samples/summon_maintenance.wav")
    expect(page.get_by_test_id("stAlert")).to_have_count(0)
    speak(page, "summon_maintenance.wav")
    expect_steps(page, ANY, ANY, ANY, "Call maintenance to dock 7.", ANY)


def test_keys_alone_reach_and_run_the_main_action(page: Page) -> None:
    page.goto("/")
    expect(page.get_by_role("button", name="Speak", exact=True)).to_be_enabled()
    focused = "[document.activeElement.tagName, document.activeElement.innerText.trim().split('\\n').pop()]"
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == ["BUTTON", "Speak"]:
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="said: Send maintenance")).to_be_visible(timeout=PATIENCE_MS)


def titles(page: Page) -> list[str]:
    "Of the cards, in their order; before each stands its place."
    return page.locator("[data-testid=stMain] [data-testid=stMarkdownContainer] strong").all_inner_texts()[
        1::2
    ]


def shown(page: Page, what: Callable[[list[str]], bool]) -> list[str]:
    "The titles once they are so, and stay: Streamlit draws from above, what it says before what it shows."
    before = list[str]()
    for _ in range(PATIENCE_MS // 300):
        now = titles(page)
        if now == before and what(now):
            return now
        before = now
        page.wait_for_timeout(300)
    raise AssertionError(before)


def promote(page: Page, place: int, what: str) -> str:
    title = shown(page, lambda found: len(found) > place)[place]
    page.get_by_role("button", name="Promote").nth(place).click()
    page.get_by_role("button", name=what).locator("visible=true").click()
    expect(page.get_by_test_id("stAlert")).to_contain_text(f"{what}: {title}")
    page.keyboard.press("Escape")
    return title


def test_shop(page: Page) -> None:
    "A look changes the list, and it says why; a sale leads it, what is sold out leaves it."
    page.goto("/shop")
    expect(page.get_by_role("button", name="Look")).to_have_count(8, timeout=PATIENCE_MS)
    keep(page, "shop_stranger")
    before = shown(page, lambda found: len(found) == 8)
    page.get_by_role("button", name="Look").nth(1).click()
    expect(page.get_by_test_id("stAlert")).to_contain_text(f"mia looked at {before[1]}")
    expect(page.get_by_text("others went on to it").first).to_be_visible()
    shown(page, lambda found: found != before)
    keep(page, "shop_looked")
    sale = promote(page, 5, "Flash sale")
    shown(page, lambda found: found[:1] == [sale])
    expect(page.get_by_text("flash sale +2.0")).to_be_visible()
    gone = promote(page, 1, "Out of stock")
    shown(page, lambda found: gone not in found and found[:1] == [sale])
    keep(page, "shop_sale")
