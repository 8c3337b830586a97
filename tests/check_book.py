"""The notebooks, assets/, voxrec/ and README.md, held together.

`make export` runs this with --export: it makes the package from the notebooks and from assets/ (models,
schemas), and the README. `make check` runs it without: it does the same in a temporary copy, and tells what
comes out different, and which outputs and export cells are not fit to be read.
"""

import difflib
import filecmp
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

MAX_OUTPUT_BYTES = 1_000_000
MAX_CELL_LINES = 45  # of code in an exported cell
SHOWN_LINES = 12


def notebooks(root: Path) -> list[Path]:
    "The notebooks of the book and of the benchmarks, relative to `root`."
    return sorted(
        p.relative_to(root) for folder in ("nbs", "benchmarks") for p in (root / folder).glob("*.ipynb")
    )


def readme(index: Path) -> str:
    "The index notebook as README.md, which stands a folder higher than it: relative links move with it."
    from nbconvert import MarkdownExporter

    text = MarkdownExporter().from_filename(str(index))[0]
    return re.sub(r"\]\((?!https?:|#)", f"]({index.parent}/", text)


def generate(assets: Path) -> None:
    "The Python of assets/proto, in the current folder."
    protos = sorted((assets / "proto").rglob("*.proto"))
    if protos:
        from grpc_tools import protoc

        kinds = ["--python_out=.", "--pyi_out=.", "--grpc_python_out=."]
        if protoc.main(["protoc", f"-I{assets / 'proto'}", *kinds, *map(str, protos)]):
            raise SystemExit("protoc could not read assets/proto")


def assets(root: Path, within: str) -> set[Path]:
    "The files of an assets folder, relative to it."
    return {p.relative_to(root / within) for p in (root / within).rglob("*") if p.is_file()}


def export_assets(root: Path) -> None:
    "voxrec/assets, the same as assets/: a file that is gone there goes here too."
    shutil.rmtree(root / "voxrec/assets", ignore_errors=True)
    if (root / "assets").is_dir():
        shutil.copytree(root / "assets", root / "voxrec/assets")


def export(root: Path) -> None:
    "Package, clean notebooks and README.md, in `root`."
    from nbdev.clean import nbdev_clean
    from nbdev.doclinks import nbdev_export

    os.chdir(root)  # nbdev finds settings.ini from here
    warnings.simplefilter("error", UserWarning)  # nbdev only warns of a notebook that it cannot export
    generate(Path("assets"))
    nbdev_export()
    export_assets(root)
    for path in notebooks(root):
        nbdev_clean(fname=str(path))
    index = Path("nbs/index.ipynb")
    if index.exists():
        Path("README.md").write_text(readme(index), encoding="utf-8")


def output_problems(root: Path) -> Iterator[str]:
    "Outputs no reader should meet: errors, paths of the writer's machine, `MAX_OUTPUT_BYTES` and more."
    for path in notebooks(root):
        cells = json.loads((root / path).read_text(encoding="utf-8"))["cells"]
        outputs = [o for cell in cells for o in cell.get("outputs", [])]
        for output in outputs:
            if output["output_type"] == "error":
                yield f"{path}: an output is an error, {output['ename']}: {output['evalue'][:100]}"
        for place in sorted(set(re.findall(r"/[^\s\"']*/site-packages/[\w/.]*", json.dumps(outputs)))):
            yield f"{path}: an output names {place}, a path of one machine"
        if (size := len(json.dumps(outputs))) > MAX_OUTPUT_BYTES:
            yield f"{path}: outputs of {size:,} bytes; {MAX_OUTPUT_BYTES:,} are allowed"


def cell_problems(root: Path) -> Iterator[str]:
    "Exported cells of more than `MAX_CELL_LINES`; their `#|` lines do not count."
    for path in notebooks(root):
        for cell in json.loads((root / path).read_text(encoding="utf-8"))["cells"]:
            lines = "".join(cell["source"]).splitlines()
            code = [line for line in lines if not line.startswith("#|")]
            if any(re.match(r"#\| *export", line) for line in lines) and len(code) > MAX_CELL_LINES:
                first = next((line for line in code if re.match(r"(async )?def |class ", line)), code[0])
                yield f"{path}: the export cell `{first}` has {len(code)} lines; {MAX_CELL_LINES} are allowed"


def sources(root: Path) -> set[Path]:
    "What a notebook makes, relative to `root`: modules, README.md, and the cleaned notebooks themselves."
    modules = {p.relative_to(root) for p in (root / "voxrec").rglob("*.py*") if p.suffix in (".py", ".pyi")}
    return modules | set(notebooks(root)) | ({Path("README.md")} if (root / "README.md").exists() else set())


def differences(root: Path, made: Path) -> Iterator[str]:
    "Each file that is not what the notebooks make, with the first lines that differ."
    for path in sorted(sources(root) | sources(made)):
        if not (made / path).exists():
            yield f"{path}: no notebook makes it; delete it, or write its notebook"
        elif not (root / path).exists():
            yield f"{path}: missing"
        else:
            here, there = ((r / path).read_text(encoding="utf-8") for r in (root, made))
            diff = list(
                difflib.unified_diff(here.splitlines(), there.splitlines(), "is", "should be", "", "", 0)
            )
            if here != there:
                what = "is not clean" if path.suffix == ".ipynb" else "is not what its notebook exports"
                lines = [f"    {line[:120]}" for line in diff[2 : 2 + SHOWN_LINES]]
                yield "\n".join([f"{path}: {what}", *lines])


def asset_differences(root: Path) -> Iterator[str]:
    "Each file of voxrec/assets that is not the one in assets/, byte for byte."
    there, here = assets(root, "assets"), assets(root, "voxrec/assets")
    for path in sorted(there | here):
        if path not in there:
            yield f"voxrec/assets/{path}: not in assets/; delete it, or put it there"
        elif path not in here:
            yield f"voxrec/assets/{path}: missing"
        elif not filecmp.cmp(root / "assets" / path, root / "voxrec/assets" / path, shallow=False):
            yield f"voxrec/assets/{path}: is not the file in assets/"


def main(root: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        shutil.copy(root / "settings.ini", copy)
        if (root / "assets").exists():
            shutil.copytree(root / "assets", copy / "assets")
        for path in notebooks(root):
            (copy / path).parent.mkdir(exist_ok=True)
            shutil.copy(root / path, copy / path)
        export(copy)
        different = [*differences(root, copy), *asset_differences(root)]
        outputs, cells = list(output_problems(root)), list(cell_problems(root))
        os.chdir(root)
    for problem in different + outputs + cells:
        print(f"- {problem}")
    if different:
        print("Edit notebooks and assets/ only, then run: make export")
    if outputs:
        print("Run the notebook again (make text NB=.., make book NB=..) until its outputs are fit to print.")
    if cells:
        print("Split the cell, one idea each; code that many share belongs in a function of its own.")
    return 1 if different or outputs or cells else 0


if __name__ == "__main__":
    here = Path(__file__).resolve().parent.parent
    sys.exit(export(here) if "--export" in sys.argv else main(here))
