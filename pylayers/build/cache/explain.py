"""Why a step was cached or not: its key's parts beside those of the nearest step that was made earlier.

Only loaded for --explain. A cache is watched while a step is performed; what it was asked and given then says what
happened, and the facts in the records (build/cache/fact.py) what differs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pylayers.build.cache.fact import chain_fact
from pylayers.build.cache.step import BuildCache, CachedStep
from pylayers.build.event import Cause, PathDifference, Reason, Step, StepExplained, StepStatus
from pylayers.build.session import BuildSession
from pylayers.build.state import StageState
from pylayers.dockerfile import instructions as df
from pylayers.errors import PylayersError
from pylayers.record import field, record
from pylayers.store import Store
from pylayers.store.entry import EntryTable
from pylayers.store.step import StepRecord

PATH_LIMIT = 20
TEXT_LIMIT = 80
PART_KIND = "part"


@record(frozen=False)
class Notes:
    """What a cache was asked and given during one step."""

    hits: list[StepRecord] = field(default_factory=list)
    made: list[tuple[StepRecord | None, StepRecord]] = field(default_factory=list)  # what was there, what came


class WatchedCache:
    """Pass everything on to a cache and note it, for each thread (that is: each stage) by itself."""

    def __init__(self, cache: BuildCache, store: Store) -> None:
        self._cache = cache
        self._steps = store.metadata.steps
        self._notes: dict[int, Notes] = {}
        self.own: set[str] = set()  # keys that this build met: none of them is an earlier step

    @property
    def _here(self) -> Notes:
        return self._notes.setdefault(threading.get_ident(), Notes())

    def take(self) -> Notes:
        """Return this thread's notes since the last call."""
        return self._notes.pop(threading.get_ident(), Notes())

    def lookup(self, key: str) -> CachedStep | None:
        """Return what a key led to."""
        found = self._cache.lookup(key)
        if found is not None:
            known = self._steps.get(key)
            self._here.hits.append(known or to_record(key, "", "", "", found))
            self.own.add(key)
        return found

    def earlier(self, partial_key: str) -> Sequence[CachedStep]:
        """Return the latest used of the steps that were recorded with this partial key."""
        return self._cache.earlier(partial_key)

    def record(self, key: str, partial_key: str, kind: str, instruction: str, step: CachedStep) -> None:
        """Keep a step's result."""
        self._here.made.append((self._steps.get(key), to_record(key, partial_key, kind, instruction, step)))
        self.own.add(key)
        self._cache.record(key, partial_key, kind, instruction, step)

    def touch(self, keys: Sequence[str]) -> None:
        """Note that steps were used."""
        self._cache.touch(keys)


def to_record(key: str, partial_key: str, kind: str, instruction: str, step: CachedStep) -> StepRecord:
    """Return a step as the store keeps it."""
    return StepRecord(
        key=key,
        partial_key=partial_key,
        kind=kind,
        diff_id=step.diff_id,
        chain_id=step.chain_id,
        instruction=instruction,
        inputs=step.inputs,
        below=step.below,
    )


