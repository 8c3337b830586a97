"""What README.md and CONTRIBUTING.md tell a reader to run, open or look at is there."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md")
VOXREC = Path(sys.executable).with_name("voxrec")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def code(text: str) -> list[str]:
    "The lines of fenced blocks, without prompt, variables, .venv/bin/ and comment; the spans in backticks."
    fence = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    blocks = [
        re.sub(r"^\s*(\$ )?([A-Z_]+=\S+ )*(\.venv/bin/)?|\s+#.*$", "", line)
        for b in fence.findall(text)
        for line in b.splitlines()
    ]
    return blocks + re.findall(r"`([^`\n]+)`", fence.sub("", text))


def voxrec_commands() -> list[tuple[str, ...]]:
    "The words after `voxrec` up to the first that is no name of a command, in README.md and CONTRIBUTING.md."
    found = set()
    for line in (line for name in PAGES for line in code(page(name)) if line.startswith("voxrec ")):
        words = shlex.split(line)[1:]
        stop = next((i for i, w in enumerate(words) if not re.fullmatch(r"[a-z][a-z-]*", w)), len(words))
        found.add(tuple(words[:stop]))
    return sorted(found)


def test_code_is_found() -> None:
    block = "```sh\n$ voxrec demo --no-ui  # a story\nA=1 .venv/bin/voxrec bench\n```"
    text = f"Try `make x`.\n{block}\n`voxrec say A`"
    assert code(text) == ["voxrec demo --no-ui", "voxrec bench", "make x", "voxrec say A"]


def test_readme_begins_with_the_two_commands() -> None:
    makes = [line for line in code(page("README.md")) if line.startswith("make ")]
    assert makes[:2] == ["make demo", "make test"]


@pytest.mark.parametrize("name", PAGES)
def test_every_make_target_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    named = {line.split()[1] for line in code(page(name)) if re.match(r"make [a-z]", line)}
    assert named <= targets, f"not in the Makefile: {sorted(named - targets)}"


@pytest.mark.parametrize("name", PAGES)
def test_every_relative_link_exists(name: str) -> None:
    text = page(name)
    targets = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    local = [t.split("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)]
    assert [t for t in local if not (ROOT / t).exists()] == []


@pytest.mark.skipif(not (ROOT / "voxrec/cli.py").exists(), reason="voxrec/cli.py is not written yet")
def test_every_voxrec_command_exists() -> None:
    for words in voxrec_commands():
        command = [VOXREC, *words, "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"voxrec {' '.join(words)}: {done.stderr}"


def five_minutes() -> tuple[list[str], str]:
    "The voxrec commands under `A shop in five minutes`, for a small shop, and its block of curl commands."
    section = page("README.md").split("## A shop in five minutes")[1].split("\n## ")[0]
    commands, curls = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[:2]
    small = commands.replace("--users 500 --days 7", "--users 20 --days 1")
    assert small != commands
    return [line for line in small.splitlines() if line.startswith("voxrec ")], curls


def requests(curls: str) -> list[tuple[str, bytes | None]]:
    "URL and body of each curl command, its words as bash makes them; curl itself is not needed."
    script = f"curl() {{ printf '%s\\0' \"$@\"; echo; }}\n{curls}"
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, timeout=10, check=True)
    found = []
    for line in done.stdout.split("\0\n")[:-1]:
        silent, url, *data = line.split("\0")
        assert silent == "-s" and data[:1] in ([], ["-d"]), line
        found.append((url, data[1].encode() if data else None))
    return found


@contextmanager
def serving(command: str, cwd: Path, env: dict[str, str]) -> Iterator[str]:
    "The address of a service that runs on a free port until the block ends."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words, log = [*shlex.split(command, comments=True), "--port", str(port)], cwd / "service.log"
    with log.open("w") as out, subprocess.Popen(words, cwd=cwd, env=env, stdout=out, stderr=out) as process:
        try:
            stop = time.monotonic() + 60
            while "listening" not in log.read_text():
                assert process.poll() is None and time.monotonic() < stop, log.read_text()
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)


def test_a_shop_in_five_minutes(tmp_path: Path) -> None:
    "The block as it stands in README.md; the answer after the view is not the one before."
    (generate, recommend, serve), curls = five_minutes()
    env = {k: v for k, v in os.environ.items() if not k.startswith("VOXREC_")}
    env["PATH"] = f"{VOXREC.parent}{os.pathsep}{env['PATH']}"
    for command in (generate, recommend):
        words = shlex.split(command, comments=True)
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    ask, tell, schema = requests(curls)

    with serving(serve, tmp_path, env) as address, httpx.Client(timeout=10) as client:

        def curl(request: tuple[str, bytes | None]) -> dict[str, object]:
            url, body = f"http://{request[0].replace('localhost:8080', address)}", request[1]
            form = {"content-type": "application/x-www-form-urlencoded"}  # what curl -d says it sends
            answer = client.get(url) if body is None else client.post(url, content=body, headers=form)
            assert answer.status_code in (200, 202), answer.text
            return answer.json()  # type: ignore[no-any-return]

        before = curl(ask)
        assert curl(tell) == {"accepted": 1, "refused": []}
        after = curl(ask)
        assert "/v1/recommendations" in json.dumps(curl(schema)["paths"])
    assert before["items"] != after["items"] and '"semantic"' in json.dumps(after["items"])
