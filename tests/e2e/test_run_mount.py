"""What a RUN is lent, for real: mounts of every type, networks, hosts, limits, here-documents that are scripts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers.build.event import BuildResult, StepOutput
from pylayers.build.run.cache import FOLDER, prune_caches, walk_caches
from pylayers.engine import Engine
from pylayers.errors import BuildError, InvalidInput, NotFound, PylayersError, Unsupported
from tests.e2e.build_case import content, leftovers, members, open_with_busybox, settle, statuses

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runc") is None, reason="needs root and runc"),
]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with open_with_busybox(tmp_path / "root", tmp_path) as opened:
        yield opened
        assert leftovers(opened.root) == []


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "d" / "e").mkdir(parents=True)
    (folder / "d" / "file").write_text("content\n")
    (folder / "d" / "e" / "deep").write_text("deep\n")
    settle(folder)
    return folder


def build(engine: Engine, context: Path, text: str, **options: object) -> tuple[BuildResult, str]:
    """Build a Dockerfile over busybox; return the result and all that its commands wrote."""
    (context / "Dockerfile").write_text(f"FROM busybox\n{text}\n")
    written = bytearray()

    def listen(event: object) -> None:
        if isinstance(event, StepOutput):
            written.extend(event.content)

    result = engine.build(context, subscriber=listen, **options)  # type: ignore[arg-type]
    return result, written.decode()


def test_a_bind_shows_the_context_and_stays_out_of_the_layer(engine: Engine, context: Path) -> None:
    text = "RUN --mount=type=bind,source=d,target=/in cat /in/file /in/e/deep; stat -c '%u %a' /in/file; echo x > /out"
    result, written = build(engine, context, text)
    assert written == "content\ndeep\n0 644\n"
    assert set(members(engine, result)) == {"out"}
    assert statuses(build(engine, context, text)[0])[1] == "RUN cached"
    (context / "other").write_text("not shown")
    assert statuses(build(engine, context, text)[0])[1] == "RUN cached"
    (context / "d" / "file").write_text("changed\n")
    again, written = build(engine, context, text)
    assert (statuses(again)[1], written.split()[0]) == ("RUN built", "changed")


def test_a_bind_is_read_only_and_what_a_writable_one_takes_is_dropped(engine: Engine, context: Path) -> None:
    with pytest.raises(BuildError):
        build(engine, context, "RUN --mount=target=/in touch /in/new")
    text = "RUN --mount=target=/in,rw echo more >> /in/d/file && cat /in/d/file"
    assert build(engine, context, text)[1] == "content\nmore\n"
    assert (context / "d" / "file").read_text() == "content\n"
    assert build(engine, context, text, no_cache=True)[1] == "content\nmore\n"


def test_a_bind_of_one_file_and_what_is_not_there(engine: Engine, context: Path) -> None:
    assert build(engine, context, "RUN --mount=source=d/file,target=/one cat /one")[1] == "content\n"
    with pytest.raises(NotFound, match="d/fil"):
        build(engine, context, "RUN --mount=source=d/fil,target=/one cat /one")
    (context / ".dockerignore").write_text("d/file\n")
    with pytest.raises(NotFound, match="d/file"):
        build(engine, context, "RUN --mount=source=d/file,target=/one cat /one")
    assert build(engine, context, "RUN --mount=source=d,target=/in ls /in")[1] == "e\n"


def test_binds_of_stages_images_and_named_contexts(engine: Engine, context: Path, tmp_path: Path) -> None:
    text = (
        "RUN mkdir /made && echo stage > /made/s && ln -s made /link\nFROM busybox\n"
        "RUN --mount=from=one,source=/link,target=/in cat /in/s\n"
        "RUN --mount=from=busybox,source=/bin,target=/tools test -e /tools/sh && echo image\n"
        "RUN --mount=from=extra,target=/extra cat /extra/file"
    )
    text = text.replace("RUN mkdir", "RUN mkdir", 1)
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "file").write_text("extra\n")
    (context / "Dockerfile").write_text("")
    (context / "Dockerfile").write_text(f"FROM busybox AS one\n{text}\n")
    written = bytearray()
    engine.build(
        context,
        contexts={"extra": str(extra)},
        subscriber=lambda event: written.extend(event.content) if isinstance(event, StepOutput) else None,
    )
    assert written.decode() == "stage\nimage\nextra\n"
    with pytest.raises(NotFound, match="missing"):
        build(engine, context, "RUN --mount=from=busybox,source=/missing,target=/in true")


def test_a_cache_outlives_builds_and_is_no_part_of_them(engine: Engine, context: Path) -> None:
    text = "RUN --mount=type=cache,target=/cache echo {} >> /cache/log; cat /cache/log; stat -c '%u %g %a' /cache"
    first, written = build(engine, context, text.format("one"))
    assert written == "one\n0 0 755\n"
    assert first.steps[-1].diff_id is None
    assert build(engine, context, text.format("two"))[1] == "one\ntwo\n0 0 755\n"
    assert statuses(build(engine, context, text.format("two"))[0])[1] == "RUN cached"
    other = text.replace("target=", "id=other,uid=7,gid=8,mode=0700,target=")
    assert build(engine, context, other.format("three"))[1] == "three\n7 8 700\n"
    same = text.replace("/cache", "/elsewhere").replace("target=", "id=/cache,target=")
    assert build(engine, context, same.format("four"))[1] == "one\ntwo\nfour\n0 0 755\n"
    assert len(list(walk_caches(engine.root))) == 2
    assert not any(use.in_use for use in walk_caches(engine.root))


def test_a_cache_begins_with_what_it_is_made_from(engine: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM busybox AS one\nRUN mkdir -p /a/b && echo first > /a/b/f\nFROM busybox\n"
        "RUN --mount=type=cache,from=one,source=/a,target=/c cat /c/b/f; echo more >> /c/b/f\n"
        "RUN --mount=type=cache,from=one,source=/a,target=/c cat /c/b/f\n"
        "RUN --mount=type=bind,from=one,source=/a,target=/c cat /c/b/f\n"
    )
    written = bytearray()
    engine.build(
        context, subscriber=lambda event: written.extend(event.content) if isinstance(event, StepOutput) else None
    )
    assert written.decode() == "first\nfirst\nmore\nfirst\n"


def test_prune_takes_caches_that_nobody_uses(engine: Engine, context: Path) -> None:
    build(engine, context, "RUN --mount=type=cache,target=/cache head -c 100000 /dev/zero > /cache/f")
    (use,) = walk_caches(engine.root)
    assert use.size_bytes > 100_000
    cache_row = next(row for row in engine.system.usage() if row.kind == "Build Cache")
    assert cache_row.reclaimable_bytes > 100_000
    assert engine.system.prune().freed_bytes > 100_000
    assert list((engine.root / FOLDER).iterdir()) == []
    assert prune_caches(engine.root) == 0


@pytest.mark.parametrize("sharing", ["locked", "private", "shared"])
def test_two_runs_share_a_cache_as_they_ask(engine: Engine, context: Path, sharing: str) -> None:
    mount = f"--mount=type=cache,id=c,sharing={sharing},target=/c"
    # Only where it is shared does one see the other's beginning; it is waited for long enough there.
    turns = 300 if sharing == "shared" else 5
    seen = "case $(cat /c/log) in *begin*begin*) break;; esac"
    wait = f"i=0; while [ $i -lt {turns} ]; do {seen}; sleep 0.1; i=$((i+1)); done"
    step = f"RUN {mount} echo begin >> /c/log; {wait}; cp /c/log /out; echo end >> /c/log"
    (context / "Dockerfile").write_text(
        f"FROM busybox AS a\n{step}\nFROM busybox AS b\n{step} && true\n"
        "FROM busybox\nCOPY --from=a /out /a\nCOPY --from=b /out /b\n"
    )
    result = engine.build(context)
    both = sorted(content(engine, result, name, layer).decode().split() for name, layer in (("a", -2), ("b", -1)))
    if sharing == "private":
        assert both == [["begin"], ["begin"]]
    elif sharing == "locked":
        assert both == [["begin"], ["begin", "end", "begin"]]
    else:
        assert both[0][:2] == both[1][:2] == ["begin", "begin"]


def test_locked_caches_in_any_order_do_not_block_each_other(engine: Engine, context: Path) -> None:
    one, two = (f"--mount=type=cache,id={name},sharing=locked,target=/{name}" for name in "xy")
    (context / "Dockerfile").write_text(
        f"FROM busybox AS a\nRUN {one} {two} sleep 0.1; touch /a\n"
        f"FROM busybox AS b\nRUN {two} {one} sleep 0.1; touch /b\n"
        "FROM busybox\nCOPY --from=a /a /\nCOPY --from=b /b /\n"
    )
    for _ in range(3):
        engine.build(context, no_cache=True)


def test_memory(engine: Engine, context: Path) -> None:
    text = (
        "RUN --mount=type=tmpfs,target=/t,size=1m stat -f -c %T /t; stat -c %a /t; head -c 2000000 /dev/zero > /t/f "
        "2>/dev/null || echo full; rm /t/f; printf '#!/bin/sh\\necho runs' > /t/s; chmod +x /t/s; /t/s"
    )
    result, written = build(engine, context, text)
    assert written == "tmpfs\n1777\nfull\nruns\n"
    assert result.steps[-1].diff_id is None


def test_secrets(engine: Engine, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("s3cret")
    monkeypatch.setenv("TOKEN", "t0ken")
    given = [f"id=key,src={tmp_path}/key", "id=token,env=TOKEN"]
    text = (
        "RUN --mount=type=secret,id=key --mount=type=secret,id=token,target=/a/b,mode=0444,uid=5 "
        "--mount=type=secret,id=token,env=WORD cat /run/secrets/key /a/b; echo $WORD; "
        "stat -c '%u %a' /run/secrets/key /a/b"
    )
    result, written = build(engine, context, text, secrets=given)
    assert written == "s3crett0kent0ken\n0 400\n5 444\n"
    assert result.steps[-1].diff_id is None
    (tmp_path / "key").write_text("other")
    assert statuses(build(engine, context, text, secrets=given)[0])[1] == "RUN cached"
    found = [path for path in engine.root.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert found == []


def test_secrets_that_are_not_there(engine: Engine, context: Path) -> None:
    text = "RUN --mount=type=secret,id=a --mount=type=secret,id=b,env=B ls /run/secrets 2>/dev/null; echo [$B]"
    assert build(engine, context, text)[1] == "[]\n"
    with pytest.raises(NotFound, match="secret a: not found") as caught:
        build(engine, context, "RUN --mount=type=secret,id=a,required true")
    assert caught.value.span is not None
    with pytest.raises(NotFound, match="nothing-here"):
        build(engine, context, "RUN true", secrets=["id=a,src=/nothing-here"])


def test_an_agent_is_reached_through_a_socket(
    engine: Engine, context: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "agent"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(place))
    server.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connection.sendall(b"answer to " + connection.recv(100))
            connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        text = (
            "RUN --mount=type=ssh,mode=0666,uid=9 stat -c '%u %a %F' $SSH_AUTH_SOCK; echo $SSH_AUTH_SOCK; "
            "command -v nc >/dev/null && { echo ping | nc local:$SSH_AUTH_SOCK 2>/dev/null; } || true"
        )
        result, written = build(engine, context, text, ssh=[f"default={place}"])
        lines = written.splitlines()
        assert lines[:2] == ["9 666 socket", "/run/buildkit/ssh_agent.0"]
        assert result.steps[-1].diff_id is None
        with pytest.raises(NotFound, match="unset ssh forward key other"):
            build(engine, context, "RUN --mount=type=ssh,id=other,required true", ssh=[f"default={place}"])
        assert build(engine, context, "RUN --mount=type=ssh ls $SSH_AUTH_SOCK 2>/dev/null || echo none")[1] == "none\n"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def test_a_forward_passes_both_ways_and_ends(tmp_path: Path) -> None:
    from pylayers.build.run.mount import RunMount
    from pylayers.build.run.secret import Forward

    long_name = tmp_path / ("x" * 120)
    long_name.mkdir()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "up"))
    server.listen()
    forward = Forward(long_name / "down", tmp_path / "up", RunMount(type="ssh"))
    assert (long_name / "down").stat().st_mode & 0o777 == 0o600
    client = socket.socket(socket.AF_UNIX)
    folder = os.open(long_name, os.O_PATH)
    client.connect(f"/proc/self/fd/{folder}/down")
    os.close(folder)
    inner, _ = server.accept()
    client.sendall(b"question" * 10000)
    client.shutdown(socket.SHUT_WR)
    received = bytearray()
    while piece := inner.recv(65536):
        received += piece
    assert received == b"question" * 10000
    inner.sendall(b"answer")
    assert client.recv(100) == b"answer"
    forward.close()
    assert client.recv(100) == b""
    for one in (client, inner, server):
        one.close()


@pytest.mark.skipif(shutil.which("ssh-agent") is None, reason="no ssh-agent here")
def test_key_files_get_an_agent(engine: Engine, context: Path, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    text = "RUN --mount=type=ssh stat -c %F $SSH_AUTH_SOCK"
    assert build(engine, context, text, ssh=[f"default={tmp_path}/key"])[1] == "socket\n"
    (tmp_path / "bad").write_text("no key")
    with pytest.raises(BuildError, match="cannot be added"):
        build(engine, context, text, ssh=[f"default={tmp_path}/bad"], no_cache=True)


def test_targets_and_variables(engine: Engine, context: Path) -> None:
    text = (
        "ARG WHERE=d\nENV NAME=in\nWORKDIR /work\n"
        "RUN --mount=source=$WHERE,target=${NAME} cat /work/in/file; rmdir /work/in 2>/dev/null || echo kept"
    )
    result, written = build(engine, context, text)
    assert written == "content\nkept\n"
    assert result.steps[-1].diff_id is None
    with pytest.raises(InvalidInput, match="unexpected key"):
        build(engine, context, "RUN --mount=type=bind,sorce=d,target=/x true")


def test_scripts(engine: Engine, context: Path) -> None:
    text = (
        "RUN <<EOF\n#!/bin/sh\necho script $0\nEOF\nRUN <<-EOT\n\techo one\n\techo two\nEOT\n"
        "RUN cat <<A <<B\na\nA\nb\nB"
    )
    result, written = build(engine, context, text)
    assert written == "script /dev/pipes/EOF\none\ntwo\nb\n"
    assert all(step.diff_id is None for step in result.steps[1:])
    assert statuses(build(engine, context, text)[0])[1:] == ["RUN cached"] * 3
    assert build(engine, context, text.replace("script", "other"))[1] == "other /dev/pipes/EOF\n"


def test_the_sandbox_has_its_own_names(engine: Engine, context: Path) -> None:
    hosts = "RUN cat /etc/hosts; hostname"
    assert build(engine, context, hosts, add_hosts=["db:10.0.0.7", "me=host-gateway"])[1] == (
        "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        "10.0.0.7\tdb\n127.0.0.1\tme\nbuildkitsandbox\n"
    )
    assert build(engine, context, hosts)[1].endswith("buildkitsandbox\n")
    assert build(engine, context, hosts, arguments={"BUILDKIT_SANDBOX_HOSTNAME": "mine"})[1].endswith("mine\n")


def test_limits_and_networks(engine: Engine, context: Path) -> None:
    text = "RUN ulimit -n; df -k /dev/shm | tail -1 | awk '{print $2}'"
    assert build(engine, context, text, ulimits=["nofile=100:200"], shm_size="1m")[1] == "100\n1024\n"
    assert build(engine, context, text, ulimits=["nofile=101:200"], shm_size="1m")[1] == "101\n1024\n"
    interfaces = "ls /sys/class/net | tr '\\n' ' '"
    assert build(engine, context, f"RUN --network=none {interfaces}")[1].strip() in ("lo", "")
    with pytest.raises(Unsupported, match=r"network[.]host is not allowed"):
        build(engine, context, f"RUN --network=host {interfaces}")
    assert "lo" in build(engine, context, f"RUN --network=host {interfaces}", allow=["network.host"])[1]
    assert "lo" in build(engine, context, f"RUN --network=host true; {interfaces}", network="host")[1]


def test_security(engine: Engine, context: Path) -> None:
    text = "RUN --security=insecure grep CapEff /proc/self/status"
    with pytest.raises(Unsupported, match=r"security[.]insecure is not allowed"):
        build(engine, context, text)
    _, insecure = build(engine, context, text, allow=["security.insecure"])
    _, usual = build(engine, context, "RUN --security=sandbox grep CapEff /proc/self/status")
    assert int(insecure.split()[1], 16) > int(usual.split()[1], 16)


def test_devices(engine: Engine, context: Path) -> None:
    with pytest.raises(Unsupported, match="device is not allowed"):
        build(engine, context, "RUN --device=/dev/full true")
    text = "RUN --device=/dev/full echo x > /dev/full || echo no room"
    assert "no room" in build(engine, context, text, allow=["device"])[1]
    with pytest.raises(Unsupported, match="Container Device Interface"):
        build(engine, context, "RUN --device=vendor.com/class=one,required true", allow=["device"])
    build(engine, context, "RUN --device=vendor.com/class=one true")


def test_proxies_reach_the_command_and_only_declared_ones_its_key(engine: Engine, context: Path) -> None:
    text = "RUN echo [$HTTP_PROXY]"
    assert build(engine, context, text, arguments={"HTTP_PROXY": "http://one"})[1] == "[http://one]\n"
    again, _ = build(engine, context, text, arguments={"HTTP_PROXY": "http://two"})
    assert statuses(again)[1] == "RUN cached"
    declared = f"ARG HTTP_PROXY\n{text}"
    assert build(engine, context, declared, arguments={"HTTP_PROXY": "http://one"})[1] == "[http://one]\n"
    assert build(engine, context, declared, arguments={"HTTP_PROXY": "http://two"})[1] == "[http://two]\n"


def test_a_failing_run_gives_everything_back(engine: Engine, context: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret")
    text = (
        "RUN --mount=target=/in --mount=type=cache,target=/c --mount=type=secret,id=key --mount=type=tmpfs,target=/t "
        "exit 3"
    )
    with pytest.raises(BuildError) as caught:
        build(engine, context, text, secrets=[f"id=key,src={tmp_path}/key"])
    assert caught.value.exit_status == 3
    assert not any(use.in_use for use in walk_caches(engine.root))
    assert [snapshot.name for snapshot in engine.driver().walk() if snapshot.name.startswith("build-")] == []


def test_explanations_name_what_a_mount_showed(engine: Engine, context: Path) -> None:
    text = "RUN --mount=source=d,target=/in true"
    build(engine, context, text)
    (context / "d" / "file").write_text("changed\n")
    from pylayers.build.event import StepExplained

    (context / "Dockerfile").write_text(f"FROM busybox\n{text}\n")
    told: list[StepExplained] = []
    engine.build(
        context, explain=True, subscriber=lambda event: told.append(event) if isinstance(event, StepExplained) else None
    )
    assert len(told) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"secrets": ["src=/x"]}, "missing ID"),
        ({"ssh": ["=x"]}, "id is empty"),
        ({"add_hosts": ["nothing"]}, "add-host"),
        ({"ulimits": ["what=1"]}, "ulimit type"),
        ({"shm_size": "much"}, "size"),
        ({"allow": ["network.hots"]}, "network.host"),
    ],
)
def test_bad_options_are_told_before_anything_runs(
    engine: Engine, context: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(PylayersError, match=message):
        build(engine, context, "RUN true", **options)


def test_a_cache_leads_nowhere_else(engine: Engine, context: Path, tmp_path: Path) -> None:
    """What a command puts into a cache must not lead a later mount to the host's files."""
    outside = tmp_path / "outside"
    outside.mkdir()
    mount = "--mount=type=cache,id=c"
    links = f"ln -s {outside} /c/out && ln -s ../.. /c/up && touch /c/f"
    build(engine, context, f"RUN {mount},target=/c mkdir /c/own && {links}")
    for source in ("out", "missing", "out/x"):
        with pytest.raises(NotFound, match="not found in the cache"):
            build(engine, context, f"RUN {mount},source={source},target=/h touch /h/{source.replace('/', '')}")
    assert build(engine, context, f"RUN {mount},source=up,target=/h ls /h | tr '\\n' ' '")[1] == "f out own up "
    assert build(engine, context, f"RUN {mount},source=own,target=/h touch /h/made; ls /h")[1] == "made\n"
    assert list(outside.iterdir()) == []


