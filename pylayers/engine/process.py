"""What an image's configuration and a container's options say together of its process."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.container.isolation import Process
from pylayers.errors import InvalidInput
from pylayers.image.view import Image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.engine.container import ContainerOptions


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
