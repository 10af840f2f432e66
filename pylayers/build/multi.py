"""Builds for several platforms: one image each, and an index that names them; and which of them can execute a RUN."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from pylayers.build.event import BuildFinished, BuildResult, Subscriber
from pylayers.build.plan import Plan
from pylayers.build.request import BuildOptions
from pylayers.dockerfile.instructions import Run
from pylayers.errors import InvalidInput, Unsupported
from pylayers.oci.descriptor import Descriptor
from pylayers.oci.manifest import MEDIA_MANIFEST, Index
from pylayers.oci.platform import Platform
from pylayers.oci.reference import Reference
from pylayers.record import replace
from pylayers.store import Store

BINFMT = Path("/proc/sys/fs/binfmt_misc")
QEMU_NAMES = {"amd64": "x86_64", "arm64": "aarch64", "386": "i386", "loong64": "loongarch64", "mips64le": "mips64el"}
NATIVE_TOO = {"amd64": ("386",), "arm64": ("arm",)}  # what a 64-bit kernel runs without an emulator

BuildOne = Callable[[BuildOptions], BuildResult]


def build_platforms(
    store: Store, options: BuildOptions, build_one: BuildOne, subscriber: Subscriber | None
) -> BuildResult:
    """Build each platform's image, then store an index of them and let the names stand for it."""
    if options.outputs:
        raise Unsupported("--output for several platforms is not supported yet", hint="build the platforms one by one")
    started = time.perf_counter()
    references = [Reference.parse(name).with_default_tag() for name in options.references]
    platforms = [Platform.parse(text) for text in dict.fromkeys(options.platforms)]
    results: list[BuildResult] = []
    manifests: list[Descriptor] = []
    with store.lease("build") as lease:
        for platform in dict.fromkeys(platforms):
            made = build_one(replace(options, platforms=(str(platform),), references=()))
            lease.hold("blob", made.image_digest)
            results.append(made)
            size_bytes = store.blobs.stat(made.image_digest).size_bytes
            manifests.append(Descriptor(MEDIA_MANIFEST, made.image_digest, size_bytes, platform=platform))
        index = Index(tuple(manifests))
        store.blobs.put(index.to_json())
        for reference in references:
            if store.metadata.references.get(str(reference)) != index.digest:
                store.metadata.references.set(str(reference), index.digest)
    seconds = time.perf_counter() - started
    names = tuple(reference.familiar for reference in references)
    if subscriber is not None:
        subscriber(BuildFinished(index.digest, names, seconds))
    return BuildResult(
        image_digest=index.digest,
        config_digest=index.digest,
        references=names,
        steps=tuple(step for result in results for step in result.steps),
        warnings=tuple(dict.fromkeys(warning for result in results for warning in result.warnings)),
        seconds=seconds,
        diff_ids=results[-1].diff_ids,
    )


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
