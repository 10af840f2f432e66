"""--chmod's modes: what docker 28.5.2 made of files 0640, 4755, 1755 and directories 0750, 3700."""

from __future__ import annotations

import stat

import pytest

from pylayers.build.copy.filemode import change_mode, read_mode
from pylayers.errors import InvalidInput

BEFORE = (0o100640, 0o104755, 0o101755, 0o040750, 0o043700)


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("u=rw,go=r", (0o644, 0o644, 0o1644, 0o644, 0o1644)),
        ("+x", (0o751, 0o4755, 0o1755, 0o751, 0o3711)),
        ("a+X", (0o640, 0o4755, 0o1755, 0o751, 0o3711)),
        ("u=rwX,go=rX", (0o644, 0o755, 0o1755, 0o755, 0o1755)),
        ("g=u", (0o660, 0o4775, 0o1775, 0o770, 0o3770)),
        ("go=u-w", (0o644, 0o4755, 0o1755, 0o755, 0o3755)),
        ("g=o+w", (0o620, 0o4775, 0o1775, 0o720, 0o3720)),
        ("u=g", (0o440, 0o4555, 0o1555, 0o550, 0o3000)),
        ("ug=rw,o-r", (0o660, 0o661, 0o1661, 0o660, 0o1660)),
        ("u++x", (0o740, 0o4755, 0o1755, 0o750, 0o3700)),
        ("u+t", (0o1640, 0o5755, 0o1755, 0o1750, 0o3700)),
        ("o+t", (0o640, 0o4755, 0o1755, 0o750, 0o3700)),
        ("g+s,+t", (0o3640, 0o7755, 0o3755, 0o3750, 0o3700)),
        ("+s", (0o6640, 0o6755, 0o7755, 0o6750, 0o7700)),
        ("=", (0, 0, 0o1000, 0, 0o1000)),
        ("u=", (0o040, 0o055, 0o1055, 0o050, 0o3000)),
        ("-w", (0o440, 0o4555, 0o1555, 0o550, 0o3500)),
    ],
)
def test_symbolic_modes(text: str, after: tuple[int, ...]) -> None:
    octal, changes = read_mode(text)
    assert octal == -1
    made = [change_mode(mode, changes) for mode in BEFORE]
    assert [stat.S_IMODE(mode) for mode in made] == list(after)
    assert [stat.S_IFMT(mode) for mode in made] == [stat.S_IFMT(mode) for mode in BEFORE]


def test_a_lone_t_takes_no_other_bit_along() -> None:
    """BSD's: `t` without a who narrows the whole operation to the sticky bit."""
    assert change_mode(0o100640, read_mode("+xt")[1]) == 0o101640
    assert change_mode(0o100640, read_mode("=t")[1]) == 0o101640


@pytest.mark.parametrize(("text", "mode"), [("0", 0), ("755", 0o755), ("00755", 0o755), ("07777", 0o7777)])
def test_octal_modes(text: str, mode: int) -> None:
    assert read_mode(text) == (mode, ())


@pytest.mark.parametrize(
    "text",
    ["9", "17777", "0o755", "755x", "-755", "X", "u", "abc", "u=7", "u=rw,", ",u+x", "u+q", "u+x,,g+x", "٧", "rwx"],
)
def test_refuses_what_is_no_mode(text: str) -> None:
    with pytest.raises(InvalidInput, match="chmod"):
        read_mode(text)
