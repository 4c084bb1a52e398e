"""The trainer: one loop for every method. It knows networks, batches and objectives only by their contracts."""

import gc
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from math import isfinite
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch import Tensor, nn

from soflow.config import Config
from soflow.data.augment import AugmentPipe
from soflow.data.batches import Batches, seed_of, seeded_generator
from soflow.data.dataset import Dataset
from soflow.errors import InputError, RunError, first_line
from soflow.objectives import OBJECTIVES
from soflow.objectives.base import Draws, Losses, Objective
from soflow.run.checkpoint import TrainState, newest_good
from soflow.run.checkpoint_manager import CheckpointManager
from soflow.run.folder import RunFolder
from soflow.solution import FlowModel
from soflow.symbols import Batch
from soflow.system import processes
from soflow.training.compile import compile_blocks, compile_errors_explained
from soflow.training.display import Display
from soflow.training.ema import Ema
from soflow.training.loss_module import LossModule
from soflow.training.nonfinite import OTHERS, all_finite, sample_to_blame, wrong_gradients
from soflow.training.optimizers import learning_rate, make_optimizer
from soflow.training.peers import require_plain_launch
from soflow.training.precision import float32_products
from soflow.training.sharding import gather_state, load_network, load_optimizer, spread
from soflow.training.signals import Stopped, StopRequest, stop_request

log = logging.getLogger(__name__)

#: Called where a sample grid is due, with how far training is, the averaged weights and the device.
Watch = Callable[[TrainState, dict[str, Tensor], torch.device], None]
#: Called where an evaluation is due, with the averaged weights and the device: figures by name, the first one to be lowered.
Measure = Callable[[dict[str, Tensor], torch.device], dict[str, float]]


