"""Image configs: OCI's, with docker's extensions."""

from __future__ import annotations

from collections.abc import Mapping

from pylayers.oci.digest import check_digest, digest_of
from pylayers.oci.document import Fields, decode, drop_empty, encode
from pylayers.record import field, record


@record
class Healthcheck:
    """Tell how docker asks whether a container is well; zero means the engine's default."""

    test: tuple[str, ...] = ()
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0

    @classmethod
    def from_fields(cls, fields: Fields) -> Healthcheck:
        """Read the object."""
        return cls(
            test=fields.texts("Test") or (),
            interval_ns=fields.integer("Interval"),
            timeout_ns=fields.integer("Timeout"),
            start_period_ns=fields.integer("StartPeriod"),
            start_interval_ns=fields.integer("StartInterval"),
            retries=fields.integer("Retries"),
        )

    def to_document(self) -> dict[str, object]:
        """Return the JSON object."""
        return drop_empty(
            {
                "Test": list(self.test),
                "Interval": self.interval_ns,
                "Timeout": self.timeout_ns,
                "StartPeriod": self.start_period_ns,
                "StartInterval": self.start_interval_ns,
                "Retries": self.retries,
            }
        )


@record
class RunConfig:
    """Tell how a container of the image runs. For entrypoint, cmd and shell None is unset and () is empty."""

    user: str = ""
    exposed_ports: tuple[str, ...] = ()  # sorted; "80/tcp"
    env: tuple[str, ...] = ()  # "NAME=value"
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: tuple[str, ...] = ()  # sorted
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    stop_timeout_s: int | None = None
    healthcheck: Healthcheck | None = None
    on_build: tuple[str, ...] = ()
    shell: tuple[str, ...] | None = None
    args_escaped: bool = False

    @classmethod
    def from_fields(cls, fields: Fields) -> RunConfig:
        """Read the object."""
        healthcheck = fields.inner("Healthcheck")
        return cls(
            user=fields.text("User"),
            exposed_ports=fields.key_set("ExposedPorts"),
            env=fields.texts("Env") or (),
            entrypoint=fields.texts("Entrypoint"),
            cmd=fields.texts("Cmd"),
            volumes=fields.key_set("Volumes"),
            working_dir=fields.text("WorkingDir"),
            labels=fields.text_map("Labels"),
            stop_signal=fields.text("StopSignal"),
            stop_timeout_s=fields.integer("StopTimeout") if fields.has("StopTimeout") else None,
            healthcheck=None if healthcheck is None else Healthcheck.from_fields(healthcheck),
            on_build=fields.texts("OnBuild") or (),
            shell=fields.texts("Shell"),
            args_escaped=fields.boolean("ArgsEscaped"),
        )

    def environment(self) -> dict[str, str]:
        """Return env as a mapping, in order; a later NAME wins, an entry without '=' is left out."""
        return dict(entry.split("=", 1) for entry in self.env if "=" in entry)

    def to_document(self) -> dict[str, object]:
        """Return the JSON object; what is unset is left out."""
        found = drop_empty(
            {
                "User": self.user,
                "ExposedPorts": {port: {} for port in self.exposed_ports},
                "Env": list(self.env),
                "Volumes": {volume: {} for volume in self.volumes},
                "WorkingDir": self.working_dir,
                "Labels": dict(self.labels),
                "StopSignal": self.stop_signal,
                "Healthcheck": None if self.healthcheck is None else self.healthcheck.to_document(),
                "OnBuild": list(self.on_build),
                "ArgsEscaped": self.args_escaped,
            }
        )
        for name, words in (("Entrypoint", self.entrypoint), ("Cmd", self.cmd), ("Shell", self.shell)):
            if words is not None:
                found[name] = list(words)
        if self.stop_timeout_s is not None:
            found["StopTimeout"] = self.stop_timeout_s
        return found

    def to_json(self) -> bytes:
        """Return canonical bytes."""
        return encode(self.to_document())

    @classmethod
    def from_json(cls, content: bytes) -> RunConfig:
        """Parse the object alone."""
        return cls.from_fields(Fields(decode(content, "config"), "config"))


@record
class History:
    """Tell how one step came about; `empty_layer` steps made no layer. `created` is RFC 3339, kept verbatim."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    @classmethod
    def from_fields(cls, fields: Fields) -> History:
        """Read the object."""
        return cls(
            created=fields.text("created"),
            created_by=fields.text("created_by"),
            author=fields.text("author"),
            comment=fields.text("comment"),
            empty_layer=fields.boolean("empty_layer"),
        )

    def to_document(self) -> dict[str, object]:
        """Return the JSON object."""
        return drop_empty(
            {
                "created": self.created,
                "created_by": self.created_by,
                "author": self.author,
                "comment": self.comment,
                "empty_layer": self.empty_layer,
            }
        )


@record
class ImageConfig:
    """Hold a whole image config. Its digest is docker's image id.

    Other tools write histories that do not fit their layers; they are taken as they are.
    """

    architecture: str
    os: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()
    author: str = ""
    created: str = ""  # RFC 3339, kept verbatim
    config: RunConfig = field(default_factory=RunConfig)
    diff_ids: tuple[str, ...] = ()  # rootfs, lowest layer first
    history: tuple[History, ...] = ()

    @classmethod
    def from_json(cls, content: bytes) -> ImageConfig:
        """Parse a config. Raises InvalidInput naming the field; fields that are not ours are not kept."""
        fields = Fields(decode(content, "config"), "config")
        rootfs = fields.inner("rootfs")
        diff_ids: tuple[str, ...] = ()
        if rootfs is not None:
            if rootfs.text("type", "layers") != "layers":
                rootfs.fail("type", f"expected 'layers', found {rootfs.text('type')!r}")
            diff_ids = rootfs.texts("diff_ids") or ()
            for index, diff_id in enumerate(diff_ids):
                check_digest(diff_id, rootfs.locate(f"diff_ids[{index}]"))
        run = fields.inner("config")
        history = tuple(History.from_fields(step) for step in fields.inners("history") or ())
        return cls(
            architecture=fields.required_text("architecture"),
            os=fields.required_text("os"),
            variant=fields.text("variant"),
            os_version=fields.text("os.version"),
            os_features=fields.texts("os.features") or (),
            author=fields.text("author"),
            created=fields.text("created"),
            config=RunConfig() if run is None else RunConfig.from_fields(run),
            diff_ids=diff_ids,
            history=history,
        )

    def to_document(self) -> dict[str, object]:
        """Return the JSON object."""
        optional = {
            "variant": self.variant,
            "os.version": self.os_version,
            "os.features": list(self.os_features),
            "author": self.author,
            "created": self.created,
            "history": [step.to_document() for step in self.history],
        }
        return {
            "architecture": self.architecture,
            "os": self.os,
            "config": self.config.to_document(),
            "rootfs": {"type": "layers", "diff_ids": list(self.diff_ids)},
            **drop_empty(optional),
        }

    def to_json(self) -> bytes:
        """Return canonical bytes."""
        return encode(self.to_document())

    @property
    def digest(self) -> str:
        """Return the digest of the canonical bytes."""
        return digest_of(self.to_json())
