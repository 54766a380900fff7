"""Where a sampling pass is: the place of its denoiser calls in the scheduler's timesteps."""

from __future__ import annotations

from typing import Any

from ..errors import HostError, SettingsError
from ..rule.schedule import noise_progress, step_progress, whole_steps


class Clock:
    """One pass over ``scheduler.timesteps``.  Guidance may take two calls a step; second-order steps take two entries."""

    def __init__(self, scheduler: Any, timestep: float, strength: float | None):
        """Args: timestep: the first call's.  strength: of the pipeline call, where it has one."""
        self.scheduler = scheduler
        self.timesteps = scheduler.timesteps  # a new tensor for every pass: kept to know one from the next
        self.values = [float(t) for t in self.timesteps]
        self.strength = strength
        self.first = self.at = self.opening(timestep)

    def opening(self, timestep: float) -> int:
        """Place of the first call.  Raises HostError where the denoiser runs on another schedule than this one."""
        at = self.counted()
        if at is None:
            at = self.nearest(timestep)
        if not any(is_alike(self.values[at], told) for told in (timestep, 1000 * timestep, 1000 * (1 - timestep))):
            name = type(self.scheduler).__name__
            raise HostError(f"the denoiser is called at timestep {timestep:g}, where the pipeline's {name} is at "
                            f"{self.values[at]:g}: is another pipeline or scheduler using it?")  # fmt: skip
        return at

    def counted(self) -> int | None:
        """The scheduler's own count, where it keeps one and has begun (flow schedulers begin after their first step)."""
        at = getattr(self.scheduler, "step_index", None)
        if at is None:
            at = getattr(self.scheduler, "begin_index", None)
        return None if at is None else min(int(at), len(self.values) - 1)

    def nearest(self, timestep: float, start: int = 0) -> int:
        return min(range(start, len(self.values)), key=lambda i: abs(self.values[i] - timestep))

    def tick(self, timestep: float) -> None:
        """A denoiser call after the first."""
        at, values = self.counted(), self.values
        if at is not None:
            self.at = max(self.at, at)
        elif hasattr(self.scheduler, "step_index"):
            pass  # a second call within the first step
        elif values[self.at + 1 : self.at + 2] == [values[self.at]]:
            self.at += 1  # a repeated entry (PNDM): count calls
        else:
            self.at = self.nearest(timestep, self.at)

    @property
    def call(self) -> int:
        return self.at - self.first

    @property
    def total(self) -> int:
        return len(self.values) - self.first

    @property
    def start(self) -> float:
        """Where the pass begins: 1 − strength; without a strength, the part of the schedule that it leaves out."""
        if self.strength is not None:
            return min(max(1.0 - self.strength, 0.0), 1.0)
        return self.first / len(self.values)

    @property
    def whole(self) -> int:
        """Sampler steps of a full schedule."""
        order = int(getattr(self.scheduler, "order", 1))
        return whole_steps(-(-self.total // order), self.start)

    def progress(self, by: str) -> float:
        return self.noise() if by == "noise" else step_progress(self.call, self.total, self.start)

    def noise(self) -> float:
        """1 − timestep/(N−1) of a discrete schedule, 1 − σ of a flow's, whose timesteps are N·σ."""
        n = train_timesteps(self.scheduler)
        return noise_progress(self.values[self.at], n + 1 if is_flow(self.scheduler) else n)


def is_alike(one: float, other: float) -> bool:
    """The same timestep, after half precision."""
    return abs(one - other) <= 0.01 * max(abs(one), abs(other)) + 0.01


def is_flow(scheduler: Any) -> bool:
    config = getattr(scheduler, "config", {})
    flows = config.get("use_flow_sigmas", False) or config.get("prediction_type") == "flow_prediction"
    return bool(flows) or "FlowMatch" in type(scheduler).__name__


def train_timesteps(scheduler: Any) -> int:
    """N.  Raises SettingsError where the scheduler's timesteps are none of a training schedule."""
    config = getattr(scheduler, "config", {})
    n = config.get("num_train_timesteps")
    if n is None or config.get("timestep_type") == "continuous" or type(scheduler).__name__.startswith("EDM"):
        raise SettingsError(f"noise needs the timesteps of a training schedule, and {type(scheduler).__name__} has none; "
                            "choose steps", "progress")  # fmt: skip
    return int(n)
