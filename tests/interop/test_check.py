"""`build --check` beside docker's: every finding, its place and its source lines, every error, every exit code.

Where a dockerd can be started (PYLAYERS_DOCKER_ROOT may name a root that has one) a part of the cases, another each
day, is asked again of the live one; else, and for the rest, the recorded answers count.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.interop.buildkit.daemon import Daemon, DaemonMissing
from tests.interop.check.ask import Docker, Own
from tests.interop.check.case import Case, read_cases
from tests.interop.check.compare import read
from tests.interop.check.record import read_recorded

CASES = read_cases()
VERSIONS, RECORDED = read_recorded()
LIVE_SHARE = 12
RULE_COUNT = 22
NEVER_RECORDED = "InvalidBaseImagePlatform"  # needs a registry that answers with another platform than was asked for

LABS = "docker knows the flag only in frontends that it fetches; here it is always known"
NAMES = "upper-case image names are read in lower case, with a warning when they are built from"
CHOSEN = {
    "error/copy-parents": LABS,
    "error/run-security-bad": LABS,
    "error/run-security-insecure": LABS,
    "error/run-device": LABS,
    "error/run-device-bad": LABS,
    "from/invalid-literal-upper": NAMES,
}
# Both refuse, at the same line where docker tells one; the words differ.
REFERENCE = "says which part of the name is wrong"
BRACE = "names the brace that is missing; docker reads beyond the end of the word"
PLATFORM = "says what a platform looks like"
WORDS = {
    "directive/error-mixed-case": "without the name of a Go function",
    "directive/error-bad": "without the name of a Go function",
    "directive/error-empty": "without the name of a Go function",
    "directive/error-and-expansion-error": BRACE,
    "directive/argument-bad": "the same words as for the directive",
    "error/empty": "the same words as for a file of comments",
    "error/copy-from-invalid": REFERENCE,
    "error/copy-chmod-bad": "says what is expected",
    "error/run-mount-from-unknown": REFERENCE,
    "error/run-mount-from-later": "the same words as for COPY",
    "error/expansion-brace": BRACE,
    "error/expansion-in-from": BRACE,
    "error/expansion-in-platform": BRACE,
    "error/expansion-in-arg": BRACE,
    "error/expansion-in-arg-of-stage": BRACE,
    "error/expansion-in-copy": BRACE,
    "from/undefined-arg-single-quoted": REFERENCE,
    "from/undefined-arg-escaped": REFERENCE,
    "from/invalid-default": REFERENCE,
    "from/invalid-literal": REFERENCE,
    "from/invalid-literal-tag": REFERENCE,
    "from/redundant-changed": "says which platform the image is for",
    "from/constant-invalid": PLATFORM,
    "from/constant-unknown": PLATFORM,
    "from/platform-invalid-variable": PLATFORM,
    "from/from-stage-case": "a missing image, for which the stage is suggested",
}
# Docker's build names both lines of the circle, the one that closes it first; its check only the other.
LINES = {"error/copy-from-circle"}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    return Own(tmp_path_factory.mktemp("own"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_check_says_what_docker_says(case: Case, own: Own) -> None:
    recorded = RECORDED.get(case.key)
    assert recorded is not None, "not recorded: run tests.interop.check.record"
    assert recorded["fingerprint"] == case.fingerprint, "recorded of another text: run tests.interop.check.record"
    docker, answer = read(recorded), read(own.ask(case))
    if case.key in CHOSEN:
        assert (answer.refused, answer.message) != (docker.refused, docker.message), "no longer different: strike it"
        return
    assert answer.warnings == docker.warnings
    assert (answer.exit, answer.head, answer.refused) == (docker.exit, docker.head, docker.refused)
    if docker.line and case.key not in LINES:
        assert answer.line == docker.line
    if case.key in WORDS:
        assert answer.message != docker.message, "no longer different: strike it from WORDS"
        assert answer.message
    else:
        assert answer.message == docker.message


def test_what_is_excepted_exists() -> None:
    keys = {case.key for case in CASES}
    assert (CHOSEN.keys() | WORDS.keys() | LINES) <= keys


def test_every_rule_is_found_somewhere() -> None:
    from pylayers.dockerfile.lint import RULES

    told = "".join(answer["found"] for answer in RECORDED.values())
    found = {rule for rule in RULES if f"WARNING: {rule} " in told}
    assert len(RULES) == RULE_COUNT
    assert found == RULES.keys() - {NEVER_RECORDED}


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    daemon = Daemon(tmp_path_factory.mktemp("docker"))
    try:
        daemon.start()
    except DaemonMissing as missing:
        pytest.skip(f"{missing}; what docker {VERSIONS['docker']} answered counts")
    try:
        yield Docker(daemon)
    finally:
        daemon.close()


def test_docker_still_says_what_was_recorded(docker: Docker) -> None:
    first = int(time.time() // 86_400) % LIVE_SHARE
    for case in CASES[first::LIVE_SHARE]:
        answer, recorded = read(docker.ask(case)), read(RECORDED[case.key])
        # Without a network the resolver's words are a machine's own.
        assert answer._replace(message="") == recorded._replace(message=""), case.key
