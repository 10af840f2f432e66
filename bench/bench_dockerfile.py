"""Parsing, expanding, linting Dockerfiles and matching .dockerignore; sizes from PYLAYERS_BENCH_ENTRIES."""

from __future__ import annotations

import os
from typing import Any

from pylayers.build.dryrun import Question, check_content
from pylayers.build.state import StageState
from pylayers.dockerfile import ignore
from pylayers.dockerfile.parse import parse
from pylayers.oci.platform import Platform

ENTRIES = int(os.environ.get("PYLAYERS_BENCH_ENTRIES", "2000"))

STAGE = """
FROM golang:${{GO}} AS stage{0}
ARG TARGETOS TARGETARCH
ENV A{0}=one B="two words" PATH=/usr/local/go/bin:$PATH
WORKDIR /src/{0}
RUN --mount=type=cache,target=/root/.cache \\
    # a comment
    apt-get update && \\
    apt-get install -y --no-install-recommends gcc
COPY --chown=1000:1000 go.mod ${{A{0}:-go.sum}} ./
COPY <<EOF /etc/conf
name=$A{0}
EOF
CMD ["app", "--flag"]
"""


def make_dockerfile(instructions: int) -> bytes:
    """Return a file of about that many instructions, in stages of eight."""
    stages = max(1, instructions // 8)
    return ("ARG GO=1.22\n" + "".join(STAGE.format(index) for index in range(stages))).encode()


def test_parse(benchmark: Any) -> None:
    content = make_dockerfile(ENTRIES)
    file = benchmark(parse, content)
    assert len(file.stages) == max(1, ENTRIES // 8)


def test_parse_small(benchmark: Any) -> None:
    content = make_dockerfile(8)
    assert len(benchmark(parse, content).stages) == 1


def test_expand(benchmark: Any) -> None:
    instructions = [i for s in parse(make_dockerfile(ENTRIES)).stages for i in s.instructions]
    environment = {"PATH": "/bin", "GO": "1", **{f"A{i}": "one" for i in range(ENTRIES)}}
    expanded = benchmark(lambda: [i.expand(environment) for i in instructions])
    assert len(expanded) == len(instructions)


def test_lint(benchmark: Any) -> None:
    here = Platform("linux", "amd64")
    content, question = make_dockerfile(ENTRIES), Question(platform=here)
    found = benchmark(check_content, content, "Dockerfile", question, lambda *_: StageState(here))
    assert found.error is None


def test_ignore(benchmark: Any) -> None:
    text = "node_modules\n**/*.pyc\n**/__pycache__\n.git\n*.log\ndist/*\n!dist/keep\n**/test_*/**/*.bin\n"
    paths = [f"dir{i % 40}/sub{i % 7}/file{i}.py" for i in range(ENTRIES)]

    def match_all() -> int:
        rules = ignore.parse(text)
        return sum(rules.excluded(path) for path in paths)

    assert benchmark(match_all) == 0
