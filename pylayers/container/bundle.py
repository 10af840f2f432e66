"""Write bundles, and read what a runtime logs when it fails."""

from __future__ import annotations

import os

from pylayers.errors import ContainerError
from pylayers.jsontext import dump, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from _typeshed import StrPath

CONFIG = "config.json"
LOG_LIMIT_BYTES = 1 << 20

# Words of runc, crun and youki. What a path is missing for matters: only the command itself means 127.
_NOT_FOUND = (
    r"executable file not found|executable file `.*` not found|exec:? .*no such file or directory|"
    r"exec.*: No such file or directory|open executable: No such file|chdir .*: No such file or directory"
)
_NOT_EXECUTABLE = (
    r"exec.*permission denied|open executable: Permission denied|chdir .*: Permission denied|exec format error|"
    r"exec.*is a directory"
)


def encode_config(config: dict[str, Any]) -> bytes:
    """Return what config.json holds."""
    return dump(config, separators=(",", ":")).encode("utf-8", "surrogateescape")


def write_config(bundle: StrPath, content: bytes) -> None:
    """Write config.json into a bundle, in place of whatever is there."""
    scratch = f"{bundle}/.{CONFIG}"
    with open(scratch, "wb") as file:
        file.write(content)
    os.replace(scratch, f"{bundle}/{CONFIG}")


def runtime_error(log: StrPath, command: str) -> ContainerError | None:
    """Read the runtime's JSON log and return its error with docker's exit code, or None when it logged none."""
    try:
        with open(log, "rb") as file:
            content = file.read(LOG_LIMIT_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None
    messages = [message for message in map(_error_message, content.splitlines()) if message]
    if not messages:
        return None
    import re

    # runc's last line repeats the first with its own position in its source; the longest says the most.
    message = max(messages, key=len)
    exit_code, hint = 125, None
    if re.search(_NOT_FOUND, message, re.IGNORECASE):
        exit_code, hint = 127, f"is {command} in the image, and its interpreter or loader with it?"
        if "chdir" in message:
            hint = "the working directory has to be there already"
    elif re.search(_NOT_EXECUTABLE, message, re.IGNORECASE):
        exit_code, hint = 126, f"is {command} executable, and built for this machine?"
    return ContainerError(f"cannot run {command}: {message}", hint=hint, exit_code=exit_code)


def _error_message(line: str) -> str:
    try:
        record = load(line)
    except ValueError:
        return ""
    if not isinstance(record, dict) or record.get("level", "error").lower() not in ("error", "fatal"):
        return ""
    message = record.get("msg", "")
    if isinstance(record.get("fields"), dict):  # youki
        message = record["fields"].get("message", "")
    return str(message)


def minimal_environment() -> dict[str, str]:
    """Return the environment that runtimes are started with: nothing of the caller's but where programs are."""
    kept = ("PATH", "XDG_RUNTIME_DIR", "HOME", "DBUS_SESSION_BUS_ADDRESS")
    return {name: os.environ[name] for name in kept if name in os.environ} or {"PATH": os.defpath}
