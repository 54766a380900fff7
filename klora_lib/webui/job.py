"""One generation: from settings and names to a session around every sampling pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..engine.fusion import Fusion, Target, fuse_files, roles_named
from ..engine.sampling import SamplingPass
from ..errors import HostError, KLoraError, SettingsError, all_offenders
from ..hosts.contract import Entry, Host, Tag, TextPart
from ..rule.cache import Library
from ..rule.pairing import Pair
from ..rule.plan import Plan
from ..rule.schedule import step_progress, whole_steps
from ..settings import Settings

ROLES = ("content", "style")


@dataclass
class Job:
    """Everything K-LoRA knows of one ``p``.  Made before sampling by ``prepare``; reachable as ``p.klora_job``."""

    host: Host
    settings: Settings
    entries: tuple[Entry, Entry]  # content, style
    fusion: Fusion
    tags: dict[str, Tag] = field(default_factory=dict)  # of the current pass, by entry name
    heard_networks: bool = False
    passes: list[SamplingPass] = field(default_factory=list)
    within: int = 0  # jobs that run within the pass
    by_noise: bool = False
    start: float = 0.0
    error: BaseException | None = None

    @property
    def pair(self) -> Pair:
        return self.fusion.pair

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
        self.raise_error()
        current = self.open(p, steps)
        try:
            with (
                self.host.around_rewrites(self.aside),
                self.host.around_jobs(self.another_job),
                self.host.before_model_moves(self.model_moves),
                self.host.before_refiner(p, lambda: self.step_aside(p)),
            ):
                yield
            self.raise_error()
            current.check(self.host.calls(p), self.host.stopped())
        except Exception as e:
            if e is not self.error:
                self.raise_error()  # what the sampler stumbled over afterwards is not the reason
            raise
        finally:
            current.close()

    def open(self, p: Any, steps: int) -> SamplingPass:
        """Plan the pass and place the pair on the model as it is loaded now.  Raises PairError where it does not fit."""
        host = self.host
        self.by_noise = self.settings.progress == "noise" or not host.fixed_steps(p)
        self.start = host.start(p)
        content, style = (unet for _, unet in self.weights())
        steps = whole_steps(steps, self.start)
        session, missing = self.fusion.open(read_target(host, p), (content, style), steps, int(p.seeds[0]))
        if missing:
            told = f"{len(missing)}, {missing[0]} among them"
            p.comment(f"K-LoRA: layers of the pair that are not in {host.checkpoint()!r}: {told}")
        if not self.heard_networks and (self.pair.content.text or self.pair.style.text):
            p.comment("K-LoRA: extra networks are disabled, so the text encoders carry nothing of the pair")
        self.tell_what_is_unusual(p, session.plan)
        host.settle(actor.site.module for actor in session.actors)
        if self.pair.relative:  # before, a layer could still carry the LoRAs of another job
            target = read_target(host, p)
            self.fusion = self.fusion.score_again(target)
            session, _ = self.fusion.open(target, (content, style), steps, int(p.seeds[0]))
        self.passes.append(SamplingPass(session))
        return self.passes[-1]

    def tell_what_is_unusual(self, p: Any, plan: Plan) -> None:
        """A comment for every note on the two files and the plan, and the facts in the infotext."""
        left_out = {role: file for role, file in zip(ROLES, (self.pair.content, self.pair.style)) if file.notes}
        for file in left_out.values():
            for note in file.notes:
                p.comment(f"K-LoRA: {note}")
        if left_out:
            found = [f"{len(file.unknown)} of {role} ({file.unknown[0]})" for role, file in left_out.items()]
            p.extra_generation_params["K-LoRA unread tensors"] = ", ".join(found)
        for note in plan.notes:
            p.comment(f"K-LoRA: {note}")
            p.extra_generation_params["K-LoRA common layers"] = "none"

    def advance(self, params: Any) -> None:
        """A denoiser call is about to happen: bring the model to its place in the plan."""
        if self.current is None:
            if not (self.passes and self.passes[-1].ended_early):
                raise HostError("the sampler draws without having told K-LoRA that it begins")
            return
        call = self.host.call(params)
        self.current.advance(call.noise() if self.by_noise else step_progress(call.t, call.total, self.start))

    def raise_error(self) -> None:
        if self.error is not None:
            raise self.error

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
        if current is None:
            return
        if not current.at_home:
            self.end("another request unloaded or replaced the checkpoint while this job was sampling")
        elif not self.within:  # a job within this one may do so: see there
            self.end("another checkpoint took the model's place while this job was sampling")

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


def read_target(host: Host, p: Any) -> Target:
    return Target(host.sites(), host.checkpoint(), host.device(), host.sampling_memory(p))


def prepare(host: Host, library: Library, settings: Settings, p: Any) -> Job:
    """Read, pair, score and plan, and see whether the loaded model fits.  Raises a KLoraError before anything changed."""
    entries = find_entries(host, settings)
    content, style = ((entry.path, entry.name) for entry in entries)
    loaded = read_target(host, p)
    fusion = fuse_files(library, (content, style), settings, loaded)
    with roles_named():
        fusion.open(loaded, (1.0, 1.0), p.steps)  # never advanced: only to hear whether it fits, and the engine can
    return Job(host, settings, entries, fusion)


def find_entries(host: Host, settings: Settings) -> tuple[Entry, Entry]:
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


def run_guarded(job: Job, act: Callable[[], None]) -> None:
    """Run ``act`` inside a host hook that swallows exceptions: what goes wrong is kept, and raised by ``sampling``."""
    try:
        act()
    except Exception as e:  # noqa: BLE001  whatever it is, the user must not get an image that hides it
        job.error = job.error or e
