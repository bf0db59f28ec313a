"""Mutated headers, pointers and lengths through the C++ functions, built with AddressSanitizer and UBSan.

python tests/data/fuzz.py --count 1000000 --seed 0

Builds the extension into a temporary folder and starts itself again under the sanitizers. Ends with 0 and a line of
counts; a crash, or anything else than an error or the right data, ends it otherwise and names the mutation's seed.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++17", "-O1", "-g", "-fno-omit-frame-pointer"]
FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
_BLOCK = 1000  # mutations of one generator, so that a failure can be found again


def build(folder: Path) -> Path:
    """The extension under the sanitizers."""
    import pybind11

    target = folder / "_native.so"
    includes = [f"-I{path}" for path in (pybind11.get_include(), __import__("sysconfig").get_paths()["include"])]
    sources = sorted(str(path) for path in (ROOT / "megaswitch/data/csrc").glob("*.cpp"))
    subprocess.run(["g++", *FLAGS, "-shared", "-fPIC", *includes, *sources, "-o", str(target)], check=True)
    return target


def start_again(arguments: list[str]) -> int:
    """This program under the sanitizers' run time."""
    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder))
        found = [
            subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
            for name in ("libasan.so", "libstdc++.so")
        ]
        settings = {
            "LD_PRELOAD": " ".join(path.strip() for path in found),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:handle_sigbus=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        }
        command = [sys.executable, __file__, "--library", str(library), *arguments]
        return subprocess.run(command, env=os.environ | settings, check=False).returncode


def use(library: str) -> object:
    """Puts the given extension in the place of the installed one."""
    spec = importlib.util.spec_from_file_location("megaswitch.data._native", library)
    module = importlib.util.module_from_spec(spec)
    sys.modules["megaswitch.data._native"] = module
    spec.loader.exec_module(module)
    return module


def fuzz(native: object, count: int, seed: int) -> Counter:
    """Runs `count` mutations, two of three on arrays and the third on files; returns how often each answer came."""
    import logging

    import numpy as np
    from data.mutations import try_arrays, try_corpus, try_files, write_base

    logging.disable(logging.WARNING)
    answers: Counter = Counter()
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=shared) as name:
        folder = Path(name)
        base = write_base(folder)
        assert try_corpus(str(folder / "base"), True) == try_corpus(str(folder / "base"), False) == ""
        for block in range(-(-count // _BLOCK)):
            rng = np.random.default_rng([seed, block])
            for number in range(min(_BLOCK, count - block * _BLOCK)):
                try:
                    said = try_files(folder, base, rng) if number % 3 == 0 else try_arrays(native, rng)
                except BaseException:
                    print(f"seed {seed}, block {block}, mutation {number}", file=sys.stderr)
                    raise
                kind = "files" if number % 3 == 0 else "arrays"
                answers[f"{kind} {'refused' if said else 'read'}"] += 1
            if sys.stderr.isatty():
                print(f"\r{(block + 1) * _BLOCK}", end="", file=sys.stderr)
    return answers


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library is None:
        return start_again(sys.argv[1:])
    native, started = use(options.library), time.perf_counter()
    answers = fuzz(native, options.count, options.seed)
    print(f"{options.count} mutations in {time.perf_counter() - started:.0f} s: {dict(sorted(answers.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
