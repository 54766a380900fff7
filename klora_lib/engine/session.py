"""One sampling pass: open, advance, close."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock

import torch
from torch import Tensor, nn

from ..devices import is_same_device, resolve_device
from ..errors import HostError
from ..numerics import exact_math
from ..rule.plan import Plan
from .bypass import Bypassed
from .memory import MemoryBudget, report_no_memory
from .merge import PLAIN, Merged
from .site import Actor, Site, SiteDeltas


@dataclass(frozen=True)
class Placed:
    """A row of the plan on a site of the loaded model.  If ``row`` is None, ``mask`` holds at every step."""

    row: int | None
    mask: int
    site: Site
    deltas: SiteDeltas
    name: str = ""  # of the layer, for messages


def make_actor(placed: Placed, engine: str, device: torch.device, budget: MemoryBudget) -> Actor:
    """The actor that ``engine`` names; for "auto" merge if the weight is a plain tensor on ``device``, else bypass.

    A weight in host memory is copied to the device at every forward, so it must not be written.  Norms are always merged:
    a norm has no product to which bypass could add.  Raises HostError for "merge" on packed weights.
    """
    site, weight, device = placed.site, placed.site.module.weight, resolve_device(device)
    packed = site.packed.kind if site.packed else name_foreign_type(weight)
    plain = not packed and weight.dtype in PLAIN and weight.device.type != "meta"
    there = engine == "merge" or is_same_device(weight.device, device)
    norm = len(site.shape) == 1
    has_bias = getattr(site.module, "bias", None) is not None
    if engine == "merge" and not plain:
        raise HostError(f"merge cannot write {packed or f'{weight.dtype} weights'}; choose auto or bypass", "engine")
    if placed.deltas.scales_bias and has_bias and site.module.bias.device.type == "meta":
        raise HostError("an IA3 that scales a layer's bias cannot act where the layer is streamed from host memory")
    if norm or (engine != "bypass" and plain and there and (has_bias or not placed.deltas.with_bias)):
        return Merged(site, placed.deltas, device, budget)
    if placed.deltas.merges_only:
        why = "bypass is chosen" if engine == "bypass" else f"{placed.name} cannot be written where it is"
        raise HostError(f"this method writes the weights and cannot act beside them, but {why}; choose another", "method")
    return Bypassed(site, placed.deltas, budget)


def find_shared_biases(placed: Sequence[Placed]) -> set[int]:
    """Identities of the lone biases on layers whose bias another of ``placed`` changes too.

    Two actors must not write one bias, each with a backup of its own.  So these are added beside it.
    """
    by_layer: dict[int, list[Placed]] = {}
    for p in placed:
        if len(p.site.shape) > 1 and (p.deltas.with_bias or p.deltas.scales_bias):
            by_layer.setdefault(id(p.site.module), []).append(p)
    return {id(p) for each in by_layer.values() if len(each) > 1 for p in each if not p.deltas.with_weight}


def name_foreign_type(weight: Tensor) -> str:
    """The name of a tensor subclass, or "" for a plain tensor.  A subclass may be packed and still report bfloat16."""
    return "" if type(weight) in (Tensor, nn.Parameter) else f"{type(weight).__name__} weights"


class Session:
    """A plan that acts on a model.  After ``close`` every weight is bit for bit what it was, and no hook is left.

    Another thread may close it at any time (another request, a reload of the UI).  All other methods are for one thread.
    """

    def __init__(
        self, plan: Plan, placed: Sequence[Placed], engine: str, device: torch.device, reserve: int = 0
    ):
        """Args: device: where the model computes.  reserve: bytes of it to leave to the sampling."""
        self.plan = plan
        self.device = resolve_device(device)
        self.lock = RLock()
        self.budget = MemoryBudget.on(self.device, reserve)
        several = find_shared_biases(placed)
        self.actors: list[Actor] = [
            Bypassed(p.site, p.deltas, self.budget) if id(p) in several else make_actor(p, engine, self.device, self.budget)
            for p in placed
        ]
        self.names = [p.name for p in placed]
        self.of_module: dict[int, list[int]] = {}  # module's identity → its actors
        for i, p in enumerate(placed):
            self.of_module.setdefault(id(p.site.module), []).append(i)
        self.rows = torch.tensor([-1 if p.row is None else p.row for p in placed])
        self.fixed = torch.tensor([p.mask for p in placed], dtype=torch.uint8)
        self.masks = torch.zeros(len(placed), dtype=torch.uint8)
        self.versions: dict[int, tuple[Tensor, int | None]] = {}  # by identity: the tensors we wrote, as we left them
        self.switches = 0
        self.closed = False

    def advance(self, progress: float) -> None:
        """Apply the plan's choice at ``progress``.  Only sites whose choice changes are written."""
        with self.lock:
            if not self.closed:
                self.switches += self.show(self.choose_masks(progress))

    def show(self, wanted: Tensor) -> int:
        """Apply these masks, and return how many sites changed."""
        changed = (wanted != self.masks).nonzero().flatten().tolist()
        if not changed:
            return 0
        with exact_math(self.device):
            for i in changed:
                what = f"to change {self.names[i] or 'a layer'}, one of {len(changed)} that were to change in this step"
                with report_no_memory(self.device, what):
                    self.actors[i].show(int(wanted[i]))
                self.masks[i] = wanted[i]
        self.versions |= {id(t): (t, read_version(t)) for i in changed for t in self.actors[i].list_written()}
        return len(changed)

    def choose_masks(self, progress: float) -> Tensor:
        return torch.where(self.rows < 0, self.fixed, self.plan.at(progress)[self.rows])

    def find_altered(self) -> list[str]:
        """Names of the layers on which our choice no longer acts: the weight was rewritten or our hook was removed."""
        acting = self.masks.nonzero().flatten().tolist()
        return [self.names[i] for i in acting if not self.is_intact(self.actors[i])]

    def is_intact(self, actor: Actor) -> bool:
        return actor.is_attached() and all(
            id(t) in self.versions and self.versions[id(t)][1] == read_version(t) for t in actor.list_written()
        )

    def close(self) -> None:
        """Undo everything; may be called twice.  If one site fails, the others are still restored."""
        with self.lock:
            self.closed = True
            self.undo()
            self.actors = []
            self.versions.clear()

    @property
    def released(self) -> bool:
        """Closed, and without a site that failed to close."""
        return self.closed and not self.actors

    def undo(self, which: Sequence[int] | None = None) -> None:
        """Restore the sites (or ``which`` of them); they can act again afterwards."""
        which = range(len(self.actors)) if which is None else which
        with exact_math(self.device):
            errors = list(close_all(self.actors[i] for i in reversed(which)))
            self.masks[list(which)] = 0
        self.budget.drop_scratch()
        raise_first(errors)

    @contextmanager
    def aside(self, modules: Collection[nn.Module] | None = None) -> Iterator[None]:
        """While open, the model (or only ``modules``) has its own weights; afterwards our choice acts again.

        Used when somebody else writes weights within the pass: the host merges another LoRA, or runs a job of its own.
        """
        which = None if modules is None else [i for module in modules for i in self.of_module.get(id(module), ())]
        with self.lock:
            shown = self.masks.clone()
            if not self.closed:
                self.undo(which)
        try:
            yield
        finally:
            with self.lock:
                if not self.closed:
                    self.show(shown)


def read_version(tensor: Tensor) -> int | None:
    """Torch's count of writes to ``tensor``; None for tensors made in inference mode, which have no count."""
    return None if tensor.is_inference() else tensor._version


def close_all(actors: Iterable[Actor]) -> Iterator[BaseException]:
    """Close all actors and yield the errors.  One that a keyboard interrupt stopped is closed a second time."""
    for actor in actors:
        try:
            try:
                actor.close()
            except KeyboardInterrupt:
                actor.close()
                raise
        except BaseException as e:  # noqa: BLE001  the rest of the model must still be restored
            yield e


def raise_first(errors: Sequence[BaseException]) -> None:
    if errors:
        raise errors[0]
