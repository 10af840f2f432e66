"""Make the files that a container sees as /etc/resolv.conf, /etc/hosts and /etc/hostname."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pylayers.container.isolation import ContainerMount, Isolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _typeshed import StrPath

LOCAL_HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def write_network_files(
    directory: StrPath, isolation: Isolation, hostname: str, taken: Sequence[str] = (), *, readonly: bool = False
) -> list[ContainerMount]:
    """Write resolv.conf, hosts and hostname into a directory and return the mounts for those whose target isn't taken.

    With the host's network they are copies of the host's own files.
    """
    contents = {
        "resolv.conf": _read_host("/etc/resolv.conf"),
        "hosts": _hosts(isolation, hostname),
        "hostname": f"{hostname}\n",
    }
    mounts = []
    for name, content in contents.items():
        path = f"{directory}/{name}"
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        if f"/etc/{name}" not in taken:
            mounts.append(ContainerMount(type="bind", target=f"/etc/{name}", source=path, readonly=readonly))
    return mounts


def _hosts(isolation: Isolation, hostname: str) -> str:
    if isolation.sandboxed:
        content = f"127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        extra = [entry.partition(":") for entry in isolation.extra_hosts]
        return content + "".join(f"{address}\t{name}\n" for name, _, address in extra)
    content = LOCAL_HOSTS
    if isolation.network == "host":
        content = _read_host("/etc/hosts") or LOCAL_HOSTS
        if not content.endswith("\n"):
            content += "\n"
    extra = [entry.partition(":") for entry in isolation.extra_hosts]
    content += "".join(f"{address}\t{name}\n" for name, _, address in extra)
    known = {name for line in content.splitlines() for name in line.partition("#")[0].split()[1:]}
    if hostname and hostname not in known:
        content += f"127.0.1.1\t{hostname}\n"
    return content


def _read_host(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
