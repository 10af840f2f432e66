"""Compile the kernels: every pyx/NAME.pyx becomes pylayers._native.NAME.

PYLAYERS_SANITIZE=address builds them under ASan and UBSan, =thread under TSan; PYLAYERS_KERNELS=walk,tarscan builds
only those.
"""

from __future__ import annotations

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

COMPILE = ["-O3", "-std=gnu11", "-fno-strict-aliasing", "-Wno-unused-function", "-D_GNU_SOURCE"]
LINK: list[str] = ["-pthread"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
sanitizer = os.environ.get("PYLAYERS_SANITIZE")
if sanitizer:
    flags = SANITIZERS[sanitizer]
    COMPILE = ["-O1", "-g", "-std=gnu11", "-fno-strict-aliasing", "-D_GNU_SOURCE", "-fno-omit-frame-pointer", *flags]
    LINK += flags[:1]

chosen = [name for name in os.environ.get("PYLAYERS_KERNELS", "").split(",") if name]
sources = sorted(Path("pyx").glob("*.pyx"))
extensions = [
    Extension(f"pylayers._native.{source.stem}", [str(source)], extra_compile_args=COMPILE, extra_link_args=LINK)
    for source in sources
    if not chosen or source.stem in chosen
]

setup(
    options={"build_ext": {"parallel": os.cpu_count() or 1}},
    ext_modules=cythonize(
        extensions,
        include_path=["pyx"],
        build_dir="build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "initializedcheck": False,
            "cdivision": True,
            "embedsignature": False,
            "autotestdict": False,  # else every kernel has a public __test__ that its stub would have to name
            "auto_pickle": False,  # and every cdef class two methods that nobody calls
            "binding": True,
        },
    ),
)
