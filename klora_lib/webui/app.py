"""What each hook of the WebUI does.  Without K-LoRA in the panel or the prompts, a hook leaves everything as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .. import infotext
from ..errors import HostError, KLoraError, LoadError
from ..hosts import detect
from ..late import Late
from ..patching import unwrap_instance_function, wrap_instance_function
from ..rule.cache import Library
from . import facts, live, routes
from .refuse import KLoraRefused, refuse, refuse_late, refuse_sampling, run_before_init

if TYPE_CHECKING:
    from . import job as jobs
    from . import maps
    from . import save as saving
    from . import wishes as wished
    from .job import Job
else:
    jobs = Late("klora_lib.webui.job")
    maps = Late("klora_lib.webui.maps")
    saving = Late("klora_lib.webui.save")
    wished = Late("klora_lib.webui.wishes")

JOB = "klora_job"  # on p


class App:
    """Holds what lives longer than a job: files and scores already read, and the jobs that have an open sampling pass."""

    def __init__(self) -> None:
        self.library = Library()
        self.facts = facts.FactCache()
        self.sampling_jobs: list[Job] = []  # the last one samples; the others wait in the middle of a pass
        self.enabled_p: Any = None  # the p of the last enabled job, until the job ends

    def begin(self, p: Any, args: Sequence[Any]) -> None:
        """``process``: undo what a crashed job left behind.  When all scripts have had this hook, ``prepare`` the job."""
        before = vars(p).pop(JOB, None)
        copied = before is not None and before is find_job(self.enabled_p)  # ADetailer begins a copy of p for every image
        unwrap_instance_function(p, "sample")
        try:
            if before is not None and not copied:
                infotext.withdraw(p)  # img2img's batch draws all its images with one p
            self.clean(keep=lambda job: job.current is not None)
            if not copied and not self.sampling_jobs:
                self.enabled_p = None
            run_before_init(p, lambda: self.prepare(p, args, copied))
        except Exception as e:  # noqa: BLE001  the host would ignore it and draw without K-LoRA
            refuse(p, e)

    def prepare(self, p: Any, args: Sequence[Any], copied: bool) -> None:
        """If K-LoRA is on, in the panel or by a tag of a prompt, prepare the job.  Raises KLoraRefused."""
        try:
            wishes = wished.read_wishes(p, args)
            if not any(wish.first or wish.hires for wish in wishes):
                return
            host = detect()
            host.refuse_script(p)
            job = jobs.prepare(host, self.library, wishes, p)
            wrap_instance_function(p, "sample", lambda: require_pass(job))
            setattr(p, JOB, job)
            if not copied:
                self.enabled_p = p
            job.tell(p, wishes[0])
            if job.settings.show_map:
                _ = maps.append_maps  # imported now, so that what cannot be loaded is told before there is an image
        except KLoraError as e:
            raise KLoraRefused(f"K-LoRA: {e}") from None

    def take_networks(self, p: Any, network_data: Any) -> None:
        """``after_extra_networks_activate``."""
        if job := find_job(p):
            jobs.run_guarded(job, lambda: job.take_networks(p, network_data))
            return
        try:
            wished.refuse_late_tag(wished.take_tag(network_data), None)
        except KLoraError as e:
            refuse_late(p, KLoraRefused(f"K-LoRA: {e}"))

    def prepare_sampling(self, p: Any) -> None:
        """``process_before_every_sampling``."""
        if job := find_job(p):
            try:
                job.host.wrap_sampling(p, lambda steps: self.run_pass(job, p, steps))
            except Exception as e:  # noqa: BLE001  the host would ignore it and sample without K-LoRA
                refuse_sampling(p, KLoraRefused(f"K-LoRA: {e}") if isinstance(e, KLoraError) else e)

    @contextmanager
    def run_pass(self, job: Job, p: Any, steps: int) -> Iterator[None]:
        """One sampling pass of ``job``.  Raises refusals as KLoraRefused, which the API and the UI can show."""
        self.sampling_jobs.append(job)
        try:
            with job.run_pass(p, steps):
                yield
        except KLoraError as e:
            raise KLoraRefused(f"K-LoRA: {e}") from e
        finally:
            self.sampling_jobs = [other for other in self.sampling_jobs if other is not job or not job.is_released]

    def advance(self, params: Any) -> None:
        """``on_cfg_denoiser``.  The host ignores exceptions from here, except the one with which it stops a pass itself."""
        p: Any = getattr(params.denoiser, "p", None)
        job = find_job(p)
        if job is None:
            self.note_other_pass(p)
            return
        jobs.run_guarded(job, lambda: job.advance(params))
        if job.error is not None:
            if job.current is None:  # maybe no pass is left that raises the error, so the image's text says it
                infotext.withdraw(p)
                p.comment(f"K-LoRA: {job.error}")
            raise job.host.make_stop()

    def note_other_pass(self, p: Any) -> None:
        """Write into the job's infotext that another extension (ADetailer) drew within the job, without K-LoRA."""
        if self.enabled_p is not None and p is not None:
            self.enabled_p.extra_generation_params["K-LoRA not in"] = name_pass(p)

    def finish(self, p: Any, processed: Any) -> None:
        """``postprocess``: append the selection map to the images, if it is wanted."""
        job = find_job(p)
        if self.enabled_p is p:
            self.enabled_p = None
        if job is not None and job.settings.show_map:
            maps.append_maps(job, p, processed)

    def save(self, args: Sequence[Any], name: Any, segments: Any, steps: Any, overwrite: Any) -> str:
        """The button *Save as LoRA*: what to tell the user, in Markdown."""
        try:
            return saving.format_saved(saving.save_lora(detect(), self.library, args, name, segments, steps, overwrite))
        except LoadError as e:
            return f"Nothing was saved: {e}."
        except KLoraError as e:
            return saving.format_refusal(e)

    def describe_lora(self, name: Any) -> str:
        """HTML under a picker."""
        try:
            return facts.describe_lora(detect(), self.facts, name)
        except HostError:
            return ""  # the panel's notice says it

    def check_pair(self, content: Any, style: Any) -> str:
        """HTML that says why the two chosen LoRAs do not fit; empty if they do."""
        try:
            return facts.check_pair(detect(), self.library, content, style)
        except HostError:
            return ""

    def serve(self, demo: Any, app: Any) -> None:
        """``app_started``: add our routes to the WebUI's server."""
        routes.add_routes(app, self.library)
        live.add_live_map(app, self.library, live.WebUISource())

    def unload(self) -> None:
        """``script_unloaded``: the UI is being reloaded, and these hooks will not be called again."""
        for job in self.sampling_jobs:
            job.end("the WebUI was reloaded while this job was sampling")
        self.clean()

    def clean(self, keep: Callable[[Job], bool] = lambda job: False) -> None:
        """Close the jobs that have an open pass, and forget them.  ``keep(job)``: whether a job may go on."""
        for job in [job for job in self.sampling_jobs if not keep(job)]:
            job.close()
            self.sampling_jobs.remove(job)


def find_job(p: Any) -> Job | None:
    return getattr(p, JOB, None)


@contextmanager
def require_pass(job: Job) -> Iterator[None]:
    """Put around another script's sampling.  Raises KLoraRefused if it sampled without calling our hooks."""
    before = job.runs
    yield
    if job.error is None and job.runs == before and not job.host.is_stopped():
        job.error = HostError("another script sampled in the WebUI's place, and without K-LoRA")
    if isinstance(job.error, KLoraError):
        raise KLoraRefused(f"K-LoRA: {job.error}")
    if job.error is not None:
        raise job.error


def name_pass(p: Any) -> str:
    """What the infotext calls a pass that another extension makes within a job."""
    return "ADetailer's pass" if getattr(p, "_ad_inner", False) else "another extension's pass"
