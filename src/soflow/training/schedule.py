"""The periodic work that is due after a step."""

from dataclasses import dataclass

from soflow.config import Config

#: Number of steps whose results may stay on the device, with one process and with several.
READ_EVERY, READ_EVERY_IF_SEVERAL = 100, 10


@dataclass(frozen=True)
class Schedule:
    """Decides what is due after a step, counted from 1. After the last step, everything is due."""

    config: Config
    has_measure: bool  # whether the run is evaluated during training

    def is_due(self, step: int, every: int) -> bool:
        """Whether this is the last step, or a multiple of `every`; 0: only the last step."""
        return step == self.config.train.steps or (every > 0 and step % every == 0)

    def draws(self, step: int) -> bool:
        return self.is_due(step, self.config.train.sample_every)

    def measures(self, step: int) -> bool:
        return self.has_measure and self.is_due(step, self.config.evaluate.every)

    def logs(self, step: int) -> bool:
        return self.measures(step) or self.is_due(step, self.config.train.log_every)

    def saves(self, step: int) -> bool:
        return self.measures(step) or self.is_due(step, self.config.checkpoint.every)

    def reads(self, step: int, several: bool) -> bool:
        """Whether the results of the steps up to this one are read from the device.

        With several processes, the processes then also check whether one received a signal.
        """
        return self.anything(step) or step % (READ_EVERY_IF_SEVERAL if several else READ_EVERY) == 0

    def anything(self, step: int) -> bool:
        return self.draws(step) or self.logs(step) or self.saves(step)
