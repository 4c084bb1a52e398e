"""soflow: generative models that draw a sample in one forward pass.

An implementation of "SoFlow: Solution Flow Models for One-Step Generative Modeling" (arXiv
2512.15657). `soflow.__all__` lists the public names in reading order. Each name is imported on
first use, so `import soflow` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from soflow.comparison.compare import compare as compare
    from soflow.config import Config as Config
    from soflow.config import read_recipe as read_recipe
    from soflow.data.batches import Batches as Batches
    from soflow.data.dataset import Dataset as Dataset
    from soflow.data.load import load_data as load_data
    from soflow.data.registry import SOURCES as SOURCES
    from soflow.drawing import sample_many as sample_many
    from soflow.errors import InputError as InputError
    from soflow.errors import RunError as RunError
    from soflow.evaluation.evaluate import EvaluationSettings as EvaluationSettings
    from soflow.evaluation.pictures import picture as picture
    from soflow.evaluation.pictures import save_picture as save_picture
    from soflow.guidance import DrawnGuidance as DrawnGuidance
    from soflow.guidance import Guidance as Guidance
    from soflow.interop.reference import import_checkpoint as import_checkpoint
    from soflow.networks import NETWORKS as NETWORKS
    from soflow.networks.dit import DiT as DiT
    from soflow.networks.in_context_dit import InContextDiT as InContextDiT
    from soflow.networks.mlp import MLP as MLP
    from soflow.networks.pretrained import VelocityOf as VelocityOf
    from soflow.networks.second_time import WithSecondTime as WithSecondTime
    from soflow.networks.unet import UNet as UNet
    from soflow.noising import LinearNoising as LinearNoising
    from soflow.noising import TrigNoising as TrigNoising
    from soflow.objectives import OBJECTIVES as OBJECTIVES
    from soflow.objectives.alpha_flow import AlphaFlow as AlphaFlow
    from soflow.objectives.base import Draws as Draws
    from soflow.objectives.base import Losses as Losses
    from soflow.objectives.base import Term as Term
    from soflow.objectives.base import adaptive_weight as adaptive_weight
    from soflow.objectives.base import losses as losses
    from soflow.objectives.consistency import Consistency as Consistency
    from soflow.objectives.flow_matching import FlowMatching as FlowMatching
    from soflow.objectives.guided import draw_ordered_jumps as draw_ordered_jumps
    from soflow.objectives.guided import guided_jumps as guided_jumps
    from soflow.objectives.imf import ImprovedMeanFlow as ImprovedMeanFlow
    from soflow.objectives.imf import ImprovedMeanFlowGuidance as ImprovedMeanFlowGuidance
    from soflow.objectives.jump_flow import JumpFlow as JumpFlow
    from soflow.objectives.mean_flow import MeanFlow as MeanFlow
    from soflow.objectives.mean_flow import MeanFlowGuidance as MeanFlowGuidance
    from soflow.objectives.passes import Inputs as Inputs
    from soflow.objectives.shortcut import Shortcut as Shortcut
    from soflow.objectives.soflow import SoFlow as SoFlow
    from soflow.objectives.soflow import SoFlowTimes as SoFlowTimes
    from soflow.parameterization import EulerParameterization as EulerParameterization
    from soflow.parameterization import TrigParameterization as TrigParameterization
    from soflow.sampling import integrate_velocity as integrate_velocity
    from soflow.sampling import ode as ode
    from soflow.sampling import one_step as one_step
    from soflow.sampling import renoise as renoise
    from soflow.solution import FlowModel as FlowModel
    from soflow.symbols import Batch as Batch
    from soflow.system.progress import silent as silent
    from soflow.system.progress import track as track
    from soflow.system.registry import Setting as Setting
    from soflow.times import LogitNormal as LogitNormal
    from soflow.times import MiddleTime as MiddleTime
    from soflow.training.callbacks import Callback as Callback
    from soflow.training.callbacks import Training as Training
    from soflow.training.ema import Ema as Ema
    from soflow.training.loss_module import LossModule as LossModule
    from soflow.workflows.evaluate import evaluate as evaluate
    from soflow.workflows.evaluate import evaluate_samples as evaluate_samples
    from soflow.workflows.load import Run as Run
    from soflow.workflows.load import load as load
    from soflow.workflows.report import report as report
    from soflow.workflows.sample import sample as sample
    from soflow.workflows.sample import sample_to_file as sample_to_file
    from soflow.workflows.sample_request import SampleRequest as SampleRequest
    from soflow.workflows.save import save_model as save_model
    from soflow.workflows.train import train as train

__version__ = "0.1.0"

_HOME = {
    # train and sample
    "train": "workflows.train",
    "Callback": "training.callbacks",
    "Training": "training.callbacks",
    "load": "workflows.load",
    "Run": "workflows.load",
    "sample": "workflows.sample",
    "sample_to_file": "workflows.sample",
    "SampleRequest": "workflows.sample_request",
    "evaluate": "workflows.evaluate",
    "evaluate_samples": "workflows.evaluate",
    "EvaluationSettings": "evaluation.evaluate",
    "report": "workflows.report",
    "compare": "comparison.compare",
    "import_checkpoint": "interop.reference",
    "one_step": "sampling",
    "renoise": "sampling",
    "ode": "sampling",
    "integrate_velocity": "sampling",
    "picture": "evaluation.pictures",
    "sample_many": "drawing",
    "save_picture": "evaluation.pictures",
    "track": "system.progress",
    "silent": "system.progress",
    "read_recipe": "config",
    "Config": "config",
    "InputError": "errors",
    "RunError": "errors",
    # your own training loop
    "load_data": "data.load",
    "Dataset": "data.dataset",
    "Batches": "data.batches",
    "Batch": "symbols",
    "Ema": "training.ema",
    "LossModule": "training.loss_module",
    "save_model": "workflows.save",
    # the mathematics
    "LinearNoising": "noising",
    "TrigNoising": "noising",
    "EulerParameterization": "parameterization",
    "TrigParameterization": "parameterization",
    "FlowModel": "solution",
    "LogitNormal": "times",
    "MiddleTime": "times",
    "Guidance": "guidance",
    "DrawnGuidance": "guidance",
    "SoFlow": "objectives.soflow",
    "SoFlowTimes": "objectives.soflow",
    "JumpFlow": "objectives.jump_flow",
    "MeanFlow": "objectives.mean_flow",
    "MeanFlowGuidance": "objectives.mean_flow",
    "ImprovedMeanFlow": "objectives.imf",
    "ImprovedMeanFlowGuidance": "objectives.imf",
    "AlphaFlow": "objectives.alpha_flow",
    "Shortcut": "objectives.shortcut",
    "Consistency": "objectives.consistency",
    "FlowMatching": "objectives.flow_matching",
    # networks
    "DiT": "networks.dit",
    "InContextDiT": "networks.in_context_dit",
    "UNet": "networks.unet",
    "MLP": "networks.mlp",
    "WithSecondTime": "networks.second_time",
    "VelocityOf": "networks.pretrained",
    # your own objective, network or data source
    "OBJECTIVES": "objectives",
    "NETWORKS": "networks",
    "SOURCES": "data.registry",
    "Setting": "system.registry",
    "Draws": "objectives.base",
    "Losses": "objectives.base",
    "Term": "objectives.base",
    "losses": "objectives.base",
    "adaptive_weight": "objectives.base",
    "draw_ordered_jumps": "objectives.guided",
    "guided_jumps": "objectives.guided",
    "Inputs": "objectives.passes",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'soflow' has no attribute '{name}'")
    return getattr(import_module(f"soflow.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
