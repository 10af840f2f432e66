"""Build once by a call and print its seconds: `python bench/once.py ROOT CONTEXT DOCKERFILE REFERENCE`.

What a build imports is imported, and the store opened, by a build of one small file before.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pylayers.engine import Engine


def main() -> int:
    """Build."""
    root, context, dockerfile, reference = sys.argv[1:]
    with Engine.open(Path(root)) as engine:
        with tempfile.TemporaryDirectory() as name:
            small = Path(name)
            (small / "Dockerfile").write_text("FROM scratch\nCOPY . /small\n")
            engine.build(small, references=("once-before:1",), no_cache=True)
        started = time.perf_counter()
        engine.build(Path(context), dockerfile=dockerfile, references=(reference,), no_cache=True)
        print(time.perf_counter() - started)
    return 0


if __name__ == "__main__":
    sys.exit(main())
