"""The extension's life in a WebUI: what each hook of the host does.  Off means off: a disabled job leaves at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from .. import infotext
from ..errors import HostError, KLoraError
from ..hosts import detect
from ..patching import unwrap_own, wrap_own
from ..rule.cache import Library
from ..settings import Settings, name_arguments, read_settings
from . import xyz
from .job import Job, prepare, run_guarded
from .refuse import KLoraRefused, refuse, refuse_sampling

JOB = "klora_job"  # on p


class App:
    """Owns what outlives a job: files and scores already read, and the jobs that have a pass open in the model."""

    def __init__(self) -> None:
        self.library = Library()
        self.sampling: list[Job] = []  # the last one draws; those before it wait, in the middle of a pass of theirs
        self.drawing: Any = None  # the p of the last enabled job, until it has ended

    def begin(self, p: Any, args: Sequence[Any]) -> None:
        """``process``: undo what a crashed job left; then, if enabled, make everything ready or refuse."""
        before = vars(p).pop(JOB, None)
        copied = before is not None and before is job_of(self.drawing)  # what ADetailer begins for every image of a job
        unwrap_own(p, "sample")
        try:
            self.clean(keep=lambda job: job.current is not None)
            if not copied and not self.sampling:
                self.drawing = None
            settings = read_request(p, args)
            if settings.enabled:
                host = detect()
                host.refuse_script(p)
                job = prepare(host, self.library, settings, p)
                wrap_own(p, "sample", lambda: require_pass(job))
                setattr(p, JOB, job)
                if not copied:
                    self.drawing = p
                infotext.stamp(p, settings)
        except KLoraError as e:
            refuse(p, KLoraRefused(f"K-LoRA: {e}"))
        except Exception as e:  # noqa: BLE001  the host would swallow it and draw without us
            refuse(p, e)

    def networks_active(self, p: Any, network_data: Any) -> None:
        """``after_extra_networks_activate``."""
        if job := job_of(p):
            run_guarded(job, lambda: job.take_networks(p, network_data))

    def before_sampling(self, p: Any) -> None:
        """``process_before_every_sampling``."""
        if job := job_of(p):
            try:
                job.host.wrap_sampling(p, lambda steps: self.sample(job, p, steps))
            except Exception as e:  # noqa: BLE001  the host would swallow it and sample without us
                refuse_sampling(p, KLoraRefused(f"K-LoRA: {e}") if isinstance(e, KLoraError) else e)

    @contextmanager
    def sample(self, job: Job, p: Any, steps: int) -> Iterator[None]:
        """One sampling pass of ``job``, with our refusals in the form that API and UI understand."""
        self.sampling.append(job)
        try:
            with job.sampling(p, steps):
                yield
        except KLoraError as e:
            raise KLoraRefused(f"K-LoRA: {e}") from e
        finally:
            self.sampling = [other for other in self.sampling if other is not job or not job.released]

    def denoise(self, params: Any) -> None:
        """``on_cfg_denoiser``.  The host swallows our exceptions, but not the one by which it stops a pass itself."""
        p: Any = getattr(params.denoiser, "p", None)
        job = job_of(p)
        if job is None:
            self.note_pass_without_us(p)
            return
        run_guarded(job, lambda: job.advance(params))
        if job.error is not None:
            if job.current is None:  # nobody may be left who raises it
                infotext.withdraw(p)
                p.comment(f"K-LoRA: {job.error}")
            raise job.host.make_stop()

    def note_pass_without_us(self, p: Any) -> None:
        """What another extension draws within a K-LoRA job (ADetailer) has no part in it: the job's image says so."""
        if self.drawing is not None and p is not None:
            self.drawing.extra_generation_params["K-LoRA not in"] = name_pass(p)

    def finish(self, p: Any, processed: Any) -> None:
        """``postprocess``: the map of what was chosen, behind the images."""
        job = job_of(p)
        if self.drawing is p:
            self.drawing = None
        if job is not None and job.settings.show_map and job.passes and job.passes[0].progress:
            from ..map import draw_plan

            processed.images.append(draw_plan(job.passes[0].table()))
            processed.infotexts.append(processed.infotexts[0] if processed.infotexts else "")

    def unload(self) -> None:
        """``script_unloaded``: the UI is being reloaded, and these hooks are not called any more."""
        for job in self.sampling:
            job.end("the WebUI was reloaded while this job was sampling")
        self.clean()

    def clean(self, keep: Callable[[Job], bool] = lambda job: False) -> None:
        """Whatever jobs still hold is undone.  ``keep``: which of them are at work and go on."""
        for job in [job for job in self.sampling if not keep(job)]:
            job.close()
            self.sampling.remove(job)


def job_of(p: Any) -> Job | None:
    return getattr(p, JOB, None)


@contextmanager
def require_pass(job: Job) -> Iterator[None]:
    """Around another script's sampling: raises KLoraRefused where it drew without telling us of a pass."""
    before = len(job.passes)
    yield
    if job.error is None and len(job.passes) == before and not job.host.is_stopped():
        job.error = HostError("another script sampled in the WebUI's place, and without K-LoRA")
    if isinstance(job.error, KLoraError):
        raise KLoraRefused(f"K-LoRA: {job.error}")
    if job.error is not None:
        raise job.error


def name_pass(p: Any) -> str:
    """What an infotext calls a pass that is drawn within a job."""
    return "ADetailer's pass" if getattr(p, "_ad_inner", False) else "another extension's pass"


def read_request(p: Any, args: Sequence[Any]) -> Settings:
    """The settings that the arguments and a plot's axes ask for.  Raises SettingsError.

    A program that writes its settings out by name has them all read; what stands in a closed panel is nobody's concern.
    """
    by_name = bool(args) and isinstance(args[0], Mapping)
    given = xyz.with_axes(name_arguments(args), p)
    if not by_name and not given.get("enabled"):
        return Settings()
    return read_settings(given)
