"""The options of `pylayers run` and `create`, as docker has them, and the reading of plain lines: see option."""

from __future__ import annotations

from collections.abc import Sequence

from pylayers.cli.option import FLAG, MANY, ONE, Option, read_globals, read_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERBS = ("run",)
OPTIONS = (
    Option(("--name",), "name", ONE, "Name of the container.", default=""),
    Option(
        (
            "-e",
            "--env",
        ),
        "environment",
        MANY,
        "Set a variable; no value: yours.",
        metavar="NAME[=VALUE]",
    ),
    Option(("--env-file",), "environment_files", MANY, "Read variables from a file.", metavar="FILE"),
    Option(
        (
            "-v",
            "--volume",
        ),
        "volumes",
        MANY,
        "Mount a volume or host path.",
        metavar="[SOURCE:]PATH[:OPTIONS]",
    ),
    Option(("--mount",), "mounts", MANY, "Mount as docker's --mount does.", metavar="KEY=VALUE,..."),
    Option(("--tmpfs",), "tmpfs", MANY, "Mount memory.", metavar="PATH[:OPTIONS]"),
    Option(
        (
            "-w",
            "--workdir",
        ),
        "working_dir",
        ONE,
        "Working directory.",
        metavar="DIR",
    ),
    Option(
        (
            "-u",
            "--user",
        ),
        "user",
        ONE,
        "User, by name or id.",
        metavar="USER[:GROUP]",
    ),
    Option(("--entrypoint",), "entrypoint", ONE, "Replace the image's entrypoint.", metavar="COMMAND"),
    Option(("--rm",), "remove", FLAG, "Remove the container when it ends."),
    Option(
        (
            "-i",
            "--interactive",
        ),
        "interactive",
        FLAG,
        "Pass stdin.",
    ),
    Option(
        (
            "-t",
            "--tty",
        ),
        "terminal",
        FLAG,
        "Give it a terminal.",
    ),
    Option(
        (
            "--network",
            "--net",
        ),
        "network",
        ONE,
        "host or none.",
        metavar="MODE",
        default="host",
    ),
    Option(
        (
            "-h",
            "--hostname",
        ),
        "hostname",
        ONE,
        "Host name.",
        metavar="NAME",
        default="",
    ),
    Option(("--read-only",), "readonly", FLAG, "Mount the root file system read-only."),
    Option(("--privileged",), "privileged", FLAG, "Give it every capability and device."),
    Option(("--cap-add",), "capabilities_added", MANY, "Add a capability.", metavar="NAME"),
    Option(("--cap-drop",), "capabilities_dropped", MANY, "Drop a capability.", metavar="NAME"),
    Option(("--add-host",), "extra_hosts", MANY, "Add a line to /etc/hosts.", metavar="NAME:ADDRESS"),
    Option(("--shm-size",), "shm_size", ONE, "Size of /dev/shm.", metavar="SIZE"),
    Option(("--ulimit",), "limits", MANY, "Set a resource limit.", metavar="NAME=SOFT[:HARD]"),
    Option(
        (
            "-m",
            "--memory",
        ),
        "memory",
        ONE,
        "Limit memory.",
        metavar="SIZE",
    ),
    Option(("--cpus",), "cpus", ONE, "Limit processors.", number=float),
    Option(("--pids-limit",), "pids", ONE, "Limit processes; -1 is unlimited.", number=int),
    Option(
        (
            "-l",
            "--label",
        ),
        "labels",
        MANY,
        "Label the container.",
        metavar="NAME=VALUE",
    ),
    Option(("--cidfile",), "cidfile", ONE, "Write the container's id to a file.", metavar="FILE"),
    Option(("--stop-signal",), "stop_signal", ONE, "Signal that stop sends.", metavar="SIGNAL", default=""),
    Option(
        ("--stop-timeout",),
        "stop_timeout_s",
        ONE,
        "How long stop waits before it kills.",
        metavar="SECONDS",
        number=int,
        minimum=0,
    ),
    Option(("--security-opt",), "security", MANY, "no-new-privileges or seccomp=PROFILE.", metavar="OPTION"),
    Option(
        ("--storage-opt",),
        "storage_options",
        MANY,
        "size=10G limits the writable layer, where the storage driver can.",
        metavar="NAME=VALUE",
    ),
    Option(("--device",), "devices", MANY, "Give it a host device.", metavar="PATH[:PATH[:rwm]]"),
)
DETACH = Option(("-d", "--detach"), "detach", FLAG, "Run in the background and print the container's id.")


def read_line(arguments: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]] | None:
    """Return the global options and run's keywords of a plain `[GLOBALS] run …` line; None for any other line."""
    found = read_globals(arguments, VERBS)
    if found is None:
        return None
    values = read_options(found[2])
    return None if values is None else (found[0], values)


def read_options(words: Sequence[str]) -> dict[str, Any] | None:
    """Return the keywords that the words after `run` give, None when click has to judge them."""
    found = read_words((DETACH, *OPTIONS), words, interspersed=False)
    if found is None or not found[1]:
        return None
    values, [image, *command] = found
    return {"image": image, "command": tuple(command), **values}
