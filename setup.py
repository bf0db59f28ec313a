"""Builds the C++ extensions, data indexing and CPU kernels; everything else about the package stands in pyproject.toml.

The kernels need torch while they are built (`--no-build-isolation`, as `launch/install.sh` does); without it, or with
MEGASWITCH_KERNELS=0, they are left out and torch does their work. MEGASWITCH_MARCH names another processor than
this one.
"""

import logging
import os
from glob import glob

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup

DATA = Pybind11Extension(
    "megaswitch.data._native",
    sorted(glob("megaswitch/data/csrc/*.cpp")),
    depends=sorted(glob("megaswitch/data/csrc/*.h")),
    cxx_std=17,
    extra_compile_args=["-O3", "-fvisibility=hidden"],
)


def kernels():
    """The kernels' library and what builds it; nothing where there is no torch."""
    if os.environ.get("MEGASWITCH_KERNELS") == "0":
        return [], build_ext
    try:
        import torch
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        logging.warning("torch is not installed here: the C++ kernels are left out")
        return [], build_ext
    capability = torch.backends.cpu.get_cpu_capability()
    march = os.environ.get("MEGASWITCH_MARCH", "native" if capability in ("AVX2", "AVX512") else "")
    flags = ["-O3", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math"]
    flags += ["-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]  # of torch's headers and the compiler's own
    flags += [f"-march={march}"] * bool(march)
    flags += [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
    library = CppExtension(
        "megaswitch.ops.cpp._kernels",
        sorted(glob("megaswitch/ops/cpp/*.cpp")),
        depends=sorted(glob("megaswitch/ops/cpp/*.h")),
        extra_compile_args=[*flags, f'-DMEGASWITCH_CAPABILITY="{capability}"'],
        extra_link_args=["-fopenmp"],
    )
    return [library], BuildExtension


extensions, command = kernels()
setup(ext_modules=[DATA, *extensions], cmdclass={"build_ext": command})
