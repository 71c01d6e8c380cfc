"""Reads the memory views of a real kernel back into what our own writers take, so that both can be compared."""

import re

from guest.mm.mmzone import Watermarks
from guest.mm.views.vmstat import PageTypes
from guest.mm.views.vmstat_zoneinfo import LINUX_6_1, Pageset, ZoneInfo, ZoneinfoForm


def parse_buddyinfo(text: str) -> list[tuple[int, str, list[int]]]:
    """Return (node, zone, free blocks of each order) of every line."""
    found = []
    for line in text.splitlines():
        words = line.replace(",", "").split()
        found.append((int(words[1]), words[3], [int(word) for word in words[4:]]))
    return found


def parse_pagetypeinfo(text: str) -> tuple[int, list[str], list[PageTypes]]:
    """Return the pageblock order, the names of the migratetypes and the zones."""
    lines = text.splitlines()
    order = int(lines[0].split()[-1])
    table = lines.index("", 3)
    names = lines[table + 1].removeprefix("Number of blocks type").split()
    rows: dict[tuple[int, str], list[list[int]]] = {}
    for line in lines[4:table]:
        words = line.replace(",", "").replace(">", "").split()
        rows.setdefault((int(words[1]), words[3]), []).append([int(word) for word in words[6:]])
    zones = []
    for line in lines[table + 2 :]:
        words = line.replace(",", "").split()
        key = int(words[1]), words[3]
        blocks = [int(word) for word in words[4:]]
        zones.append(PageTypes(node=key[0], name=key[1], free_counts=rows[key], blocks=blocks))
    return order, names, zones


def parse_zoneinfo(text: str, form: ZoneinfoForm = LINUX_6_1) -> list[ZoneInfo]:
    """Return every zone's entry."""
    return [_parse_zone(entry, form) for entry in re.split(r"^(?=Node)", text, flags=re.MULTILINE) if entry]


def _parse_zone(entry: str, form: ZoneinfoForm) -> ZoneInfo:
    values: dict[str, int] = {}
    numbers = re.compile(r"^ *(?:pages )?([a-z_]+):? +(\d+)$", re.MULTILINE)
    for match in numbers.finditer(entry):
        values.setdefault(match[1], int(match[2]))
    protection = re.search(r"protection: \((.*)\)", entry)
    assert protection is not None
    bounds = r" +high_min: +(\d+)\n +high_max: +(\d+)\n" if form.is_extended else "()()"
    pagesets = re.findall(rf"count: +(\d+)\n +high: +(\d+)\n +batch: +(\d+)\n{bounds}", entry)
    return ZoneInfo(
        node=int(entry.split()[1].rstrip(",")),
        name=entry.splitlines()[0].split()[-1],
        free_pages=values["free"],
        boost=values["boost"],
        watermarks=Watermarks(min=values["min"], low=values["low"], high=values["high"]),
        spanned_pages=values["spanned"],
        present_pages=values["present"],
        managed_pages=values["managed"],
        cma_pages=values["cma"],
        protection=[int(pages) for pages in protection[1].split(",")],
        start_pfn=values.get("start_pfn", 0),
        node_statistics={item: values[item] for item in form.node_items} if "per-node stats" in entry else None,
        zone_statistics={item: values[item] for item in form.zone_items if item in values},
        pagesets=[
            Pageset(count=int(count), high=int(high), batch=int(batch), high_min=int(low or 0), high_max=int(most or 0))
            for count, high, batch, low, most in pagesets
        ],
        reserved_highatomic=values.get("reserved_highatomic", 0),
        free_highatomic=values.get("free_highatomic", 0),
    )
