"""What README.md and CONTRIBUTING.md tell a reader to run, open or look at is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

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
