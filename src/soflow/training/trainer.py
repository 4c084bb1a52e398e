"""The trainer: one training loop for all objectives.

It uses networks, batches and objectives only through their interfaces.
"""

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from accelerate.utils import broadcast_object_list
from torch import nn

from soflow.config import Config
from soflow.data.augment import AugmentPipe
from soflow.data.batches import Batches
from soflow.data.dataset import Dataset
from soflow.errors import RunError, first_line, first_problem
from soflow.objectives.base import Objective
from soflow.run.checkpoint import RunningMean, TrainState
from soflow.run.checkpoint_manager import CheckpointManager
from soflow.run.folder import RunFolder
from soflow.run.metrics import forget_metrics_after
from soflow.solution import FlowModel
from soflow.system.memory import out_of_memory_explained
from soflow.system.progress import Progress, Task
from soflow.training.callbacks import Callback, Callbacks, Training
from soflow.training.compile import compile_errors_explained
from soflow.training.distributed import (
    full_state,
    gather_number,
    gather_state,
    load_network,
    load_optimizer,
    make_accelerator,
)
from soflow.training.ema import Ema
from soflow.training.loss_module import LossModule, prepared
from soflow.training.memory import TOO_LARGE, memory_advice
from soflow.training.metrics import add_means, progress_text, summary, take_line
from soflow.training.nonfinite import NonFinite
from soflow.training.optimizers import kept_shapes, make_optimizer
from soflow.training.periodic import Draw, Measure, PeriodicResults, evaluate_and_draw, keep_best
from soflow.training.precision import float32_products
from soflow.training.schedule import Schedule
from soflow.training.signals import StopRequest, stop_request, stopped_by
from soflow.training.step import TrainStep, Unread, are_finite
from soflow.training.trackers import Trackers

log = logging.getLogger(__name__)


