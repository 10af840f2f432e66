"""The keywords of Engine.build. For type checkers, and apart: no build imports `typing`, which takes milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypedDict


class BuildRequest(TypedDict, total=False):
    """Name every keyword of Engine.build. Texts have the form that the command line's options have."""

    dockerfile: Path | str | None  # default: Dockerfile in the context
    references: Sequence[str]
    arguments: Mapping[str, str]  # --build-arg
    target: str | None  # stage's name
    no_cache: bool
    no_cache_filter: Sequence[str]  # stages that are built anew
    platforms: Sequence[str]  # several give an image index
    pull: bool  # look for a newer base image
    volumes: Sequence[str]  # -v HOST:PATH[:ro] for every RUN; never part of a key
    contexts: Mapping[str, str]  # NAME to a directory, docker-image://REF, oci-layout://DIR[:TAG] or a tar
    labels: Mapping[str, str]
    annotations: Sequence[str]  # [TYPE:]KEY=VALUE
    cache_key: str  # "tree" (steps after equal trees are shared) or "chain" (docker's rule)
    network: str  # of RUN: "default", "host" or "none"
    secrets: Sequence[str]  # id=ID[,src=FILE|,env=VARIABLE]
    ssh: Sequence[str]  # default or ID[=SOCKET|KEY[,KEY]]
    add_hosts: Sequence[str]  # HOST:IP
    shm_size: str | None  # of RUN's /dev/shm, such as 64m
    ulimits: Sequence[str]  # NAME=SOFT[:HARD]
    allow: Sequence[str]  # security.insecure, network.host, device
    outputs: Sequence[str]  # type=local|tar|oci|docker|image,dest=…; none: the store
    attestations: Sequence[str]  # type=sbom|provenance,…
    split_layers: str | None  # cut the layers of large COPYs near this size, such as 512m
    source_date_epoch_s: int | None
    rewrite_timestamp: bool  # no later mtime than source_date_epoch_s in any layer made here
    explain: bool  # tell for each step why it was cached or not
    jobs: int  # stages at once
