"""The tests that need another kernel than this one, run inside user-mode Linux."""

from __future__ import annotations

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
REPOSITORY = Path(__file__).resolve().parents[2]


def is_here(what: str) -> str:
    """Name this kernel where it can do by itself what a selection needs."""
    if what == "devicemapper" and mapper.CONTROL.exists():
        return "this kernel"
    if what in ("aufs", "zfs") and what in Path("/proc/filesystems").read_text().split():
        return "this kernel"
    return ""


@pytest.mark.parametrize("what", SELECTIONS)
def test_in_another_kernel(what: str, tmp_path: Path) -> None:
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
    found = run_tests(selection, tmp_path, timeout_seconds=timeout_seconds)
    if reason := explain_refusal(found):
        standing.note(what, f"not run: {reason}")
        pytest.skip(reason)
    last = found.output.strip().splitlines()[-1] if found.output.strip() else "no word"
    where = f"user-mode Linux {found.kernel}"
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
    if tree is None:
        standing.note(OPENZFS, f"not run: {reason}")
        pytest.skip(reason)
    found = machine.run_tests(tree, OPENZFS_SELECTION, tmp_path, timeout_seconds=OPENZFS_TIMEOUT_SECONDS)
    where = f"qemu {found.kernel}"
    standing.note(OPENZFS, f"{where}: {(found.output.strip().splitlines() or ['no word'])[-1]}")
    assert found.status == 0, f"{where} left with {found.status}:\n{found.output[-20000:]}"
    assert " passed" in found.output
