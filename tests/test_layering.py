"""Hold the house rules: who may import whom, what stays pure, what is imported lazily, and how long files may get.

Imports below `if TYPE_CHECKING:` do not count: they are not there at run time.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pylayers"
KERNELS = ROOT / "pyx"

# From the bottom up; a part may import those before it. docs/design.md shows groups, this order also sorts within them.
ORDER = (
    "record",
    "jsontext",
    "thread",
    "errors",
    "oci",
    "dockerfile",
    "store",
    "diff",
    "snapshot",
    "volume",
    "container",
    "image",
    "transfer",
    "build",
    "engine",
    "cli",
)
# Pairs that the order alone would allow.
FORBIDDEN = {
    ("dockerfile", "oci"),
    *((upper, "dockerfile") for upper in ("store", "diff", "snapshot", "volume", "container", "image", "transfer")),
    *((upper, lower) for upper in ("image", "transfer") for lower in ("volume", "container")),
}
MAY_IMPORT_NATIVE = {"store", "diff", "snapshot", "build", "volume", "container"}

# Everything that the pure parts import: none of these modules reads a file, a socket, the clock or the environment.
PURE_PARTS = {"record", "jsontext", "errors", "oci", "dockerfile"}
PURE_MODULES = {
    "__future__", "_json", "_sha2", "_sha256", "base64", "bisect", "collections", "dataclasses", "difflib", "enum",
    "errno", "functools", "hashlib", "itertools", "json", "operator", "re", "string", "types", "typing", "unicodedata",
}  # fmt: skip
IMPURE_CALLS = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}

# Third-party packages and costly modules: who may import them, and whether the import must be inside a function.
OWNERS: dict[str, tuple[set[str], bool]] = {
    "numpy": ({"store", "diff", "snapshot", "build", "transfer"}, True),
    "click": ({"cli"}, False),
    "rich": ({"cli"}, True),
    "sqlite3": ({"store"}, False),
    "blake3": ({"store", "diff", "snapshot", "build", "transfer"}, False),
    "zstandard": ({"transfer"}, True),
    "isal": ({"transfer"}, True),
    "httpx": ({"build"}, True),
}

MODULE_LINES = 450
LONGER_MODULES: dict[str, int] = {}  # path below pylayers/ → lines it may have
KERNEL_LINES = 350
LONGER_KERNELS = {
    "erofs.pyx": 420,  # one inode of every kind, and its directories
    "gather.pxd": 470,  # the threaded directory walk: its queue and its workers are one state machine
    "sysmount.pyx": 420,  # one wrapper a system call
    "unpack.pyx": 500,  # one entry of every kind, the order of attributes, and the threads that share the rows
}
FUNCTION_LINES = 75
CYTHONS_OWN = {"cpython", "cython", "libc", "posix"}

DRIVER_MODULES = {
    f"pylayers.snapshot.{name}"
    for name in ("erofs", "overlay2", "fuseoverlayfs", "fuse_overlayfs", "btrfs", "zfs", "aufs", "overlay",
                 "devicemapper", "vfs")
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    """One imported name: `origin` imports `target` at `line`, inside a function (lazily) or not."""

    origin: str
    target: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.origin}:{self.line} imports {self.target}"

    @property
    def part(self) -> str:
        return part_of(self.origin)


def part_of(module: str) -> str:
    """Give the part that a module of the package belongs to; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def name_module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def find_imports(tree: ast.AST, origin: str, *, package: bool = False, lazy: bool = False) -> Iterator[Import]:
    """Yield what a module imports at run time, relative imports made absolute; `from a import b` gives a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(origin, alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = origin.split(".")[: None if package and node.level == 1 else -node.level + package]
                base = ".".join([*above, *filter(None, [node.module])])
            yield from (Import(origin, f"{base}.{alias.name}", node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.If) and is_type_checking(node):
            for other in node.orelse:
                yield from find_imports(ast.Module([other], []), origin, package=package, lazy=lazy)
        else:
            inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from find_imports(node, origin, package=package, lazy=inside)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


TREES = {module: parse(path) for module, path in MODULES.items()}
IMPORTS = [
    found
    for module, tree in TREES.items()
    for found in find_imports(tree, module, package=MODULES[module].name == "__init__.py")
]
OWN = [found for found in IMPORTS if found.target.startswith("pylayers.")]


def direction_fault(found: Import) -> bool:
    """Tell whether an import of ours goes up, or sideways where that is not allowed."""
    origin, target = found.part, part_of(found.target)
    if target == "_native":
        return origin not in MAY_IMPORT_NATIVE
    if target in ORDER and origin in ORDER:
        return origin != target and (ORDER.index(target) > ORDER.index(origin) or (origin, target) in FORBIDDEN)
    return bool(origin)  # the package's own __init__ gathers public names from anywhere; nobody asks it for them


def resolve_module(target: str) -> str:
    """Name the module of ours that a dotted target lies in."""
    while target not in MODULES and "." in target:
        target = target.rpartition(".")[0]
    return target


def test_every_part_has_its_place() -> None:
    """A new folder or module must be put into the order before anything can import it."""
    assert {part_of(module) for module in MODULES} - {""} == {*ORDER, "_native"}


def test_the_imports_were_found() -> None:
    """Guard the tests below against reading nothing."""
    assert len(OWN) > 300
    assert {found.part for found in OWN} >= set(ORDER) - {"errors", "jsontext", "record", "thread"}


def test_imports_go_downward() -> None:
    assert [str(found) for found in OWN if direction_fault(found)] == []


def test_only_select_knows_the_concrete_drivers() -> None:
    faults = [
        str(found)
        for found in OWN
        if resolve_module(found.target) in DRIVER_MODULES and found.origin != "pylayers.snapshot.select"
    ]
    assert faults == []


def test_driver_modules_are_those_that_hold_a_driver() -> None:
    """The list of names above must not miss a driver."""
    holders = {
        module
        for module, tree in TREES.items()
        if module.startswith("pylayers.snapshot.")
        and any(isinstance(node, ast.ClassDef) and node.name == "Driver" for node in tree.body)
    }
    assert holders
    assert holders <= DRIVER_MODULES


@pytest.mark.parametrize("part", sorted(PURE_PARTS))
def test_pure_parts_do_no_io(part: str) -> None:
    """Everything they may import is named in PURE_MODULES, and they call no built-in that reads, writes or runs."""
    faults = [
        str(found)
        for found in IMPORTS
        if found.part == part
        and not found.target.startswith("pylayers.")
        and found.target.split(".")[0] not in PURE_MODULES
    ]
    faults += [
        f"{module}:{node.lineno} calls {node.func.id}"
        for module, tree in TREES.items()
        if part_of(module) == part
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS
    ]
    assert faults == []


def test_costly_packages_are_imported_by_their_owners_only() -> None:
    faults = []
    for found in IMPORTS:
        owners, must_be_lazy = OWNERS.get(found.target.split(".")[0], (set(), False))
        if owners and (found.part not in owners or (must_be_lazy and not found.lazy)):
            faults.append(f"{found}{'' if found.lazy else ' at import time'}")
    assert faults == []


def test_third_party_packages_are_declared() -> None:
    """What is neither ours nor the standard library's must be in the table above, and in pyproject.toml."""
    import sys
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=~ \[]", entry)[0] for entry in declared}
    foreign = {found.target.split(".")[0] for found in IMPORTS} - set(sys.stdlib_module_names) - {"pylayers"}
    foreign.discard("_sha2")  # the standard library's since 3.12
    assert foreign <= names
    assert foreign <= set(OWNERS)


