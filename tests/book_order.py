"""The import contract of the book: a module imports only from lower-numbered notebooks (pyproject.toml)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output
from rich.markup import escape

GENERATED = {"_pb2": -2, "_pb2_grpc": -1}
"""What `make export` makes of assets/proto, by how its name ends: it stands below the first notebook."""


def book_numbers(folder: Path, package: str) -> dict[str, int]:
    "Module name -> number of its notebook. Raises ValueError when two notebooks export one module."
    numbers: dict[str, int] = {}
    for path in sorted(folder.glob("[0-9]*_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        for module in re.findall(r"^#\| *default_exp +(\S+)", code, re.MULTILINE):
            if f"{package}.{module}" in numbers:
                raise ValueError(f"{path.name} exports {module}, and so does an earlier notebook")
            numbers[f"{package}.{module}"] = int(path.name.split("_")[0])
    return numbers


class BookOrder(Contract):
    """Holds the import graph to the order of the notebooks in the folder `notebooks`.

    Only nbdev's own files, `__init__` and `_modidx`, which import nothing, and what is generated from
    assets/proto may be without a notebook.
    """

    type_name = "book_order"

    notebooks = fields.StringField()

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        (package,) = self.session_options["root_packages"]
        numbers = book_numbers(Path(str(self.notebooks)), package)
        missing = sorted(set(numbers) - graph.modules)
        numbers |= {m: n for m in graph.modules for end, n in GENERATED.items() if m.endswith(end)}
        problems = [f"{module} is not in the package: run `make export`" for module in missing]
        problems += [p for module in sorted(graph.modules) for p in _problems(graph, module, numbers)]
        return ContractCheck(kept=not problems, metadata={"problems": problems})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for problem in check.metadata["problems"]:
            output.print_error(f"- {escape(problem)}", bold=False)
        output.new_line()
        output.print("What two notebooks need belongs into one with a lower number than both.")
        output.new_line()


def _problems(graph: ImportGraph, module: str, numbers: dict[str, int]) -> Iterator[str]:
    own = numbers.get(module)
    is_file_of_nbdev = bool(graph.find_children(module)) or module.endswith("._modidx")
    if own is None and not is_file_of_nbdev:
        yield f"{module} has no notebook: nothing under the notebooks folder says `#| default_exp` for it"
        return
    for imported in sorted(graph.find_modules_directly_imported_by(module)):
        if own is None or numbers.get(imported, -1) >= own:
            where = graph.get_import_details(importer=module, imported=imported)[0]
            names = f"{_numbered(module, own)} imports {_numbered(imported, numbers.get(imported))}"
            yield f"{names}, line {where['line_number']}: {where['line_contents']}"


def _numbered(module: str, number: int | None) -> str:
    return f"{module} ({'no notebook' if number is None else f'{number:02d}'})"
