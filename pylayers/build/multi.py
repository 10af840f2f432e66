"""Builds for several platforms: one image each, handed out together under an index."""

from __future__ import annotations

import time
from contextlib import ExitStack

from pylayers.build.builder import Request, build_stages, make_config
from pylayers.build.emulation import check_platforms
from pylayers.build.event import BuildFinished, BuildResult
from pylayers.build.output.deliver import BuiltImage, deliver
from pylayers.build.output.witness import make_predicates
from pylayers.build.request import BuildOptions
from pylayers.oci.platform import Platform
from pylayers.oci.reference import Reference
from pylayers.record import replace


def build_platforms(
    request: Request, options: BuildOptions, references: list[Reference], started: float
) -> BuildResult:
    """Build each platform's image, one after the other, and hand them out together."""
    check_platforms(options.platforms)
    platforms = dict.fromkeys(str(Platform.parse(text)) for text in options.platforms)
    images: list[BuiltImage] = []
    steps, warnings = [], []
    with ExitStack() as stack:
        for platform in platforms:
            session, state = stack.enter_context(build_stages(request, replace(options, platforms=(platform,))))
            predicates = make_predicates(session, state) if options.attestations else ()
            images.append(BuiltImage(make_config(session, state), state.base_count, predicates))
            session.cache.touch(session.hits)
            steps += session.finished
            warnings += [one for one in session.warnings if one not in warnings]
        session.options = options
        made = deliver(session, images, [str(one) for one in references])
    result = BuildResult(
        image_digest=made.digest,
        config_digest=made.config_digest,
        references=tuple(Reference.parse(name).familiar for name in made.names),
        steps=tuple(steps),
        warnings=tuple(warnings),
        seconds=time.perf_counter() - started,
        diff_ids=made.diff_ids,
    )
    session.emit(BuildFinished(result.image_digest, result.references, result.seconds))
    return result
