"""One generation: from settings and names to a session around every sampling pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..core.cache import Library
from ..core.pairing import Pair
from ..core.plan import make_plan
from ..core.schedule import step_progress, whole_steps
from ..core.scoring import Scores, score
from ..engine.fit import place, refuse_misfit, weights_of
from ..engine.sampling import SamplingPass
from ..engine.session import Session
from ..errors import HostError, KLoraError, PairError, SettingsError, all_offenders
from ..hosts.contract import Entry, Host, Tag, TextPart
from ..settings import Settings

ROLES = ("content", "style")


@dataclass
class Job:
    """Everything K-LoRA knows of one ``p``.  Made before sampling by ``prepare``; reachable as ``p.klora_job``."""

    host: Host
    settings: Settings
    entries: tuple[Entry, Entry]  # content, style
    pair: Pair
    scores: Scores
    tags: dict[str, Tag] = field(default_factory=dict)  # of the current pass, by entry name
    heard_networks: bool = False
    passes: list[SamplingPass] = field(default_factory=list)
    within: int = 0  # jobs that run within the pass
    by_noise: bool = False
    start: float = 0.0
    error: BaseException | None = None

    @property
    def current(self) -> SamplingPass | None:
        """The pass that is open now."""
        return self.passes[-1] if self.passes and not self.passes[-1].closed else None

    @property
    def released(self) -> bool:
        """Whether the model carries nothing of ours."""
        return all(each.session.released for each in self.passes)

    def weights(self) -> list[tuple[float, float]]:
        """(text encoder, denoiser) for content and style: a tag's own, else the settings', te following the weight."""
        found = [self.tags.get(entry.name) for entry in self.entries]
        return [(tag.te, tag.unet) if tag else own for tag, own in zip(found, self.settings.weights)]

    def take_networks(self, p: Any, network_data: Any) -> None:
        """The prompt's networks are active: take the pair out of them, and leave its text-encoder parts to the host."""
        self.heard_networks = True
        self.tags = self.host.take_tags(network_data, self.entries)
        files = (self.pair.content, self.pair.style)
        weights = self.weights()
        parts = [TextPart(e, f, te, self.tags.get(e.name)) for e, f, (te, _) in zip(self.entries, files, weights)]
        self.host.load_text_parts(p, network_data, parts)

    @contextmanager
    def sampling(self, p: Any, steps: int) -> Iterator[None]:
        """One sampling pass of ``steps`` sampler steps.

        Raises what went wrong in a callback, where nobody would hear it, and HostError where the sampler drew without us.
        """
        if self.error is not None:
            raise self.error
        current = self.open(p, steps)
        try:
            with (
                self.host.around_rewrites(self.aside),
                self.host.around_jobs(self.another_job),
                self.host.before_model_moves(self.model_moves),
                self.host.before_refiner(p, lambda: self.step_aside(p)),
            ):
                yield
            if self.error is None:
                current.check(self.host.calls(p), self.host.stopped())
        except Exception as e:
            if self.error is not None and self.error is not e:
                raise self.error from e  # what the sampler stumbled over afterwards is not the reason
            raise
        finally:
            current.close()
        if self.error is not None:
            raise self.error

    def open(self, p: Any, steps: int) -> SamplingPass:
        """Plan the pass and place the pair on the model as it is loaded now.  Raises PairError where it does not fit."""
        host, settings = self.host, self.settings
        self.by_noise = settings.progress == "noise" or not host.fixed_steps(p)
        self.start = host.start(p)
        plan = make_plan(self.pair, self.scores, settings, whole_steps(steps, self.start), int(p.seeds[0]))
        content, style = (unet for _, unet in self.weights())
        placed, missing = place(plan, self.pair, host.sites(), (content, style), host.checkpoint())
        if missing:
            told = f"{len(missing)}, {missing[0]} among them"
            p.comment(f"K-LoRA: layers of the pair that are not in {host.checkpoint()!r}: {told}")
        for note in plan.notes:
            p.comment(f"K-LoRA: {note}")
        if not self.heard_networks and (self.pair.content.text or self.pair.style.text):
            p.comment("K-LoRA: extra networks are disabled, so the text encoders carry nothing of the pair")
        host.settle(site.site.module for site in placed)
        if self.pair.relative:  # before, a layer could still carry the LoRAs of another job
            self.scores = score(self.pair.units, settings.k, host.device(), weights_of(host.sites()))
            plan = make_plan(self.pair, self.scores, settings, whole_steps(steps, self.start), int(p.seeds[0]))
        self.passes.append(SamplingPass(plan, Session(plan, placed, settings.engine, host.device())))
        return self.passes[-1]

    def advance(self, params: Any) -> None:
        """A denoiser call is about to happen: bring the model to its place in the plan."""
        if self.current is None:
            if not (self.passes and self.passes[-1].ended_early):
                raise HostError("the sampler draws without having told K-LoRA that it begins")
            return
        call = self.host.call(params)
        self.current.advance(call.noise() if self.by_noise else step_progress(call.t, call.total, self.start))

    def end(self, reason: str) -> None:
        """The job cannot go on: the model gets its weights back now, and ``sampling`` raises ``reason``."""
        self.error = self.error or HostError(reason)
        self.close()

    # --- what others do to the model within a pass ---

    @contextmanager
    def aside(self, modules: Collection[nn.Module] | None = None) -> Iterator[None]:
        """While open the model (or these ``modules``) is as it was: the host writes weights itself."""
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
    def another_job(self) -> Iterator[None]:
        """A whole job runs within the pass: it finds the model as it was, and afterwards our choice acts again."""
        current = self.current
        if current is not None and not current.at_home:
            self.end("another job began on the same model while this one was sampling")
            current = None
        if current is None:
            yield
            return
        before = self.host.checkpoint()
        self.within += 1
        try:
            with current.aside():
                try:
                    yield
                finally:
                    if (after := self.host.checkpoint()) != before:
                        self.end(f"a job within this one loaded {after!r} in the place of {before!r}")
        finally:
            self.within -= 1

    def model_moves(self) -> None:
        """The host is about to unload a model, or to load another checkpoint into it."""
        current = self.current
        if current is None or self.within:  # a job within this one may do so: see there
            return
        if current.at_home:
            self.end("another checkpoint took the model's place while this job was sampling")
        else:
            self.end("another request unloaded or replaced the checkpoint while this job was sampling")

    def step_aside(self, p: Any) -> None:
        """The refiner takes over in the middle of the pass: give this model back as it was, and say so."""
        if self.current is None or self.within:
            return
        self.current.end_early()
        denoiser = p.sampler.model_wrap_cfg
        where = f"step {denoiser.step} of {denoiser.total_steps}"
        p.extra_generation_params["K-LoRA until"] = f"{where} (refiner)"
        p.comment(f"K-LoRA stepped aside at {where}: the refiner runs without the pair")

    def close(self) -> None:
        """The model as it was; safe to call again."""
        for each in self.passes[-1:]:
            each.close()


