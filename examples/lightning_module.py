"""SoFlow as a LightningModule, trained by Lightning's Trainer.

soflow provides the objective, the model and the EMA weights. Lightning provides the data loading,
the loop, devices and checkpoints. Needs `pip install pytorch-lightning`.

    python examples/lightning_module.py

300 steps take 48 s of CPU time on one core. One-step samples then have a Frechet distance of 3.8
(features of the digits classifier).
"""

import warnings
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import soflow


class FlowModule(lightning.LightningModule):
    """A flow model with its objective.

    Args:
        model: The model.
        objective: The objective.
        lr: The learning rate.
        ema_decay: The decay of the EMA weights per step.
    """

    def __init__(
        self,
        model: soflow.FlowModel,
        objective: soflow.SoFlow,
        lr: float = 2e-3,
        ema_decay: float = 0.995,
    ) -> None:
        super().__init__()
        self.loss = soflow.LossModule(model, objective)  # registers the network
        self.model, self.objective, self.lr, self.ema_decay = model, objective, lr, ema_decay

    def on_fit_start(self) -> None:
        self.ema = soflow.Ema(self.loss.network, decay=self.ema_decay)  # on the training device
        self.generator = torch.Generator(self.device).manual_seed(self.global_rank)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, labels = batch  # (B, C, H, W) in -1 to 1, (B,)
        draws = self.objective.draw(x.shape, self.generator)
        progress = self.global_step / int(self.trainer.estimated_stepping_batches)
        losses: soflow.Losses = self.loss(soflow.Batch(x, labels), draws, progress)
        for name, values in losses.parts.items():
            self.log(name, values.mean(), prog_bar=name.endswith("mse"))
        return losses.total

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        self.ema.update(self.global_step - 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.loss.parameters(), lr=self.lr, weight_decay=0)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["ema"] = self.ema.state_dict()


def main(
    steps: int = 300,
    out: str | Path = "runs/lightning",
    batch_size: int = 128,
    num: int = 1000,
    features: str = "digits",
    bar: bool = True,
) -> float:
    """Trains, samples and saves. Returns the Frechet distance of one-step samples to the data."""
    warnings.filterwarnings("ignore", message=".*num_workers.*")  # the data are in memory
    lightning.seed_everything(0, verbose=False)
    data = soflow.load_data("digits")
    assert data.labels is not None
    loader = DataLoader(
        TensorDataset(data.samples(), data.labels), batch_size, shuffle=True, drop_last=True
    )
    network = soflow.DiT(data.shape, data.num_classes, patch=4, width=64, depth=3)
    model = soflow.FlowModel(network, data.shape, data.num_classes)
    module = FlowModule(model, soflow.SoFlow(guidance=soflow.Guidance(scale=1.5)))
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=bar,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)

    folder = soflow.save_model(model, out, module.objective, steps=steps, ema=module.ema, data=data)
    average = replace(model, net=module.ema.averaged_network())
    labels = torch.arange(num) % data.num_classes
    images = soflow.sample_many(average, num, labels)
    figures = soflow.evaluate_samples(images, features, data, labels=labels).rows[0]
    print(f"{folder}: distance by {features} {figures.distance:.2f}")
    return figures.distance


if __name__ == "__main__":
    main()
