"""Which moments lie between opening and rename, and which are chosen."""

from collections import Counter

import pytest

from tests.kill.harness import Case
from tests.kill.moments import Event, Moment, choose, lives, tagged


def test_a_file_is_open_until_its_last_rename_by_itself_or_with_its_folder():
    events = [Event(3, "mkdir", "set.partial"), Event(5, "open", "set.partial/pixels"),
              Event(7, "open", "set.partial/.manifest.1"),
              Event(9, "rename", "set.partial/.manifest.1", "set.partial/manifest"),
              Event(12, "rename", "set", "set.old"), Event(14, "rename", "set.partial", "set"),
              Event(16, "remove", "set.old/pixels")]
    assert lives(events) == [(5, 14, "set/pixels"), (7, 14, "set/manifest")]


def test_a_folder_is_not_taken_for_another_that_begins_with_its_name():
    assert lives([Event(1, "open", "train.old/a"), Event(2, "rename", "train", "there")]) == []


def test_what_is_removed_or_never_renamed_or_appended_to_was_not_between():
    assert lives([Event(1, "open", "log"), Event(2, "append", "lines"), Event(3, "open", "given-up"),
                  Event(4, "remove", "given-up"), Event(5, "rename", "given-up", "there")]) == []


def test_a_file_removed_after_its_rename_was_between_all_the_same():
    assert lives([Event(1, "open", ".journal.1"), Event(2, "rename", ".journal.1", ".journal"),
                  Event(5, "remove", ".journal")]) == [(1, 2, ".journal")]


def test_the_same_name_opened_again_is_another_file():
    events = [Event(1, "open", "new"), Event(2, "rename", "new", "there"), Event(5, "open", "new"),
              Event(8, "rename", "new", "there")]
    assert lives(events) == [(1, 2, "there"), (5, 8, "there")]


def test_moments_carry_the_file_opened_last_and_whether_the_folder_changes():
    report = {"places": [["f", "f.py:1", "line"], ["f", "f.py:2", "open"], ["g", "g.py:3", "rename"]],
              "moments": [0, 1, 0, 1, 0, 2, 0, 2, 0],
              "events": [[2, "open", "a.new", ""], [4, "open", "b.new", ""], [6, "rename", "b.new", "b"],
                         [8, "rename", "a.new", "a"]]}
    moments = tagged(report)
    assert [moment.number for moment in moments] == list(range(1, 10))
    assert [moment.between for moment in moments] == [None, None, "a", "a", "b", "b", "a", "a", None]
    assert [moment.number for moment in moments if moment.edge] == [6, 7, 8, 9]
    assert (moments[5].function, moments[5].line, moments[5].what) == ("g", "g.py:3", "rename")


def run_of_2000() -> list[Moment]:
    """A loop of a thousand moments between opening and rename, ten around the rename, the rest elsewhere."""
    return [Moment(number, "rename" if 1500 <= number < 1505 else "line",
                   "copy" if number < 1500 else "appear" if number < 1510 else f"step{number % 7}", "",
                   "file" if 500 < number <= 1505 else None, 1500 <= number < 1510) for number in range(1, 2001)]


def test_three_of_five_between_and_the_rename_among_them():
    moments = run_of_2000()
    chosen = choose(moments, 50, seed=0)
    assert [moment.number for moment in chosen] == sorted({moment.number for moment in chosen})
    assert all(moments[moment.number - 1] is moment for moment in chosen)
    assert len(chosen) == 50
    assert sum(moment.between is not None for moment in chosen) == 30
    assert Counter(moment.function for moment in chosen if moment.between)["appear"] == 6  # all there are
    assert {f"step{number}" for number in range(7)} <= {moment.function for moment in chosen}


def test_the_seed_chooses():
    moments = run_of_2000()
    assert choose(moments, 50, seed=3) == choose(moments, 50, seed=3)
    assert choose(moments, 50, seed=3) != choose(moments, 50, seed=4)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 2000, 3000])
def test_as_many_as_asked_for_or_all(count):
    moments = run_of_2000()
    assert len(choose(moments, count, seed=1)) == min(count, 2000)


@pytest.mark.parametrize("between", [0, 1, 5])
def test_few_between_are_all_taken_and_made_up_for(between):
    moments = [Moment(number, "line", "f", "", "file" if number <= between else None) for number in range(1, 41)]
    chosen = choose(moments, 10, seed=0)
    assert len(chosen) == 10
    assert sum(moment.between is not None for moment in chosen) == between


@pytest.mark.parametrize("case", [Case("fresh", 12), Case("force", 7466, 31)])
def test_a_case_is_read_back_as_it_is_printed(case):
    assert Case.parse(str(case)) == case