class Explainer:
    """Explain the steps of one stage, in order."""

    def __init__(self, session: BuildSession) -> None:
        if not isinstance(session.cache, WatchedCache):
            raise TypeError("a build that explains its steps watches its cache")
        self.session = session
        self.cache = session.cache
        self.origin = ""  # the step that a change of the tree below comes from

    def explain(
        self, state: StageState | None, instruction: df.Instruction, step: Step, status: StepStatus, has_layer: bool
    ) -> StepExplained:
        """Explain a step that was just performed over a state."""
        notes = self.cache.take()
        if state is None or isinstance(instruction, df.From):
            self.origin = step.label
            reason = Reason(Cause.BASE, "it only names what the stage starts from")
            return StepExplained(step, status, (reason,))
        hits = [hit for hit in notes.hits if hit.kind != PART_KIND]
        made = [pair for pair in notes.made if pair[1].kind != PART_KIND]
        if status is StepStatus.CACHED:
            reasons = explain_hit(state, hits[-1]) if hits else [Reason(Cause.REUSED, "its result was known")]
        elif made:
            reasons = self.explain_miss(state, *made[-1], hit=any(one.key == made[-1][1].key for one in hits))
            reasons += count_parts(notes)
        else:
            reasons = [Reason(Cause.EARLIER_STEP, "its result was known, but an earlier step was performed")]
        if has_layer and all(reason.cause is not Cause.PARENT for reason in reasons):
            self.origin = step.label
        return StepExplained(step, status, tuple(reasons))

    def explain_miss(
        self, state: StageState, previous: StepRecord | None, made: StepRecord, *, hit: bool
    ) -> list[Reason]:
        """Say why a step had to be performed."""
        if self.session.options.no_cache:
            return [Reason(Cause.NO_CACHE, "the cache was not to be used")]
        if previous is not None:
            if hit:
                return [Reason(Cause.COLLECTED, "it was made before, but its layer is no longer in the store")]
            return [Reason(Cause.CONTENT, "what it copies became during the build what an earlier one had copied")]
        earlier = [one for one in self.session.store.metadata.steps.of_kind(made.kind) if one.key not in self.cache.own]
        nearest = find_nearest(made, earlier)
        if nearest is None:
            return [Reason(Cause.NEW, "no earlier step is like it")]
        return self.compare(state, nearest, made) or [Reason(Cause.NEW, "it was never made before")]

    def compare(self, state: StageState, old: StepRecord, new: StepRecord) -> list[Reason]:
        """List what differs between a step and the nearest earlier one."""
        before, after = old.inputs, new.inputs
        reasons: list[Reason] = []
        if before.get("parent") != after.get("parent"):
            what = "layers below are others" if self.session.options.key_by_chain else "tree below changed"
            reasons.append(Reason(Cause.PARENT, f"the {what}, by {clip(self.origin)}"))
        reasons += compare_instructions(old, new)
        if before.get("environment") != after.get("environment"):
            reasons.append(compare_environments(state, before.get("environment", {}), after.get("environment", {})))
        reasons += compare_options(before, after)
        if before.get("inputs") != after.get("inputs"):
            reasons.append(self.compare_content(old, new))
        if before.get("config") != after.get("config") and not reasons:
            reasons.append(Reason(Cause.CONFIGURATION, "what earlier instructions configured changed"))
        return reasons

    def compare_content(self, old: StepRecord, new: StepRecord) -> Reason:
        """Tell which paths of two layers differ, or for a RUN which of its mounts."""
        if new.kind == "run":
            known = dict(old.inputs.get("inputs", ()))
            names = tuple(name for name, digest in new.inputs["inputs"] if known.get(name) != digest)
            return Reason(Cause.CONTENT, f"what is mounted changed: {', '.join(names)}", names=names)
        try:
            before, after = self.open_table(old), self.open_table(new)
        except PylayersError:
            return Reason(Cause.CONTENT, "the content changed; the earlier layer is gone, so the paths are not known")
        from pylayers.diff.difference import list_differences, shown

        found, count = list_differences(before, after, PATH_LIMIT)
        if not count:
            return Reason(Cause.CONTENT, "the sources' names changed")
        paths = tuple(PathDifference(f"/{shown(one.path)}", one.differences) for one in found)
        return Reason(Cause.CONTENT, f"{count} path{'s' if count > 1 else ''} changed", paths=paths, path_count=count)

    def open_table(self, step: StepRecord) -> EntryTable:
        """Return the table of what a step's layers hold."""
        from pylayers.diff.merge import merge_layers

        return merge_layers([self.session.store.layers.open(diff_id) for diff_id in step.diff_ids])


def explain_hit(state: StageState, hit: StepRecord) -> list[Reason]:
    """Say which earlier result was reused, and whether another history led to the same tree."""
    made = "elsewhere"
    if hit.created_ns:
        made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(hit.created_ns / 10**9))
    reasons = [Reason(Cause.REUSED, f"made {made} by {clip(hit.instruction)}" if hit.instruction else f"made {made}")]
    chain = hit.inputs.get("chain") if isinstance(hit.inputs, Mapping) else None
    if chain is not None and chain != chain_fact(state):
        reasons.append(Reason(Cause.EQUAL_TREE, "the layers below are others, but make an equal tree (early cut-off)"))
    return reasons


