"""The command line of QEMU, the first program of its guest, and the version and devices of a QEMU.

The guest has no file system but its initial RAM disk. It listens on its second serial line: one line of shell in, what
that wrote and ``done STATUS`` out; ``ready RELEASE FEATURES`` whenever it has booted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from protocol.units import MIB

DEVICE: Final = "vhost-user-test-device-pci"
OLDEST: Final = (10, 2)
"""The first QEMU with a generic vhost-user device that users can create."""

VIRTIO_ID_BALLOON: Final = 5
QUEUE_SIZE: Final = 128
_QUEUES: Final = 5
_CONFIG_SIZE: Final = 16


class Poison(StrEnum):
    """What the guest's kernel fills free pages with, and thus expects in a page that it has reported."""

    PATTERN = "pattern"
    ZERO = "zero"

    @property
    def kernel_parameter(self) -> str:
        """The kernel parameter for it. With either, the driver negotiates PAGE_POISON."""
        return "page_poison=1" if self is Poison.PATTERN else "init_on_free=1"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePlan:
    """One guest: ``memory`` in bytes; ``directory`` is for the sockets and the console's log.

    With ``poison`` its kernel fills what it frees, without it leaves it as it is.
    """

    qemu: Path
    accelerator: str
    memory: int
    packed: bool
    kernel: Path
    initrd: Path
    socket_path: Path
    directory: Path
    poison: Poison | None = None

    @property
    def console(self) -> Path:
        """The log of the kernel's messages."""
        return self.directory / "console.log"

    @property
    def agent(self) -> Path:
        """The socket of the guest's second serial line."""
        return self.directory / "agent"

    @property
    def control(self) -> Path:
        """The daemon's control socket."""
        return self.directory / "control"

    @property
    def monitor(self) -> Path:
        """The socket of QEMU's own monitor (QMP)."""
        return self.directory / "monitor"


def command_line(plan: MachinePlan) -> list[str]:
    """Return the words that start QEMU. The guest's memory is shared, without which no vhost-user device works."""
    size = f"{plan.memory // MIB}M"
    device = f"{DEVICE},chardev=balloon,virtio-id={VIRTIO_ID_BALLOON},num_vqs={_QUEUES},vq_size={QUEUE_SIZE}"
    device += f",config_size={_CONFIG_SIZE},packed={'on' if plan.packed else 'off'}"
    kernel = ["console=ttyS0", "panic=-1"] + ([] if plan.poison is None else [plan.poison.kernel_parameter])
    return [
        str(plan.qemu),
        *("-nodefaults", "-no-user-config", "-display", "none", "-accel", plan.accelerator, "-m", size),
        *("-object", f"memory-backend-memfd,id=mem,size={size},share=on", "-machine", "memory-backend=mem"),
        *("-chardev", f"socket,id=balloon,path={plan.socket_path}", "-device", device),
        *("-serial", f"file:{plan.console}"),
        *("-chardev", f"socket,id=agent,path={plan.agent},server=on,wait=off", "-serial", "chardev:agent"),
        *("-qmp", f"unix:{plan.monitor},server=on,wait=off"),
        *("-kernel", str(plan.kernel), "-initrd", str(plan.initrd)),
        *("-append", " ".join(kernel)),
    ]


def parse_version(text: str) -> tuple[int, int] | None:
    """Return major and minor number from the output of ``--version``, or ``None`` if it is not QEMU's."""
    match = re.search(r"QEMU emulator version ([0-9]+)\.([0-9]+)", text)
    return (int(match[1]), int(match[2])) if match else None


def unsuitable(version: str, devices: str) -> str | None:
    """Return why a QEMU cannot attach to the daemon, one line, or ``None`` if it can.

    Args:
        version: what ``--version`` prints.
        devices: what ``-device help`` prints.
    """
    numbers = parse_version(version)
    wanted = f"QEMU {OLDEST[0]}.{OLDEST[1]} or newer with the device {DEVICE} is needed"
    if numbers is None:
        return f"not a QEMU: {wanted}"
    if numbers < OLDEST:
        return f"QEMU {numbers[0]}.{numbers[1]} is too old: {wanted}"
    if f'name "{DEVICE}"' not in devices:
        return f"this QEMU {numbers[0]}.{numbers[1]} was built without that device: {wanted}"
    return None


# Process 1 of the guest. The answer is collected first; the kernel's messages go to another serial line.
_INIT = r"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs -o size=95% none /tmp
for module in @MODULES@; do insmod "/modules/$module.ko"; done
stty -F /dev/ttyS1 raw -echo
exec 5<>/dev/ttyS1
features=none
for device in /sys/bus/virtio/drivers/virtio_balloon/virtio*; do
    [ ! -e "$device" ] || features=$(cat "$device/features")
done
echo "ready $(uname -r) $features" >&5
while read -r line <&5; do
    eval "$line" >/answer 2>&1 </dev/null
    status=$?
    cat /answer >&5
    echo "done $status" >&5
done
reboot -f
"""


def init_script(modules: Sequence[str]) -> str:
    """Return the guest's first program, which inserts ``modules`` in this order."""
    return _INIT.replace("@MODULES@", " ".join(modules))
