"""Read our own source as trees, for the checks of style.

Each check takes a module as text, so it can be tried on a sample that breaks the rule.
"""

from __future__ import annotations

import ast
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 400
PURE = ("event", "metering", "quota", "rating", "charging", "errors")
# What a pure stage may never reach for: servers, frameworks, time.
IMPURE = (
    "aiokafka",
    "faust",
    "mode",
    "clickhouse_connect",
    "chdb",
    "time",
    "asyncio",
    "os",
    "socket",
    "tokenline.wire",
    "tokenline.landing",
    "tokenline.platform",
    "tokenline.clock",
    "tokenline.settings",
    "streams",
)
# Division that is not of tokens, with what is divided.
DIVIDES = {
    "metering/calendar.py": 2,  # ms to the seconds of datetime.fromtimestamp
    "metering/seen.py": 2,  # table sizes from load factors
}
Finding = tuple[str, int, str]


@dataclass(frozen=True)
class Module:
    """Hold one module of ours; `name` is its path from the root."""

    name: str
    text: str

    @property
    def tree(self) -> ast.Module:
        """Return the parsed text."""
        return ast.parse(self.text)


def modules(*folders: str) -> list[Module]:
    """Return all modules under the folders."""
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    return [Module(str(file.relative_to(ROOT)), file.read_text()) for file in files]


def tracked_texts() -> list[Module]:
    """Return every tracked file that is text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    found = []
    for name in listed.stdout.decode().split("\0"):
        file = ROOT / name
        if name and file.is_file():
            raw = file.read_bytes()
            if b"\0" not in raw[:8000]:
                found.append(Module(name, raw.decode(errors="replace")))
    return found


def functions(module: Module) -> list[tuple[str, int, int]]:
    """Return (name, first line, lines) of each function; its docstring is not counted."""
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node):
                said = node.body[0]
                assert said.end_lineno is not None
                lines -= said.end_lineno - said.lineno + 1
            found.append((node.name, node.lineno, lines))
    return found


def long_functions(module: Module) -> list[Finding]:
    """Return functions above the bound."""
    return [
        (module.name, at, f"{name} has {lines} lines")
        for name, at, lines in functions(module)
        if lines > FUNCTION_LINES_MAX
    ]


def long_module(module: Module) -> list[Finding]:
    """Return the module if it is above the bound."""
    lines = module.text.count("\n")
    return [(module.name, lines, f"{lines} lines")] if lines > MODULE_LINES_MAX else []


def imports(module: Module) -> list[tuple[int, str]]:
    """Return (line, module) of each import, also of those within functions."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(node.lineno, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def imports_of(module: Module, forbidden: tuple[str, ...]) -> list[Finding]:
    """Return imports of what is forbidden here."""
    return [
        (module.name, at, f"imports {name}")
        for at, name in imports(module)
        if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    ]


def stage_of(module: Module) -> str:
    """Return the word after src/tokenline: a folder, or a module's own name."""
    return module.name.removeprefix("src/tokenline/").split("/")[0].removesuffix(".py")


CLOCK_CALLS = {
    ("time", name)
    for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns")
} | {(kind, name) for kind in ("datetime", "date") for name in ("now", "utcnow", "today")}


def clock_reads(module: Module) -> list[Finding]:
    """Return direct reads of a clock."""
    found: list[Finding] = [
        (module.name, at, f"imports {name}")
        for at, name in imports(module)
        if tuple(name.split(".")) in CLOCK_CALLS
    ]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            owner = node.value
            said = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
            if (said, node.attr) in CLOCK_CALLS:
                found.append((module.name, node.lineno, f"reads {said}.{node.attr}"))
    return found


def float_uses(module: Module) -> list[Finding]:
    """Return true divisions, calls of float, float types and literals with a point."""
    found: list[Finding] = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            found.append((module.name, node.lineno, "divides with /"))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "float":
            found.append((module.name, node.lineno, "calls float()"))
        elif isinstance(node, ast.Attribute) and node.attr.startswith(("float", "mean", "average")):
            found.append((module.name, node.lineno, f"uses {node.attr}"))
    return found


def locale_texts(module: Module) -> list[Finding]:
    """Return reads and writes of text in whatever encoding the machine's locale has."""
    return [
        (module.name, node.lineno, "a text file without an encoding")
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and _opens_text(node)
        and "encoding" not in {one.arg for one in node.keywords}
    ]


def _opens_text(node: ast.Call) -> bool:
    """Say whether a call is one of pathlib's or `open` in a text mode; ours of a line has no mode."""
    modes = [
        one.value
        for one in node.args
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]
    binary = any("b" in mode and len(mode) <= 3 for mode in modes)
    if isinstance(node.func, ast.Name):
        return node.func.id == "open" and not binary
    if not isinstance(node.func, ast.Attribute):
        return False
    if node.func.attr == "open":
        return bool({"r", "w", "a", "x", "a+", "w+", "r+"} & set(modes))
    return node.func.attr in {"read_text", "write_text", "fdopen"} and not binary


def bare_excepts(module: Module) -> list[Finding]:
    """Return handlers that catch everything and do not end by raising it again."""
    found: list[Finding] = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
        all_kinds = node.type is None or names & {"Exception", "BaseException"}
        last = node.body[-1]
        if all_kinds and not (isinstance(last, ast.Raise) and last.exc is None):
            found.append((module.name, node.lineno, "catches everything"))
    return found


def undocumented(module: Module) -> list[Finding]:
    """Return public functions, classes and methods, and modules, without a docstring."""
    found: list[Finding] = [] if ast.get_docstring(module.tree) else [(module.name, 1, "module")]
    _without_words(module, module.tree, found)
    return found


def _without_words(module: Module, parent: ast.AST, found: list[Finding]) -> None:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.If):
            _without_words(module, node, found)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_") or _is_overload(node):
            continue
        if not ast.get_docstring(node):
            found.append((module.name, node.lineno, node.name))
        if isinstance(node, ast.ClassDef):
            _without_words(module, node, found)


def _is_overload(node: ast.AST) -> bool:
    return any(getattr(one, "id", "") == "overload" for one in getattr(node, "decorator_list", []))


def uncommented_names(module: Module) -> list[Finding]:
    """Return public constants that have no comment on the line above."""
    lines = module.text.splitlines()
    return [
        (module.name, node.lineno, ast.unparse(node.targets[0]))
        for node in module.tree.body
        if isinstance(node, ast.Assign) and not lines[node.lineno - 2].startswith("# ")
    ]


# A sum in SQL, what it adds up and what is not counted: `count()` of rows needs no more than 64 bits.
_SUMS = re.compile(r"(?<![\w.])(sum|sumIf|sumOrNull)\s*\((?!\s*toInt128\()")


def narrow_sums(module: Module) -> list[Finding]:
    """Return sums in SQL, of a file or of a module's texts, that are not made in 128 bits."""
    if module.name.endswith(".sql"):
        texts = [(1, module.text)]
    else:
        texts = [
            (node.lineno, node.value)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        ]
    return [
        (module.name, line + text[: found.start()].count("\n"), found.group())
        for line, text in texts
        for found in _SUMS.finditer(text)
    ]