def test_modules_do_not_import_each_other_in_a_ring() -> None:
    """No cycle among the imports that run when a module is loaded."""
    edges: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in OWN:
        target = resolve_module(found.target)
        if not found.lazy and target != found.origin and target in edges:
            edges[found.origin].add(target)
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way[way.index(module) :], module))
        if module in done:
            return
        for target in sorted(edges[module]):
            visit(target, (*way, module))
        done.add(module)

    for module in sorted(edges):
        visit(module, ())


def read_cimports(path: Path) -> Iterator[str]:
    """Yield the modules that a kernel or shared header cimports."""
    for line in path.read_text().splitlines():
        match = re.match(r"\s*from\s+([\w.]+)\s+cimport\b", line) or re.match(r"\s*cimport\s+([\w.]+)", line)
        if match:
            yield match[1]


def test_no_kernel_cimports_another() -> None:
    """Kernels share .pxd files that have no .pyx beside them: what is in those is inlined into each kernel."""
    kernels = {path.stem for path in KERNELS.glob("*.pyx")}
    shared = {path.stem for path in KERNELS.glob("*.pxd")}
    assert kernels
    assert kernels & shared == set()
    faults = []
    for path in sorted(KERNELS.iterdir()):
        for target in read_cimports(path):
            if target in kernels or (target not in shared and target.split(".")[0] not in CYTHONS_OWN):
                faults.append(f"{path.name} cimports {target}")
    assert faults == []


