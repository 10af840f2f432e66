"""Plan and prepare a container's mounts: -v, --mount, --tmpfs and the image's own VOLUMEs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from pylayers.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from pylayers.store.layer import Layer
    from pylayers.volume.parse import MountRequest
    from pylayers.volume.volumes import Volume


@record
class MountPlan:
    """Say what will be mounted; parents come before what lies inside them."""

    requests: tuple[MountRequest, ...]


def plan_mounts(
    volumes: Sequence[str], mounts: Sequence[str], tmpfs: Sequence[str], declared: Sequence[str]
) -> MountPlan:
    """Parse every mount; a VOLUME of the image without a mount of its own becomes an anonymous volume."""
    if not (volumes or mounts or tmpfs or declared):
        return MountPlan(())
    from pylayers.volume.parse import check_duplicates, parse_mount, parse_tmpfs, parse_volume, prepare_bind

    requests = [parse_volume(given) for given in volumes]
    requests += [parse_mount(given) for given in mounts]
    requests += [parse_tmpfs(given) for given in tmpfs]
    check_duplicates(requests)
    targets = {request.target for request in requests}
    for path in declared:
        request = parse_volume(path)
        if request.target not in targets:
            requests.append(request)
            targets.add(request.target)
    for request in requests:
        prepare_bind(request)
    return MountPlan(tuple(sorted(requests, key=lambda request: request.target.split("/"))))


@record
class MadeVolume:
    """A volume that exists, and whether it is to be filled from the image."""

    volume: Volume
    nocopy: bool

    @property
    def path(self) -> Path:
        """Return its _data directory."""
        return self.volume.path

    @property
    def name(self) -> str:
        """Return its name."""
        return self.volume.name

    @property
    def anonymous(self) -> bool:
        """Tell whether it goes with its container."""
        return self.volume.anonymous


def fill_volumes(layers: Callable[[], Sequence[Layer]], made: Mapping[str, MadeVolume]) -> None:
    """Fill the empty volumes from the image's content at their targets; layers is asked only when one is empty."""
    empty = {
        target: one for target, one in made.items() if not one.nocopy and not any(True for _ in os.scandir(one.path))
    }
    if not empty:
        return
    from pylayers.volume.initialise import initialise_from_layers

    stacked = layers()
    for target, one in empty.items():
        initialise_from_layers(one.path, stacked, target)
