"""What the suites of other implementations try: those of whole virtual machines, and those of one device's source."""

from typing import Final

from scripts.check.edges.edge import Peer, peers

_MONITOR: Final = "It tries the commands of a virtual machine's monitor, which a device reached by a socket has not."
_GUEST: Final = "It looks at figures inside a guest, of which its device sees nothing."
_STATE: Final = "It saves, restores or migrates a whole virtual machine, which takes its monitor."
_WINDOWS: Final = "It needs Windows as a guest."
_INSIDE: Final = "It looks at a function or a counter inside the implementation."
_SPEED: Final = "It measures, and has no limit that can be failed."

VIRTUAL_MACHINES: Final[tuple[Peer, ...]] = (
    *peers(
        "tp-qemu/",
        ("balloon_check", "A target below and above the present size is reached exactly."),
        ("balloon_check.free", "Memory that a program has used and freed in the guest comes back to the host."),
        ("balloon_illegal", "A target above the guest's memory is never shown to the driver."),
        ("balloon_minimum", "The smallest target, and many small steps, end neither device nor driver."),
        ("balloon_stress", "Many targets one after another are each reached."),
        ("balloon_hotplug", "A device is taken away and comes back many times."),
        ("balloon_memhp", "Memory is plugged while a balloon is in use."),
        ("balloon_stop_continue", "Rings are stopped and go on, again and again."),
        ("driver_load, driver_load_stress", "A driver leaves its device and takes it again."),
    ),
    *peers(
        "tp-qemu/",
        ("balloon_check.oom", "The guest's total memory stays the same with DEFLATE_ON_OOM."),
        ("balloon_service", "The guest's statistics agree with its own figures."),
        ("balloon_thp", "A fragmented guest has fewer large free blocks after inflating."),
        not_applicable=_GUEST,
    ),
    *peers("tp-qemu/", ("iommu_enabled", "A target is reached with an IOMMU."), not_applicable=_WINDOWS),
    *peers(
        "tp-qemu/",
        ("balloon_in_use", "A virtual machine is stopped, reset or migrated while its balloon moves."),
        ("balloon_boot_in_pause", "A target that is set before the first start is reached after it."),
        ("balloon_uniqueness", "A second balloon is refused."),
        ("balloon_service.errors", "Wrong polling intervals are refused with a clear text."),
        not_applicable=_MONITOR,
    ),
    *peers(
        "tp-libvirt/",
        ("freepagereporting", "Memory comes back with reporting on, and stays without it."),
    ),
    *peers(
        "tp-libvirt/",
        ("period", "Polling of statistics is switched on and off."),
        ("autodeflate", "The autodeflate attribute arrives in the monitor's command line."),
        ("setmem", "More than the maximum is refused, and a machine without a balloon says so."),
        not_applicable=_MONITOR,
    ),
    *peers(
        "qemu/",
        (
            "statistics_life",
            "Statistics are unknown before a driver and after a reset, then as many as the driver has.",
        ),
        not_applicable=_MONITOR,
    ),
    *peers("qemu/", ("fuzz_71649", "Rings with any content do not end the device.")),
    *peers(
        "qemu-device-init/",
        ("inflate", "An inflated page is told as initialised in the bitmap, and reads as zeros."),
        ("inflate_four", "Four inflated pages have a bit each."),
        ("inflate_baseline", "Without the bit the used length of an inflate is 0."),
        ("report", "The used length of a report is what was zeroed, and it reads as zeros."),
        ("report_baseline", "Without the bit the used length of a report is 0."),
        ("negotiation", "The draft's bits are offered only when asked for."),
    ),
    *peers(
        "cloud-hypervisor/",
        ("free_page_reporting", "Memory of a program that has ended comes back to the host."),
        ("fuzz", "Rings and memory with any content do not end the device."),
    ),
    *peers(
        "cloud-hypervisor/",
        ("deflate_on_oom", "The balloon shrinks when the guest runs out of memory."),
        not_applicable=_GUEST,
    ),
    *peers(
        "cloud-hypervisor/",
        ("live_migration_balloon", "A virtual machine with a balloon is migrated."),
        not_applicable=_STATE,
    ),
)

