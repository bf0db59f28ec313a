"""Builds the C++ data extension; everything else about the package stands in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "megaswitch.data._native",
            sorted(glob("megaswitch/data/csrc/*.cpp")),
            depends=sorted(glob("megaswitch/data/csrc/*.h")),
            cxx_std=17,
            extra_compile_args=["-O3", "-fvisibility=hidden"],
        )
    ],
    cmdclass={"build_ext": build_ext},
)
