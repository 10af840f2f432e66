"""What a build lends its RUNs: secrets, ssh agents, hosts, limits and entitlements, read from the options' texts."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from pylayers.build.request import BuildOptions
from pylayers.build.run.mount import Expand, RunDevice, parse_device, split_fields
from pylayers.build.run.step import HOSTNAME_ARGUMENT
from pylayers.build.session import BuildSession
from pylayers.container.isolation import Device, Isolation, Limit, check_extra_host, parse_limit
from pylayers.dockerfile import instructions as df
from pylayers.dockerfile.suggest import suffix_suggestion
from pylayers.dockerfile.text import show
from pylayers.errors import InvalidInput, NotFound, SourceSpan, Unsupported, translate_os_error
from pylayers.record import record
from pylayers.volume.parse import parse_size

SECRET_LIMIT_BYTES = 500 << 10  # BuildKit's
SECRET_KEYS = ("type", "id", "src", "source", "env")
INSECURE, HOST_NETWORK, DEVICE = ENTITLEMENTS = ("security.insecure", "network.host", "device")
GATEWAY = "host-gateway"
HOST_FROM_BUILD = "127.0.0.1"  # a RUN has the host's own network, so that the way to the host is the loopback
HOSTNAME = "buildkitsandbox"
HOST_NAME = re.compile(r"\S+\Z")


@record
class Secret:
    """Say where a secret's value is: in a file, or in an environment variable of this process."""

    id: str
    path: Path | None = None
    variable: str = ""

    def read(self) -> bytes:
        """Return the value; a variable that isn't set is empty, as in docker. Raises NotFound, InvalidInput."""
        if self.path is None:
            return os.environb.get(os.fsencode(self.variable), b"")
        try:
            with self.path.open("rb") as file:
                content = file.read(SECRET_LIMIT_BYTES + 1)
        except OSError as error:
            raise translate_os_error(error, f"read secret {self.id}") from error
        if len(content) > SECRET_LIMIT_BYTES:
            raise InvalidInput(f"secret {self.id} is too big: at most {SECRET_LIMIT_BYTES >> 10}KB are allowed")
        return content


@record
class Agent:
    """Say what an ssh id stands for: the socket of an agent, or key files."""

    id: str
    socket: Path | None = None
    keys: tuple[Path, ...] = ()


def check_options(options: BuildOptions) -> None:
    """Refuse at once what a RUN could not be given later. Raises InvalidInput, NotFound, Unsupported."""
    read_secrets(options.secrets)
    read_agents(options.ssh)
    apply_options(Isolation(), options)
    for given in options.allow:
        name = given.partition("=")[0]
        if name not in ENTITLEMENTS or (name != DEVICE and "=" in given):
            raise InvalidInput(f"unknown entitlement {show(given)}{suffix_suggestion(given, ENTITLEMENTS)}")


def read_secrets(given: Sequence[str]) -> dict[str, Secret]:
    """Read --secret: id=ID[,src=FILE|,env=NAME]; an id alone is a variable of that name, else a file."""
    found: dict[str, Secret] = {}
    for text in given:
        secret = _read_secret(text)
        found[secret.id] = secret
    return found


def _read_secret(text: str) -> Secret:
    values: dict[str, str] = {}
    for field in split_fields(text, "secret"):
        key, equals, value = field.partition("=")
        key = key.lower()
        if not equals:
            raise InvalidInput(f"invalid field '{show(field)}' must be a key=value pair")
        if key not in SECRET_KEYS:
            raise InvalidInput(f"unexpected key '{show(key)}' in '{show(field)}'{suffix_suggestion(key, SECRET_KEYS)}")
        if key == "type" and value not in ("file", "env"):
            raise InvalidInput(f'unsupported secret type "{show(value)}"', hint="the types are file and env")
        values["src" if key == "source" else key] = value
    name, path, variable = values.get("id", ""), values.get("src", ""), values.get("env", "")
    if values.get("type") == "env" and not variable:
        path, variable = "", path
    if not name:
        raise InvalidInput("secret missing ID", hint="write --secret id=NAME,src=FILE")
    if not path and not variable:
        path, variable = ("", name) if name in os.environ else (name, "")
    if variable:
        return Secret(name, None, variable)
    place = Path(os.path.abspath(os.path.expanduser(path)))
    try:
        size_bytes = place.stat().st_size
    except OSError as error:
        raise NotFound(
            f"secret {name}: {path}: {(error.strerror or '').lower()}",
            hint="give --secret id=NAME,src=FILE or env=NAME",
        ) from error
    if size_bytes > SECRET_LIMIT_BYTES:
        raise InvalidInput(f"secret {name} is too big: at most {SECRET_LIMIT_BYTES >> 10}KB are allowed")
    return Secret(name, place)


def read_agents(given: Sequence[str]) -> dict[str, Agent]:
    """Read --ssh: default or ID[=SOCKET|KEY[,KEY]]; without a place $SSH_AUTH_SOCK is meant."""
    found: dict[str, Agent] = {}
    for text in given:
        name, _, places = text.partition("=")
        if not name:
            raise InvalidInput(f"invalid --ssh {show(text)!r}: the id is empty", hint="write --ssh default")
        if name in found:
            raise InvalidInput(f'duplicate agent ID "{show(name)}"')
        found[name] = _read_agent(name, [place for place in places.split(",") if place])
    return found


