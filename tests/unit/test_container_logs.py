from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylayers.container.isolation import ContainerMount, Device, Isolation, Limit, Process
from pylayers.container.logs import LINE_LIMIT_BYTES, LogWriter, parse_time, read_logs
from pylayers.container.record import (
    LOG,
    ContainerSpec,
    create,
    load_spec,
    load_state,
    recorded_state,
    spec_from_json,
    spec_to_json,
    timestamp,
)
from pylayers.errors import AlreadyExists, IntegrityError, InvalidInput, NotFound
from pylayers.snapshot.snapshotter import Mount


def write(directory: Path, *parts: bytes) -> None:
    writer = LogWriter(directory / LOG)
    for part in parts:
        writer.write("stdout", part)
    writer.close()


def texts(directory: Path, **options) -> list[str]:
    return [record.text for record in read_logs(directory, **options)]


def test_lines_are_joined_and_cut(tmp_path: Path) -> None:
    write(tmp_path, b"one\ntw", b"o\n", b"x" * (LINE_LIMIT_BYTES + 5), b"\nlast")
    assert texts(tmp_path) == ["one\n", "two\n", "x" * LINE_LIMIT_BYTES, "xxxxx\n", "last"]


@given(st.lists(st.binary(max_size=40)), st.integers(0, 12))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_is_lost_and_tail_is_the_end(tmp_path: Path, parts: list[bytes], tail: int) -> None:
    (tmp_path / LOG).unlink(missing_ok=True)
    write(tmp_path, *parts)
    everything = texts(tmp_path)
    lines = b"".join(parts).split(b"\n")
    expected = [line + b"\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    assert everything == [line.decode(errors="replace") for line in expected]
    assert texts(tmp_path, tail=tail) == (everything[-tail:] if tail else [])


def test_tail_over_block_borders(tmp_path: Path) -> None:
    write(tmp_path, b"".join(b"%06d" % number + b"y" * 90 + b"\n" for number in range(3000)))
    everything = texts(tmp_path)
    for tail in (1, 500, 2999, 3000, 5000):
        assert texts(tmp_path, tail=tail) == everything[-tail:]


def test_since_and_until(tmp_path: Path) -> None:
    with (tmp_path / LOG).open("w") as file:
        for second in range(5):
            file.write(json.dumps({"log": f"{second}\n", "stream": "stdout", "time": timestamp(second * 10**9)}) + "\n")
        file.write('{"log": "half')
    assert texts(tmp_path, since_ns=2 * 10**9, until_ns=3 * 10**9) == ["2\n", "3\n"]


def test_no_container(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        list(read_logs(tmp_path / "none"))


@pytest.mark.parametrize(
    ("given_text", "expected_ns"),
    [
        ("1700000000", 1700000000 * 10**9),
        ("1700000000.5", 1700000000 * 10**9 + 5 * 10**8),
        ("2023-11-14T22:13:20Z", 1700000000 * 10**9),
        ("2023-11-14T23:13:20.25+01:00", 1700000000 * 10**9 + 25 * 10**7),
        ("2023-11-14T21:13:20-01:00", 1700000000 * 10**9),
        ("10m", 10**15 - 600 * 10**9),
        ("1h30m", 10**15 - 5400 * 10**9),
    ],
)
def test_times(given_text: str, expected_ns: int) -> None:
    assert parse_time(given_text, now_ns=10**15) == expected_ns


@pytest.mark.parametrize("given_text", ["", "soon", "2023-13-01", "10x", "-5"])
def test_bad_times(given_text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_time(given_text)


def spec() -> ContainerSpec:
    return ContainerSpec(
        id="a" * 64,
        name="box",
        process=Process(arguments=("sh", "-c", "x"), environment=("A=ü",), user="app", terminal=True),
        rootfs=(Mount("overlay", lowers=("/l1", "/l2"), upper="/u", work="/w", options=("volatile",)),),
        runtime=("runc",),
        isolation=Isolation(
            limits=(Limit(name="core", soft=0, hard=0),), devices=(Device(source="/dev/null", target="/dev/x"),)
        ),
        mounts=(ContainerMount(type="tmpfs", target="/t", mode=0o700),),
        labels=(("k", "v"),),
        anonymous_volumes=("v1",),
    )


def test_spec_survives_json() -> None:
    assert spec_from_json(spec_to_json(spec()).encode()) == spec()


def test_records(tmp_path: Path) -> None:
    directory = tmp_path / "containers" / ("a" * 64)
    create(directory, spec())
    assert load_spec(directory).created.endswith("Z")
    assert load_state(directory) == recorded_state(directory)
    assert load_state(directory).status == "created"
    with pytest.raises(AlreadyExists):
        create(directory, spec())
    (directory / "config.json").write_text('{"id": 1}')
    with pytest.raises(IntegrityError):
        load_spec(directory)
    with pytest.raises(NotFound, match="no such container"):
        load_spec(tmp_path / "other")
