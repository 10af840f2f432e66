"""Docker's build checks: of a build, where an unchanged file's warnings are remembered, and alone (`build --check`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pylayers.build.cache.key import hash_fields, pack_texts
from pylayers.build.cache.step import CachedStep
from pylayers.build.event import BuildWarning
from pylayers.dockerfile.instructions import Dockerfile
from pylayers.errors import BuildError, InvalidInput, PylayersError, SourceSpan
from pylayers.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pylayers.build.plan import Plan
    from pylayers.build.request import BuildOptions
    from pylayers.build.session import BuildSession
    from pylayers.build.state import StageState
    from pylayers.oci.platform import Platform
    from pylayers.store import Store

SETTINGS_ARGUMENT = "BUILDKIT_DOCKERFILE_CHECK"


@record
class CheckWarning:
    """Carry one finding; `excerpt` shows its source lines."""

    rule: str
    message: str
    url: str
    file: str
    line: int
    end_line: int
    excerpt: str


@record
class CheckResult:
    """Say what the checks found; `error` is what a build would refuse the file for, with its excerpt in `excerpt`."""

    warnings: tuple[CheckWarning, ...]
    error: PylayersError | None = None

    @property
    def passed(self) -> bool:
        """Tell whether nothing was found."""
        return not self.warnings and self.error is None


def warn_build(session: BuildSession, dockerfile: Dockerfile, plan: Plan, content_digest: str) -> None:
    """Tell a build's warnings, kept where the file was checked before. Raises InvalidInput where they count.

    An instruction that its step would refuse is refused here, before the steps above it are built.
    """
    chosen = session.options.arguments.get(SETTINGS_ARGUMENT, dockerfile.directive("check") or "")
    bases = {index: (state.config.env, state.config.shell) for index, state in session.bases.items()}
    asked = (sorted(session.options.arguments.items()), sorted(bases.items()), str(session.platform))
    key = hash_fields("check", (pack_texts([content_digest, dockerfile.file, str(plan.target), repr(asked)]),))
    known = session.cache.lookup(key)
    if known is not None and isinstance(known.inputs, Mapping) and "warnings" in known.inputs:
        found = [BuildWarning(*one) for one in known.inputs["warnings"]]
    else:
        found = find_warnings(session, dockerfile, plan)
        rows = [[one.message, one.rule, one.file, one.line] for one in found]
        session.cache.record(key, "", "check", "", CachedStep(None, 0, inputs={"warnings": rows}))
    for one in found:
        session.emit(one)
    if found and "error" in chosen:
        from pylayers.build.dryrun import choose_settings

        if choose_settings(dockerfile.directive("check"), session.options.arguments).error:
            raise refuse_warnings([one.rule for one in found])


def refuse_warnings(rules: list[str]) -> InvalidInput:
    """Return the error of `error=true`."""
    return InvalidInput(
        f"lint violation found for rules: {', '.join(dict.fromkeys(rules))}",
        hint="mend them, or leave them out with: # check=skip=RULE",
    )


def find_warnings(session: BuildSession, dockerfile: Dockerfile, plan: Plan) -> list[BuildWarning]:
    """Return the warnings of the stages that a build takes. Raises the error that one of them would end with."""
    from pylayers.build.dryrun import Findings, Question, check_bases, check_instructions, check_stages, choose_settings

    options = session.options
    found = Findings(settings=choose_settings(dockerfile.directive("check"), options.arguments))
    question = Question(arguments=options.arguments, target=options.target, platform=session.platform)
    check_instructions(dockerfile, found)
    check_bases(dockerfile, question, found)
    check_stages(plan, session.bases, question, found)
    return [BuildWarning(one.message, one.rule, one.span.file, one.span.line) for one in found.kept()]


def check(store: Store, options: BuildOptions) -> CheckResult:
    """Check a Dockerfile without building anything; with no target every stage. Raises NotFound for no Dockerfile."""
    from pylayers.build import builder
    from pylayers.build.dryrun import Question, check_content
    from pylayers.dockerfile import lint
    from pylayers.dockerfile.excerpt import Excerpts

    path = builder.locate_dockerfile(options)
    content = builder.read_content(path)
    question = Question(
        arguments=options.arguments,
        target=options.target,
        platform=builder.choose_platform_of(options.platforms[:1]),
        contexts=options.contexts,
        ignore=builder.find_ignore_rules(options.context, path)[0],
    )
    found = check_content(content, builder.shown_path(path), question, ImageLoader(store, options).load)
    kept, excerpts = found.kept(), Excerpts(content)
    warnings = tuple(
        CheckWarning(one.rule, one.message, lint.url(one.rule), one.span.file, one.span.line,
                     one.span.end_line or one.span.line, excerpts.show(one.span))
        for one in kept
    )  # fmt: skip
    refused = found.error
    if refused is None and warnings and found.settings.error:
        refused = refuse_warnings([one.rule for one in kept])
    return CheckResult(warnings, None if refused is None else with_excerpt(refused, content))


class ImageLoader:
    """Load the images that a checked file names; what a named context gives stays unknown."""

    def __init__(self, store: Store, options: BuildOptions) -> None:
        self._store = store
        self._contexts = options.contexts

    def load(self, name: str, platform: Platform, span: SourceSpan, stage_names: Sequence[str]) -> StageState:
        """Return the state that a stage on the image begins with. Raises NotFound, InvalidInput."""
        from pylayers.build.base import IMAGE_CONTEXT, enter_image, find_image, load_fitting
        from pylayers.build.state import StageState

        if name == "scratch":
            return StageState(platform)
        wanted = name
        if self._contexts:
            from pylayers.build.source.context import context_key

            given = {context_key(key): place for key, place in self._contexts.items()}.get(context_key(name), wanted)
            if given is not wanted and not given.startswith(IMAGE_CONTEXT):
                return StageState(platform)
            wanted = given.removeprefix(IMAGE_CONTEXT)
        digest = find_image(self._store, wanted, span, stage_names, lambda _: None)
        return enter_image(load_fitting(self._store, digest, wanted, platform, span))


def with_excerpt(error: PylayersError, content: bytes) -> PylayersError:
    """Return an error with the source lines of its place."""
    from pylayers.dockerfile.excerpt import excerpt

    if error.span is not None and not error.excerpt and not isinstance(error, BuildError):
        error.excerpt = excerpt(content, error.span)
    return error
