"""What one RUN is lent: its mounts opened for the key, then made ready for the command and taken back after it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from pylayers.build.run import mount as runmount
from pylayers.build.run.cache import name_cache, open_cache
from pylayers.build.run.mount import RunMount, parse_mount
from pylayers.build.run.option import read_agents, read_secrets
from pylayers.build.run.secret import SOCKET_VARIABLE, lend_agent, lend_secret, make_memory, name_socket
from pylayers.build.run.source import MountSource, mount_beneath, mount_source, open_source
from pylayers.build.session import BuildSession
from pylayers.build.state import StageState
from pylayers.container.isolation import ContainerMount
from pylayers.dockerfile import instructions as df
from pylayers.dockerfile.expand import expand_word
from pylayers.errors import InvalidInput, PylayersError
from pylayers.record import field, record, replace

if TYPE_CHECKING:
    from pylayers.snapshot.snapshotter import Snapshotter

SHARING_ORDER = (runmount.LOCKED, runmount.PRIVATE, runmount.SHARED, "")


@record
class OpenedMount:
    """Hold a parsed mount and what its `from` and `source` show."""

    mount: RunMount
    source: MountSource | None = None


@record(frozen=False)
class Lent:
    """Hold what a command gets."""

    mounts: list[ContainerMount] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


def open_mounts(
    session: BuildSession, state: StageState, instruction: df.Run, stage_index: int
) -> tuple[OpenedMount, ...]:
    """Parse a RUN's mounts and open what they show. Raises InvalidInput, NotFound, with the instruction's place."""
    environment = state.environment()

    def expand(text: str) -> str:
        return expand_word(text, environment, instruction.escape)

    opened = []
    try:
        for text in instruction.mounts:
            mount = parse_mount(text, expand, state.config.working_dir or "/")
            shows = mount.type == runmount.BIND or (mount.type == runmount.CACHE and mount.from_name)
            source = open_source(session, state, mount, instruction.span, stage_index) if shows else None
            opened.append(OpenedMount(mount, source))
    except PylayersError as error:
        error.span = error.span or instruction.span
        raise
    return tuple(opened)


def key_inputs(opened: tuple[OpenedMount, ...]) -> list[tuple[str, bytes]]:
    """Return what of the mounts enters a key: their options, and the content that they show.

    Neither a secret's value nor what a cache holds does, nor which cache it is: as in BuildKit.
    """
    return [
        (" ".join(("--mount", *(f"{len(text)}:{text}" for text in shown(one.mount)))), digest_of_source(one))
        for one in opened
    ]


def shown(mount: RunMount) -> tuple[str, ...]:
    """Return what a key has of a mount."""
    return (replace(mount, id="", sharing="") if mount.type == runmount.CACHE else mount).describe()


def lend(
    session: BuildSession, opened: tuple[OpenedMount, ...], driver: Snapshotter, stack: ExitStack
) -> Lent:
    """Make the mounts ready until the stack is closed. Raises NotFound for a required secret or agent."""
    lent = Lent()
    memory: Path | None = None
    if any(one.mount.type in (runmount.SECRET, runmount.SSH) for one in opened):
        memory = make_memory(session.store.scratch("secret"), stack)
    caches = take_caches(session, opened, driver, stack)
    agents = 0
    for number, one in enumerate(opened):
        mount = one.mount
        if mount.type == runmount.TMPFS:
            lent.mounts.append(
                ContainerMount(
                    type="tmpfs",
                    target=mount.target,
                    readonly=mount.readonly,
                    size_bytes=mount.size_bytes or None,
                    restricted=False,
                )
            )
        elif mount.type == runmount.BIND and one.source is not None:
            path = mount_source(session, driver, one.source, stack, writable=not mount.readonly)
            lent.mounts.append(bind(mount, path))
        elif mount.type == runmount.CACHE:
            path = caches[number]
            if mount.source and one.source is None:
                path = mount_beneath(session, path, mount.source, stack)
            lent.mounts.append(bind(mount, path))
        elif mount.type == runmount.SECRET and memory is not None:
            mounts, environment = lend_secret(mount, read_secrets(session.options.secrets), memory, number)
            lent.mounts += mounts
            lent.environment.update(environment)
        elif mount.type == runmount.SSH and memory is not None:
            lent.mounts += lend_agent(mount, read_agents(session.options.ssh), memory, agents, stack)
            lent.environment.setdefault(SOCKET_VARIABLE, name_socket(mount, agents))
            agents += 1
    return lent


def take_caches(
    session: BuildSession, opened: tuple[OpenedMount, ...], driver: Snapshotter, stack: ExitStack
) -> dict[int, Path]:
    """Open a RUN's caches, by the mounts' numbers; in one order everywhere, so that no two RUNs block each other."""
    found: dict[int, Path] = {}
    wanted = [(number, one) for number, one in enumerate(opened) if one.mount.type == runmount.CACHE]
    names = {number: name_cache(one.mount, digest_of_source(one)) for number, one in wanted}
    taken: dict[str, Path] = {}
    # Of two mounts of one cache the stricter sharing counts, so it comes first.
    for number, one in sorted(wanted, key=lambda pair: (names[pair[0]], SHARING_ORDER.index(pair[1].mount.sharing))):
        if names[number] not in taken:
            source = one.source

            def fill(source: MountSource | None = source) -> Path:
                if source is None:
                    raise InvalidInput("a cache without a beginning has nothing to be filled from")
                return mount_source(session, driver, source, stack, writable=False)

            taken[names[number]] = open_cache(
                session.store.root, one.mount, digest_of_source(one), fill if source is not None else None,
                session.check_cancelled, stack,
            )  # fmt: skip
        found[number] = taken[names[number]]
    return found


def digest_of_source(one: OpenedMount) -> bytes:
    """Return the digest of what a mount shows; empty for nothing."""
    return b"" if one.source is None else one.source.digest


def bind(mount: RunMount, path: Path) -> ContainerMount:
    """Return the bind mount of a path that was made ready."""
    return ContainerMount(
        type="bind", source=str(path), target=mount.target, readonly=mount.readonly, recursive=False
    )
