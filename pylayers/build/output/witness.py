"""Make a build's attestations: what it was made from and how (provenance), what is in it (bill of materials)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pylayers.build.output.attest import parse_attestations
from pylayers.build.output.option import Output
from pylayers.errors import Unsupported
from pylayers.image.attestation import Predicate
from pylayers.image.provenance import BuildRecord, Material, image_material, make_provenance
from pylayers.oci.platform import Platform

if TYPE_CHECKING:
    from pylayers.build.session import BuildSession
    from pylayers.build.state import StageState

BUILDER_ID = ""  # as BuildKit's, where nobody names one


def check_indexable(outputs: tuple[Output, ...], what: str) -> None:
    """Refuse an output that cannot hold the index which several platforms and attestations need."""
    for output in outputs:
        if output.type == "docker" and output.destination is not None:
            raise Unsupported(f"docker's archives hold no {what}", hint="use --output type=oci,dest=image.tar")


def make_predicates(session: BuildSession, state: StageState) -> tuple[Predicate, ...]:
    """Return what is to be said of the image that a build ended with."""
    wanted = parse_attestations(session.options.attestations)
    found: list[Predicate] = []
    if wanted.sbom is not None:
        from pylayers.image.sbom import make_sbom

        found.append(make_sbom(session.trees.layers(state.diff_ids), wanted.sbom.format, session.epoch_s))
    if wanted.provenance is not None:
        request = wanted.provenance
        record = record_build(session, state, request.builder_id or BUILDER_ID, reproducible=request.reproducible)
        found.append(make_provenance(record, request.mode))
    return tuple(found)


def record_build(session: BuildSession, state: StageState, builder_id: str, *, reproducible: bool) -> BuildRecord:
    """Collect what is told of a build; secrets by their ids alone."""
    from pylayers.build.builder import locate_dockerfile, read_content
    from pylayers.build.run.option import read_agents, read_secrets

    options = session.options
    path = locate_dockerfile(options)
    chosen = {"target": options.target} if options.target else {}
    chosen.update({f"context:{name}": place for name, place in options.contexts.items()})
    materials = [image_material(name, platform, digest) for name, platform, digest in session.materials]
    return BuildRecord(
        platform=state.platform,
        builder_platform=Platform.from_machine(os.uname().machine),
        builder_id=builder_id,
        dockerfile_path=os.path.basename(path),
        dockerfile=read_content(path),
        arguments={name: value for name, value in options.arguments.items() if value is not None},
        labels=dict(options.labels),
        options=chosen,
        secrets=tuple(read_secrets(options.secrets)),
        ssh=tuple(read_agents(options.ssh)),
        materials=(*materials, *(Material(uri, {kind: digits}) for uri, kind, digits in session.sources)),
        steps=tuple({"step": one.step.label, "diff_id": one.diff_id} for one in session.finished if one.diff_id),
        reproducible=reproducible,
    )
