"""Check that imports point one way, that torch stays out of the start-up, and that nothing can unpickle.

    python tools/check_imports.py [ROOT]

Prints one line for each violation, ``path:line: what is wrong``, and exits 1 if there are any. Only the syntax tree is
read; nothing is imported. What may import what is the table below, which is the one in CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "arzstream"

LEAVES = {"errors", "limits"}
KERNELS = LEAVES | {"kernels"}
CODEC = KERNELS | {"codec"}
ARCHIVE = CODEC | {"container", "formats", "store", "archive"}
DAEMON = ARCHIVE | {"daemon"}

# Part of the package → the parts that it may import, itself apart. "" stands for arzstream/__init__.py.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "limits": set(),
    "kernels": LEAVES,
    "codec": KERNELS,
    "container": CODEC,
    "formats": CODEC,
    "store": CODEC,
    "archive": ARCHIVE,
    "daemon": DAEMON,
    "bench": ARCHIVE | {""},
    "integrations": ARCHIVE,
    "torch": ARCHIVE,
    "transformers": ARCHIVE | {"integrations"},
    "testing": DAEMON | {"integrations", "torch", "transformers", ""},
    "cli": DAEMON | {"bench", ""},
    "__main__": {"cli"},
    "": DAEMON | {"integrations", "torch", "transformers"},
}

# `arzstream ls` must not wait for these: elsewhere they are imported inside the functions that need them.
HEAVY = {"accelerate", "diffusers", "safetensors", "torch", "transformers"}
MAY_BE_HEAVY = {"integrations", "testing", "torch", "transformers"}

# Reading a pickle runs the code in it. `pickletools` only lists opcodes and is fine.
EXECUTES_DATA = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


class Import(NamedTuple):
    """One module named by an import: where, what, and whether importing the file runs it."""

    line: int
    module: str
    at_import: bool


class _Imports(ast.NodeVisitor):
    """Collect the imports of one module; relative ones are resolved against ``package``."""

    def __init__(self, package: str, modules: set[str]) -> None:
        self.package, self.modules = package, modules
        self.found: list[Import] = []
        self.deferred = 0

    def _add(self, node: ast.AST, module: str) -> None:
        self.found.append(Import(getattr(node, "lineno", 0), module, self.deferred == 0))

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            # `from package import name` imports package.name where that is a module.
            full = f"{base}.{alias.name}"
            self._add(node, full if full in self.modules else base)

    def visit_Call(self, node: ast.Call) -> None:
        """``importlib.import_module("literal")`` and ``__import__("literal")`` are imports, too."""
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in {"import_module", "__import__"} and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and not first.value.startswith("."):
                self._add(node, first.value)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        self.deferred += 1
        self.generic_visit(node)
        self.deferred -= 1

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        """What stands under ``if TYPE_CHECKING`` is never run, but is a dependency all the same."""
        test = node.test
        never_run = "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))
        self.deferred += never_run
        for child in node.body:
            self.visit(child)
        self.deferred -= never_run
        for child in node.orelse:
            self.visit(child)


def part_of(module: str) -> str:
    """The part of the package that holds ``module``: ``arzstream.codec.best`` → ``codec``, ``arzstream`` → ``""``."""
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path, package: str, modules: set[str]) -> list[Import]:
    """Every import in ``path``, whose own package (for relative imports) is ``package``."""
    visitor = _Imports(package, modules)
    visitor.visit(ast.parse(path.read_bytes(), filename=str(path)))
    return visitor.found


def check_module(part: str, one: Import) -> str | None:
    """What is wrong with ``one`` in a module of ``part``, or None."""
    top = one.module.split(".")[0]
    if top == PACKAGE:
        other = part_of(one.module)
        if other != part and other not in MAY_IMPORT[part]:
            return f"{part or PACKAGE} may not import {one.module}"
    elif top in EXECUTES_DATA:
        return f"{top} may not be imported: reading such data runs the code in it"
    elif top in HEAVY and one.at_import and part not in MAY_BE_HEAVY:
        return f"{top} is imported when {part or PACKAGE} is; import it inside the function that needs it"
    return None


def check_package(root: Path) -> Iterator[tuple[Path, int, str]]:
    """Violations in ``root/arzstream``."""
    files = sorted((root / PACKAGE).rglob("*.py"))
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files}
    modules = set(names.values())
    for path in files:
        name, part = names[path], part_of(names[path])
        if part not in MAY_IMPORT:
            yield path, 1, f"{part} is not in the table of tools/check_imports.py"
            continue
        if "utils" in name.split("."):
            yield path, 1, "no module is named utils: name what it is about"
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for one in imports_of(path, package, modules):
            problem = check_module(part, one)
            if problem:
                yield path, one.line, problem


def check_reference_decoder(root: Path) -> Iterator[tuple[Path, int, str]]:
    """The reference decoder is an oracle only as long as it shares no code with what it checks."""
    path = root / "spec" / "reference_decoder.py"
    if path.exists():
        for one in imports_of(path, "spec", set()):
            if one.module.split(".")[0] == PACKAGE:
                yield path, one.line, f"the reference decoder may not import {one.module}"


def check(root: Path) -> list[str]:
    """All violations under ``root``, one line each."""
    found = [*check_package(root), *check_reference_decoder(root)]
    return [f"{path.relative_to(root)}:{line}: {problem}" for path, line, problem in found]


def main(arguments: list[str]) -> int:
    problems = check(Path(arguments[0]) if arguments else Path(__file__).resolve().parent.parent)
    for problem in problems:
        print(problem)
    print(f"imports: {len(problems)} violations" if problems else "imports: in order")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
