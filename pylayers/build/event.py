"""What a build tells while it runs: typed events, and the result at its end."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from pylayers.record import field, record


class StepStatus(Enum):
    """Say how a step came by its result."""

    CACHED = "cached"
    BUILT = "built"
    FAILED = "failed"


@record
class Step:
    """Name one step: `index` of `total` within its stage, as shown in `[stage 2/5] RUN …`."""

    stage: str
    index: int
    total: int
    instruction: str
    line: int

    @property
    def label(self) -> str:
        """Return the step as a person reads it."""
        return f"[{self.stage} {self.index}/{self.total}] {self.instruction}"


@record
class StepStarted:
    """Tell that a step begins."""

    step: Step


@record
class StepOutput:
    """Carry output of a step's command, as it was written."""

    step: Step
    stream: str  # "stdout" or "stderr"
    content: bytes


@record
class StepFinished:
    """Tell how a step ended; `size_bytes` is its layer's tar, 0 for none."""

    step: Step
    status: StepStatus
    seconds: float
    size_bytes: int
    diff_id: str | None


@record
class BuildWarning:
    """Carry a warning; `rule` is the check's name where it has one."""

    message: str
    rule: str = ""
    file: str = ""
    line: int = 0


@record
class BuildFinished:
    """Close the stream of a build that succeeded."""

    image_digest: str
    references: tuple[str, ...]
    seconds: float


Event = StepStarted | StepOutput | StepFinished | BuildWarning | BuildFinished
Subscriber = Callable[[Event], None]


@record
class BuildResult:
    """What a build made. `image_digest` is the manifest's, `config_digest` the image id that docker shows."""

    image_digest: str
    config_digest: str
    references: tuple[str, ...]
    steps: tuple[StepFinished, ...]
    warnings: tuple[BuildWarning, ...]
    seconds: float
    diff_ids: tuple[str, ...] = field(default=())

    @property
    def cache_hits(self) -> int:
        """Count the steps that were reused."""
        return sum(step.status is StepStatus.CACHED for step in self.steps)
