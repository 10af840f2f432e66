"""Docker's build checks: of a build, where an unchanged file's warnings are remembered, and alone (`build --check`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from pylayers.build.cache import CachedStep
from pylayers.build.cachekey import hash_fields, pack_texts
from pylayers.build.event import BuildWarning
from pylayers.dockerfile.instructions import Dockerfile
from pylayers.errors import BuildError, InvalidInput, PylayersError
from pylayers.record import record

if TYPE_CHECKING:
    from pylayers.build.plan import Plan
    from pylayers.build.request import BuildOptions
    from pylayers.build.session import BuildSession
    from pylayers.dockerfile.instructions import Warning_
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
    """Tell a build's warnings, kept where the file was checked before. Raises InvalidInput where they count."""
    chosen = session.options.arguments.get(SETTINGS_ARGUMENT, dockerfile.directive("check") or "")
    names = {index: tuple(state.config.environment()) for index, state in session.bases.items()}
    fields = [content_digest, dockerfile.file, chosen, str(plan.target), repr(sorted(names.items()))]
    key = hash_fields("check", (pack_texts(fields),))
    known = session.cache.lookup(key)
    if known is not None and isinstance(known.inputs, Mapping) and "warnings" in known.inputs:
        found = [BuildWarning(*one) for one in known.inputs["warnings"]]
    else:
        reached = {planned.stage.index for planned in plan.stages}
        warnings = check_file(dockerfile, chosen, names, reached)
        found = [BuildWarning(one.message, one.rule, one.span.file, one.span.line) for one in warnings]
        rows = [[one.message, one.rule, one.file, one.line] for one in found]
        session.cache.record(key, "", "check", "", CachedStep(None, 0, inputs={"warnings": rows}))
    for one in found:
        session.emit(one)
    if found and "error" in chosen.lower():
        refuse_warnings(chosen, [one.rule for one in found])


def refuse_warnings(chosen: str, rules: list[str]) -> None:
    """Raise the error of `error=true`."""
    from pylayers.dockerfile.lint import read_settings

    if read_settings(chosen).error:
        raise InvalidInput(
            f"lint violation found for rules: {', '.join(dict.fromkeys(rules))}",
            hint="mend them, or leave them out with: # check=skip=RULE",
        )


def check_file(
    dockerfile: Dockerfile, chosen: str, names: Mapping[int, Collection[str]], stages: Collection[int] | None = None
) -> tuple[Warning_, ...]:
    """Return the warnings of a file by the settings of its directive or of the build argument."""
    from pylayers.dockerfile import lint

    return lint.check(dockerfile, settings=lint.read_settings(chosen), base_names=names, stages=stages)


def check(store: Store, options: BuildOptions) -> CheckResult:
    """Check a Dockerfile without building anything; every stage is looked at. Raises NotFound for no Dockerfile."""
    from pylayers.build.builder import find_ignore_rules, locate_dockerfile, read_content, shown_path
    from pylayers.dockerfile import lint
    from pylayers.dockerfile.excerpt import excerpt
    from pylayers.dockerfile.parse import parse

    path = locate_dockerfile(options)
    content = read_content(path)
    try:
        dockerfile = parse(content, shown_path(path))
    except InvalidInput as error:
        return CheckResult((), with_excerpt(error, content))
    settings = lint.read_settings(options.arguments.get(SETTINGS_ARGUMENT, dockerfile.directive("check") or ""))
    rules, _ = find_ignore_rules(options.context, path)
    names = read_base_names(store, options, dockerfile)
    found = lint.check(dockerfile, settings=settings, ignore=rules, base_names=names)
    warnings = tuple(
        CheckWarning(one.rule, one.message, lint.url(one.rule), one.span.file, one.span.line,
                     one.span.end_line or one.span.line, excerpt(content, one.span))
        for one in found
    )  # fmt: skip
    refused = find_error(options, dockerfile)
    if refused is None and warnings and settings.error:
        rules_found = ", ".join(dict.fromkeys(one.rule for one in warnings))
        refused = InvalidInput(f"lint violation found for rules: {rules_found}")
    return CheckResult(warnings, None if refused is None else with_excerpt(refused, content))


def find_error(options: BuildOptions, dockerfile: Dockerfile) -> PylayersError | None:
    """Return what planning the file fails with, or None."""
    from pylayers.build.builder import choose_platform_of
    from pylayers.build.plan import make_plan

    try:
        platform = choose_platform_of(options.platforms[:1])
        make_plan(dockerfile, options.arguments, options.target, platform=platform, contexts=options.contexts)
    except PylayersError as error:
        return error
    return None


def read_base_names(store: Store, options: BuildOptions, dockerfile: Dockerfile) -> dict[int, tuple[str, ...]]:
    """Return, for each stage on an image of the store, the variables that the image sets."""
    from pylayers.build.plan import expand_global_arguments
    from pylayers.image.view import load_image, resolve_reference

    values = expand_global_arguments(dockerfile.global_args, options.arguments)
    found: dict[int, tuple[str, ...]] = {}
    known: dict[str, tuple[str, ...] | None] = {}
    for stage in dockerfile.stages:
        try:
            name = stage.base.expand(values).image
            if dockerfile.find_stage(name, before=stage.index) is not None or name == "scratch":
                continue
            if name not in known:
                digest = resolve_reference(store, name)
                known[name] = None if digest is None else tuple(load_image(store, digest).config.config.environment())
        except PylayersError:
            continue
        names = known[name]
        if names is not None:
            found[stage.index] = names
    return found


def with_excerpt(error: PylayersError, content: bytes) -> PylayersError:
    """Return an error with the source lines of its place."""
    from pylayers.dockerfile.excerpt import excerpt

    if error.span is not None and not error.excerpt and not isinstance(error, BuildError):
        error.excerpt = excerpt(content, error.span)
    return error
