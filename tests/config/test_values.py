"""Every value of a key can be told from None."""

from typing import Literal

import pytest

from megaswitch.config.values import value_type


@pytest.mark.parametrize("hint", [str | None, Literal["none", "full"] | None, Literal["null"] | None])
def test_a_word_for_none_is_no_choice_of_an_optional_key(hint):
    with pytest.raises(TypeError, match="could not be told from None"):
        value_type(hint)


def test_other_choices_may_be_none():
    kind = value_type(Literal["half", "full"] | None)
    assert (kind.base, kind.optional, kind.choices) == (str, True, ("half", "full"))
