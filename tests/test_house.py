"""The rules of the house, and proof that what guards them can fail."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
from book_order import BookOrder
from importlinter import ContractCheck

ROOT = Path(__file__).resolve().parent.parent
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def notebook(path: Path, module: str) -> None:
    "A notebook that says it exports `module`."
    cell = {"cell_type": "code", "source": [f"#| default_exp {module}"], "outputs": [], "metadata": {}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": [cell]}))


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A package `shelf` of two modules, 00_one and 01_two, of which the second imports the first."
    package = tmp_path / "shelf"
    package.mkdir()
    for name, text in {"__init__": "", "_modidx": "d = {}", "one": "", "two": "from .one import *"}.items():
        (package / f"{name}.py").write_text(text)
    notebook(tmp_path / "nbs/00_one.ipynb", "one")
    notebook(tmp_path / "nbs/01_two.ipynb", "two")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def check_order(root: Path) -> ContractCheck:
    contract = BookOrder("order", {"root_packages": ["shelf"]}, {"notebooks": str(root / "nbs")})
    return contract.check(grimp.build_graph("shelf", cache_dir=None), verbose=False)


def test_book_in_order_is_kept(shelf: Path) -> None:
    assert check_order(shelf).kept


def test_generated_modules_need_no_notebook(shelf: Path) -> None:
    (shelf / "shelf/door_pb2.py").touch()
    (shelf / "shelf/door_pb2_grpc.py").write_text("from . import door_pb2")
    (shelf / "shelf/one.py").write_text("from . import door_pb2, door_pb2_grpc")
    assert check_order(shelf).kept


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("door_pb2", "import shelf.one", "shelf.door_pb2 (-2) imports shelf.one (00), line 1"),
        ("one", "import shelf.two", "shelf.one (00) imports shelf.two (01), line 1: import shelf.two"),
        ("__init__", "from . import one", "shelf (no notebook) imports shelf.one (00), line 1"),
        ("three", "", "shelf.three has no notebook"),
    ],
)
def test_book_out_of_order_is_told(shelf: Path, file: str, text: str, problem: str) -> None:
    (shelf / f"shelf/{file}.py").write_text(text)
    check = check_order(shelf)
    assert not check.kept
    assert any(problem in p for p in check.metadata["problems"]), check.metadata["problems"]


def test_notebook_without_its_module_is_told(shelf: Path) -> None:
    notebook(shelf / "nbs/02_four.ipynb", "four")
    assert check_order(shelf).metadata["problems"] == ["shelf.four is not in the package: run `make export`"]


def test_two_notebooks_for_one_module_are_refused(shelf: Path) -> None:
    notebook(shelf / "nbs/05_again.ipynb", "two")
    with pytest.raises(ValueError, match=r"05_again\.ipynb exports two"):
        check_order(shelf)


def declared() -> list[dict[str, object]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]  # type: ignore[no-any-return]


def test_contracts_are_declared() -> None:
    assert any("voxrec.voice | voxrec.recs" in str(c.get("layers")) for c in declared())
    assert any(c["type"] == "book_order" and c["notebooks"] == "nbs" for c in declared())


def test_lint_imports_fails_as_declared(tmp_path: Path) -> None:
    "The contracts of pyproject.toml, on a package in which voice imports recs and a number is broken."
    for part in ("voice", "recs"):
        (tmp_path / f"voxrec/{part}").mkdir(parents=True)
        (tmp_path / f"voxrec/{part}/__init__.py").touch()
    (tmp_path / "voxrec/__init__.py").touch()
    (tmp_path / "voxrec/voice/ear.py").write_text("import voxrec.recs.shop")
    (tmp_path / "voxrec/recs/shop.py").touch()
    notebook(tmp_path / "nbs/10_ear.ipynb", "voice.ear")
    notebook(tmp_path / "nbs/32_shop.ipynb", "recs.shop")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/book_order.py", tmp_path / "tests")
    done = subprocess.run(
        [LINT_IMPORTS, "--no-cache", "--no-logo"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "voxrec.voice is not allowed to import voxrec.recs" in done.stdout
    assert "voxrec.voice.ear (10) imports voxrec.recs.shop (32), line 1" in done.stdout


def run_python(code: str, *args: str) -> str:
    "The output of `code` in a new interpreter; its error is the test's."
    command = [sys.executable, "-c", code, *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


# Imports the modules named as arguments and prints what they did beyond defining names. Sockets, files,
# processes and threads count whoever opens them; environment reads only where a line of the package's own
# folder reads, and not one of an environment that somebody made in there.
WATCHED_IMPORT = """
import importlib, json, os, sys, threading
from importlib.util import find_spec
from pathlib import Path

done, inside = [], [False]

def watch(event, args):
    if not inside[0]:
        return
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "subprocess.Popen", "os.fork"):
        done.append(event)
    elif event == "open" and isinstance(args[0], str) and not args[0].startswith("/proc"):
        writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(args[2], int) else False
        if writes and "__pycache__" not in args[0]:
            done.append(f"open for writing: {args[0]}")

