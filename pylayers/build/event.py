"""What a build tells while it runs: typed events, and the result at its end."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, StrEnum

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


class Cause(StrEnum):
    """Name why a step was cached, or why it was not."""

    BASE = "base"  # a FROM: nothing to look up
    REUSED = "reused"  # cached
    EQUAL_TREE = "equal_tree"  # cached, though the layers below are others: their tree is equal
    NEW = "new"  # no earlier step is like it
    NO_CACHE = "no_cache"  # asked not to look
    COLLECTED = "collected"  # the earlier result is gone from the store
    PARENT = "parent"  # the tree or the layers below changed
    INSTRUCTION = "instruction"  # sources, destination or flags
    COMMAND = "command"
    ENVIRONMENT = "environment"  # variables, by name
    CONTENT = "content"  # of what is copied or mounted
    OPTION = "option"  # network, user, working directory, mounts
    CONFIGURATION = "configuration"  # what earlier instructions configured
    EARLIER_STEP = "earlier_step"  # known, but an earlier step was performed
    PARTS = "parts"  # how many layers of a split step were made


@record
class PathDifference:
    """Name a path that differs from an earlier result, and what about it, such as "content" or "mode 0644 → 0755"."""

    path: str
    differences: tuple[str, ...]


@record
class Reason:
    """Give one reason for a step's status; `paths` holds the first of `path_count` differences."""

    cause: Cause
    message: str
    names: tuple[str, ...] = ()
    paths: tuple[PathDifference, ...] = ()
    path_count: int = 0


@record
class StepExplained:
    """Tell why a step was cached or not, right before it finishes; only with explain=True."""

    step: Step
    status: StepStatus
    reasons: tuple[Reason, ...]


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


Event = StepStarted | StepOutput | StepExplained | StepFinished | BuildWarning | BuildFinished
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
