"""The options that the builder works by, from the keywords of Engine.build."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pylayers.errors import InvalidInput
from pylayers.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.build.keyword import BuildRequest

CACHE_KEYS = ("tree", "chain")
NETWORKS = ("host", "none", "default")


@record
class BuildOptions:
    """Say what to build, for one platform. Paths are the host's."""

    context: Path
    dockerfile: Path | None = None  # default: Dockerfile in the context
    references: tuple[str, ...] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    no_cache: bool = False
    no_cache_filter: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    pull: bool = False
    volumes: tuple[str, ...] = ()
    contexts: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: tuple[str, ...] = ()
    key_by_chain: bool = False  # docker's rule instead of early cut-off
    network: str = "default"  # the host's too, but not for a RUN that asks for it by name
    secrets: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()
    add_hosts: tuple[str, ...] = ()
    shm_size: str | None = None
    ulimits: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    attestations: tuple[str, ...] = ()
    split_layers: str | None = None
    source_date_epoch_s: int | None = None
    rewrite_timestamp: bool = False
    explain: bool = False
    jobs: int = 4  # stages at once


KEYWORDS = frozenset((*BuildOptions.__match_args__, "cache_key")) - {"context", "key_by_chain"}


def read_request(context: Path | str, given: BuildRequest) -> BuildOptions:
    """Return the options of a request. Raises InvalidInput, and TypeError for a keyword that there is not."""
    unknown = sorted(given.keys() - KEYWORDS)
    if unknown:
        raise TypeError(f"build() got an unexpected keyword argument {unknown[0]!r}")
    cache_key, network = given.get("cache_key", "tree"), given.get("network", "default")
    if cache_key not in CACHE_KEYS:
        raise InvalidInput(f"cache key {cache_key!r} is neither 'tree' nor 'chain'")
    if network not in NETWORKS:
        raise InvalidInput(f"network mode {network!r} is not supported", hint="use host or none")
    place, name = Path(context), given.get("dockerfile")
    file = Path(name) if name is not None else None
    if file is None and place.is_file():
        place, file = place.parent, place
    return BuildOptions(
        context=place,
        dockerfile=file,
        references=tuple(given.get("references", ())),
        arguments=dict(given.get("arguments") or {}),
        target=given.get("target"),
        no_cache=given.get("no_cache", False),
        no_cache_filter=tuple(given.get("no_cache_filter", ())),
        platforms=tuple(given.get("platforms", ())),
        pull=given.get("pull", False),
        volumes=tuple(given.get("volumes", ())),
        contexts=dict(given.get("contexts") or {}),
        labels=dict(given.get("labels") or {}),
        annotations=tuple(given.get("annotations", ())),
        key_by_chain=cache_key == "chain",
        network=network,
        secrets=tuple(given.get("secrets", ())),
        ssh=tuple(given.get("ssh", ())),
        add_hosts=tuple(given.get("add_hosts", ())),
        shm_size=given.get("shm_size"),
        ulimits=tuple(given.get("ulimits", ())),
        allow=tuple(given.get("allow", ())),
        outputs=tuple(given.get("outputs", ())),
        attestations=tuple(given.get("attestations", ())),
        split_layers=given.get("split_layers"),
        source_date_epoch_s=read_epoch(given.get("source_date_epoch_s")),
        rewrite_timestamp=given.get("rewrite_timestamp", False),
        explain=given.get("explain", False),
        jobs=given.get("jobs", 4),
    )


def read_epoch(given: int | None) -> int | None:
    """Return the given seconds, else SOURCE_DATE_EPOCH's. Raises InvalidInput."""
    if given is not None:
        return given
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not text.isdecimal():
        raise InvalidInput(f"SOURCE_DATE_EPOCH={text!r} is not a number of seconds since 1970")
    return int(text)
