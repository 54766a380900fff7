"""One generation: from settings and LoRA names to a session for every sampling pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..engine.sampling import SamplingPass
from ..errors import LONGEST_NAME, HostError, shorten
from ..hosts.contract import Host, Tag, TextPart
from ..rule.cache import Library
from ..rule.pairing import Pair
from ..rule.plan import Plan
from ..rule.schedule import compute_step_progress, count_whole_steps
from ..settings import Settings
from .listed import ROLES, Part, find_entries, make_part, read_target
from .wishes import SAME_CHECKPOINT, Wish, refuse_late_tag, take_tag

KEPT = 2  # pairs: of the first and of the hires pass


@dataclass
class Job:
    """The state of one generation.  ``prepare`` makes it before sampling; it is stored as ``p.klora_job``."""

    host: Host
    library: Library
    wishes: list[Wish]  # one a batch
    parts: dict[Settings, Part] = field(default_factory=dict)  # the last ones that were needed
    part: Part | None = None  # of the present pass; None: it has nothing of a pair
    told: Wish | None = None  # the wish that the infotext tells of
    tags: dict[str, Tag] = field(default_factory=dict)  # of the current pass, by entry name
    first_tags: dict[str, Tag] = field(default_factory=dict)  # of the batch's first pass
    has_networks: bool = False
    passes: list[SamplingPass] = field(default_factory=list)
    runs: int = 0  # how many sampling passes have begun, with a pair or without
    resting: bool = False  # whether the present pass has nothing of a pair
    inner_jobs: int = 0  # how many other jobs run now within the pass
    by_noise: bool = False
    start: float = 0.0
    error: BaseException | None = None

    @property
    def settings(self) -> Settings:
        """Those of the first pass that has a pair."""
        return next(each for wish in self.wishes for each in (wish.first, wish.hires) if each is not None)

    @property
    def pair(self) -> Pair:
        assert self.part is not None
        return self.part.fusion.pair

    @property
    def current(self) -> SamplingPass | None:
        """The open pass; None if none is open."""
        return self.passes[-1] if self.passes and not self.passes[-1].closed else None

    @property
    def is_released(self) -> bool:
        """Whether the model is as it was before the job."""
        return all(each.session.released for each in self.passes)

    # --- which pair, with which weights ---

    def find_part(self, settings: Settings, p: Any) -> Part:
        """Made again if other pairs were needed since: a job may have many, and each holds two files in memory."""
        part = self.parts.pop(settings, None) or make_part(self.host, self.library, settings, p)
        self.parts[settings] = part
        while len(self.parts) > KEPT:
            del self.parts[next(iter(self.parts))]
        return part

    def choose_part(self, p: Any, hires: bool) -> Wish:
        """Take what the present batch's first or hires pass is to be drawn with, and write it into the infotext."""
        wish = self.wishes[min(getattr(p, "iteration", 0), len(self.wishes) - 1)]
        self.tell(p, wish)
        settings = wish.hires if hires else wish.first
        self.part = None if settings is None else self.find_part(settings, p)
        return wish

    def tell(self, p: Any, wish: Wish) -> None:
        """Write into the infotext what the present batch is drawn with, unless it is there already."""
        if self.told != wish:
            wish.write_infotext(p)
            self.told = wish

    def find_weights(self, part: Part) -> list[tuple[float, float]]:
        """(text encoder, denoiser) weights of content and of style: the tag's if the prompt has one, else the settings'."""
        found = [self.tags.get(entry.name) for entry in part.entries]
        return [(tag.te, tag.unet) if tag else weights for tag, weights in zip(found, part.settings.weights)]

    def take_networks(self, p: Any, network_data: Any) -> None:
        """Called when the prompt's networks are active: removes the pair, and has the host add its text-encoder parts.

        In a hires pass without the pair the text encoders have nothing of it either.  A LoRA that the hires prompt does not
        mention keeps the weight that its tag in the prompt gives it.
        """
        self.has_networks = True
        hires = is_for_hires(p, network_data)
        wish = self.choose_part(p, hires)
        refuse_late_tag(take_tag(network_data), wish.tags[1] if hires else wish.tags[0])
        part = self.part or (self.find_part(wish.first, p) if hires and wish.first is not None else None)
        if part is None:
            return
        tags = self.host.take_tags(network_data, part.entries)
        if hires:
            tags = {**self.first_tags, **tags}
        else:
            self.first_tags = tags
        self.tags = tags
        weights = self.find_weights(part) if self.part else [(0.0, 0.0)] * 2
        files = (part.fusion.pair.content, part.fusion.pair.style)
        texts = [TextPart(e, f, te, tags.get(e.name)) for e, f, (te, _) in zip(part.entries, files, weights)]
        self.host.load_text_parts(p, network_data, texts, keep=wish.keeps_pair)

    # --- the sampling passes ---

    @contextmanager
    def run_pass(self, p: Any, steps: int) -> Iterator[None]:
        """One sampling pass of ``steps`` sampler steps.

        Raises the error of an earlier callback, which the host ignored, and HostError if the sampler drew without K-LoRA.
        """
        self.raise_error()
        self.runs += 1
        self.choose_part(p, bool(getattr(p, "is_hr_pass", False)))
        if self.part is None:
            self.resting = True
            try:
                yield
            finally:
                self.resting = False
            return
        current = self.open_pass(p, steps, self.part)
        try:
            with (
                self.host.wrap_rewrites(self.put_aside),
                self.host.wrap_jobs(self.run_inner_job),
                self.host.watch_model_moves(self.note_model_move),
                self.host.watch_refiner(p, lambda: self.yield_to_refiner(p)),
            ):
                yield
            self.raise_error()
            current.check(self.host.count_calls(p), self.host.is_stopped())
        except Exception as e:
            if e is not self.error:
                self.raise_error()  # the first error is the reason; the sampler's is a consequence
            raise
        finally:
            current.close()

    def open_pass(self, p: Any, steps: int, part: Part) -> SamplingPass:
        """Plan the pass and make the pair ready on the model that is loaded now.  Raises PairError if it does not fit."""
        host, fusion = self.host, part.fusion
        self.by_noise = part.settings.progress == "noise" or not host.has_fixed_steps(p)
        self.start = host.find_start(p)
        content, style = (unet for _, unet in self.find_weights(part))
        steps = count_whole_steps(steps, self.start)
        session, missing = fusion.open(read_target(host, p), (content, style), steps, int(p.seeds[0]))
        if missing:
            which = f"{len(missing)}, {missing[0]} among them"
            p.comment(f"K-LoRA: layers of the pair that are not in {host.get_checkpoint_name()!r}: {which}")
        if not self.has_networks and (fusion.pair.content.text or fusion.pair.style.text):
            p.comment("K-LoRA: extra networks are disabled, so the text encoders carry nothing of the pair")
        self.report_notes(p, fusion.pair, session.plan)
        host.finish_merging(actor.site.module for actor in session.actors)
        if fusion.pair.relative:  # until now, a layer could still have the LoRAs of another job
            target = read_target(host, p)
            session, _ = fusion.score_again(target).open(target, (content, style), steps, int(p.seeds[0]))
        self.passes.append(SamplingPass(session, bool(getattr(p, "is_hr_pass", False)), self.start))
        return self.passes[-1]

    def report_notes(self, p: Any, pair: Pair, plan: Plan) -> None:
        """Show the notes on the two files and on the plan as comments, and write their facts into the infotext."""
        files = dict(zip(ROLES, (pair.content, pair.style)))
        for note in [*(note for file in files.values() for note in file.notes), *plan.notes]:
            p.comment(f"K-LoRA: {note}")
        first = {role: shorten(file.unknown[0], LONGEST_NAME) for role, file in files.items() if file.unknown}
        if first:
            unread = [f"{len(files[role].unknown)} of {role} ({key})" for role, key in first.items()]
            p.extra_generation_params["K-LoRA unread tensors"] = ", ".join(unread)
        if plan.notes:
            p.extra_generation_params["K-LoRA common layers"] = "none"

    def advance(self, params: Any) -> None:
        """Called before every denoiser call: sets the model to the choice for this step."""
        if self.resting:
            return
        if self.current is None:
            if not (self.passes and self.passes[-1].ended_early):
                raise HostError("the sampler draws without having told K-LoRA that it begins")
            return
        call = self.host.read_call(params)
        by_steps = compute_step_progress(call.t, call.total, self.start)
        self.current.advance(call.find_noise_progress() if self.by_noise else by_steps)

    def raise_error(self) -> None:
        if self.error is not None:
            raise self.error

    def end(self, reason: str) -> None:
        """The job cannot go on: give the model its weights back now; ``run_pass`` then raises ``reason``."""
        self.error = self.error or HostError(reason)
        self.close()

    # --- what others do to the model within a pass ---

    @contextmanager
    def put_aside(self, modules: Collection[nn.Module] | None = None) -> Iterator[None]:
        """While open, the model (or only ``modules``) is as without K-LoRA, because the host writes weights itself."""
        current = self.current
        if current is None:
            yield
        elif not current.at_home:
            self.end("another request rewrote the model's weights while this job was sampling")
            yield
        else:
            with current.aside(modules):
                yield

    @contextmanager
    def run_inner_job(self) -> Iterator[None]:
        """While open, another job runs within the pass, on the model as it was.  Afterwards our choice acts again."""
        current = self.current
        if current is not None and not current.at_home:
            self.end("another job began on the same model while this one was sampling")
            current = None
        if current is None:
            yield
            return
        before = self.host.get_checkpoint_name()
        self.inner_jobs += 1
        try:
            with current.aside():
                try:
                    yield
                finally:
                    if (after := self.host.get_checkpoint_name()) != before:
                        self.end(f"a job within this one loaded {after!r} in the place of {before!r}")
        finally:
            self.inner_jobs -= 1

    def note_model_move(self) -> None:
        """Called before the host unloads the model, or loads another checkpoint into it: ends the job."""
        current = self.current
        if current is None:
            return
        if not current.at_home:
            self.end("another request unloaded or replaced the checkpoint while this job was sampling")
        elif not self.inner_jobs:  # a job within this one may do so: see run_inner_job
            self.end("another checkpoint took the model's place while this job was sampling")

    def yield_to_refiner(self, p: Any) -> None:
        """Called when the refiner replaces the model during the pass: gives the model back as it was, and says so."""
        if self.current is None or self.inner_jobs:
            return
        self.current.end_early()
        denoiser = p.sampler.model_wrap_cfg
        where = f"step {denoiser.step} of {denoiser.total_steps}"
        p.extra_generation_params["K-LoRA until"] = f"{where} (refiner)"
        p.comment(f"K-LoRA stepped aside at {where}: the refiner runs without the pair")

    def close(self) -> None:
        """Give the model back as it was.  May be called again."""
        for each in self.passes[-1:]:
            each.close()


