# Sourced by the commands in this directory: makes a Python environment of the project's own, once, and reuses it.
#
# Needs no root and no package manager. After `prepare_environment LOCK...` the variable $python is an interpreter that
# has everything in those lock files and finds the packages of this checkout, from any working directory.

checkout=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '%s: %s\n' "$0" "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# Runs a command that prints nothing. On a terminal, a dot each second shows that it goes on.
patiently() {
    local dots status=0
    if [[ ! -t 2 ]]; then
        "$@"
        return
    fi
    (while sleep 1; do printf . >&2; done) &
    dots=$!
    "$@" || status=$?
    kill "$dots" 2>/dev/null || true
    wait "$dots" 2>/dev/null || true
    printf '\r' >&2
    return "$status"
}

# Prints the first interpreter that is new enough. Does not return without one.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.{16..11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed and not on PATH (tried ${PYTHON:+$PYTHON, }python3, python3.11 and newer;" \
        "set PYTHON=/path/to/python3 to choose one)"
}

# Prints the directory that holds the environment and the tools' caches.
environment_directory() {
    if [[ -w $checkout ]]; then
        printf '%s\n' "$checkout"
        return
    fi
    # A read-only checkout: each gets a directory of its own, so that two versions do not fight over one environment.
    local cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/vhost-user-balloon
    cache=$cache/$(printf '%s' "$checkout" | sha256sum | cut -c1-16)
    mkdir -p -- "$cache" || fail "the checkout is read-only and $cache cannot be created: set XDG_CACHE_HOME"
    printf '%s\n' "$cache"
}

# Prints a wheel of pip itself, for a Python whose ensurepip was split off (Debian and Ubuntu without python3-venv).
# The package that carries it is downloaded and unpacked below $1, which takes no root.
find_pip_wheel() {
    local directory=$1 wheel state apt
    for wheel in /usr/share/python-wheels/pip-*.whl; do
        [[ -r $wheel ]] && printf '%s\n' "$wheel" && return
    done
    command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
        fail "this Python has neither ensurepip nor a way to fetch pip: install your system's python3-venv package"
    say "fetching pip as a Debian package (this Python has no ensurepip)"
    state=$directory/apt
    mkdir -p -- "$state"/{lists/partial,archives/partial}
    (
        cd -- "$state"
        apt-get -qq download python3-pip-whl >/dev/null 2>&1 && exit
        # No package lists on this system, or stale ones: fetch them into a state directory of our own. The sandbox
        # user of apt could not write there, hence the last option.
        apt=(apt-get -qq -o "Dir::State::lists=$state/lists" -o "Dir::Cache=$state" -o Debug::NoLocking=1
            -o "Dir::Cache::archives=$state/archives" -o "APT::Sandbox::User=$(id -un)")
        "${apt[@]}" update >&2 && "${apt[@]}" download python3-pip-whl >&2
    ) || fail "cannot fetch the package python3-pip-whl: install python3-venv, or look at the lines above"
    dpkg -x "$state"/python3-pip-whl_*.deb "$state/root" || fail "cannot unpack python3-pip-whl"
    for wheel in "$state/root/usr/share/python-wheels/"pip-*.whl; do
        [[ -r $wheel ]] && printf '%s\n' "$wheel" && return
    done
    fail "python3-pip-whl does not contain pip: install python3-venv"
}

# Creates the virtual environment $2 with the interpreter $1, pip included.
create_environment() {
    local base=$1 environment=$2 scratch wheel
    say "creating a Python environment in $environment"
    if "$base" -c 'import ensurepip; ensurepip.version()' 2>/dev/null; then
        patiently "$base" -m venv --clear "$environment" || fail "cannot create $environment"
        return
    fi
    "$base" -m venv --clear --without-pip "$environment" || fail "cannot create $environment"
    scratch=$(mktemp -d)
    # A subshell with a trap: the downloads go away however this ends.
    (
        trap 'rm -rf -- "$scratch"' EXIT
        wheel=$(find_pip_wheel "$scratch") || exit
        patiently "$environment/bin/python" "$wheel/pip" install --quiet --no-index "$wheel" >&2
    ) || fail "cannot install pip into $environment"
}