def _read_agent(name: str, places: list[str]) -> Agent:
    places = places or [os.environ.get("SSH_AUTH_SOCK", "")]
    if places == [""]:
        raise InvalidInput(
            f"--ssh {name}: invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set",
            hint=f"start an agent, or give --ssh {name}=KEYFILE",
        )
    paths = [Path(os.path.abspath(os.path.expanduser(place))) for place in places]
    sockets = []
    for path in paths:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise NotFound(f"--ssh {name}: {path}: {(error.strerror or '').lower()}") from error
        if stat.S_ISSOCK(mode):
            sockets.append(path)
        elif not stat.S_ISREG(mode):
            raise InvalidInput(f"--ssh {name}: {path} is neither a socket nor a key file")
    if not sockets:
        return Agent(name, keys=tuple(paths))
    if len(paths) > 1:
        raise InvalidInput(f"--ssh {name}: a socket cannot be combined with other places")
    return Agent(name, socket=sockets[0])


def apply_options(isolation: Isolation, options: BuildOptions) -> Isolation:
    """Return the isolation with the build's hosts, limits and size of /dev/shm. Raises InvalidInput."""
    from pylayers.record import replace

    if options.add_hosts:
        isolation = replace(isolation, extra_hosts=tuple(map(read_host, options.add_hosts)))
    if options.ulimits:
        limits: dict[str, Limit] = {limit.name: limit for limit in map(parse_limit, options.ulimits)}
        isolation = replace(isolation, limits=tuple(limits[name] for name in sorted(limits)))
    if options.shm_size:
        isolation = replace(isolation, shm_size_bytes=parse_size(options.shm_size))
    return isolation


def read_host(given: str) -> str:
    """Return an --add-host value as NAME:ADDRESS. Raises InvalidInput."""
    name, _, address = given.partition("=") if "=" in given else given.partition(":")
    if address == GATEWAY and HOST_NAME.match(name):
        return f"{name}:{HOST_FROM_BUILD}"
    return check_extra_host(given)


def describe_options(options: BuildOptions) -> tuple[str, ...]:
    """Return what of the options a RUN can see, as text for its key."""
    isolation = apply_options(Isolation(), options)
    hosts = tuple(f"host={host.partition(':')[0]}" for host in isolation.extra_hosts)  # their addresses may change
    limits = tuple(f"ulimit={limit.name}={limit.soft}:{limit.hard}" for limit in isolation.limits)
    shm = (f"shm={isolation.shm_size_bytes}",) if options.shm_size else ()
    return (*hosts, *limits, *shm)


def name_options(options: BuildOptions, instruction: df.Run) -> tuple[str, ...]:
    """Return what of the options, and of a RUN's own, the command can see, as text for its key."""
    security = ("security=insecure",) if instruction.security == "insecure" else ()
    if security:  # a step on record is none the less to be allowed
        demand(options, INSECURE, "RUN --security=insecure", span=instruction.span)
    hostname = options.arguments.get(HOSTNAME_ARGUMENT)
    return (
        *describe_options(options),
        *security,
        *((f"hostname={hostname}",) if hostname else ()),
        *(f"device={device}" for device in instruction.devices),
    )


def isolate(session: BuildSession, instruction: df.Run, network: str, expand: Expand) -> Isolation:
    """Return how a RUN is kept apart. Raises Unsupported for what --allow doesn't grant, and for missing devices."""
    from pylayers.record import replace

    options = session.options
    hostname = options.arguments.get(HOSTNAME_ARGUMENT) or HOSTNAME
    isolation = apply_options(Isolation(network=network, hostname=hostname, sandboxed=True), options)
    if instruction.security == "insecure":
        isolation = replace(isolation, privileged=True)
    devices = [parse_device(text, expand) for text in instruction.devices]
    lent = tuple(found for found in (find_device(options, one, instruction.span) for one in devices) if found)
    return replace(isolation, devices=lent)


def find_device(options: BuildOptions, wanted: RunDevice, span: SourceSpan) -> Device | None:
    """Return the device node that a RUN asks for; None for one that is missing and not required."""
    if not wanted.name.startswith("/dev/"):
        if not wanted.required:
            return None
        raise Unsupported(
            f"RUN --device={wanted.name}: devices of the Container Device Interface are not supported",
            hint="name a device node: --device=/dev/NAME",
            span=span,
        )
    demand(options, DEVICE, f"RUN --device={wanted.name}", wanted.name, span=span)
    if not os.path.exists(wanted.name):
        if not wanted.required:
            return None
        raise NotFound(f"RUN --device={wanted.name}: there is no such device", span=span)
    return Device(source=wanted.name, target=wanted.name)


def demand(
    options: BuildOptions, entitlement: str, wanted_by: str, name: str = "", span: SourceSpan | None = None
) -> None:
    """Raise Unsupported unless --allow grants an entitlement (of the device `name`)."""
    granted = {entitlement, f"{entitlement}={name}"}
    if not granted & set(options.allow):
        raise Unsupported(
            f"{wanted_by}: {entitlement} is not allowed",
            hint=f"allow it with: pylayers build --allow {entitlement}",
            span=span,
        )