def find_nearest(made: StepRecord, earlier: Sequence[StepRecord]) -> StepRecord | None:
    """Return the earlier step that a person would compare with: same text, else the same place of the Dockerfile."""
    best: StepRecord | None = None
    best_score: tuple[Any, ...] = ()
    for one in earlier:
        score = rate(made, one)
        if score is not None and (best is None or score > best_score):
            best, best_score = one, score
    return best


def rate(made: StepRecord, one: StepRecord) -> tuple[Any, ...] | None:
    """Tell how near an earlier step is; None for one that has nothing to do with it."""
    facts, others = made.inputs, one.inputs
    if not isinstance(others, Mapping) or "parent" not in others:
        return None  # recorded before facts were kept
    same_text = made.instruction == one.instruction
    same_file = facts["file"] == others["file"]
    same_parent = facts["parent"] == others["parent"]
    away = abs(facts["line"] - others["line"])
    if not same_text and not (same_file and (same_parent or away == 0)):
        return None
    names = count_differences(facts.get("environment", {}), others.get("environment", {}))
    return same_text, same_file, same_parent, -names, -away, max(one.created_ns, one.last_used_ns)


def count_differences(one: Mapping[str, str], other: Mapping[str, str]) -> int:
    """Count the names whose values differ."""
    return sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())


def compare_instructions(old: StepRecord, new: StepRecord) -> list[Reason]:
    """Tell how the instruction itself changed."""
    before, after = old.inputs, new.inputs
    if before.get("command") != after.get("command"):
        if old.instruction != new.instruction:
            return [Reason(Cause.COMMAND, f"the command changed, it was: {clip(old.instruction)}")]
        return [Reason(Cause.COMMAND, "the command changed by its heredoc or by SHELL")]
    reasons = []
    for name, shown in (("sources", "sources"), ("destination", "destination")):
        if before.get(name) != after.get(name):
            was = before.get(name)
            was = " ".join(was) if isinstance(was, list) else was
            reasons.append(Reason(Cause.INSTRUCTION, f"the {shown} changed, {was!r} before", names=(name,)))
    if not reasons and "config" in after and old.instruction != new.instruction:
        reasons.append(Reason(Cause.INSTRUCTION, f"the instruction changed, it was: {clip(old.instruction)}"))
    return reasons


def compare_environments(state: StageState, before: Mapping[str, str], after: Mapping[str, str]) -> Reason:
    """Name the variables that changed; their values are nobody's business."""
    arguments = dict(state.arguments).keys() - state.config.environment().keys()
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    shown = [
        f"{'ARG' if name in arguments else 'variable'} {name} "
        + ("added" if name not in before else "removed" if name not in after else "changed")
        for name in names
    ]
    return Reason(Cause.ENVIRONMENT, ", ".join(shown), names=tuple(names))


def compare_options(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Reason]:
    """Tell which of a step's circumstances changed."""
    reasons = []
    for name, shown in (("working_dir", "working directory"), ("user", "user")):
        if before.get(name) != after.get(name):
            message = f"the {shown} changed from {before.get(name) or 'none'} to {after.get(name) or 'none'}"
            reasons.append(Reason(Cause.OPTION, message, names=(name,)))
    had, has = before.get("options", []), after.get("options", [])
    if had != has:
        gone = [one for one in had if one and one not in has]
        come = [one for one in has if one and one not in had]
        words = ([f"no longer {' '.join(gone)}"] if gone else []) + ([f"now {' '.join(come)}"] if come else [])
        reasons.append(Reason(Cause.OPTION, f"the options changed: {', '.join(words) or 'their order'}"))
    return reasons


def count_parts(notes: Notes) -> list[Reason]:
    """Tell how many layers of a split step had to be made."""
    made = sum(pair[1].kind == PART_KIND for pair in notes.made)
    reused = sum(hit.kind == PART_KIND for hit in notes.hits)
    if not made + reused:
        return []
    return [Reason(Cause.PARTS, f"{made} of its {made + reused} layers made, {reused} reused")]


def clip(text: str) -> str:
    """Return a text's first line, shortened."""
    line = text.split("\n", 1)[0]
    return line if line == text and len(line) <= TEXT_LIMIT else line[: TEXT_LIMIT - 1] + "…"
