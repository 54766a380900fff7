"""Theorem: whoever presses Ctrl-C while weights are given back gets them all."""

from __future__ import annotations

import pytest

from .cases import same, snapshot
from .stack import prepare
from .test_session import all_of


@pytest.mark.parametrize("at", [0, 1, -1])
def test_the_keyboard_interrupts_no_restoration(at: int) -> None:
    """Everything is given back first, the site that was interrupted too; then the interruption goes on."""
    run = prepare(engine="merge")
    before = snapshot(all_of(run.stack))
    run.session.advance(0.0)
    assert not same(all_of(run.stack), before)
    actor = run.session.actors[at]
    restore, presses = actor.restore, [KeyboardInterrupt]

    def interrupted() -> None:
        if presses:
            raise presses.pop()
        restore()

    actor.restore = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run.session.close()
    assert same(all_of(run.stack), before) and not presses
