"""The free lists of a zone: doubly linked, like ``struct list_head`` (Linux ``include/linux/list.h``).

Entries are page frame numbers: the first pages of free blocks. The caller guarantees that they are. All lists of a zone
share two dictionaries, ``next`` and ``prev``, which hold the blocks on the lists and the list heads. A head is a
negative key in the same two dictionaries, so every insertion and removal, at both ends and in the middle, is the same
few assignments without a special case. "Toward the tail" is ``next``, "toward the head" is ``prev``.

``page_alloc`` repeats these few lines in its hot paths, where a call costs as much as the work.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from guest.mm.pageblock import MIGRATE_TYPES, NR_PAGE_ORDERS


def list_head(order: int, migratetype: int) -> int:
    """Return the key of the head of the list for ``order`` and ``migratetype``; always negative, no page has it."""
    return -1 - (order * MIGRATE_TYPES + int(migratetype))


LIST_HEADS: Final = tuple(tuple(list_head(order, mt) for order in range(NR_PAGE_ORDERS)) for mt in range(MIGRATE_TYPES))
"""``LIST_HEADS[migratetype][order]`` is ``list_head(order, migratetype)`` without a call."""


class FreeList:
    """``free_area[order].free_list[migratetype]`` for all orders and migratetypes of one zone."""

    __slots__ = ("next", "prev")

    def __init__(self) -> None:
        heads = [head for of_type in LIST_HEADS for head in of_type]
        self.next: dict[int, int] = dict(zip(heads, heads, strict=True))
        self.prev: dict[int, int] = dict(self.next)

    def __len__(self) -> int:
        """Return the number of blocks on all lists together."""
        return len(self.next) - len(LIST_HEADS) * NR_PAGE_ORDERS

    def add(self, pfn: int, head: int) -> None:
        """Put ``pfn`` at the head of a list (``list_add``)."""
        self.add_before(pfn, self.next[head])

    def add_before(self, pfn: int, entry: int) -> None:
        """Put ``pfn`` on the head's side of ``entry``; at the tail when ``entry`` is a head (``list_add_tail``)."""
        before = self.prev[entry]
        self.next[before] = pfn
        self.prev[pfn] = before
        self.next[pfn] = entry
        self.prev[entry] = pfn

    def extend(self, pfns: Sequence[int], head: int) -> None:
        """Put many entries at the tail of a list, in their order. The cost per entry is that of two dict insertions."""
        if not pfns:
            return
        last = self.prev[head]
        following = pfns[1:]
        self.next.update(zip(pfns, following, strict=False))
        self.prev.update(zip(following, pfns, strict=False))
        self.next[last] = pfns[0]
        self.prev[pfns[0]] = last
        self.next[pfns[-1]] = head
        self.prev[head] = pfns[-1]

    def reorder(self, pfns: Sequence[int], head: int) -> None:
        """Give a list another order. ``pfns`` are exactly its entries, from the new head to the new tail."""
        self.next[head] = self.prev[head] = head
        self.extend(pfns, head)

    def remove(self, pfn: int) -> None:
        """Take ``pfn`` off the list that it is on (``list_del``)."""
        after = self.next.pop(pfn)
        before = self.prev.pop(pfn)
        self.next[before] = after
        self.prev[after] = before

    def rotate_to_front(self, pfn: int, head: int) -> None:
        """Make ``pfn`` the first entry; the entries before it follow the old tail (``list_rotate_to_front``).

        Only the head moves, so the cost does not depend on the length.
        """
        self.remove(head)
        self.add_before(head, pfn)

    def entries(self, order: int, migratetype: int) -> Iterator[int]:
        """Yield the blocks of one list from head to tail. The list must not change meanwhile."""
        head = list_head(order, migratetype)
        entry = self.next[head]
        while entry != head:
            yield entry
            entry = self.next[entry]

    def first(self, order: int, migratetype: int) -> int | None:
        """Return the first block of a list, None when it is empty."""
        entry = self.next[list_head(order, migratetype)]
        return None if entry < 0 else entry
