"""The tests that need another kernel than this one, run inside user-mode Linux or an emulated machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from pylayers.snapshot import mapper
from tests.kernels import machine, standing
from tests.kernels.launcher import explain_refusal, find_kernel, run_tests

# driver -> the tests that show it, and how long they may take
SELECTIONS = {
    "devicemapper": (
        ("tests/conformance/test_devicemapper.py", "tests/conformance/test_migrate.py::test_every_pair"), 900,
    ),
    "overlay2 with project quotas": (("tests/conformance/test_quota.py", "tests/conformance/test_backing.py"), 600),
    "aufs": (("tests/conformance/test_aufs.py::TestAufs",), 900),
}
OPENZFS = "zfs on OpenZFS"
OPENZFS_SELECTION = ("tests/conformance/test_zfs.py",)
OPENZFS_TIMEOUT_SECONDS = 5400
FindTree = Callable[[], tuple[Path | None, str]]  # the tree; None and why there is none
EMULATED_SLOWER = 4  # what takes 90 s in user-mode Linux takes 6 minutes there
REPOSITORY = Path(__file__).resolve().parents[2]


def is_here(what: str) -> str:
    """Name this kernel where it can do by itself what a selection needs."""
    if what == "devicemapper" and mapper.CONTROL.exists():
        return "this kernel"
    if what in ("aufs", "zfs") and what in Path("/proc/filesystems").read_text().split():
        return "this kernel"
    return ""


def make_report(place: Path, name: str) -> Path:
    """Make the empty folder that a run reports to."""
    report = place / name
    report.mkdir()
    return report


@pytest.fixture(scope="session")
def find_plain_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FindTree]:
    """Give what finds the tree that is named, or else makes one for this run; that costs a minute, so only if asked."""
    made = tmp_path_factory.mktemp("kernels") / "tree"

    @cache
    def find() -> tuple[Path | None, str]:
        if os.environ.get(machine.VARIABLE):
            return machine.find_tree()
        reason = machine.make_tree(made)
        return (None if reason else made), reason

    yield find
    shutil.rmtree(made, ignore_errors=True)


@pytest.mark.parametrize("what", SELECTIONS)
def test_in_another_kernel(what: str, tmp_path: Path, find_plain_tree: FindTree) -> None:
    selection, timeout_seconds = SELECTIONS[what]
    if is_here(what):
        standing.note(what, is_here(what))
        pytest.skip(f"{is_here(what)} has it: the tests run here by themselves")
    if not all((REPOSITORY / path.partition("::")[0]).exists() for path in selection):
        pytest.skip(f"not in this checkout: {', '.join(selection)}")
    program, reason = find_kernel()
    if not program:
        standing.note(what, f"not run: {reason}")
        pytest.skip(reason)
    where = "user-mode Linux"
    found = run_tests(selection, make_report(tmp_path, "uml"), timeout_seconds=timeout_seconds)
    if refusal := explain_refusal(found):
        tree, reason = find_plain_tree()
        if tree is None:
            standing.note(what, f"not run: {refusal}; {reason}")
            pytest.skip(f"{refusal}; {reason}")
        where, timeout_seconds = "qemu", timeout_seconds * EMULATED_SLOWER
        found = machine.run_tests(tree, selection, make_report(tmp_path, "qemu"), timeout_seconds=timeout_seconds)
    last = found.output.strip().splitlines()[-1] if found.output.strip() else "no word"
    where = f"{where} {found.kernel}"
    if found.status == 0 and " passed" not in last:
        standing.note(what, f"not run: {where} lacks it ({last})")
        pytest.skip(f"{where}: {found.output[-600:]}")
    standing.note(what, f"{where}: {last}")
    assert found.status == 0, f"{where} left with {found.status}:\n{found.output[-20000:]}"


def test_on_openzfs(tmp_path: Path) -> None:
    """Emulated, so that it is slow, and its tree takes minutes to make: only where one is named."""
    if is_here("zfs"):
        standing.note(OPENZFS, is_here("zfs"))
        pytest.skip(f"{is_here('zfs')} has it: the tests run here by themselves")
    tree, reason = machine.find_tree()
    if tree is not None and not machine.has_zfs(tree):
        tree, reason = None, f"{tree} has no OpenZFS ({machine.MAKE} DIRECTORY zfs makes one that has)"
    if tree is None:
        standing.note(OPENZFS, f"not run: {reason}")
        pytest.skip(reason)
    found = machine.run_tests(tree, OPENZFS_SELECTION, tmp_path, timeout_seconds=OPENZFS_TIMEOUT_SECONDS)
    where = f"qemu {found.kernel}"
    standing.note(OPENZFS, f"{where}: {(found.output.strip().splitlines() or ['no word'])[-1]}")
    assert found.status == 0, f"{where} left with {found.status}:\n{found.output[-20000:]}"
    assert " passed" in found.output
