"""The extension's life in a WebUI: what each hook of the host does.  Off means off: a disabled job leaves at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from ..core.cache import Library
from ..errors import KLoraError
from ..hosts import detect
from ..settings import named, read_settings
from . import infotext, xyz
from .job import Job, guarded, prepare
from .refuse import KLoraRefused, refuse

JOB = "klora_job"  # on p


class App:
    """Owns what outlives a job: files and scores already read, and the last job, should it have left anything."""

    def __init__(self) -> None:
        self.library = Library()
        self.last: Job | None = None

    def begin(self, p: Any, args: Sequence[Any]) -> None:
        """``process``: undo what a crashed job left; then, if enabled, make everything ready or refuse."""
        self.clean()
        vars(p).pop(JOB, None)
        given = xyz.with_axes(named(args), p)
        if in_panel(args) and not given.get("enabled"):
            return  # what stands in a closed panel is nobody's concern
        try:
            settings = read_settings(given)
            if settings.enabled:
                self.last = prepare(detect(), self.library, settings, p.steps)
                setattr(p, JOB, self.last)
                infotext.stamp(p, settings)
        except KLoraError as e:
            refuse(p, KLoraRefused(f"K-LoRA: {e}"))
        except Exception as e:  # noqa: BLE001  the host would swallow it and draw without us
            refuse(p, e)

    def networks_active(self, p: Any, network_data: Any) -> None:
        """``after_extra_networks_activate``."""
        if job := job_of(p):
            guarded(job, lambda: job.take_networks(p, network_data))

    def before_sampling(self, p: Any) -> None:
        """``process_before_every_sampling``."""
        if job := job_of(p):
            job.host.around_sampling(p, lambda steps: heard(job.sampling(p, steps)))

    def denoise(self, params: Any) -> None:
        """``on_cfg_denoiser``.  The host swallows our exceptions, but not the one by which it stops a pass itself."""
        job = job_of(getattr(params.denoiser, "p", None))
        if job is None:
            return
        guarded(job, lambda: job.advance(params))
        if job.error is not None:
            raise job.host.stop_sampling()

    def finish(self, p: Any, processed: Any) -> None:
        """``postprocess``: the map of what was chosen, behind the images."""
        job = job_of(p)
        if job is not None and job.settings.show_map and job.plans:
            from .plot import draw_plan

            processed.images.append(draw_plan(job.plans[0], job.passes[0]))
            processed.infotexts.append(processed.infotexts[0] if processed.infotexts else "")

    def clean(self) -> None:
        """Whatever the last job still holds is undone."""
        if self.last is not None:
            self.last.close()
            self.last = None


def job_of(p: Any) -> Job | None:
    return getattr(p, JOB, None)


@contextmanager
def heard(sampling: AbstractContextManager[None]) -> Iterator[None]:
    """``sampling``, with our refusals in the form that API and UI understand."""
    try:
        with sampling:
            yield
    except KLoraError as e:
        raise KLoraRefused(f"K-LoRA: {e}") from e


def in_panel(args: Sequence[Any]) -> bool:
    """Do the arguments come from the panel (one a field), rather than from a program that wrote them out by name?"""
    return not (args and isinstance(args[0], Mapping))
