"""dit_lens: look inside video diffusion transformers.

A site is an address. An intervention is a function applied at sites. A run is a generation with a list of
interventions. An analysis is a loop over runs that returns a tidy table.

Everything public is a name of this module; the modules below it may change without notice. A name is imported when it
is first asked for, so that ``import dit_lens`` itself takes no time.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - in groups, as the API pages have them
    # a model and what to do with it
    "CheckReport",
    "Gradients",
    "VideoDiT",
    "apply",
    "check",
    # addresses
    "Geometry",
    "Site",
    "Sites",
    "Tokens",
    # interventions; `reduce` is what captures are reduced by
    "Ablate",
    "At",
    "Bypass",
    "Capture",
    "Intervention",
    "Merge",
    "Noise",
    "Patch",
    "Steer",
    "intervention",
    "reduce",
    # what a run is made of and leaves behind
    "Call",
    "Ledger",
    "Replay",
    "Resume",
    "Row",
    "Run",
    "Schedule",
    # reading without changing
    "Attention",
    "CKA",
    "Contributions",
    "DepthLens",
    "Energy",
    "LensComparison",
    "PCAMap",
    "Preview",
    "StepLens",
    "TunedLens",
    "TunedLensRecipe",
    "attention",
    "cka",
    "cka_features",
    "compare_lenses",
    "contributions",
    "depth_lens",
    "energy",
    "fit_tuned_lens",
    "pca_map",
    "step_lens",
    "train_tuned_lens",
    # linear probes
    "CausalCheck",
    "Inversion",
    "LinearProbe",
    "ProbeData",
    "ProbeGrid",
    "ProbeSet",
    "RandomTwin",
    "Readout",
    "RidgeProbe",
    "Steering",
    "Streamed",
    "causal_check",
    "collect",
    "evaluate_probes",
    "invert",
    "load_probes",
    "logistic_from_store",
    "probe_grid",
    "probe_names",
    "require_disjoint",
    "stream_probes",
    # activations on disk
    "ActivationDataset",
    "Store",
    # any intervention over any grid
    "Metric",
    "Sweep",
    "SweepPlan",
    "carry_out",
    "plan_sweep",
    "sweep",
    "windows",
    # what is concluded; `behaviours`, intervals and pictures
    "AttributionPatching",
    "Evaluation",
    "FlowPlan",
    "GuidanceComparison",
    "InformationFlow",
    "Localization",
    "LocalizeConfig",
    "PatchingSweep",
    "PromptExchange",
    "attribution_patching",
    "behaviours",
    "compare_guidance",
    "evaluate",
    "exchange_prompts",
    "information_flow",
    "intervals",
    "localize",
    "patching_sweep",
    "plan_flow",
    "plot_chain_of_steps",
    "plot_layers_by_steps",
    "plots",
    # models that ship, tasks with exact truth, families
    "Architecture",
    "families",
    "load_organism",
    "load_planted",
    "organisms",
    "register",
    "tasks",
    # errors
    "DitLensError",
    "errors",
]

#: The public modules.
_MODULES = {
    "behaviours": "dit_lens.analysis.behaviours",
    "errors": "dit_lens.errors",
    "families": "dit_lens.families",
    "intervals": "dit_lens.results.intervals",
    "organisms": "dit_lens.organisms",
    "plots": "dit_lens.results.plots",
    "reduce": "dit_lens.interventions.reduce",
    "tasks": "dit_lens.tasks",
}
#: The modules of all other public names.
_NAMES = {
    "dit_lens.analysis.attribution.estimate": "attribution_patching",
    "dit_lens.analysis.attribution.result": "AttributionPatching",
    "dit_lens.analysis.flow.flow": "information_flow plan_flow",
    "dit_lens.analysis.flow.plan": "FlowPlan",
    "dit_lens.analysis.flow.result": "InformationFlow",
    "dit_lens.analysis.guidance": "GuidanceComparison compare_guidance",
    "dit_lens.analysis.localization.localize": "localize",
    "dit_lens.analysis.localization.result": "Localization LocalizeConfig",
    "dit_lens.analysis.patching": "PatchingSweep patching_sweep",
    "dit_lens.analysis.prompts": "PromptExchange exchange_prompts",
    "dit_lens.analysis.success": "Evaluation evaluate",
    "dit_lens.engine.apply": "apply",
    "dit_lens.engine.gradients": "Gradients",
    "dit_lens.errors": "DitLensError",
    "dit_lens.families.base": "Architecture",
    "dit_lens.families.registry": "register",
    "dit_lens.interventions.ablate": "Ablate",
    "dit_lens.interventions.base": "At Intervention intervention",
    "dit_lens.interventions.bypass": "Bypass",
    "dit_lens.interventions.capture": "Capture",
    "dit_lens.interventions.merge": "Merge",
    "dit_lens.interventions.noise": "Noise",
    "dit_lens.interventions.patch": "Patch",
    "dit_lens.interventions.steer": "Steer",
    "dit_lens.lens.attention.read": "attention",
    "dit_lens.lens.attention.result": "Attention",
    "dit_lens.lens.contributions": "Contributions contributions",
    "dit_lens.lens.depth": "DepthLens depth_lens",
    "dit_lens.lens.preview": "Preview",
    "dit_lens.lens.representation.cka": "CKA cka cka_features",
    "dit_lens.lens.representation.energy": "Energy energy",
    "dit_lens.lens.representation.pca": "PCAMap pca_map",
    "dit_lens.lens.steps": "StepLens step_lens",
    "dit_lens.lens.tuned.compare": "LensComparison compare_lenses",
    "dit_lens.lens.tuned.fit": "fit_tuned_lens train_tuned_lens",
    "dit_lens.lens.tuned.recipe": "TunedLensRecipe",
    "dit_lens.lens.tuned.tuned_lens": "TunedLens",
    "dit_lens.model": "VideoDiT",
    "dit_lens.organisms.load": "load_organism",
    "dit_lens.organisms.planted_truth": "load_planted",
    "dit_lens.probing.causal": "CausalCheck Steering causal_check",
    "dit_lens.probing.cross_validate": "probe_grid",
    "dit_lens.probing.evaluate": "evaluate_probes",
    "dit_lens.probing.fit.estimators": "LinearProbe RidgeProbe",
    "dit_lens.probing.logistic": "logistic_from_store",
    "dit_lens.probing.probe_grid": "ProbeGrid",
    "dit_lens.probing.probe_set": "ProbeSet load_probes probe_names",
    "dit_lens.probing.rows.collect": "collect",
    "dit_lens.probing.rows.data": "ProbeData require_disjoint",
    "dit_lens.probing.rows.random_weights": "RandomTwin",
    "dit_lens.probing.rows.readout": "Readout",
    "dit_lens.probing.rows.sources": "Inversion invert",
    "dit_lens.probing.stream": "Streamed stream_probes",
    "dit_lens.results.frames": "plot_chain_of_steps plot_layers_by_steps",
    "dit_lens.runs.call": "Call",
    "dit_lens.runs.inputs": "Row",
    "dit_lens.runs.ledger": "Ledger",
    "dit_lens.runs.replay": "Replay Resume",
    "dit_lens.runs.run": "Run",
    "dit_lens.runs.schedule": "Schedule",
    "dit_lens.sites.geometry": "Geometry",
    "dit_lens.sites.site": "Site",
    "dit_lens.sites.sites": "Sites",
    "dit_lens.sites.tokens": "Tokens",
    "dit_lens.store.dataset": "ActivationDataset",
    "dit_lens.store.store": "Store",
    "dit_lens.sweeps.axes": "windows",
    "dit_lens.sweeps.metrics": "Metric",
    "dit_lens.sweeps.plan": "SweepPlan plan_sweep",
    "dit_lens.sweeps.sweep": "Sweep carry_out sweep",
    "dit_lens.validation.check": "check",
    "dit_lens.validation.report": "CheckReport",
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names.split()}

if TYPE_CHECKING:  # the same once more for type checkers and editors; a test compares the two
    from dit_lens import errors, families, organisms, tasks
    from dit_lens.analysis import behaviours
    from dit_lens.analysis.attribution.estimate import attribution_patching
    from dit_lens.analysis.attribution.result import AttributionPatching
    from dit_lens.analysis.flow.flow import information_flow, plan_flow
    from dit_lens.analysis.flow.plan import FlowPlan
    from dit_lens.analysis.flow.result import InformationFlow
    from dit_lens.analysis.guidance import GuidanceComparison, compare_guidance
    from dit_lens.analysis.localization.localize import localize
    from dit_lens.analysis.localization.result import Localization, LocalizeConfig
    from dit_lens.analysis.patching import PatchingSweep, patching_sweep
    from dit_lens.analysis.prompts import PromptExchange, exchange_prompts
    from dit_lens.analysis.success import Evaluation, evaluate
    from dit_lens.engine.apply import apply
    from dit_lens.engine.gradients import Gradients
    from dit_lens.errors import DitLensError
    from dit_lens.families.base import Architecture
    from dit_lens.families.registry import register
    from dit_lens.interventions import reduce
    from dit_lens.interventions.ablate import Ablate
    from dit_lens.interventions.base import At, Intervention, intervention
    from dit_lens.interventions.bypass import Bypass
    from dit_lens.interventions.capture import Capture
    from dit_lens.interventions.merge import Merge
    from dit_lens.interventions.noise import Noise
    from dit_lens.interventions.patch import Patch
    from dit_lens.interventions.steer import Steer
    from dit_lens.lens.attention.read import attention
    from dit_lens.lens.attention.result import Attention
    from dit_lens.lens.contributions import Contributions, contributions
    from dit_lens.lens.depth import DepthLens, depth_lens
    from dit_lens.lens.preview import Preview
    from dit_lens.lens.representation.cka import CKA, cka, cka_features
    from dit_lens.lens.representation.energy import Energy, energy
    from dit_lens.lens.representation.pca import PCAMap, pca_map
    from dit_lens.lens.steps import StepLens, step_lens
    from dit_lens.lens.tuned.compare import LensComparison, compare_lenses
    from dit_lens.lens.tuned.fit import fit_tuned_lens, train_tuned_lens
    from dit_lens.lens.tuned.recipe import TunedLensRecipe
    from dit_lens.lens.tuned.tuned_lens import TunedLens
    from dit_lens.model import VideoDiT
    from dit_lens.organisms.load import load_organism
    from dit_lens.organisms.planted_truth import load_planted
    from dit_lens.probing.causal import CausalCheck, Steering, causal_check
    from dit_lens.probing.cross_validate import probe_grid
    from dit_lens.probing.evaluate import evaluate_probes
    from dit_lens.probing.fit.estimators import LinearProbe, RidgeProbe
    from dit_lens.probing.logistic import logistic_from_store
    from dit_lens.probing.probe_grid import ProbeGrid
    from dit_lens.probing.probe_set import ProbeSet, load_probes, probe_names
    from dit_lens.probing.rows.collect import collect
    from dit_lens.probing.rows.data import ProbeData, require_disjoint
    from dit_lens.probing.rows.random_weights import RandomTwin
    from dit_lens.probing.rows.readout import Readout
    from dit_lens.probing.rows.sources import Inversion, invert
    from dit_lens.probing.stream import Streamed, stream_probes
    from dit_lens.results import intervals, plots
    from dit_lens.results.frames import plot_chain_of_steps, plot_layers_by_steps
    from dit_lens.runs.call import Call
    from dit_lens.runs.inputs import Row
    from dit_lens.runs.ledger import Ledger
    from dit_lens.runs.replay import Replay, Resume
    from dit_lens.runs.run import Run
    from dit_lens.runs.schedule import Schedule
    from dit_lens.sites.geometry import Geometry
    from dit_lens.sites.site import Site
    from dit_lens.sites.sites import Sites
    from dit_lens.sites.tokens import Tokens
    from dit_lens.store.dataset import ActivationDataset
    from dit_lens.store.store import Store
    from dit_lens.sweeps.axes import windows
    from dit_lens.sweeps.metrics import Metric
    from dit_lens.sweeps.plan import SweepPlan, plan_sweep
    from dit_lens.sweeps.sweep import Sweep, carry_out, sweep
    from dit_lens.validation.check import check
    from dit_lens.validation.report import CheckReport
else:  # type checkers must not see it: they would take any name for a public one

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return _import_module(_MODULES[name])
        if name in _WHERE:
            return getattr(_import_module(_WHERE[name]), name)
        raise AttributeError(f"module 'dit_lens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
