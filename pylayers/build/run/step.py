"""RUN: find its result by key, or execute it."""

from __future__ import annotations

from pylayers.build.base import DEFAULT_PATH
from pylayers.build.cache.key import run_key
from pylayers.build.cache.step import CachedStep
from pylayers.build.event import Step, StepStatus
from pylayers.build.session import BuildSession
from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df
from pylayers.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.build.run.lend import OpenedMount
    from pylayers.dockerfile.lex import Heredoc

# Values that come and go with the machine: undeclared, they reach the command but never the key.
UNKEYED_ARGUMENTS = frozenset(
    name
    for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
    for name in (upper, upper.lower())
)
SCRIPT_FOLDER = "/dev/pipes"
HOSTNAME_ARGUMENT = "BUILDKIT_SANDBOX_HOSTNAME"


def run_command(
    session: BuildSession, state: StageState, instruction: df.Run, step: Step, stage_index: int
) -> tuple[CachedStep, StepStatus]:
    """Perform a RUN, from the cache where its key is known."""
    command = read_command(state, instruction)
    environment = command_environment(session, state)
    keyed = [f"{name}={value}" for name, value in declared_environment(state).items()]
    network = choose_network(session, instruction)
    options: tuple[str, ...] = (network,)
    inputs: list[tuple[str, bytes]] = []
    mounts: tuple[OpenedMount, ...] = ()
    if instruction.mounts:
        from pylayers.build.run.lend import key_inputs, open_mounts

        mounts = open_mounts(session, state, instruction, stage_index)
        inputs = key_inputs(mounts)
    given = session.options
    lent = given.add_hosts or given.ulimits or given.shm_size or HOSTNAME_ARGUMENT in given.arguments
    if lent or instruction.security or instruction.devices:
        from pylayers.build.run.option import name_options

        options += name_options(given, instruction)
    script = find_script(instruction)
    if script is not None:
        options += (f"script={script.text}",)
    parent = session.trees.identity(state.diff_ids)
    keyed_by = (command, keyed, state.config.working_dir or "/", state.config.user, options, inputs)
    key = run_key(parent, *keyed_by)
    found = session.reuse(key)
    if found is not None:
        return found, StepStatus.CACHED
    from pylayers.build.cache.fact import run_facts
    from pylayers.build.run.execute import execute  # what only an execution needs isn't loaded for a cached step

    made = execute(session, state, instruction, command, environment, network, mounts, step)
    facts = run_facts(session, state, instruction, *keyed_by)
    session.cache.record(key, "", "run", instruction.original, replace(made, inputs=facts))
    return made, StepStatus.BUILT


def read_command(state: StageState, instruction: df.Run) -> tuple[str, ...]:
    """Return the words to execute; a lone here-document is the command itself, or the script that it names."""
    if not instruction.shell:
        return instruction.command
    script = find_script(instruction)
    if script is not None:
        return (*state.shell, f"{SCRIPT_FOLDER}/{script.name}")
    text = " ".join(instruction.command)
    heredocs = instruction.heredocs
    if is_lone(instruction):
        return (*state.shell, heredocs[0].text)
    for heredoc in heredocs:
        text += f"\n{heredoc.content}{heredoc.name}"
    return (*state.shell, text)


def is_lone(instruction: df.Run) -> bool:
    """Tell whether a RUN is nothing but one here-document."""
    text = " ".join(instruction.command)
    return (
        instruction.shell
        and len(instruction.heredocs) == 1
        and text.strip().lstrip("0123456789").startswith("<<")
        and len(text.split()) == 1
    )


def find_script(instruction: df.Run) -> Heredoc | None:
    """Return the here-document that names its own interpreter, as the kernel reads it (`#!`)."""
    if instruction.heredocs and is_lone(instruction) and instruction.heredocs[0].content.startswith("#!"):
        return instruction.heredocs[0]
    return None


def command_environment(session: BuildSession, state: StageState) -> dict[str, str]:
    """Return what a RUN sees: PATH, ARGs in scope, ENV, and over all the build's proxies in both spellings."""
    given = {key: value for key, value in session.options.arguments.items() if key in UNKEYED_ARGUMENTS}
    proxies = {**{key.upper(): value for key, value in given.items()}, **{k.lower(): v for k, v in given.items()}}
    return {**declared_environment(state), **proxies, **given}


def declared_environment(state: StageState) -> dict[str, str]:
    """Return what of a RUN's environment the Dockerfile declares."""
    name, _, value = DEFAULT_PATH.partition("=")
    return {name: value, **state.environment()}


def choose_network(session: BuildSession, instruction: df.Run) -> str:
    """Return "host" or "none"; a RUN that asks for the host's must be allowed to. Raises Unsupported."""
    given = session.options.network
    if instruction.network == "host" and given != "host":
        from pylayers.build.run.option import HOST_NETWORK, demand

        demand(session.options, HOST_NETWORK, "RUN --network=host", span=instruction.span)
    if instruction.network in ("host", "none"):
        return instruction.network
    return "none" if given == "none" else "host"