def test_kernels_import_no_python_of_ours_and_no_policy() -> None:
    """Kernels know buffers, descriptors and integers: no JSON, no paths, no environment, nothing of pylayers."""
    faults = [
        f"{path.name}:{number} {line.strip()}"
        for path in sorted(KERNELS.iterdir())
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.match(r"\s*(from|import)\s+(pylayers|json|os|pathlib|logging|subprocess|tarfile|sys)\b", line)
    ]
    assert faults == []


def test_every_kernel_has_its_stub() -> None:
    assert {path.stem for path in KERNELS.glob("*.pyx")} == {path.stem for path in (PACKAGE / "_native").glob("*.pyi")}


def count_lines(path: Path) -> int:
    return path.read_text().count("\n")


def check_lengths(lengths: dict[str, int], limit: int, exceptions: dict[str, int]) -> list[str]:
    """List the files beyond their limit, and the exceptions that are no longer needed."""
    faults = [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > exceptions.get(name, limit)]
    return faults + [f"{name}: no exception needed" for name in exceptions if lengths.get(name, 0) <= limit]


def test_modules_stay_short() -> None:
    lengths = {str(path.relative_to(PACKAGE)): count_lines(path) for path in MODULES.values()}
    assert check_lengths(lengths, MODULE_LINES, LONGER_MODULES) == []


def test_kernels_stay_short() -> None:
    lengths = {path.name: count_lines(path) for path in KERNELS.iterdir() if path.suffix in (".pyx", ".pxd")}
    assert check_lengths(lengths, KERNEL_LINES, LONGER_KERNELS) == []


def test_functions_stay_short() -> None:
    faults = [
        f"{module}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert faults == []


def test_the_reader_of_imports_sees_every_form() -> None:
    """The rules are only as good as what finds the imports."""
    text = """
from typing import TYPE_CHECKING
import os.path, json as j
from .. import errors
from .sibling import thing
if TYPE_CHECKING:
    import hidden
else:
    import shown
def function():
    from pylayers.cli import main
try:
    import inside
except ImportError:
    pass
"""
    found = {(one.target, one.lazy) for one in find_imports(ast.parse(text), "pylayers.store.blob")}
    assert found == {
        ("typing.TYPE_CHECKING", False),
        ("os.path", False),
        ("json", False),
        ("pylayers.errors", False),
        ("pylayers.store.sibling.thing", False),
        ("shown", False),
        ("pylayers.cli.main", True),
        ("inside", False),
    }
    text = "from .blob import x\nfrom .. import errors"
    inside_package = find_imports(ast.parse(text), "pylayers.store", package=True)
    assert [one.target for one in inside_package] == ["pylayers.store.blob.x", "pylayers.errors"]


@pytest.mark.parametrize(
    ("origin", "target", "fault"),
    [
        ("pylayers.store.blob", "pylayers.oci.digest", False),
        ("pylayers.oci.digest", "pylayers.store.blob", True),
        ("pylayers.diff.compare", "pylayers.snapshot.mount", True),
        ("pylayers.image.view", "pylayers.container.record", True),
        ("pylayers.engine.image", "pylayers._native.walk", True),
        ("pylayers.diff.merge", "pylayers._native.tardiff", False),
        ("pylayers.build.base", "pylayers.newcomer.thing", True),
        ("pylayers", "pylayers.engine.Engine", False),
    ],
)
def test_the_rule_of_direction_knows_wrong_from_right(origin: str, target: str, fault: bool) -> None:
    assert direction_fault(Import(origin, target, 1, False)) is fault