def prepare(host: Host, library: Library, wishes: list[Wish], p: Any) -> Job:
    """Read, pair, score and plan for every batch, and check that each pair fits the loaded model.

    Raises a KLoraError, before anything is changed.
    """
    job = Job(host, library, wishes)
    passes = [settings for wish in reversed(wishes) for settings in (wish.hires, wish.first) if settings is not None]
    for settings in dict.fromkeys(passes):  # the first batch's at last: only the last ones are kept
        if any(settings == wish.first for wish in wishes) or getattr(p, "hr_checkpoint_name", None) in SAME_CHECKPOINT:
            job.find_part(settings, p)
        else:
            find_entries(host, settings)  # the model that the pair is for is loaded later
    return job


def is_for_hires(p: Any, network_data: Any) -> bool:
    """Whether networks are activated for the hires pass; with low VRAM a host does so before the first pass too."""
    if network_data is getattr(p, "extra_network_data", None):
        return False
    return bool(getattr(p, "is_hr_pass", False)) or network_data is getattr(p, "hr_extra_network_data", None)


def run_guarded(job: Job, act: Callable[[], None]) -> None:
    """Run ``act`` in a hook whose exceptions the host ignores: ``run_pass`` raises them later."""
    try:
        act()
    except Exception as e:  # noqa: BLE001  after any error the user must not get an image
        job.error = job.error or e
