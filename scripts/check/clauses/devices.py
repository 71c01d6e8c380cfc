"""What binds every device and driver: virtio 1.2, 2.1 to 2.6, 3.1 and 6; suspending is of virtio 1.4."""

from typing import Final

from scripts.check.clauses.clause import BOTH, DEVICE, DRIVER, Clause, Level, section

_M, _S = Level.MUST, Level.SHOULD

DEVICES: Final[tuple[Clause, ...]] = (
    *section(
        "virtio 1.2, 2.1 (device status)",
        ("G-1", DEVICE, _M, "The device takes no buffer and sends no notification before DRIVER_OK."),
        ("G-2", DEVICE, _S, "The device sets DEVICE_NEEDS_RESET when it cannot go on without a reset."),
        (
            "G-3",
            DEVICE,
            _M,
            "The device tells of a change of its configuration or of DEVICE_NEEDS_RESET by a notification.",
        ),
        ("G-4", DRIVER, _M, "The driver clears no status bit, and resets the device after it has set FAILED."),
    ),
    *section(
        "virtio 1.2, 2.2 (feature bits)",
        ("G-5", DRIVER, _M, "The driver accepts no bit that was not offered or lacks the bit that it depends on."),
        ("G-6", DRIVER, _M, "The driver does not fail only because a bit is offered that it does not know."),
        (
            "G-7",
            DEVICE,
            _M,
            "The device offers no bit without those that it depends on, and none that it does not support.",
        ),
        ("G-8", DEVICE, _S, "The device accepts every valid subset of its features, or leaves FEATURES_OK unset."),
        ("G-9", DEVICE, _S, "The device does not refuse a set of features later that it accepted once."),
    ),
    *section(
        "virtio 1.2, 2.4 (device reset)",
        ("G-10", DEVICE, _M, "After a reset the device status is 0, and the device begins anew."),
        (
            "G-11",
            DEVICE,
            _M,
            "After a reset the device touches no queue and sends no notification until it is set up again.",
        ),
    ),
    *section(
        "virtio 1.2, 2.5 (configuration space)",
        ("G-12", DEVICE, _M, "The configuration space can be read before FEATURES_OK, and by parts."),
        ("G-13", DRIVER, _M, "The driver looks at optional fields only where their feature is offered."),
    ),
    *section(
        "virtio 1.2, 2.6.1 (virtqueue reset)",
        ("G-14", DEVICE, _M, "With RING_RESET the device runs nothing of a queue that was reset."),
        ("G-15", DEVICE, _M, "With RING_RESET the device resets all state of the queue."),
        ("G-16", DEVICE, _M, "With RING_RESET the device honours new parameters of the queue."),
        ("G-17", DRIVER, _M, "With RING_RESET the driver verifies that the reset took place."),
    ),
    *section(
        "virtio 1.2, 3.1.1 (device initialisation)",
        ("G-18", DRIVER, _M, "The driver keeps the order of initialisation and notifies no queue before DRIVER_OK."),
        ("G-19", DRIVER, _M, "The driver does not change buffers that a live queue exposes."),
    ),
    *section(
        "virtio 1.4, 3.4 (suspending)",
        (
            "G-20",
            DEVICE,
            _M,
            "A suspended device sends no notification, touches no queue, and changes no configuration.",
        ),
        (
            "G-21",
            DRIVER,
            _M,
            "After SUSPEND the driver adds no buffer, notifies no queue, and writes no configuration.",
        ),
    ),
    *section(
        "virtio 1.2, 6 (reserved feature bits)",
        ("G-22", BOTH, _M, "The device offers VERSION_1, and the driver accepts it."),
        ("G-23", DEVICE, _M, "With IN_ORDER buffers are used in the order in which they became available."),
    ),
)
