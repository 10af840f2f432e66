"""Volumes of an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pylayers.engine.mount import MadeVolume, MountPlan
from pylayers.errors import Conflict
from pylayers.volume.volumes import Volume, VolumeStore

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.engine import Engine


class VolumeActions:
    """What can be done with volumes; reached as `engine.volumes`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._volumes = VolumeStore(engine.store.directory("volumes"))

    def create(self, name: str | None = None, labels: Mapping[str, str] | None = None) -> Volume:
        """Create a volume, or return the one of that name; None makes an anonymous one."""
        return self._volumes.create(name, labels)

    def list(self) -> Sequence[Volume]:
        """Return every volume, by name."""
        return list(self._volumes.walk())

    def inspect(self, name: str) -> Volume:
        """Return one volume. Raises NotFound."""
        return self._volumes.inspect(name)

    def remove(self, name: str, *, force: bool = False) -> bool:
        """Remove a volume with its data. Raises Conflict while a container uses it."""
        return self._volumes.remove(name, in_use=self._engine.containers.using_volume, force=force)

    def prune(self, *, everything: bool = False) -> tuple[Sequence[str], int]:
        """Remove unused anonymous volumes (everything=True: named ones too); return names and bytes freed."""
        return self._volumes.prune(in_use=self._engine.containers.using_volume, everything=everything)

    def make(self, plan: MountPlan, labels: Mapping[str, str]) -> dict[str, MadeVolume]:
        """Make the volumes that a plan names, by target; labels go on the anonymous ones."""
        made: dict[str, MadeVolume] = {}
        for request in plan.requests:
            if request.type == "volume":
                name = None if request.anonymous else request.source
                volume = self._volumes.create(name, labels if request.anonymous else None)
                made[request.target] = MadeVolume(volume, request.nocopy)
        return made

    def remove_anonymous(self, label: str, value: str) -> None:
        """Remove the anonymous volumes that carry a label and that nobody uses any more."""
        for volume in self.list():
            if volume.anonymous and volume.labels.get(label) == value:
                try:
                    self.remove(volume.name, force=True)
                except Conflict:
                    continue
