"""Records behave as the dataclasses that they stand in for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, ClassVar

import pytest

from pylayers.record import field, record, replace, to_mapping


@record
class Point:
    kind: ClassVar[str] = "point"
    x: int
    y: int = 2
    tags: list[str] = field(default_factory=list)
    note: str = field(default="", compare=False)


@dataclass(frozen=True)
class Oracle:
    kind: ClassVar[str] = "point"
    x: int
    y: int = 2
    tags: list[str] = dataclass_field(default_factory=list)
    note: str = dataclass_field(default="", compare=False)


@record(kw_only=True)
class Base:
    a: int
    b: tuple[int, ...] = ()


@record(kw_only=True)
class Derived(Base):
    c: str


@record(frozen=False)
class Counter:
    count: int = 0


@pytest.mark.parametrize("make", [Point, Oracle])
def test_construction_defaults_and_repr(make: Callable[..., Any]) -> None:
    made = make(1, note="n")
    assert (made.x, made.y, made.tags, made.note, made.kind) == (1, 2, [], "n", "point")
    assert made.tags is not make(1).tags
    assert repr(made) == f"{make.__name__}(x=1, y=2, tags=[], note='n')"
    assert made == make(x=1, note="other")
    assert made != make(3)
    assert made != (1, 2, [], "n")


@pytest.mark.parametrize("make", [Point, Oracle])
@pytest.mark.parametrize(
    ("args", "given"), [((), {}), ((1,), {"x": 1}), ((1,), {"z": 1}), ((1, 2, [], "", 5), {})]
)
def test_wrong_arguments_are_type_errors(
    make: Callable[..., Any], args: tuple[Any, ...], given: dict[str, Any]
) -> None:
    with pytest.raises(TypeError):
        make(*args, **given)


@pytest.mark.parametrize("make", [Point, Oracle])
def test_frozen_records_refuse_changes(make: Callable[..., Any]) -> None:
    made = make(1)
    with pytest.raises(AttributeError):
        made.x = 2
    with pytest.raises(AttributeError):
        del made.x


def test_subclasses_keep_their_bases_fields() -> None:
    made = Derived(a=1, c="c")
    assert repr(made) == "Derived(a=1, b=(), c='c')"
    assert hash(made) == hash(Derived(a=1, c="c"))
    assert made != Base(a=1)
    with pytest.raises(TypeError):
        Derived(1, c="c")  # type: ignore[misc]


def test_replace_and_mapping() -> None:
    made = replace(Derived(a=1, c="c"), b=(1, 2))
    assert made == Derived(a=1, b=(1, 2), c="c")
    assert to_mapping([made]) == [{"a": 1, "b": [1, 2], "c": "c"}]
    with pytest.raises(TypeError):
        replace(made, d=1)


def test_mutable_records_are_not_hashable() -> None:
    made = Counter()
    made.count += 1
    assert made == Counter(1)
    with pytest.raises(TypeError):
        hash(made)
