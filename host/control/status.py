"""What SIGUSR1 prints of virtual machines: a line about each, for people."""

from collections.abc import Iterator, Mapping

from host.control.vm_facts import VmInfo
from protocol.units import format_size
from protocol.virtio_balloon import PFN_SHIFT


def vm_lines(vms: Mapping[int, VmInfo]) -> Iterator[str]:
    """Yield a line about each of ``vms``, by number."""
    for number, vm in sorted(vms.items()):
        yield f"vm {number} ({vm.name or 'unnamed'}, process {vm.pid}): {'; '.join(_parts(vm))}"


def _parts(vm: VmInfo) -> Iterator[str]:
    yield f"{format_size(vm.guest_bytes)}, {'driver at work' if vm.driver_ready else 'no driver'}, for {vm.age:.0f} s"
    if vm.actual or vm.num_pages:
        actual, target = format_size(vm.actual << PFN_SHIFT), format_size(vm.num_pages << PFN_SHIFT)
        yield f"balloon {actual} of {target}"
    ago = "" if vm.last_report is None else f", the last {vm.last_report:.0f} s ago"
    yield f"{vm.reports} reports of {format_size(vm.reported_bytes)}{ago}, {format_size(vm.discarded_bytes)} discarded"
    if vm.refused:
        yield f"refused {', '.join(f'{reason} {count}' for reason, count in sorted(vm.refused.items()))}"
