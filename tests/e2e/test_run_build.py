"""RUN for real: layers, early cut-off, failure without leftovers, and what docker's rule would have done."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from pylayers.build.event import StepStatus
from pylayers.engine import Engine
from pylayers.engine.container import ContainerOptions
from pylayers.errors import BuildError
from pylayers.store.mountpoint import mount_points_below
from tests.e2e.build_case import open_with_busybox

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("runc") is None, reason="needs root and runc"),
]
CACHED, BUILT = StepStatus.CACHED, StepStatus.BUILT


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_with_busybox(tmp_path / "root", tmp_path)


def build(engine: Engine, context: Path, text: str, **options: str) -> list[StepStatus]:
    context.mkdir(exist_ok=True)
    (context / "file").write_text("content")
    (context / "Dockerfile").write_text(text)
    return [step.status for step in engine.build(context, **options).steps]  # type: ignore[arg-type]


def test_two_dockerfiles_share_their_first_steps(engine: Engine, tmp_path: Path) -> None:
    first = "FROM busybox\nRUN echo one > /one\nCOPY file /a/\n"
    assert build(engine, tmp_path / "c", first) == [CACHED, BUILT, BUILT]
    assert build(engine, tmp_path / "c", first.replace("/a/", "/b/")) == [CACHED, CACHED, BUILT]
    assert build(engine, tmp_path / "c", first) == [CACHED, CACHED, CACHED]


def test_equal_trees_share_later_steps_and_chains_do_not(engine: Engine, tmp_path: Path) -> None:
    one = "FROM busybox\nRUN echo same > /x\nRUN cat /x > /y\n"
    other = "FROM busybox\nRUN printf 'same\\n' > /x\nRUN cat /x > /y\n"
    assert build(engine, tmp_path / "c", one) == [CACHED, BUILT, BUILT]
    assert build(engine, tmp_path / "c", other) == [CACHED, BUILT, CACHED]
    assert build(engine, tmp_path / "c", one, cache_key="chain") == [CACHED, BUILT, BUILT]
    third = "FROM busybox\nRUN echo 'same' > /x\nRUN cat /x > /y\n"
    time.sleep(1.1)  # within one second the layer would be the same to the byte, and so its chain
    assert build(engine, tmp_path / "c", third, cache_key="chain")[2] is BUILT


def test_a_failing_run_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    build(engine, tmp_path / "c", "FROM busybox\n")
    layers = list(engine.store.layers.walk())
    snapshots = [found.name for found in engine.driver().walk()]
    with pytest.raises(BuildError) as caught:
        build(engine, tmp_path / "c", "FROM busybox\nRUN echo words; touch /made; exit 7\n")
    assert caught.value.exit_status == 7
    assert caught.value.log_tail == ("words",)
    assert caught.value.span is not None
    assert caught.value.span.line == 2
    assert list(engine.store.layers.walk()) == layers
    left = {found.name for found in engine.driver().walk()} - set(snapshots)
    assert not [name for name in left if not name.startswith("sha256:")]
    assert not mount_points_below(engine.root)


def test_a_run_that_changes_nothing_makes_no_layer(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "Dockerfile").write_text("FROM busybox\nRUN true\n")
    result = engine.build(tmp_path / "c")
    assert result.steps[-1].diff_id is None
    assert len(result.diff_ids) == 1


def test_independent_stages_and_their_failure(engine: Engine, tmp_path: Path) -> None:
    text = "FROM busybox AS a\nRUN sleep 30\nFROM busybox AS b\nRUN exit 3\n"
    text += "FROM scratch\nCOPY --from=a / /\nCOPY --from=b / /\n"
    with pytest.raises(BuildError) as caught:  # long before stage a would have ended
        build(engine, tmp_path / "c", text)
    assert caught.value.exit_status == 3
    assert not mount_points_below(engine.root)


def test_a_running_container_shows_only_its_own_changes(engine: Engine) -> None:
    container, _ = engine.containers.run(
        "busybox", ["sh", "-c", "echo x > /mine; sleep 60"], ContainerOptions(name="own"), detach=True
    )
    try:
        while not any(change.path == b"mine" for change in engine.containers.diff("own")):
            pass
        assert [(change.kind, change.path) for change in engine.containers.diff("own")] == [("A", b"mine")]
    finally:
        engine.containers.remove(container.id, force=True)


def test_prune_empties_the_root(engine: Engine, tmp_path: Path) -> None:
    build(engine, tmp_path / "c", "FROM busybox\nRUN echo one > /one\n", references=["app"])  # type: ignore[arg-type]
    engine.images.remove(["app"])
    engine.images.remove(["busybox"])
    engine.system.prune(everything=True)
    assert list(engine.store.layers.walk()) == []
    assert list(engine.driver().walk()) == []
