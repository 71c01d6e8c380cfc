"""guest/mm/free_list.py against a plain Python list."""

from hypothesis import given
from hypothesis import strategies as st

from guest.mm.free_list import LIST_HEADS, FreeList, list_head

HEAD = list_head(0, 1)


def filled(*pfns: int) -> FreeList:
    lists = FreeList()
    lists.extend(pfns, HEAD)
    return lists


def test_heads_are_negative_and_all_different() -> None:
    heads = [head for of_type in LIST_HEADS for head in of_type]
    assert max(heads) < 0
    assert len(set(heads)) == 11 * 6
    assert all(LIST_HEADS[mt][order] == list_head(order, mt) for mt in range(6) for order in range(11))


def test_new_lists_are_empty() -> None:
    lists = FreeList()
    assert len(lists) == 0
    assert lists.first(10, 5) is None
    assert list(lists.entries(10, 5)) == []


def test_entry_added_goes_to_the_head_and_before_the_head_to_the_tail() -> None:
    lists = filled(1, 2)
    lists.add(0, HEAD)
    lists.add_before(3, HEAD)
    assert list(lists.entries(0, 1)) == [0, 1, 2, 3]
    assert lists.first(0, 1) == 0


def test_entry_added_before_another_goes_to_its_head_side() -> None:
    lists = filled(1, 2, 3)
    lists.add_before(9, 3)
    assert list(lists.entries(0, 1)) == [1, 2, 9, 3]


def test_extend_appends_to_what_is_there() -> None:
    lists = filled(1)
    lists.extend([], HEAD)
    lists.extend([5], HEAD)
    lists.extend([6, 7], HEAD)
    assert list(lists.entries(0, 1)) == [1, 5, 6, 7]


def test_rotation_puts_the_skipped_entries_after_the_old_tail() -> None:
    lists = filled(1, 2, 3, 4)
    lists.rotate_to_front(3, HEAD)
    assert list(lists.entries(0, 1)) == [3, 4, 1, 2]
    lists.rotate_to_front(3, HEAD)
    assert list(lists.entries(0, 1)) == [3, 4, 1, 2]


def test_lists_do_not_disturb_each_other() -> None:
    lists = filled(1, 2)
    lists.add(7, list_head(0, 2))
    lists.add(8, list_head(1, 1))
    lists.remove(1)
    assert [list(lists.entries(0, 1)), list(lists.entries(0, 2)), list(lists.entries(1, 1))] == [[2], [7], [8]]


@given(st.lists(st.tuples(st.sampled_from(["head", "tail", "before", "remove", "rotate"]), st.integers(0, 15))))
def test_free_list_behaves_as_a_list_in_any_sequence(steps: list[tuple[str, int]]) -> None:
    lists = FreeList()
    model: list[int] = []
    for serial, (step, choice) in enumerate(steps):
        at = choice % len(model) if model else 0
        match step:
            case "head":
                lists.add(serial, HEAD)
                model.insert(0, serial)
            case "tail":
                lists.add_before(serial, HEAD)
                model.append(serial)
            case "before" if model:
                lists.add_before(serial, model[at])
                model.insert(at, serial)
            case "remove" if model:
                lists.remove(model.pop(at))
            case "rotate" if model:
                lists.rotate_to_front(model[at], HEAD)
                model = model[at:] + model[:at]
            case _:
                pass
        assert list(lists.entries(0, 1)) == model
        assert len(lists) == len(model)
        assert lists.next.keys() == lists.prev.keys()
