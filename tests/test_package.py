"""The wheel: it holds the whole package, and starts where there is no repository and no extra."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
UV = shutil.which("uv") or str(ROOT / ".tools/bin/uv")
PACKED = ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


def run(*command: str | Path, cwd: Path) -> str:
    "Its output; a failure shows the end of what it said."
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=kept, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "Built from a copy: setuptools leaves folders behind."
    copy = tmp_path_factory.mktemp("source")
    for name in PACKED:
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "voxrec", copy / "voxrec", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", cwd=copy)
    (path,) = (copy / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A new environment with the wheel and its base dependencies, at the versions of the lock."
    venv = tmp_path_factory.mktemp("installed") / "venv"
    run(UV, "venv", "-q", "--python", sys.executable, venv, cwd=venv.parent)
    lock = ROOT / "locks/main.lock"
    run(UV, "pip", "install", "-q", "--python", venv / "bin/python", "-c", lock, wheel, cwd=venv.parent)
    return venv / "bin"


def test_wheel_holds_the_whole_package(wheel: Path) -> None:
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / "voxrec").rglob("*") if p.is_file()}
    wanted = {f for f in files if "__pycache__" not in f} | {"voxrec/py.typed"}
    with zipfile.ZipFile(wheel) as z:
        packed = set(z.namelist())
        assert wanted <= packed, f"not in the wheel: {sorted(wanted - packed)}"
        assert {f.split("/")[0] for f in packed} == {"voxrec", wheel.name.split("-py3")[0] + ".dist-info"}
        metadata = next(f for f in packed if f.endswith("/METADATA"))
        assert "Provides-Extra: recs" in z.read(metadata).decode()
        assert any(f.endswith("/licenses/LICENSE") for f in packed)


def test_voxrec_starts_without_the_repository(bin_folder: Path, tmp_path: Path) -> None:
    where = run(bin_folder / "python", "-c", "import voxrec; print(voxrec.__file__)", cwd=tmp_path)
    assert not Path(where.strip()).is_relative_to(ROOT)
    version = run(bin_folder / "python", "-c", "import voxrec; print(voxrec.__version__)", cwd=tmp_path)
    assert version.strip() in run(bin_folder / "voxrec", "--version", cwd=tmp_path)
    assert "demo" in run(bin_folder / "voxrec", "--help", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == [], "starting it left something behind"
