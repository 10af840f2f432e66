"""Plain records: what `dataclasses` gives, with nothing generated at import.

`@dataclass` compiles some six functions for every class, 0.5 ms each time a process starts; the classes that an
unchanged rebuild loads took 45 ms of its 150. These share one set of functions. Type checkers see dataclasses
(PEP 681). Classes that are only loaded by slow paths may be either.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar, dataclass_transform, overload

    T = TypeVar("T")
else:

    def overload(function):
        """Stand in for typing's, which type checkers see."""
        return function

    def dataclass_transform(**_):
        """Stand in for typing's, which type checkers see."""
        return lambda function: function

    class _NamedTupleMaker(type):
        def __new__(cls, name, _bases, namespace):
            fields = namespace["__annotations__"]
            defaults = [namespace[field] for field in fields if field in namespace]
            made = namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])
            made.__doc__ = namespace.get("__doc__")
            return made

    # As typing's, for classes of fields alone.
    NamedTuple = type.__new__(_NamedTupleMaker, "NamedTuple", (), {})

_MISSING: Any = object()


class Field:
    """Say how one field of a record begins and whether it counts in comparisons."""

    __slots__ = ("compare", "default", "default_factory")

    def __init__(self, default: Any, default_factory: Callable[[], Any] | None, compare: bool) -> None:
        self.default = default
        self.default_factory = default_factory
        self.compare = compare


def field(
    *, default: Any = _MISSING, default_factory: Callable[[], Any] | None = None, compare: bool = True
) -> Any:
    """Describe a field whose default is made anew for each record, or that comparisons leave out."""
    return Field(default, default_factory, compare)


@overload
def record(cls: type[T], /) -> type[T]: ...


@overload
def record(  # noqa: F811
    *, frozen: bool = True, kw_only: bool = False
) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(  # noqa: F811
    cls: type[T] | None = None, /, *, frozen: bool = True, kw_only: bool = False
) -> type[T] | Callable[[type[T]], type[T]]:
    """Make a class a record of its annotated fields: __init__, comparison, hash and repr; frozen unless told otherwise.

    A subclass has its base's fields before its own. A frozen record is hashed by its fields.
    """
    if cls is None:
        return lambda given: _make(given, frozen, kw_only)
    made: type[T] = _make(cls, frozen, kw_only)
    return made


def _make(cls: Any, frozen: bool, kw_only: bool) -> Any:
    fields: dict[str, Field] = dict(getattr(cls, "__record_fields__", {}))
    own = cls.__dict__
    for name, annotation in own.get("__annotations__", {}).items():
        if str(annotation).startswith("ClassVar"):
            continue
        default = own.get(name, _MISSING)
        if isinstance(default, Field):
            fields[name] = default
            if default.default is not _MISSING:
                setattr(cls, name, default.default)
            else:
                delattr(cls, name)
        else:
            fields[name] = Field(default, None, True)
    cls.__record_fields__ = fields
    cls.__record_defaults__ = {name: one.default for name, one in fields.items() if one.default is not _MISSING}
    cls.__record_names__ = () if kw_only else tuple(fields)
    cls.__match_args__ = cls.__record_names__  # type: ignore[misc]
    cls.__init__ = _initialise
    if "__repr__" not in own:
        cls.__repr__ = _represent
    if "__eq__" not in own:
        cls.__eq__ = _equal
        cls.__hash__ = _hash if frozen else None
    if frozen:
        cls.__setattr__ = _refuse_set
        cls.__delattr__ = _refuse_delete
    return cls


def _initialise(self: Any, *args: Any, **given: Any) -> None:
    cls = type(self)
    values = self.__dict__
    values.update(cls.__record_defaults__)
    if args:
        names = cls.__record_names__
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__} takes {len(names)} positional arguments, {len(args)} were given")
        positional = dict(zip(names, args, strict=False))
        for name in given.keys() & positional.keys() if given else ():
            raise TypeError(f"{cls.__name__} got two values for {name!r}")
        values.update(positional)
    values.update(given)
    fields = cls.__record_fields__
    if len(values) == len(fields) and given.keys() <= fields.keys():
        return
    for name, one in fields.items():
        if name not in values:
            if one.default_factory is None:
                raise TypeError(f"{cls.__name__} misses a value for {name!r}")
            values[name] = one.default_factory()
    for name in given.keys() - fields.keys():
        raise TypeError(f"{cls.__name__} has no field {name!r}")


def _compared(self: Any) -> list[Any]:
    return [self.__dict__[name] for name, one in type(self).__record_fields__.items() if one.compare]


def _equal(self: Any, other: object) -> Any:
    return _compared(self) == _compared(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash((type(self), *_compared(self)))


def _represent(self: Any) -> str:
    shown = ", ".join(f"{name}={self.__dict__[name]!r}" for name in type(self).__record_fields__)
    return f"{type(self).__name__}({shown})"


def _refuse_set(self: Any, name: str, value: object) -> None:
    raise AttributeError(f"{type(self).__name__} is frozen: cannot set {name!r}")


def _refuse_delete(self: Any, name: str) -> None:
    raise AttributeError(f"{type(self).__name__} is frozen: cannot delete {name!r}")


def replace(value: T, /, **changes: Any) -> T:
    """Return a copy of a record with some fields changed. Raises TypeError for a field that it doesn't have."""
    names = type(value).__record_fields__  # type: ignore[attr-defined]
    return type(value)(**{**{name: value.__dict__[name] for name in names}, **changes})


def to_mapping(value: object) -> Any:
    """Return a record as plain dicts and lists, records inside it included."""
    names = getattr(type(value), "__record_fields__", None)
    if names is not None:
        return {name: to_mapping(value.__dict__[name]) for name in names}
    if isinstance(value, list | tuple):
        return [to_mapping(one) for one in value]
    if isinstance(value, dict):
        return {key: to_mapping(one) for key, one in value.items()}
    return value
