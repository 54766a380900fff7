"""The extension's life in a WebUI: what each hook of the host does.  Off means off: a disabled job leaves at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from .. import infotext
from ..core.cache import Library
from ..errors import KLoraError
from ..hosts import detect
from ..settings import Settings, named, read_settings
from . import xyz
from .job import Job, guarded, prepare
from .refuse import KLoraRefused, refuse, refuse_sampling

JOB = "klora_job"  # on p


class App:
    """Owns what outlives a job: files and scores already read, and the last job, should it have left anything."""

    def __init__(self) -> None:
        self.library = Library()
        self.last: Job | None = None

    def begin(self, p: Any, args: Sequence[Any]) -> None:
        """``process``: undo what a crashed job left; then, if enabled, make everything ready or refuse."""
        vars(p).pop(JOB, None)
        try:
            self.clean()
            settings = asked(p, args)
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
            try:
                job.host.around_sampling(p, lambda steps: heard(job.sampling(p, steps)))
            except Exception as e:  # noqa: BLE001  the host would swallow it and sample without us
                refuse_sampling(p, KLoraRefused(f"K-LoRA: {e}") if isinstance(e, KLoraError) else e)

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
        if job is not None and job.settings.show_map and job.plans and job.passes[0]:
            from .plot import draw_plan

            processed.images.append(draw_plan(job.plans[0].over(job.passes[0])))
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


def asked(p: Any, args: Sequence[Any]) -> Settings:
    """The settings that the arguments and a plot's axes ask for.  Raises SettingsError.

    A program that writes its settings out by name has them all read; what stands in a closed panel is nobody's concern.
    """
    by_name = bool(args) and isinstance(args[0], Mapping)
    given = xyz.with_axes(named(args), p)
    if not by_name and not given.get("enabled"):
        return Settings()
    return read_settings(given)
