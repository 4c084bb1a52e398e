"""Which events follow a step."""

from dataclasses import dataclass

from soflow.config import Config

#: Steps whose numbers may stay on the device, in one process and in several.
READ_EVERY, READ_EVERY_IF_SEVERAL = 100, 10


@dataclass(frozen=True)
class Schedule:
    """The events after step `step`, counted from 1; all of them are due after the last one."""

    config: Config
    has_measure: bool  # whether there are evaluations during training

    def is_due(self, step: int, every: int) -> bool:
        """Whether this is the last step, or one of every `every`; 0: the last alone."""
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
        """Whether the numbers of the steps until this one are read from the device.

        Several processes then also ask one another whether a signal came.
        """
        return self.anything(step) or step % (READ_EVERY_IF_SEVERAL if several else READ_EVERY) == 0

    def anything(self, step: int) -> bool:
        return self.draws(step) or self.logs(step) or self.saves(step)
