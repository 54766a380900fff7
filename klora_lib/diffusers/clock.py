"""How far a sampling pass is: the index of its denoiser calls in the scheduler's timesteps."""

from __future__ import annotations

from typing import Any

from ..errors import HostError, SettingsError
from ..rule.schedule import compute_noise_progress, compute_step_progress, count_whole_steps


class Clock:
    """One pass over ``scheduler.timesteps``.

    Guidance may call the denoiser twice in a step.  A step of a second-order sampler has two entries.
    """

    def __init__(self, scheduler: Any, timestep: float, strength: float | None):
        """Args: timestep: of the first denoiser call.  strength: of the pipeline call, if it has one."""
        self.scheduler = scheduler
        self.timesteps = scheduler.timesteps  # a new tensor for every pass, which shows that the next pass has begun
        self.values = [float(t) for t in self.timesteps]
        self.strength = strength
        self.first_index = self.index = self.find_first(timestep)

    def find_first(self, timestep: float) -> int:
        """Index of the first call.  Raises HostError if the denoiser is called with a timestep of another schedule."""
        index = self.read_step_index()
        if index is None:
            index = self.find_nearest(timestep)
        if not any(is_alike(self.values[index], t) for t in (timestep, 1000 * timestep, 1000 * (1 - timestep))):
            name = type(self.scheduler).__name__
            raise HostError(f"the denoiser is called at timestep {timestep:g}, where the pipeline's {name} is at "
                            f"{self.values[index]:g}: is another pipeline or scheduler using it?")  # fmt: skip
        return index

    def read_step_index(self) -> int | None:
        """The scheduler's own index.  None if it has none, or not yet (flow schedulers set it after their first step)."""
        index = getattr(self.scheduler, "step_index", None)
        if index is None:
            index = getattr(self.scheduler, "begin_index", None)
        return None if index is None else min(int(index), len(self.values) - 1)

    def find_nearest(self, timestep: float, start: int = 0) -> int:
        return min(range(start, len(self.values)), key=lambda i: abs(self.values[i] - timestep))

    def advance(self, timestep: float) -> None:
        """Move on for a denoiser call after the first."""
        index, values = self.read_step_index(), self.values
        if index is not None:
            self.index = max(self.index, index)
        elif hasattr(self.scheduler, "step_index"):
            pass  # a second call within the first step
        elif values[self.index + 1 : self.index + 2] == [values[self.index]]:
            self.index += 1  # the entry is repeated (PNDM), so calls are counted
        else:
            self.index = self.find_nearest(timestep, self.index)

    @property
    def call_index(self) -> int:
        return self.index - self.first_index

    @property
    def call_count(self) -> int:
        return len(self.values) - self.first_index

    @property
    def start(self) -> float:
        """The progress at which the pass begins: 1 − strength; without a strength, the share of entries that it skips."""
        if self.strength is not None:
            return min(max(1.0 - self.strength, 0.0), 1.0)
        return self.first_index / len(self.values)

    @property
    def full_steps(self) -> int:
        """Sampler steps of a full schedule."""
        order = int(getattr(self.scheduler, "order", 1))
        return count_whole_steps(-(-self.call_count // order), self.start)

    def find_progress(self, by: str) -> float:
        if by == "noise":
            return self.find_noise_progress()
        return compute_step_progress(self.call_index, self.call_count, self.start)

    def find_noise_progress(self) -> float:
        """1 − timestep/(N−1) of a discrete schedule, 1 − σ of a flow's, whose timesteps are N·σ."""
        n = read_train_timesteps(self.scheduler)
        return compute_noise_progress(self.values[self.index], n + 1 if is_flow(self.scheduler) else n)


def is_alike(one: float, other: float) -> bool:
    """Whether both are the same timestep, up to the rounding of half precision."""
    return abs(one - other) <= 0.01 * max(abs(one), abs(other)) + 0.01


def is_flow(scheduler: Any) -> bool:
    config = getattr(scheduler, "config", {})
    flows = config.get("use_flow_sigmas", False) or config.get("prediction_type") == "flow_prediction"
    return bool(flows) or "FlowMatch" in type(scheduler).__name__


def read_train_timesteps(scheduler: Any) -> int:
    """N, the length of the training schedule.  Raises SettingsError if the scheduler's timesteps are not from one."""
    config = getattr(scheduler, "config", {})
    n = config.get("num_train_timesteps")
    if n is None or config.get("timestep_type") == "continuous" or type(scheduler).__name__.startswith("EDM"):
        raise SettingsError(f"noise needs the timesteps of a training schedule, and {type(scheduler).__name__} has none; "
                            "choose steps", "progress")  # fmt: skip
    return int(n)
