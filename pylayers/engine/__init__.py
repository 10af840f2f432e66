"""The engine: one data root, and everything that can be done with it, as typed calls."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import TracebackType

from pylayers.store import Store
from pylayers.store.location import default_root
from pylayers.thread import allocate_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Unpack

    from pylayers.build.check import CheckResult
    from pylayers.build.event import BuildResult, Subscriber
    from pylayers.build.keyword import BuildRequest
    from pylayers.container.runtime import Runtime
    from pylayers.engine.container import ContainerActions
    from pylayers.engine.image import ImageActions
    from pylayers.engine.system import SystemActions
    from pylayers.engine.volume import VolumeActions
    from pylayers.snapshot.snapshotter import Snapshotter

RUNTIME_VARIABLE = "PYLAYERS_RUNTIME"


class Engine:
    """Hold one data root open. Threads may share an engine; close it, or use it as a context manager."""

    def __init__(self, store: Store, driver: str | None = None, runtime: str | None = None) -> None:
        self.store = store
        self.driver_name = driver
        self._runtime_name = runtime or os.environ.get(RUNTIME_VARIABLE)
        self._driver: Snapshotter | None = None
        self._lock = allocate_lock()
        self.when_closed: set[Callable[[], None]] = set()

    @classmethod
    def open(cls, root: Path | str | None = None, *, driver: str | None = None, runtime: str | None = None) -> Engine:
        """Open a data root, making it when missing. The driver and the runtime are looked for when first needed.

        Raises PermissionDenied, InvalidInput for a directory that holds something else, Unsupported for a newer root.
        """
        return cls(Store.open(root if root is not None else default_root()), driver, runtime)

    @property
    def root(self) -> Path:
        """Return the data root."""
        return self.store.root

    def driver(self) -> Snapshotter:
        """Return the storage driver, chosen and opened on first use."""
        from pylayers.snapshot.select import open_snapshotter

        with self._lock:
            if self._driver is None:
                self._driver = open_snapshotter(self.store.location, self.driver_name)
            return self._driver

    def close_driver(self) -> None:
        """Close the storage driver; the next use chooses anew."""
        with self._lock:
            if self._driver is not None:
                self._driver.close()
                self._driver = None

    def runtime(self) -> Runtime:
        """Return the OCI runtime. Raises RuntimeMissing."""
        from pylayers.container.runtime import find_runtime

        return find_runtime(self._runtime_name)

    @property
    def images(self) -> ImageActions:
        """Return what can be done with images."""
        from pylayers.engine.image import ImageActions

        return ImageActions(self)

    @property
    def containers(self) -> ContainerActions:
        """Return what can be done with containers."""
        from pylayers.engine.container import ContainerActions

        return ContainerActions(self)

    @property
    def volumes(self) -> VolumeActions:
        """Return what can be done with volumes."""
        from pylayers.engine.volume import VolumeActions

        return VolumeActions(self)

    @property
    def system(self) -> SystemActions:
        """Return what can be asked of and done with the whole root."""
        from pylayers.engine.system import SystemActions

        return SystemActions(self)

    def build(
        self, context: Path | str = ".", *, subscriber: Subscriber | None = None, **given: Unpack[BuildRequest]
    ) -> BuildResult:
        """Build a Dockerfile and tag the image; return its digests, every step's timing and the cache hits.

        A context that is a file is taken for the Dockerfile, with its folder as the context. subscriber gets every
        event, one at a time, from the stages' threads. What else can be given is in build.keyword.BuildRequest.
        Raises InvalidInput, NotFound and BuildError with their place in the Dockerfile.
        """
        from pylayers.build.builder import build
        from pylayers.build.request import read_request

        return build(self.store, read_request(context, given), self.driver, self.runtime, subscriber)

    def check(self, context: Path | str = ".", **given: Unpack[BuildRequest]) -> CheckResult:
        """Check a Dockerfile by docker's rules, every stage of it, and build nothing; an error of the file is told too.

        Raises NotFound for no Dockerfile, InvalidInput for malformed options.
        """
        from pylayers.build.check import check
        from pylayers.build.request import read_request

        return check(self.store, read_request(context, given))

    def collect(self) -> int:
        """Delete what nothing needs any more, snapshots included; return the bytes freed in the store."""
        return self.system.collect()

    def close(self) -> None:
        """Close the driver and the store, and do what was put off until then."""
        if not self.store.ends_with_process:
            for put_off in self.when_closed:
                put_off()
        self.close_driver()
        self.store.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