SOURCES: Final[tuple[Peer, ...]] = (
    *peers(
        "firecracker/",
        ("process_reporting", "Reports of one page and of three are discarded; one off by a byte is not."),
        ("inflate", "Pages whose numbers are sent are discarded."),
        ("deflate", "Numbers on the deflate queue are taken."),
        ("stats", "Statistics of a buffer are taken."),
        ("stats_oversized", "A statistics buffer that is far too large is bounded."),
        ("num_pages", "The size that is wanted is shown in the configuration space."),
        ("virtio_features", "Each combination of features is offered as it was asked for."),
        ("hinting_normal_path", "Hints under the current command id are discarded."),
        ("hinting_no_cmd_set", "Hints without a command id are ignored."),
        ("hinting_invalid_cmd", "A command id that is not the device's is ignored."),
        ("hinting_stale_inflight_requests", "Hints that are left over from an earlier round are ignored."),
        ("hinting_stale_post_stop", "Hints after the driver's STOP are ignored."),
        ("hinting_misaligned_value", "A command of another length than 4 bytes is ignored."),
        ("rss_memory_lower", "Inflating takes memory from the guest and gives it to the host."),
        ("reinflate_balloon", "A balloon grows again after it was deflated."),
        ("device_reset", "A driver that leaves and comes back finds the target that was set."),
        ("memory_scrub", "What was given back reads as zeros."),
    ),
    *peers(
        "firecracker/",
        ("hinting_no_ack_on_stop", "A host's stop that awaits no acknowledgement ends a round."),
        ("hinting_reporting_snapshot, balloon_snapshot", "A snapshot is smaller after pages were given back."),
        not_applicable=_STATE,
    ),
    *peers(
        "firecracker/",
        ("deflate_on_oom", "The balloon shrinks, or stays, when the guest runs out of memory."),
        ("inflate_reduces_free", "Free memory in the guest falls by what was inflated."),
        ("stats_update", "The statistics change with the guest's load and with the polling interval."),
        not_applicable=_GUEST,
    ),
    *peers(
        "firecracker/",
        ("hinting_reporting_cpu", "The time that giving back takes."),
        ("hinting_fault_latency", "The time until a page that was given back can be used again."),
        not_applicable=_SPEED,
    ),
    *peers("firecracker/", ("size_reduction", "Resident memory falls by 10 MB at least, by each of three ways.")),
    *peers(
        "firecracker/",
        ("compact_page_frame_numbers", "Sorting numbers into ranges loses none."),
        not_applicable=_INSIDE,
    ),
    *peers("crosvm/", ("desc_parsing_inflate", "The numbers of an inflate are read as addresses.")),
    *peers(
        "crosvm/",
        ("suspendable", "State that was put to sleep, saved and restored is the same."),
        not_applicable=_STATE,
    ),
    *peers(
        "crosvm/",
        ("balloon_tube", "Commands of the control channel are answered in their order."),
        not_applicable=_INSIDE,
    ),
    *peers(
        "stratovirt/",
        ("inflate_001, inflate_002", "Inflated pages leave the host's memory, in small and huge pages."),
        ("fun_001, fun_002", "The size follows the target."),
        ("feature_001, feature_002", "Features are offered as asked for."),
        ("fpr_001, fpr_002", "Ranges of four bytes on the reporting queue come back."),
        ("config_001, config_002", "The configuration space can be read and written in its bounds."),
    ),
    *peers(
        "stratovirt/",
        ("huge_fun_001", "The size follows the target with huge pages as memory."),
        not_applicable="Huge pages have to be reserved by the administrator, and a check needs no privilege.",
    ),
    *peers(
        "stratovirt/",
        ("query", "The monitor tells the size."),
        ("deactive_001", "The monitor refuses a target while no driver is there."),
        ("auto_balloon_test_001", "The private message queue of this implementation."),
        ("numa1", "A balloon in a machine of two nodes."),
        not_applicable=_MONITOR,
    ),
)