# Installs each lock file given whose digest is not the one installed last.
install_locks() {
    local environment=$1 lock stamp digest
    shift
    for lock in "$@"; do
        stamp=$environment/installed-${lock//\//-}.sha256
        digest=$(sha256sum <"$checkout/$lock")
        [[ -r $stamp && $(<"$stamp") == "$digest" ]] && continue
        say "installing $lock"
        "$environment/bin/python" -m pip --disable-pip-version-check install --no-input --require-hashes \
            --requirement "$checkout/$lock" >&2 ||
            fail "cannot install $lock: the lines above say why"
        # Written last and in one step: an interrupted installation is done again.
        printf '%s\n' "$digest" >"$stamp.new" && mv -- "$stamp.new" "$stamp"
    done
}

# prepare_environment LOCK...: sets and exports what the rest of a command needs; quick when nothing changed.
prepare_environment() {
    local directory environment base lock_fd
    [[ $(uname -s) == Linux ]] || fail "Linux is needed: the device works on memfd, eventfd and fallocate"
    directory=$(environment_directory)
    environment=$directory/.venv
    # Ctrl-C ends the set-up without a message about what it interrupted. The programs to come have handlers of their own.
    trap 'exit 130' INT
    # Two commands started at once share one environment: the second waits here until the first has made it.
    exec {lock_fd}<"$directory"
    flock "$lock_fd"
    if ! "$environment/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        base=$(find_python)
        create_environment "$base" "$environment"
    fi
    install_locks "$environment" "$@"
    exec {lock_fd}<&-
    trap - INT

    python=$environment/bin/python
    # The checkout itself is not installed but put on the path, for child processes too. Safe path keeps a directory
    # called `host` where the user happens to stand from being imported instead.
    export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1
    if [[ $directory != "$checkout" ]]; then
        export PYTHONPYCACHEPREFIX=$directory/pycache MYPY_CACHE_DIR=$directory/mypy RUFF_CACHE_DIR=$directory/ruff
        export HYPOTHESIS_STORAGE_DIRECTORY=$directory/hypothesis
        export PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} -o cache_dir=$directory/pytest"
    fi
}

# prepare_optional LOCK: adds a convenience, after prepare_environment. Without network there is plain output all the
# same, so a failure is told and no more. It would end the command but for the subshell.
prepare_optional() {
    (
        exec {lock_fd}<"$(environment_directory)"
        flock "$lock_fd"
        install_locks "${python%/bin/python}" "$1"
    ) || true
}

# What draws pictures, and what draws the live view.
prepare_pictures() { prepare_optional scripts/laboratory/requirements.lock; }
prepare_view() { prepare_optional scripts/scenario/view/requirements.lock; }

# help_at_once MODULE ARGUMENT...: becomes the program if it is only asked about itself, which needs no environment.
help_at_once() {
    local module=$1 argument base
    shift
    for argument in "$@"; do
        case $argument in
        --) return ;;
        -h | --help | --version)
            base=$(find_python) || exit
            export PYTHONPATH=$checkout${PYTHONPATH:+:$PYTHONPATH} PYTHONSAFEPATH=1 PYTHONDONTWRITEBYTECODE=1
            become "$base" "$module" "$@"
            ;;
        esac
    done
}

# run_module LOCK MODULE ARGUMENT...: prepares the environment and becomes the program.
run_module() {
    local lock=$1 module=$2
    shift 2
    help_at_once "$module" "$@"
    prepare_environment "$lock"
    become "$python" "$module" "$@"
}

# become INTERPRETER MODULE ARGUMENT...: the program names itself as it was typed.
become() {
    local interpreter=$1
    shift
    VHOST_USER_BALLOON_TYPED=$0 exec "$interpreter" -m "$@"
}