class Environ(type(os.environ)):
    def __getitem__(self, key):
        frame = sys._getframe(1)
        while frame.f_code.co_filename in (os.__file__, "<frozen os>", "<frozen _collections_abc>"):
            frame = frame.f_back
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(package) and ".venv" not in path.relative_to(package).parts:
            done.append(f"os.environ[{key!r}] in {frame.f_code.co_filename}")
        return super().__getitem__(key)

os.environ.__class__ = Environ
sys.path[:0] = [p for p in sys.argv[1].split(os.pathsep) if p]
package = Path(find_spec(sys.argv[2].split(".")[0]).origin).parent
sys.addaudithook(watch)
from prometheus_client import REGISTRY
before = set(REGISTRY._names_to_collectors)
inside[0] = True
for name in sys.argv[2:]:
    importlib.import_module(name)
inside[0] = False
done += [f"thread: {t.name}" for t in threading.enumerate() if t is not threading.main_thread()]
done += [f"global metric: {n}" for n in sorted(set(REGISTRY._names_to_collectors) - before)]
print(json.dumps(done))
"""


def modules() -> list[str]:
    "Every module of voxrec, by its import name."
    paths = sorted((ROOT / "voxrec").rglob("*.py"))
    return [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths]


def test_nothing_runs_at_import() -> None:
    assert json.loads(run_python(WATCHED_IMPORT, "", *modules())) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import os; home = os.environ.get('HOME')", "os.environ['HOME']"),
        ("import os; home = os.getenv('HOME')", "os.environ['HOME']"),
        ("import socket; s = socket.socket(); s.bind(('127.0.0.1', 0))", "socket.bind"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import os; open(os.devnull, 'w')", "open for writing"),
        (
            "import threading, time; threading.Thread(target=time.sleep, args=[9], daemon=True).start()",
            "thread",
        ),
        ("import prometheus_client as p; c = p.Counter('things', 'Things')", "global metric: things"),
    ],
)
def test_what_runs_at_import_is_told(tmp_path: Path, line: str, told: str) -> None:
    package = tmp_path / "voxrec"
    package.mkdir()
    (package / "__init__.py").write_text(line)
    assert any(told in d for d in json.loads(run_python(WATCHED_IMPORT, str(tmp_path), "voxrec")))


def test_only_the_package_itself_may_not_read_the_environment(tmp_path: Path) -> None:
    "In a checkout that is called voxrec as well, a library of the environment in it reads at import."
    library = tmp_path / "voxrec/.venv/lib/site-packages"
    package = tmp_path / "voxrec/voxrec"
    library.mkdir(parents=True)
    package.mkdir()
    (library / "reads_home.py").write_text("import os; home = os.getenv('HOME')")
    (package / "__init__.py").write_text("import reads_home")
    paths = f"{library}{os.pathsep}{package.parent}"
    assert json.loads(run_python(WATCHED_IMPORT, paths, "voxrec")) == []
    (package / "__init__.py").write_text("import os, reads_home; home = os.getenv('HOME')")
    (told,) = json.loads(run_python(WATCHED_IMPORT, paths, "voxrec"))
    assert told == f"os.environ['HOME'] in {package / '__init__.py'}"


@pytest.mark.skipif(not (ROOT / "voxrec/cli.py").exists(), reason="voxrec/cli.py is not written yet")
def test_command_line_starts_without_the_heavy_libraries() -> None:
    loaded = set(run_python("import sys, voxrec.cli; print(*sys.modules)").split())
    assert not loaded & {"torch", "transformers", "datasets", "sklearn", "faiss", "matplotlib"}


def check_book(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tests/check_book.py")]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)


def test_check_book_tells_what_differs(tmp_path: Path) -> None:
    "A book of one notebook: module edited by hand, an old module left over, an error output, a long cell."
    for name in ("settings.ini", "tests/check_book.py", "nbs/00_errors.ipynb", "voxrec/errors.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    module, old = tmp_path / "voxrec/errors.py", tmp_path / "voxrec/old.py"
    module.write_text(module.read_text().replace("retryable: ClassVar[bool] = True", "retryable = 1"))
    old.touch()
    path = tmp_path / "nbs/00_errors.ipynb"
    book = json.loads(path.read_text())
    book["cells"][-1]["execution_count"] = 7
    book["cells"][-1]["outputs"] = [
        {"output_type": "error", "ename": "KeyError", "evalue": "'x'", "traceback": []}
    ]
    long = ["#| export\n", "def long() -> None:\n", *["    print()\n"] * 45]
    book["cells"].append({"cell_type": "code", "source": long, "outputs": [], "metadata": {}, "id": "long"})
    path.write_text(json.dumps(book))
    done = check_book(tmp_path)
    assert done.returncode == 1, done.stderr
    for told in (
        "voxrec/errors.py: is not what its notebook exports",
        "retryable: ClassVar[bool] = True",
        "voxrec/old.py: no notebook makes it",
        "voxrec/_modidx.py: missing",
        "nbs/00_errors.ipynb: is not clean",
        "nbs/00_errors.ipynb: an output is an error, KeyError: 'x'",
        "nbs/00_errors.ipynb: the export cell `def long() -> None:` has 46 lines; 45 are allowed",
        "make export",
    ):
        assert told in done.stdout, done.stdout