class Trainer:
    """Trains a model in a run folder. Resumes from the newest good checkpoint in the folder."""

    def __init__(
        self,
        model: FlowModel,
        objective: Objective,
        dataset: Dataset,
        augment: AugmentPipe | None,
        config: Config,
        folder: RunFolder,
        progress: Progress,
        draw: Draw | None = None,
        measure: Measure | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        assert isinstance(model.net, nn.Module)
        self.config, self.folder, self.progress = config, folder, progress
        self.draw, self.measure, self.callbacks = draw, measure, Callbacks(callbacks)
        self.schedule = Schedule(config, has_measure=measure is not None)
        self.network = model.net
        self.memory_advice = memory_advice(config, self.network)
        self.state = TrainState()
        self.unread: list[Unread] = []  # steps whose results are still on the device
        self.shown = ""  # loss and speed for the progress bar
        self.manager = CheckpointManager(folder, config.checkpoint)
        self.accelerator = make_accelerator(config, folder)
        self.device = self.accelerator.device
        self.trackers = Trackers(self.accelerator, config, folder)
        loss = LossModule(model, objective)
        self.module = prepared(loss, config, self.accelerator)
        optimizer = make_optimizer(config.optimizer, self.network)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.ema = Ema(self.network, **config.ema.model_dump())
        loss.model = replace(model, average=self.ema.net)
        train, data = config.train, config.data
        self.batches = Batches(
            dataset, train.batch_size, train.seed, augment, self.device, data.flip, data.balance
        )
        self.train_step = TrainStep(
            config, self.accelerator, self.module, self.network, objective, self.optimizer,
            self.ema, self.batches,
        )  # fmt: skip
        self.resume()
        self.loss = float("nan")  # the loss of the last step that was read
        self.training = Training(config, folder, loss.model, self.state, self.read_loss)

    def resume(self) -> None:
        """Loads the newest good checkpoint, if there is one."""
        checkpoint = self.manager.newest_good()
        if len(set(gather_number(self.accelerator, checkpoint.step if checkpoint else -1))) > 1:
            what = "the processes do not see the same checkpoints"
            raise RunError(f"{what}: put {self.folder.path} on a disk that all processes share")
        if checkpoint is None:
            self.manager.require_nothing_lost()
            return
        log.info(f"resuming from {checkpoint.path}")
        try:
            with out_of_memory_explained(TOO_LARGE):
                load_network(self.network, checkpoint.weights("raw"))
                self.ema.load_state_dict(checkpoint.weights("ema"))
                shapes = kept_shapes(self.config.optimizer, self.network)
                load_optimizer(self.optimizer, checkpoint.optimizer_state(), shapes)
        except RunError:
            raise
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            what = f"{checkpoint.path} does not fit the network of the run"
            why = first_problem(error) if isinstance(error, RuntimeError) else first_line(error)
            raise RunError(f"{what}: {why}") from None
        self.state = checkpoint.train_state()
        self.manager.remember_best(self.state)

    def resume_data(self, batch_size: int) -> None:
        """Sets the position in the data after the samples seen so far.

        Args:
            batch_size: The batch size of the steps so far, for a checkpoint that does not record
                the number of samples.
        """
        state = self.state
        state.samples = state.samples or state.step * batch_size
        self.batches.offset = state.samples - state.step * self.config.train.batch_size

    def run(self) -> None:
        """Trains to the last step.

        Raises:
            Stopped: After a signal, once a checkpoint is written; see signals.py.
            RunError: If a value is not finite, or a checkpoint cannot be written.
        """
        steps, state = self.config.train.steps, self.state
        if state.step >= steps and not state.due:
            return
        self.module.train()
        logged = state.step - state.due
        if self.accelerator.is_main_process:
            forget_metrics_after(self.folder.metrics, logged)
        self.trackers.start(logged)
        training, callbacks = self.training, self.callbacks
        callbacks.on_start(training)
        with self.progress("training", steps, state.step) as task, stop_request() as request:
            while (state.due or state.step < steps) and training.stopped is None:
                if not state.due:
                    self.timed_step()
                    task.update(state.step, self.shown)
                    callbacks.on_step(training)
                if (stop := self.agreed(request)) is None:
                    stop = self.periodic_work(request, task)
                if stop is not None and (state.due or state.step < steps):
                    # Inside stop_request, so that another signal cannot interrupt the checkpoint.
                    self.save(last_chance=True)
                    raise stopped_by(stop, str(self.folder.path))
        if training.stopped is not None:
            if not self.schedule.saves(state.step):
                self.save()
            log.info(f"stopped after step {state.step} of {steps}: {training.stopped}")
        callbacks.on_end(training)

    def timed_step(self) -> None:
        """Makes one step and counts it in the state.

        A GPU computes asynchronously. Its results are read only when something is due.
        """
        start, tf32 = time.perf_counter(), "tf32" in self.config.precision
        with (
            out_of_memory_explained(self.memory_advice),
            compile_errors_explained(),
            float32_products(tf32, self.device),
        ):
            self.train_step.fixed_lr = self.training.fixed_lr
            self.unread.append(self.train_step(self.state.step))
        self.state.step += 1
        self.state.samples += self.config.train.batch_size
        self.state.due = True
        reads = self.reads_now
        if reads:
            self.read()
        seconds = time.perf_counter() - start
        add_means(self.state, {"seconds": RunningMean(seconds, 1)})
        self.state.seconds += seconds
        if reads:
            self.shown = progress_text(self.state, self.config.train.batch_size)

    @property
    def computes_at_once(self) -> bool:
        """Whether the device computes synchronously, as a CPU does."""
        return self.device.type == "cpu"

    @property
    def reads_now(self) -> bool:
        """Whether the results of the last steps are read now."""
        several = self.accelerator.num_processes > 1
        return self.computes_at_once or self.schedule.reads(self.state.step, several)

    def read(self) -> None:
        """Reads the results of the last steps and waits for the device. Every process must call it.

        Raises:
            RunError: If a value is not finite, unless such updates are skipped.
        """
        unread, self.unread = self.unread, []
        for result in self.train_step.read(unread):
            self.loss = result.loss
            if result.nonfinite is None:
                add_means(self.state, result.means)
            else:
                self.skip(result.nonfinite)

    def read_loss(self) -> float:
        """The loss of the last step."""
        self.read()
        return self.loss

    def skip(self, what: NonFinite) -> None:
        """Counts a skipped update. Raises RunError if updates must not be skipped, or too many."""
        config, state = self.config.train, self.state
        if config.on_nonfinite == "stop":
            raise self.manager.diverged(str(what), "train.on_nonfinite=skip, or ")
        if state.skipped == config.max_skipped:
            limit = f"the limit train.max_skipped={state.skipped} of skipped updates is reached"
            raise self.manager.diverged(f"{what}, and {limit}")
        state.skipped += 1
        log.warning(
            f"{what}; skipping the update ({state.skipped} of at most {config.max_skipped})"
        )

    def periodic_work(self, request: StopRequest, task: Task) -> int | None:
        """Does the work that is due after a step: evaluation, samples, log line, checkpoint.

        Returns:
            The signal that interrupted the evaluation or the samples, if any. All work is then
            still due.
        """
        config, state = self.config, self.state
        draws, measures = self.schedule.draws(state.step), self.schedule.measures(state.step)
        results = PeriodicResults()
        if draws or measures:
            main = self.accelerator.is_main_process
            weights = gather_state(self.ema.state_dict(), main)
            measure, draw = self.measure if measures else None, self.draw if draws else None
            if main:  # the other processes wait
                request.cut_short(
                    lambda: evaluate_and_draw(measure, draw, state, weights, self.device, results)
                )
            self.accelerator.wait_for_everyone()
            if (stop := self.agreed(request)) is not None:
                return stop
        if draws:
            self.trackers.log_samples(state.step)
        state.due = False
        keep_best(state, results.metrics, config.evaluate.num_while_training)
        if self.schedule.logs(state.step):
            self.log(results.metrics, task)
        if self.schedule.saves(state.step):
            self.save(last_chance=state.step == config.train.steps)
        if results.drawn is not None:
            self.callbacks.on_sample(self.training, *results.drawn)
        if measures:
            (metrics,) = broadcast_object_list([results.metrics])
            self.callbacks.on_evaluation(self.training, metrics)
        return None

    def log(self, metrics: Mapping[str, float], task: Task) -> None:
        """Writes one line of metrics.jsonl and shows it."""
        lr = self.train_step.learning_rate(self.state.step - 1)
        line = take_line(self.state, metrics, lr, self.config.train.batch_size)
        if self.accelerator.is_main_process:
            self.manager.log(line)
        self.trackers.log(line)
        task.log(summary(line, self.config.train.steps))

    def save(self, last_chance: bool = True) -> None:
        """Writes a checkpoint of full tensors. Every process must call this method.

        Raises:
            RunError: If a weight is not finite. Such weights are never saved.
        """
        self.read()
        finite = bool(are_finite(self.network.parameters()).all())
        if not all(gather_number(self.accelerator, finite)):
            raise self.manager.diverged(f"the weights are not finite after step {self.state.step}")
        main = self.accelerator.is_main_process
        weights, ema, optimizer = (
            full_state(x.state_dict(), main) for x in (self.network, self.ema, self.optimizer)
        )
        if main:
            self.manager.save(self.state, weights, ema, optimizer, last_chance)
        self.accelerator.wait_for_everyone()
        place = self.folder.checkpoints / f"step-{self.state.step:08d}"
        if place.is_dir():  # writing may have failed, see checkpoint.on_failure
            self.callbacks.on_checkpoint(self.training, place)

    def agreed(self, request: StopRequest) -> int | None:
        """The signal that any process received. All processes see it after the same step."""
        if self.accelerator.num_processes > 1 and not self.reads_now:
            return None
        return max(gather_number(self.accelerator, request.signum or 0)) or None

    def close(self) -> None:
        """Closes trackers and the process group, and frees GPU memory.

        The data-parallel wrapper refers to the process group, so it is deleted first. Otherwise the
        process aborts at exit. Garbage collection takes half a second; a single process on a CPU
        does not need it.
        """
        del self.module, self.optimizer, self.train_step
        if self.accelerator.num_processes > 1 or self.device.type == "cuda":
            self.accelerator.free_memory()
            gc.collect()
        self.trackers.close()
