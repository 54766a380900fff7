"""One generation: from settings and LoRA names to a session for every sampling pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from ..engine.fusion import Fusion, Target, blame_both, fuse_files
from ..engine.sampling import SamplingPass
from ..errors import LONGEST_NAME, HostError, KLoraError, SettingsError, join_errors, shorten
from ..hosts.contract import Entry, Host, Tag, TextPart
from ..rule.cache import Library
from ..rule.pairing import Pair
from ..rule.plan import Plan, make_plan
from ..rule.schedule import compute_step_progress, count_whole_steps
from ..settings import Settings, quote_value

ROLES = ("content", "style")


@dataclass
class Job:
    """The state of one generation.  ``prepare`` makes it before sampling; it is stored as ``p.klora_job``."""

    host: Host
    settings: Settings
    entries: tuple[Entry, Entry]  # content, style
    fusion: Fusion
    tags: dict[str, Tag] = field(default_factory=dict)  # of the current pass, by entry name
    has_networks: bool = False
    passes: list[SamplingPass] = field(default_factory=list)
    inner_jobs: int = 0  # how many other jobs run now within the pass
    by_noise: bool = False
    start: float = 0.0
    error: BaseException | None = None

    @property
    def pair(self) -> Pair:
        return self.fusion.pair

    @property
    def current(self) -> SamplingPass | None:
        """The open pass; None if none is open."""
        return self.passes[-1] if self.passes and not self.passes[-1].closed else None

    @property
    def is_released(self) -> bool:
        """Whether the model is as it was before the job."""
        return all(each.session.released for each in self.passes)

    def find_weights(self) -> list[tuple[float, float]]:
        """(text encoder, denoiser) weights of content and of style: the tag's if the prompt has one, else the settings'."""
        found = [self.tags.get(entry.name) for entry in self.entries]
        return [(tag.te, tag.unet) if tag else weights for tag, weights in zip(found, self.settings.weights)]

    def take_networks(self, p: Any, network_data: Any) -> None:
        """Called when the prompt's networks are active: removes the pair, and has the host add its text-encoder parts."""
        self.has_networks = True
        self.tags = self.host.take_tags(network_data, self.entries)
        files = (self.pair.content, self.pair.style)
        weights = self.find_weights()
        parts = [TextPart(e, f, te, self.tags.get(e.name)) for e, f, (te, _) in zip(self.entries, files, weights)]
        self.host.load_text_parts(p, network_data, parts)

    @contextmanager
    def run_pass(self, p: Any, steps: int) -> Iterator[None]:
        """One sampling pass of ``steps`` sampler steps.

        Raises the error of an earlier callback, which the host ignored, and HostError if the sampler drew without K-LoRA.
        """
        self.raise_error()
        current = self.open_pass(p, steps)
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

    def open_pass(self, p: Any, steps: int) -> SamplingPass:
        """Plan the pass and make the pair ready on the model that is loaded now.  Raises PairError if it does not fit."""
        host = self.host
        self.by_noise = self.settings.progress == "noise" or not host.has_fixed_steps(p)
        self.start = host.find_start(p)
        content, style = (unet for _, unet in self.find_weights())
        steps = count_whole_steps(steps, self.start)
        session, missing = self.fusion.open(read_target(host, p), (content, style), steps, int(p.seeds[0]))
        if missing:
            which = f"{len(missing)}, {missing[0]} among them"
            p.comment(f"K-LoRA: layers of the pair that are not in {host.get_checkpoint_name()!r}: {which}")
        if not self.has_networks and (self.pair.content.text or self.pair.style.text):
            p.comment("K-LoRA: extra networks are disabled, so the text encoders carry nothing of the pair")
        self.report_notes(p, session.plan)
        host.finish_merging(actor.site.module for actor in session.actors)
        if self.pair.relative:  # until now, a layer could still have the LoRAs of another job
            target = read_target(host, p)
            self.fusion = self.fusion.score_again(target)
            session, _ = self.fusion.open(target, (content, style), steps, int(p.seeds[0]))
        self.passes.append(SamplingPass(session))
        self.passes[-1].is_hires = bool(getattr(p, "is_hr_pass", False))
        return self.passes[-1]

    def report_notes(self, p: Any, plan: Plan) -> None:
        """Show the notes on the two files and on the plan as comments, and write their facts into the infotext."""
        files = dict(zip(ROLES, (self.pair.content, self.pair.style)))
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


def read_target(host: Host, p: Any) -> Target:
    return Target(host.find_sites(), host.get_checkpoint_name(), host.get_device(), host.estimate_sampling_memory(p))


def prepare(host: Host, library: Library, settings: Settings, p: Any) -> Job:
    """Read, pair, score and plan, and check that the pair fits the loaded model.

    Raises a KLoraError, before anything is changed.
    """
    entries = find_entries(host, settings)
    content, style = ((entry.path, entry.name) for entry in entries)
    loaded = read_target(host, p)
    fusion = fuse_files(library, (content, style), settings, loaded)
    with blame_both():
        fusion.open(loaded, (1.0, 1.0), p.steps)  # only checks that the pair fits and the engine works; it is not used
    return Job(host, settings, entries, fusion)


def find_entries(host: Host, settings: Settings) -> tuple[Entry, Entry]:
    """The chosen content and style LoRA.  Raises SettingsError if one is not listed, or both are the same."""
    names = (settings.content, settings.style)
    found = [host.find_lora(name) if name else None for name in names]
    errors: list[KLoraError] = []
    for role, name, entry in zip(ROLES, names, found):
        if not name:
            errors.append(SettingsError("no LoRA is chosen", role))
        elif entry is None:
            listed = len(host.list_loras())
            errors.append(SettingsError(f"there is no LoRA named {quote_value(name)} among the {listed} listed", role))
    if errors:
        raise join_errors(errors)
    content, style = found
    assert content is not None and style is not None
    if content == style:
        raise SettingsError(f"must be another LoRA than content, both are {content.name!r}", "style")
    return content, style


class Listed(NamedTuple):
    """Two listed LoRAs, and what they would do; no model is asked."""

    entries: tuple[Entry, Entry]
    pair: Pair
    plan: Plan


def plan_listed(host: Host, library: Library, settings: Settings, steps: int, seed: int = 0) -> Listed:
    """The plan for the LoRAs that ``settings`` name, made on the CPU: the GPU belongs to the job that samples.

    Raises a KLoraError, for OFT, BOFT and IA3 too, whose change only the model tells.
    """
    entries = find_entries(host, settings)
    content, style = ((entry.path, entry.name) for entry in entries)
    return Listed(entries, *plan_files(library, (content, style), settings, steps, seed))


def plan_files(
    library: Library, listed: tuple[tuple[str, str], tuple[str, str]], settings: Settings, steps: int, seed: int = 0
) -> tuple[Pair, Plan]:
    """The same for two files, each given by path and name."""
    files = library.read_both(*listed)
    with blame_both():
        pair = library.pair(*files)
        scores = library.measure(pair, settings, torch.device("cpu"))
        return pair, make_plan(pair, scores, settings, steps, seed)


def run_guarded(job: Job, act: Callable[[], None]) -> None:
    """Run ``act`` in a hook whose exceptions the host ignores: ``run_pass`` raises them later."""
    try:
        act()
    except Exception as e:  # noqa: BLE001  after any error the user must not get an image
        job.error = job.error or e
