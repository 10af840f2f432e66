"""RUN: find its result by key, or execute it."""

from __future__ import annotations

from pylayers.build.base import DEFAULT_PATH
from pylayers.build.cache import CachedStep
from pylayers.build.cachekey import run_key
from pylayers.build.event import Step, StepStatus
from pylayers.build.session import BuildSession
from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df
from pylayers.errors import InvalidInput, Unsupported
from pylayers.record import replace

# Values that come and go with the machine: they reach the command but never the key.
UNKEYED_ARGUMENTS = frozenset(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
)


def run_command(
    session: BuildSession, state: StageState, instruction: df.Run, step: Step
) -> tuple[CachedStep, StepStatus]:
    """Perform a RUN, from the cache where its key is known."""
    check_supported(instruction)
    command = read_command(state, instruction)
    environment = command_environment(session, state)
    keyed = [f"{name}={value}" for name, value in environment.items() if name not in UNKEYED_ARGUMENTS]
    network = choose_network(session, instruction)
    working_dir = state.config.working_dir or "/"
    parent = session.trees.identity(state.diff_ids)
    inputs = (command, keyed, working_dir, state.config.user, (network,), ())
    key = run_key(parent, *inputs)
    found = session.reuse(key)
    if found is not None:
        return found, StepStatus.CACHED
    from pylayers.build.fact import run_facts
    from pylayers.build.runexecute import execute  # what only an execution needs isn't loaded for a cached step

    made = execute(session, state, instruction, command, environment, network, step)
    facts = run_facts(session, state, instruction, *inputs)
    session.cache.record(key, "", "run", instruction.original, replace(made, inputs=facts))
    return made, StepStatus.BUILT


def check_supported(instruction: df.Run) -> None:
    """Refuse by name what this version doesn't do yet."""
    for given, flag in ((instruction.mounts, "mount"), (instruction.devices, "device")):
        if given:
            raise Unsupported(f"RUN --{flag} is not supported yet", span=instruction.span)
    if instruction.security == "insecure":
        raise Unsupported("RUN --security=insecure is not supported yet", span=instruction.span)


def read_command(state: StageState, instruction: df.Run) -> tuple[str, ...]:
    """Return the words to execute."""
    if not instruction.shell:
        return instruction.command
    text = " ".join(instruction.command)
    heredocs = instruction.heredocs
    if len(heredocs) == 1 and text.strip().lstrip("0123456789").startswith("<<") and len(text.split()) == 1:
        if heredocs[0].content.startswith("#!"):
            raise Unsupported("RUN with a #! heredoc is not supported yet", span=instruction.span)
        return (*state.shell, heredocs[0].content)
    for heredoc in heredocs:
        text += f"\n{heredoc.content}{heredoc.name}"
    if not text.strip():
        raise InvalidInput("RUN requires a command", span=instruction.span)
    return (*state.shell, text)


def command_environment(session: BuildSession, state: StageState) -> dict[str, str]:
    """Return what a RUN sees: PATH, the proxies given to the build, ARGs in scope and ENV over them."""
    name, _, value = DEFAULT_PATH.partition("=")
    proxies = {key: given for key, given in session.options.arguments.items() if key in UNKEYED_ARGUMENTS}
    return {name: value, **proxies, **state.environment()}


def choose_network(session: BuildSession, instruction: df.Run) -> str:
    """Return "host" or "none"."""
    given = instruction.network or "default"
    return session.options.network if given == "default" else given
