"""What the options before the verb say, and the engine that a verb opens with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pylayers.engine import Engine


@dataclass(frozen=True)
class Session:
    """Hold the global options; verbs get it as their first argument."""

    root: str | None = None
    driver: str | None = None
    runtime: str | None = None
    debug: bool = False

    def open(self) -> Engine:
        """Open the engine; the verb closes it."""
        from pylayers.engine import Engine

        return Engine.open(self.root, driver=self.driver, runtime=self.runtime)
