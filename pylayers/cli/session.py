"""What the options before the verb say, and the engine that a verb opens with them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.engine import Engine


class Session:
    """Hold the global options; verbs get it as their first argument."""

    __slots__ = ("debug", "driver", "root", "runtime")

    def __init__(
        self, root: str | None = None, driver: str | None = None, runtime: str | None = None, debug: bool = False
    ) -> None:
        self.root = root
        self.driver = driver
        self.runtime = runtime
        self.debug = debug

    def open(self) -> Engine:
        """Open the engine; the verb closes it."""
        from pylayers.engine import Engine

        engine = Engine.open(self.root, driver=self.driver, runtime=self.runtime)
        engine.store.ends_with_process = True
        return engine