def prepare(host: Host, library: Library, settings: Settings, steps: int) -> Job:
    """Read, pair, score and plan, and see whether the loaded model fits.  Raises a KLoraError before anything changed."""
    entries = found_entries(host, settings)
    files = library.read_both(*((entry.path, entry.name) for entry in entries))
    try:
        pair = library.pair(*files)
        sites = host.sites()
        refuse_misfit(pair, sites, host.checkpoint())
        scores = library.score(pair, settings.k, host.device(), weights_of(sites))
        plan = make_plan(pair, scores, settings, steps)
        placed, _ = place(plan, pair, sites, (1.0, 1.0), host.checkpoint())
    except PairError as e:
        raise e if e.field else e.about("content and style") from None
    Session(plan, placed, settings.engine, host.device())  # never advanced: only to hear whether the engine can
    return Job(host, settings, entries, pair, scores)


def found_entries(host: Host, settings: Settings) -> tuple[Entry, Entry]:
    names = (settings.content, settings.style)
    found = [host.find(name) if name else None for name in names]
    errors: list[KLoraError] = []
    for role, name, entry in zip(ROLES, names, found):
        if not name:
            errors.append(SettingsError("no LoRA is chosen", role))
        elif entry is None:
            errors.append(SettingsError(f"there is no LoRA named {name!r} among the {len(host.loras())} listed", role))
    if errors:
        raise all_offenders(errors)
    content, style = found
    assert content is not None and style is not None
    if content == style:
        raise SettingsError(f"must be another LoRA than content, both are {content.name!r}", "style")
    return content, style


def guarded(job: Job, act: Callable[[], None]) -> None:
    """Run ``act`` inside a host hook that swallows exceptions: what goes wrong is kept, and raised by ``sampling``."""
    try:
        act()
    except Exception as e:  # noqa: BLE001  whatever it is, the user must not get an image that hides it
        job.error = job.error or e
