#!/usr/bin/env bash
# Makes .venv, installs megaswitch with its test tools from launch/constraints.txt and builds the C++ extension.
# Does nothing when all of that is done already. Safe to interrupt: the stamp that says "done" is written last.
#
#   PYTHON=python3.12              the interpreter to make .venv with (default: the first of python3, python3.11 ... 3.14
#                                  that is new enough)
#   MEGASWITCH_KERNELS=0           leave out the C++ kernels (torch does their work, slower); MEGASWITCH_MARCH names
#                                  another processor than this one for them
#   MEGASWITCH_TORCH_INDEX=URL     a package index for torch alone, for instance the one that holds its CPU builds
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
venv="$root/.venv"
stamp="$venv/megaswitch-installed"
python="$venv/bin/python"
constraints="launch/constraints.txt"

say() { echo "install: $*"; }
fail() { echo "install: error: $*" >&2; exit 69; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidates="${PYTHON:-python3 python3.11 python3.12 python3.13 python3.14}" candidate
    for candidate in $candidates; do
        if command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed, and none of these is one: $candidates. Install it, or name it: PYTHON=/path/to/python bash launch/install.sh"
}

# What the finished work depends on; a change of any of it means that the work is to be done again.
fingerprint() {
    "$python" - "$root" "${MEGASWITCH_TORCH_INDEX:-}" "${MEGASWITCH_KERNELS:-}" "${MEGASWITCH_MARCH:-}" <<'PYTHON'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
names = ["launch/constraints.txt", "pyproject.toml", "setup.py"]
sources = [*(root / "megaswitch/data/csrc").glob("*"), *(root / "megaswitch/ops/cpp").glob("*.[ch]*")]
names += sorted(str(p.relative_to(root)) for p in sources)
digest = hashlib.sha256("\0".join([sys.version, *sys.argv[1:], *names]).encode())
for name in names:
    digest.update((root / name).read_bytes() if (root / name).is_file() else b"")
print(digest.hexdigest())
PYTHON
}

is_done() {
    [[ -f "$stamp" ]] && "$python" -c '' 2>/dev/null && [[ "$(cat "$stamp")" == "$(fingerprint)" ]] &&
        compgen -G "megaswitch/data/_native*.so" >/dev/null &&
        { [[ "${MEGASWITCH_KERNELS:-}" == 0 ]] || compgen -G "megaswitch/ops/cpp/_kernels*.so" >/dev/null; }
}

check_tools() {
    "$1" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$1 has no venv module. On Debian or Ubuntu: apt install python3-venv"
    "$1" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        fail "the headers of $1 are missing. On Debian or Ubuntu: apt install python3-dev"
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
        fail "a C++17 compiler is needed. On Debian or Ubuntu: apt install g++ (or name one: CXX=clang++)"
}

make_venv() {
    if "$python" -m pip --version >/dev/null 2>&1; then
        is_new_enough "$python" || fail ".venv holds a Python older than 3.11: remove .venv and start again"
        check_tools "$python"
        return
    fi
    local base
    base="$(find_python)"
    check_tools "$base"
    say "making .venv with $base ($("$base" --version))"
    "$base" -m venv --clear "$venv"  # what an interrupted start left is not worth keeping
}

# ninja, which lies beside python, builds on all cores.
pip_install() { PATH="$venv/bin:$PATH" "$python" -m pip install --quiet --disable-pip-version-check -c "$constraints" "$@"; }

install_all() {
    say "installing the build tools"
    pip_install setuptools wheel pybind11 ninja
    say "installing torch and the other libraries (the first time this takes a few minutes)"
    if [[ -n "${MEGASWITCH_TORCH_INDEX:-}" ]]; then
        pip_install --no-deps --index-url "$MEGASWITCH_TORCH_INDEX" torch
    fi
    pip_install torch
    say "building the C++ extension and installing megaswitch with its test tools"
    pip_install --no-build-isolation -e '.[test]'
}

main() {
    if command -v flock >/dev/null; then
        exec 9<"$root"
        flock 9  # two installations at once would write into the same folder
    fi
    if is_done; then
        say "up to date"
        return
    fi
    make_venv
    rm -f "$stamp"
    install_all
    fingerprint >"$stamp.new"
    mv "$stamp.new" "$stamp"
    say "done: .venv/bin/megaswitch --help"
}

main
