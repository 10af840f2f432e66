"""--secret, --ssh, --add-host, --ulimit, --shm-size and --allow as text."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pylayers.build.request import BuildOptions
from pylayers.build.run.option import (
    SECRET_LIMIT_BYTES,
    Agent,
    Secret,
    check_options,
    demand,
    describe_options,
    read_agents,
    read_host,
    read_secrets,
)
from pylayers.errors import InvalidInput, NotFound, PylayersError, Unsupported


def test_where_a_secret_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIVEN", "from the environment")
    (tmp_path / "file").write_bytes(b"from a file")
    found = read_secrets(("id=a,src=file", "id=b,env=GIVEN", "id=GIVEN", "id=file", "type=env,id=c,src=GIVEN"))
    assert found["a"] == Secret("a", tmp_path / "file")
    assert found["file"].read() == b"from a file"
    assert {found[name].read() for name in ("b", "c", "GIVEN")} == {b"from the environment"}
    assert read_secrets(("id=x,env=NOT_SET",))["x"].read() == b""  # as docker


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo=1", "unexpected key 'foo' in 'foo=1'"),
        ("id", "invalid field 'id' must be a key=value pair"),
        ("src=file", "secret missing ID"),
        ("type=foo,id=a", 'unsupported secret type "foo"'),
        ("id=a,src=missing", "secret a: missing: no such file or directory"),
        ("id=a,src=large", "secret a is too big: at most 500KB are allowed"),
    ],
)
def test_secrets_that_are_refused(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large").write_bytes(bytes(SECRET_LIMIT_BYTES + 1))
    with pytest.raises(PylayersError) as caught:
        read_secrets((text,))
    assert caught.value.message == message


def test_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / "key").touch()
    (tmp_path / "other").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("sock")
        assert read_agents(("a=sock", "b=key,other")) == {
            "a": Agent("a", socket=tmp_path / "sock"),
            "b": Agent("b", keys=(tmp_path / "key", tmp_path / "other")),
        }
        with pytest.raises(InvalidInput, match="make sure SSH_AUTH_SOCK is set"):
            read_agents(("default",))
        with pytest.raises(InvalidInput, match="a socket cannot be combined"):
            read_agents(("a=sock,key",))
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "sock"))
        assert read_agents(("default",))["default"].socket == tmp_path / "sock"
    with pytest.raises(InvalidInput, match='duplicate agent ID "a"'):
        read_agents(("a=key", "a=key"))
    with pytest.raises(NotFound, match="no such file"):
        read_agents(("a=missing",))


def test_hosts_limits_and_sizes_are_described_for_the_key() -> None:
    assert read_host("h:host-gateway") == "h:127.0.0.1"
    assert read_host("c=::1") == "c:::1"
    with pytest.raises(InvalidInput):
        read_host("a.b")
    options = BuildOptions(Path(), add_hosts=("a=1.2.3.4",), shm_size="12m", ulimits=("nofile=1:2", "core=0"))
    assert describe_options(options) == ("host=a", "ulimit=core=0:0", "ulimit=nofile=1:2", "shm=12582912")
    assert describe_options(BuildOptions(Path())) == ()


def test_entitlements() -> None:
    with pytest.raises(InvalidInput, match="unknown entitlement foo"):
        check_options(BuildOptions(Path(), allow=("foo",)))
    options = BuildOptions(Path(), allow=("network.host", "device=/dev/fuse"))
    check_options(options)
    demand(options, "network.host", "RUN --network=host")
    demand(options, "device", "RUN --device", "/dev/fuse")
    with pytest.raises(Unsupported, match="device is not allowed"):
        demand(options, "device", "RUN --device", "/dev/kvm")
    with pytest.raises(Unsupported, match=r"security\.insecure is not allowed"):
        demand(options, "security.insecure", "RUN --security=insecure")
