"""What dpkg runs when the package is installed, upgraded, removed and purged.

The program is compiled on the machine, for the Python that it has: the daemon cannot write below /usr, and would
compile everything anew at each start. An upgrade restarts no daemon: QEMU does not outlive a lost one.
"""

from typing import Final

_POSTINST: Final = """\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    systemd-sysusers {package}.conf
    if command -v py3compile >/dev/null; then
        py3compile -p {package} /{library}
    fi
fi
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
"""

_PRERM: Final = """\
#!/bin/sh
set -e
if [ "$1" = remove ] && command -v systemctl >/dev/null; then
    for kind in socket service; do
        systemctl disable "{package}.$kind" "{package}@.$kind" >/dev/null 2>&1 || true
    done
    if [ -d /run/systemd/system ]; then
        systemctl stop '{package}*.socket' '{package}*.service' >/dev/null 2>&1 || true
    fi
fi
if command -v py3clean >/dev/null; then
    py3clean -p {package} /{library}
fi
"""

_POSTRM: Final = """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl --system daemon-reload >/dev/null || true
fi
if [ "$1" = remove ]; then
    rm -rf /run/{package} /run/{package}-*
fi
if [ "$1" = purge ] && getent passwd {package} >/dev/null; then
    userdel {package} || true
fi
"""

_RTUPDATE: Final = """\
#!/bin/sh
set -e
if [ "$1" = rtupdate ]; then
    py3clean -p {package} /{library}
    py3compile -p {package} /{library}
fi
"""


def maintainer_scripts(package: str, library: str) -> dict[str, str]:
    """Return the scripts of ``package``, whose programs are below ``library``, by their names in the archive."""
    scripts = {"postinst": _POSTINST, "prerm": _PRERM, "postrm": _POSTRM}
    return {name: script.format(package=package, library=library) for name, script in scripts.items()}


def runtime_update(package: str, library: str) -> str:
    """Return the script that python3 runs when its version changes (/usr/share/python3/runtime.d)."""
    return _RTUPDATE.format(package=package, library=library)
