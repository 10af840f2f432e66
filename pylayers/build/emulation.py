"""Which platforms can execute a RUN on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from pylayers.build.plan import Plan
from pylayers.dockerfile.instructions import Run
from pylayers.errors import InvalidInput, Unsupported
from pylayers.oci.platform import Platform

BINFMT = Path("/proc/sys/fs/binfmt_misc")
QEMU_NAMES = {"amd64": "x86_64", "arm64": "aarch64", "386": "i386", "loong64": "loongarch64", "mips64le": "mips64el"}
NATIVE_TOO = {"amd64": ("386",), "arm64": ("arm",)}  # what a 64-bit kernel runs without an emulator


def check_runnable(plan: Plan, platform: Platform) -> None:
    """Refuse, before anything runs, a RUN for a machine that this one neither is nor emulates. Raises Unsupported."""
    host = Platform.from_machine(os.uname().machine)
    platforms: dict[int, Platform] = {}
    for planned in plan.stages:
        own = Platform.parse(planned.base.platform) if planned.base.platform else platform
        if planned.base_stage is not None:
            own = platforms.get(planned.base_stage, own)
        platforms[planned.stage.index] = own
        if planned.replaced or own.architecture in (host.architecture, *NATIVE_TOO.get(host.architecture, ())):
            continue
        command = next((one for one in (*planned.triggers, *planned.stage.instructions) if isinstance(one, Run)), None)
        if command is not None and not is_emulated(own):
            raise Unsupported(
                f"RUN for {own} needs an emulator, and binfmt_misc has none registered for {own.architecture}",
                span=command.span,
                hint="register one, for instance with the package qemu-user-static, or build on such a machine",
            )


def is_emulated(platform: Platform) -> bool:
    """Tell whether the kernel starts an emulator for programs of a platform."""
    name = QEMU_NAMES.get(platform.architecture, platform.architecture)
    for entry in (f"qemu-{name}", f"qemu-{name}-static", f"FEX-{name}", f"box64-{name}"):
        try:
            if (BINFMT / entry).read_text().startswith("enabled"):
                return True
        except OSError:
            continue
    return False


def check_platforms(texts: tuple[str, ...]) -> None:
    """Refuse malformed platforms before the first is built."""
    for text in texts:
        if Platform.parse(text).os != "linux":
            raise InvalidInput(f"platform {text}: only linux images can be built")
