"""The base of recipes: keys that came later leave what was written before as it was."""

from typing import ClassVar

from neural_collapse.io.model import Model


class Part(Model):
    old: int = 1
    """Old."""
    new: tuple[str, ...] = ()
    """New."""
    LATER: ClassVar = frozenset({"new"})


class Whole(Model):
    part: Part = Part()
    """The part."""


def test_later_key_is_written_only_where_it_is_not_at_its_default():
    assert Part().model_dump() == {"old": 1}
    assert Whole().model_dump_json() == '{"part":{"old":1}}'
    changed = Whole(part=Part(new=("a",)))
    assert changed.model_dump(mode="json") == {"part": {"old": 1, "new": ["a"]}}
    assert changed.part.model_dump(exclude={"old"}) == {"new": ("a",)}


def test_what_was_written_is_read_back():
    for whole in (Whole(), Whole(part=Part(new=("a",)))):
        assert Whole.model_validate_json(whole.model_dump_json()) == whole
