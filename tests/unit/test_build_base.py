"""What FROM begins with: images of the store by name and id, scratch, stages, and what is said of those missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pylayers.build.base import DEFAULT_PATH, enter_image, find_image, load_fitting
from pylayers.build.event import BuildWarning
from pylayers.engine import Engine
from pylayers.errors import InvalidInput, NotFound, SourceSpan, Unsupported
from pylayers.oci.config import RunConfig
from pylayers.oci.platform import Platform

SPAN = SourceSpan("Dockerfile", 7)
HERE = Platform("linux", "amd64")
BASE = """FROM scratch
ENV A=1
LABEL made=base
USER 5:6
WORKDIR /work
ENTRYPOINT ["e"]
CMD ["c"]
ONBUILD LABEL trigger=$A
"""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with Engine.open(tmp_path / "root") as opened:
        build(opened, tmp_path, BASE, "base")
        yield opened


def build(engine: Engine, directory: Path, text: str, name: str, **given: object) -> None:
    context = directory / f"context-{name}"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(text)
    engine.build(context, references=(name,), **given)  # type: ignore[arg-type]


def configured(engine: Engine, name: str) -> RunConfig:
    return engine.images.get(name).config.config


def test_an_image_s_configuration_is_inherited_and_its_triggers_run(engine: Engine, tmp_path: Path) -> None:
    build(engine, tmp_path, "FROM base\nENV A=2", "child")
    config, base = configured(engine, "child"), configured(engine, "base")
    assert config.env == (DEFAULT_PATH, "A=2")
    assert config.labels == {"made": "base", "trigger": "1"}
    assert (config.user, config.working_dir, config.cmd) == (base.user, base.working_dir, base.cmd)
    assert base.on_build == ("LABEL trigger=$A",)
    assert config.on_build == ()
    assert engine.images.get("child").config.diff_ids == engine.images.get("base").config.diff_ids


def test_scratch_has_a_path_and_nothing_else(engine: Engine, tmp_path: Path) -> None:
    build(engine, tmp_path, "FROM scratch\nLABEL a=b", "empty")
    assert configured(engine, "empty") == RunConfig(env=(DEFAULT_PATH,), working_dir="/", labels={"a": "b"})
    assert engine.images.get("empty").config.diff_ids == ()


def test_a_stage_is_taken_before_an_image_of_its_name(engine: Engine, tmp_path: Path) -> None:
    build(engine, tmp_path, "FROM scratch AS base\nLABEL made=stage\nFROM base", "child")
    assert configured(engine, "child").labels == {"made": "stage"}
    build(engine, tmp_path, "FROM base AS base\nFROM base", "child")
    assert configured(engine, "child").labels == {"made": "base", "trigger": "1"}


def test_a_later_stage_is_no_base(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="later"):
        build(engine, tmp_path, "FROM later\nFROM scratch AS later\nFROM scratch\nCOPY --from=0 / /", "child")


@pytest.mark.parametrize("name", ["base", "base:latest", "docker.io/library/base", "Base"])
def test_an_image_is_found_by_its_names(engine: Engine, name: str) -> None:
    told: list[BuildWarning] = []
    digest = find_image(engine.store, name, SPAN, (), told.append)
    assert digest == engine.images.get("base").digest
    assert [one.line for one in told] == ([7] if name == "Base" else [])


def test_an_image_is_found_by_its_id(engine: Engine) -> None:
    image = engine.images.get("base")
    config_digest = str(engine.store.metadata.images.get(image.digest).config_digest).partition(":")[2]  # type: ignore[union-attr]
    for name in (image.digest, config_digest[:12]):
        assert find_image(engine.store, name, SPAN, (), lambda _: None) == image.digest
    with pytest.raises(NotFound):  # rather a name than so short an id
        find_image(engine.store, config_digest[:6], SPAN, (), lambda _: None)


def test_a_missing_image_names_the_stage_that_was_meant(engine: Engine) -> None:
    with pytest.raises(NotFound) as caught:
        find_image(engine.store, "biuld", SPAN, ("build", None, "test"), lambda _: None)
    assert caught.value.message == "Dockerfile:7: base image 'biuld' is not in the store (did you mean build?)"
    assert caught.value.hint is not None
    with pytest.raises(InvalidInput) as refused:
        find_image(engine.store, "not@valid", SPAN, (), lambda _: None)
    assert refused.value.span == SPAN


def test_an_image_of_another_platform_is_refused(engine: Engine) -> None:
    digest = engine.images.get("base").digest
    own = engine.images.get("base").config
    other = "arm64" if own.architecture != "arm64" else "amd64"
    with pytest.raises(InvalidInput, match=f"base is for linux/{own.architecture}, and linux/{other} is wanted"):
        load_fitting(engine.store, digest, "base", Platform("linux", other), SPAN)
    state = enter_image(load_fitting(engine.store, digest, "base", Platform("linux", own.architecture), SPAN))
    assert (state.base_count, state.author, state.shell) == (len(own.diff_ids), "", ("/bin/sh", "-c"))


def test_the_shell_of_an_image_counts(engine: Engine, tmp_path: Path) -> None:
    build(engine, tmp_path, 'FROM base\nSHELL ["/bin/x", "-y"]', "shell")
    build(engine, tmp_path, "FROM shell\nCMD z", "child")
    assert configured(engine, "child").cmd == ("/bin/x", "-y", "z")


def test_pull_is_refused_as_long_as_no_registry_can_be_asked(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="--pull"):
        build(engine, tmp_path, "FROM base", "child", pull=True)
