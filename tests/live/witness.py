"""The WebUI as it was before K-LoRA did anything, to compare with after."""

from __future__ import annotations

from .checks import FAR, same
from .host import Host, difference
from .jobs import PLAIN, Model, plain, tag


class Witness:
    """A checkpoint as it was before any test used it; `assert_unchanged` compares that with now."""

    def __init__(self, host: Host, model: Model):
        self.host, self.model = host, model
        self.jobs = (plain(), plain(prompt=PLAIN["prompt"] + tag(model.full.content)))
        host.image(plain())  # Forge loads a checkpoint at its first job only
        self.weights, self.state = host.weights(), host.state()
        self.images = [host.image(job) for job in self.jobs]
        assert difference(*self.images) > FAR
        assert (host.weights(), host.state()) == (self.weights, self.state)
        assert self.state["unexplained"] == []
        self.assert_untouched()

    def assert_untouched(self) -> None:
        """Nobody has replaced a function of the WebUI, or hooked into its model."""
        assert self.state["changed"] == []
        assert all(hook.endswith("_state_dict_hooks") for hook in self.state["hooks"])

    def assert_unchanged(self) -> None:
        """At once where the checkpoint is still loaded, and in the next images."""
        if self.host.state()["checkpoint"] == self.state["checkpoint"]:
            self.assert_model_unchanged()
        self.host.use(self.model.checkpoint)
        for job, image in zip(self.jobs, self.images, strict=True):
            assert same(self.host.image(job), image)
        self.assert_model_unchanged()

    def assert_model_unchanged(self) -> None:
        assert self.host.state() == self.state
        now = self.host.weights()
        moved = [x for x in now.keys() | self.weights.keys() if now.get(x) != self.weights.get(x)]
        assert not moved, (
            f"{len(moved)} weights are not as before, {moved[0]} was {self.weights.get(moved[0])}, is {now.get(moved[0])}"
        )