class Trainer:
    """Trains `network` by `objective` on `dataset` as `config` says, in `folder`, going on from what lies there."""

    def __init__(
        self,
        model: FlowModel,
        objective: Objective,
        dataset: Dataset,
        augment: AugmentPipe | None,
        config: Config,
        folder: RunFolder,
        display: Display,
        watch: Watch,
        measure: Measure | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.watch = watch
        self.measure = measure
        require_plain_launch()
        AcceleratorState._reset_state()  # Accelerate keeps the precision of a process's first run; this may be another run
        self.accelerator = Accelerator(
            cpu=processes.count() > 1
            and not torch.cuda.is_available(),  # else no process group there
            mixed_precision="bf16" if config.precision.startswith("bf16") else "no",
            gradient_accumulation_steps=config.train.accumulate,
            log_with=list(config.train.trackers) or None,
            project_dir=str(folder.path),
        )
        self.device = self.accelerator.device
        if config.train.batch_size % (self.accelerator.num_processes * config.train.accumulate):
            raise InputError(
                f"train.batch_size={config.train.batch_size} cannot be split into equal parts for "
                f"{self.accelerator.num_processes} processes with train.accumulate={config.train.accumulate}"
            )
        self.display = display
        self.batches = Batches(
            dataset,
            config.train.batch_size,
            config.train.seed,
            augment,
            self.device,
            config.data.flip,
        )
        self.objective = objective
        assert isinstance(model.net, nn.Module)
        self.model, self.network = model, model.net
        network = model.net
        self.state = TrainState()
        self.manager = CheckpointManager(folder, config.checkpoint)
        if config.compile:
            compile_blocks(network)
        loss = LossModule(model, objective)
        self.spread_out = config.parallel == "fsdp" and self.accelerator.num_processes > 1
        if self.spread_out:
            # evaluation_mode: autocast, and no DDP around it
            self.module = self.accelerator.prepare_model(
                loss, device_placement=False, evaluation_mode=True
            )
            spread(loss, self.device, blocks=not OBJECTIVES[config.objective.name].whole_network)
            self.optimizer = self.accelerator.prepare(
                make_optimizer(config.optimizer, network.parameters())
            )
        else:
            optimizer = make_optimizer(config.optimizer, network.to(self.device).parameters())
            self.module, self.optimizer = self.accelerator.prepare(loss, optimizer)
        self.ema = Ema(network, config.ema)
        self.model = loss.model = replace(model, average=self.ema.net)
        self.resume()

    def resume(self) -> None:
        """Takes up the newest good checkpoint, if there is one."""
        checkpoint, problems = newest_good(self.folder.checkpoints)
        for problem in problems:
            log.info(f"{problem}; passing over it")
        if len(set(self.of_all(checkpoint.step if checkpoint else -1))) > 1:
            raise RunError(
                f"the processes do not see the same checkpoints: {self.folder.path} must be on a disk that all share"
            )
        if checkpoint is None:
            if problems:  # a run of which anything is left is not begun anew
                place = self.folder.checkpoints
                raise RunError(
                    f"{problems[0]}; no checkpoint in {place} is good: bring one back, or move it to begin anew"
                )
            return
        log.info(f"going on from {checkpoint.path}")
        try:
            load_network(self.network, checkpoint.weights("raw"))
            self.ema.load_state_dict(checkpoint.weights("ema"))
            load_optimizer(self.optimizer, checkpoint.optimizer_state())
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(
                f"{checkpoint.path} does not fit the run's network: {first_line(error)}"
            ) from None
        self.state = checkpoint.train_state()
        self.manager.remember_best(self.state)

    def run(self) -> None:
        """Trains to the last step. Raises Stopped after a signal, RunError where numbers go wrong or cannot be kept."""
        steps, state = self.config.train.steps, self.state
        if state.step >= steps and not state.due:
            return
        self.module.train()
        if self.accelerator.is_main_process:
            self.folder.forget_metrics_after(state.step - state.due)
        self.track(
            lambda: self.accelerator.init_trackers(
                "", init_kwargs={"tensorboard": {"purge_step": state.step - state.due + 1}}
            )
        )
        self.display.start(state.step, steps)
        try:
            with stop_request() as request:
                while state.due or state.step < steps:
                    if not state.due:
                        self.timed_step()
                    if (stop := self.agreed(request)) is None:
                        stop = self.follow_up(request)
                    if stop is not None and (state.due or state.step < steps):
                        self.save(
                            last_chance=True
                        )  # while signals still only ask: another must not cost this checkpoint
                        raise Stopped(stop)
        finally:
            self.display.stop()

    def follow_up(self, request: StopRequest) -> int | None:
        """What comes after a step where it is due: looking at samples, measuring them, the log, a checkpoint. Returns the
        signal that cut the looking short, if one did: then all of it is yet to be done.
        """
        config, state, done = self.config, self.state, self.state.step
        final = done == config.train.steps
        drawn = final or (config.train.sample_every > 0 and done % config.train.sample_every == 0)
        measured = self.measure is not None and (final or done % config.evaluate.every == 0)
        figures: dict[str, float] = {}
        if drawn or measured:
            weights = gather_state(self.ema.state_dict(), self.accelerator.is_main_process)
            if self.accelerator.is_main_process:
                request.cut_short(lambda: self.look(weights, drawn, figures if measured else None))
            self.accelerator.wait_for_everyone()
            if (stop := self.agreed(request)) is not None:
                return stop
        state.due = False
        self.keep_best(figures)
        if done % config.train.log_every == 0 or final or measured:
            self.log(figures)
        if done % config.checkpoint.every == 0 or final or measured:
            self.save(last_chance=final)
        return None

    def close(self) -> None:
        """Ends trackers and the process group. The data-parallel wrapper holds on to the group, so it must go first: a
        group that outlives its end aborts the process as it exits.
        """
        self.accelerator.free_memory()
        del self.module, self.optimizer
        gc.collect()
        self.track(self.accelerator.end_training)

    def track(self, tell: Callable[[], None]) -> None:
        """Tells trackers something. Where their files cannot be written they are let go: metrics.jsonl has all of it."""
        try:
            tell()
        except OSError as error:
            self.accelerator.trackers = []
            log.info(
                f"cannot write what train.trackers asks for ({error.strerror or error}): going on without"
            )

    def agreed(self, request: StopRequest) -> int | None:
        """A signal that reached any process, known to all of them after the same step."""
        return max(self.of_all(request.signum or 0)) or None

    def of_all(self, number: int) -> list[int]:
        """A number of each process. Every process must ask for it."""
        if self.accelerator.num_processes == 1:
            return [number]
        return self.accelerator.gather(torch.tensor([number], device=self.device)).tolist()

    def timed_step(self) -> None:
        start = time.perf_counter()
        with (
            compile_errors_explained(),
            float32_products("tf32" in self.config.precision, self.device),
        ):
            loss = self.step(self.state.step)
        seconds = time.perf_counter() - start
        self.state.step += 1
        self.state.due = True
        self.state.seconds += seconds
        self.count("seconds", seconds, 1)
        self.display.step(self.state.step, loss, self.config.train.batch_size / seconds)

    def step(self, step: int) -> float:
        """One optimizer step, counted from 0, on this process's shares of the global batch; returns the loss."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step)
        torch.manual_seed(
            seed_of(config.train.seed, f"dropout of process {accelerator.process_index}", step)
        )
        parts: list[Losses] = []
        for batch, draws in self.shares(step):
            with accelerator.accumulate(self.module):
                losses = self.module(batch, draws, step / config.train.steps)
                accelerator.backward(losses.total)
                parts.append(losses)
                if accelerator.sync_gradients:  # the last part
                    loss, wrong = self.read(parts)
                    if not wrong:
                        if config.optimizer.clip:
                            accelerator.clip_grad_norm_(
                                self.network.parameters(), config.optimizer.clip
                            )
                        self.optimizer.step()
                    self.optimizer.zero_grad()
        if wrong:
            self.skip(step, wrong)
        self.ema.update(step)
        return loss

    def shares(self, step: int) -> Iterator[tuple[Batch, Draws]]:
        """What this process works on in a step, a part of the batch at a time."""
        train, device = self.config.train, self.device
        draws = self.objective.draw(
            (train.batch_size, *self.config.data.shape),
            seeded_generator(train.seed, "draws", step, device),
        )
        index, count = (
            self.accelerator.process_index,
            self.accelerator.num_processes * train.accumulate,
        )
        for share in range(index, count, self.accelerator.num_processes):
            yield self.batches.share(step, share, count), draws.rows(slice(share, None, count))

    def read(self, parts: list[Losses]) -> tuple[float, str]:
        """The loss over all processes. Adds it and its parts to the running means; or, where one of them or a gradient is
        not finite, says which, the same in every process.
        """
        values = [{"loss": losses.total.detach()[None], **losses.parts} for losses in parts]
        names = list(values[0])
        sums = torch.stack(
            [torch.stack([part[name].sum() for part in values]).sum() for name in names]
        )
        counts = [float(sum(len(part[name]) for part in values)) for name in names]
        well = all_finite(parameter.grad for parameter in self.network.parameters())
        mine = torch.cat(
            [
                sums.float(),
                torch.tensor([*counts, 1.0], device=self.device),
                well.to(self.device)[None],
            ]
        )
        *numbers, processes, well_in = self.accelerator.reduce(mine, "sum").tolist()
        totals = dict(zip(names, zip(numbers, numbers[len(names) :], strict=False), strict=False))
        loss = totals["loss"][0] / totals["loss"][1]
        wrong = [
            f"the {name.replace('_', ' ')} is {total}"
            for name, (total, _) in totals.items()
            if not isfinite(total)
        ]
        wrong = [what for what in wrong if " weight is " not in what] or wrong
        if not wrong and well_in < processes:
            where = next(
                filter(None, gather_object([wrong_gradients(self.network)])), "a parameter"
            )
            wrong = [f"the gradient of {where} is not finite"]
        if wrong:
            return loss, ", ".join(wrong)
        for name, (total, count) in totals.items():
            self.count(name, total, count)
        return loss, ""

    def skip(self, step: int, wrong: str) -> None:
        """Leaves out the update of a step, counted from 0, if that is asked for and has not been too often; else ends the
        run.
        """
        config, what = self.config.train, f"{wrong}, at step {step + 1}{self.blame(step)}"
        if config.on_nonfinite == "stop":
            self.fail(what, "train.on_nonfinite=skip, or ")
        if self.state.skipped == config.max_skipped:
            self.fail(
                f"{what}, after {config.max_skipped} updates were skipped, as many as train.max_skipped allows"
            )
        self.state.skipped += 1
        log.info(
            f"{what}; skipping the update, {self.state.skipped} of at most {config.max_skipped}"
        )

    def blame(self, step: int) -> str:
        """The first sample by which a step goes wrong, in whichever process; nothing where no single one does, or where no
        process has the network to try it.
        """
        if self.spread_out:
            return ""
        progress, parameters = step / self.config.train.steps, list(self.ema.trained.values())
        found: list[tuple[int, str]] = []
        count = self.accelerator.num_processes * self.config.train.accumulate
        with torch.compiler.set_stance("force_eager"), self.accelerator.autocast():
            for part, (batch, draws) in enumerate(self.shares(step)):
                one = sample_to_blame(
                    lambda batch, draws: self.objective(self.model, batch, draws, progress),
                    batch,
                    draws,
                    parameters,
                )
                if one:
                    row = (
                        one[0] * count
                        + part * self.accelerator.num_processes
                        + self.accelerator.process_index
                    )
                    found.append((row, one[1]))
        found = gather_object(found)
        if not found:
            return ""
        row, told = min(found)
        others = OTHERS if len(found) > 1 and not told.endswith(OTHERS) else ""
        return f", by sample {row} of its batch (number {self.batches.indices(step)[row]} of the data): {told}{others}"

    def fail(self, what: str, advice: str = "") -> NoReturn:
        """Ends a run whose numbers went wrong."""
        good, _ = newest_good(self.folder.checkpoints)
        last = f"the last good checkpoint is {good.path}" if good else "there is no checkpoint yet"
        raise RunError(
            f"{what}; {last}; try {advice}in a new folder a smaller optimizer.lr, a longer optimizer.warmup, "
            "optimizer.clip=1, or precision=fp32"
        )

    def count(self, name: str, total: float, count: float) -> None:
        """Adds to the running mean of a logged value."""
        running = self.state.sums.setdefault(name, [0.0, 0.0])
        running[0] += total
        running[1] += count

    def log(self, figures: dict[str, float]) -> None:
        """One line of metrics.jsonl: means since the line before, and what was measured."""
        means = {name: total / count for name, (total, count) in self.state.sums.items() if count}
        self.state.sums = {}
        seconds_per_step = means.pop("seconds")
        metrics: dict[str, Any] = {
            "step": self.state.step,
            **means,
            **figures,
            "lr": learning_rate(self.config.optimizer, self.state.step - 1),
            "seconds": self.state.seconds,
            "steps_per_second": 1 / seconds_per_step,
            "samples_per_second": self.config.train.batch_size / seconds_per_step,
        }
        if self.state.skipped:
            metrics["skipped"] = self.state.skipped
        if self.accelerator.is_main_process:
            self.manager.log(metrics)
        values = {name: value for name, value in metrics.items() if name != "step"}
        self.track(lambda: self.accelerator.log(values, step=self.state.step))
        self.display.log(metrics)

    def save(self, last_chance: bool = True) -> None:
        """A checkpoint, of whole tensors to which every process gives its share. Raises RunError for weights that are not
        finite: these are never saved.
        """
        if not all(self.of_all(int(all_finite(self.network.parameters())))):
            self.fail(f"weights are no longer finite numbers after step {self.state.step}")
        main = self.accelerator.is_main_process
        weights, ema, optimizer = (
            gather_state(x.state_dict(), main) for x in (self.network, self.ema, self.optimizer)
        )
        if main:
            self.manager.save(self.state, weights, ema, optimizer, last_chance)
        self.accelerator.wait_for_everyone()

    def look(
        self, weights: dict[str, Tensor], drawn: bool, figures: dict[str, float] | None
    ) -> None:
        """Looks at the averaged weights, in the first process while the others wait: fills in `figures`, where these are
        asked for, and draws samples. Changes nothing else.
        """
        if figures is not None:
            assert self.measure is not None
            try:
                figures.update(self.measure(weights, self.device))
            except (InputError, RunError, OSError) as error:
                log.info(f"step {self.state.step} has no figure: {error}")
        if drawn:
            try:
                self.watch(self.state, weights, self.device)
            except (InputError, RunError, OSError) as error:
                log.info(f"step {self.state.step} has no picture: {error}")

    def keep_best(self, figures: dict[str, float]) -> None:
        """Notes whether the first of the figures is the best so far."""
        for name, distance in [
            (name, figure) for name, figure in figures.items() if isfinite(figure)
        ][:1]:
            what = f"{name} of {self.config.evaluate.num_while_training}"
            better = (
                self.state.best is None or what != self.state.best_of or distance < self.state.best
            )
            if better:
                self.state.best, self.state.best_of, self.state.best_step = (
                    distance,
                    what,
                    self.state.step,
                )
            log.info(
                f"step {self.state.step}: {name} {distance:.4g}{', the best so far' if better else ''}"
            )


def require_trackers(names: tuple[str, ...]) -> None:
    """Raises InputError with the install line for a tracker whose package is missing."""
    for name in names:
        if find_spec(name) is None:
            raise InputError(
                f"train.trackers names {name}, which is not installed: pip install 'soflow[track]'"
            )
