"""What `inspect` shows: docker's shapes, filled with what is true here."""

from __future__ import annotations

from typing import Any

from pylayers.container.record import LOG, RUNNING, ContainerSpec, State
from pylayers.image.view import Image


def describe_container(spec: ContainerSpec, state: State, directory: str) -> dict[str, Any]:
    """Return a container in docker's shape."""
    process, isolation = spec.process, spec.isolation
    return {
        "Id": spec.id,
        "Created": spec.created,
        "Name": f"/{spec.name}",
        "Path": process.arguments[0] if process.arguments else "",
        "Args": list(process.arguments[1:]),
        "State": {
            "Status": state.status,
            "Running": state.status == RUNNING,
            "Pid": state.pid if state.status == RUNNING else 0,
            "ExitCode": state.exit_code,
            "Error": state.error,
            "StartedAt": state.started,
            "FinishedAt": state.finished,
        },
        "Image": spec.image_digest,
        "LogPath": f"{directory}/{LOG}",
        "Driver": spec.driver,
        "HostConfig": {
            "NetworkMode": isolation.network,
            "Privileged": isolation.privileged,
            "ReadonlyRootfs": isolation.readonly,
            "AutoRemove": spec.remove_on_exit,
            "Runtime": spec.runtime_name,
            "CapAdd": list(isolation.capabilities_added),
            "CapDrop": list(isolation.capabilities_dropped),
            "StorageOpt": dict(spec.storage_options) or None,
        },
        "Mounts": [
            {
                "Type": mount.type,
                "Source": mount.source,
                "Destination": mount.target,
                "RW": not mount.readonly,
                "Propagation": mount.propagation,
            }
            for mount in spec.mounts
        ],
        "Config": {
            "Hostname": isolation.hostname or spec.id[:12],
            "User": process.user,
            "Tty": process.terminal,
            "OpenStdin": spec.interactive,
            "Env": list(process.environment),
            "Cmd": list(process.arguments),
            "Image": spec.image,
            "WorkingDir": process.working_directory,
            "Labels": dict(spec.labels),
            "StopSignal": spec.stop_signal,
        },
        "GraphDriver": {"Name": spec.driver, "Data": describe_rootfs(spec)},
    }


def describe_rootfs(spec: ContainerSpec) -> dict[str, str]:
    """Return where the root file system's directories lie."""
    for mount in spec.rootfs:
        if mount.type == "overlay":
            return {"LowerDir": ":".join(mount.lowers), "UpperDir": mount.upper, "WorkDir": mount.work}
        return {"Dir": mount.source}
    return {}


def describe_image(image: Image) -> dict[str, Any]:
    """Return an image in docker's shape."""
    config = image.config
    return {
        "Id": image.id,
        "RepoTags": list(image.references),
        "RepoDigests": [],
        "Digest": image.digest,
        "Created": config.created,
        "Author": config.author,
        "Config": config.config.to_document(),
        "Architecture": config.architecture,
        "Os": config.os,
        "Variant": config.variant,
        "Size": image.size_bytes,
        "RootFS": {"Type": "layers", "Layers": list(config.diff_ids)},
    }