def test_names_of_stages_and_what_a_key_leaves_out(engine: Engine, context: Path) -> None:
    (context / "Dockerfile").write_text(
        "FROM busybox AS One\nRUN echo first > /f\nFROM busybox\n"
        "RUN --mount=from=ONE,source=/f,target=/f cat /f\n"
    )
    engine.build(context)
    text = "RUN --mount=type=cache,id={},target=/c true"
    build(engine, context, text.format("a"))
    assert statuses(build(engine, context, text.format("b"))[0])[1] == "RUN cached"
    build(engine, context, "RUN true with hosts", add_hosts=["db:10.0.0.1"])
    assert statuses(build(engine, context, "RUN true with hosts", add_hosts=["db:10.0.0.2"])[0])[1] == "RUN cached"
    build(engine, context, "RUN --security=insecure true", allow=["security.insecure"])
    with pytest.raises(Unsupported, match="not allowed"):
        build(engine, context, "RUN --security=insecure true")


def test_what_the_dockerfile_says_counts(engine: Engine, context: Path) -> None:
    with pytest.raises(BuildError):
        build(engine, context, "RUN --mount=type=tmpfs,target=/t,ro touch /t/x")
    text = "ENV SSH_AUTH_SOCK=/mine\nRUN --mount=type=ssh echo $SSH_AUTH_SOCK"
    assert build(engine, context, text)[1] == "/mine\n"
    text = "ENV HTTP_PROXY=http://mine\nRUN echo $HTTP_PROXY $http_proxy"
    assert build(engine, context, text, arguments={"HTTP_PROXY": "http://one"})[1] == "http://one http://one\n"


def test_a_bind_has_the_times_of_now(engine: Engine, context: Path) -> None:
    text = "RUN --mount=source=d,target=/in stat -c %Y /in/file"
    assert build(engine, context, text)[1] == "1600000000\n"
    os.utime(context / "d" / "file", (1_700_000_000, 1_700_000_000))
    assert statuses(build(engine, context, text)[0])[1] == "RUN cached"
    assert build(engine, context, text, no_cache=True)[1] == "1700000000\n"
    assert build(engine, context, text.replace("stat", "true; stat"))[1] == "1700000000\n"
