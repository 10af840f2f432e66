"""Every case built by BuildKit and by pylayers: the trees, the configurations and the refusals are the same."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.interop.buildkit.case import Case, read_cases
from tests.interop.buildkit.compare import compare
from tests.interop.buildkit.conftest import Engines
from tests.interop.buildkit.difference import read_differences

CASES = read_cases()
DIFFERENCES = read_differences()

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runc") is None, reason="needs root and runc"),
]


def name(case: Case) -> str:
    return f"{case.topic}/{case.name}"


def find_differences(engines: Engines, case: Case) -> list[str]:
    """Compare one case. Where only times differ, an equal step of another case may have been used: build it alone."""
    docker, base = engines.expect(case), engines.own.base_tree
    found = compare(engines.build(case), docker, base)
    if found and all(" mtime: " in one for one in found):
        found = compare(engines.build(case, fresh=True), docker, base)
    return found


@pytest.mark.parametrize("case", [case for case in CASES if case.labs is None], ids=name)
def test_pylayers_does_what_buildkit_does(engines: Engines, case: Case) -> None:
    found = find_differences(engines, case)
    if name(case) in DIFFERENCES:
        assert found, f"{name(case)} no longer differs: take it off the list"
        return
    assert found == []


@pytest.mark.parametrize("case", [case for case in CASES if case.labs is not None], ids=name)
def test_what_only_newer_frontends_know(engines: Engines, case: Case) -> None:
    """Docker cannot be asked without fetching a frontend: the cases themselves name the paths."""
    made = engines.build(case)
    if case.labs == "refused":
        assert "refused" in made
        return
    assert "refused" not in made, made
    assert set(made["tree"]) - set(engines.own.base_tree) == set((case.labs or "").split())


def test_there_are_enough_cases_and_the_list_names_only_them() -> None:
    assert len(CASES) >= 150
    assert len({case.name for case in CASES}) == len(CASES)
    assert set(DIFFERENCES) <= {name(case) for case in CASES}
