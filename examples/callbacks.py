"""Callbacks: early stopping and a learning-rate finder.

python examples/callbacks.py
"""

from pathlib import Path

import matplotlib.pyplot as plt

import soflow


class EarlyStopping(soflow.Callback):
    """Stops when no evaluation has improved for `patience` steps.

    The best step is part of the run's state, so a resumed run stops at the same step.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluation(self, training: soflow.Training, figures: dict[str, float]) -> None:
        best = training.state.best_step
        if training.step - best >= self.patience:
            training.stop(f"the best figure is that of step {best}")


class LearningRateFinder(soflow.Callback):
    """Raises the learning rate in every step, and stops when the loss diverges.

    A good learning rate is several times smaller than the one with the smallest loss.
    """

    def __init__(self, first: float = 1e-5, last: float = 1.0, steps: int = 100) -> None:
        self.first, self.factor = first, (last / first) ** (1 / steps)
        self.rates: list[float] = []
        self.losses: list[float] = []  # averaged over about ten steps

    def on_start(self, training: soflow.Training) -> None:
        training.learning_rate = self.first

    def on_step(self, training: soflow.Training) -> None:
        assert training.learning_rate is not None
        before = self.losses[-1] if self.losses else training.loss
        self.losses.append(0.9 * before + 0.1 * training.loss)
        self.rates.append(training.learning_rate)
        training.learning_rate *= self.factor
        if self.losses[-1] > 2 * min(self.losses):
            training.stop("the loss has doubled")

    @property
    def best(self) -> float:
        """A tenth of the learning rate with the smallest loss."""
        return self.rates[self.losses.index(min(self.losses))] / 10

    def draw(self, file: Path) -> None:
        """Plots the loss against the learning rate."""
        figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
        axes.semilogx(self.rates, self.losses)
        axes.set(xlabel="learning rate", ylabel="loss")
        figure.savefig(file)
        plt.close(figure)


def main(steps: int = 240, out: str = "runs/callbacks") -> tuple[float, int]:
    """Finds a learning rate, then trains until samples stop improving.

    Returns:
        The learning rate and the number of training steps.
    """
    # The adaptive weight of SoFlow's loss hides its size, so search with the plain square.
    finder = LearningRateFinder(steps=steps // 2)
    settings = ["train.batch_size=64", "train.sample_every=0", "checkpoint.every=100000"]
    search = [f"train.steps={steps // 2}", "optimizer.warmup=0"]
    objective = soflow.FlowMatching()
    soflow.train("digits", f"{out}/search", settings + search, objective=objective,
                 callbacks=[finder])  # fmt: skip
    finder.draw(Path(out) / "learning-rate.png")
    print(f"learning rate {finder.best:.2g}")

    settings += [f"train.steps={steps}", f"optimizer.lr={finder.best}", "evaluate.every=50"]
    settings += ["evaluate.num_while_training=500", "ema.decay=0.99"]
    run = soflow.train("digits", f"{out}/run", settings, callbacks=[EarlyStopping(patience=100)])
    step = int(soflow.load(run.path).checkpoint.train_state().step)
    print(f"trained for {step} of {steps} steps")
    return finder.best, step


if __name__ == "__main__":
    main()
