"""What a container's options say of it, alone and together with its image's configuration."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.container.isolation import Process
from pylayers.container.record import ContainerSpec
from pylayers.errors import InvalidInput
from pylayers.record import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.container.runtime import Runtime
    from pylayers.engine.container import ContainerOptions
    from pylayers.image.view import Image


def early_spec(container_id: str, runtime: Runtime, options: ContainerOptions) -> ContainerSpec:
    """Return what is known of a container before its image is looked at: enough for its monitor to be begun."""
    return ContainerSpec(
        id=container_id,
        name="",
        process=Process(arguments=(), terminal=options.terminal),
        rootfs=(),
        runtime=runtime.command,
        runtime_name=runtime.name,
        runtime_limits=runtime.limits,
        runtime_hides=runtime.hides,
        isolation=replace(options.isolation, network=options.network, hostname=options.hostname),
        interactive=options.interactive,
        remove_on_exit=options.remove,
    )


def make_process(image: Image, command: Sequence[str], options: ContainerOptions) -> Process:
    """Join the image's configuration and the options: ENTRYPOINT and CMD as docker joins them."""
    config = image.config.config
    if options.entrypoint is not None:
        arguments = (*options.entrypoint, *command)
    elif command:
        arguments = (*(config.entrypoint or ()), *command)
    else:
        arguments = (*(config.entrypoint or ()), *(config.cmd or ()))
    if not arguments:
        raise InvalidInput("no command specified", hint="give a command after the image's name")
    environment = dict(entry.partition("=")[::2] for entry in config.env)
    for entry in options.environment:
        variable, _, value = entry.partition("=")
        environment[variable] = value
    return Process(
        arguments=arguments,
        environment=tuple(f"{variable}={value}" for variable, value in environment.items()),
        working_directory=options.working_dir or config.working_dir or "/",
        user=options.user if options.user is not None else config.user,
        terminal=options.terminal,
    )


def choose_timeout(options: ContainerOptions, image: Image) -> int:
    """Return the seconds between the stop signal and the kill."""
    if options.stop_timeout_s is not None:
        return options.stop_timeout_s
    configured = image.config.config.stop_timeout_s
    return 10 if configured is None else configured
