"""Training of an organism's transformer by flow matching."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save
from torch import Tensor, nn

from dit_lens.families.tiny.text import build_text_encoder
from dit_lens.files.atomic import write_atomic
from dit_lens.model import VideoDiT
from dit_lens.organisms.build import build_pipeline, build_transformer
from dit_lens.organisms.training.data import Batches, Encoded, encoded_batches, source
from dit_lens.organisms.training.loop import Loop, Stateful, recipe_id, stage_at, total_steps
from dit_lens.organisms.training.optim import Ema, MuonAdamW, learning_rate_at
from dit_lens.organisms.training.presets import Preset
from dit_lens.runs.seeds import derive

if TYPE_CHECKING:
    from diffusers import WanImageToVideoPipeline


def train_denoiser(preset: Preset, vae: AutoencoderKLWan, folder: Path) -> WanImageToVideoPipeline:
    """Train (or finish) the transformer of a preset, and its text encoder if the recipe says so.

    Returns the pipeline with the averaged weights. Those after the steps in ``keep`` are written to
    ``step-NNNNN.safetensors`` in the folder, in half precision.
    """
    torch.manual_seed(derive(preset.seed, "transformer"))
    text_encoder = build_text_encoder(preset.config.text_width, words=preset.config.words)
    transformer = build_transformer(preset.config)
    pipeline = build_pipeline(preset.config, vae, transformer, text_encoder).to(preset.device)
    trainer = Trainer(preset, pipeline, folder)
    parts: dict[str, Stateful] = {"model": trainer.trained, "optimiser": trainer.optimiser, "ema": trainer.ema}
    recipe = recipe_id(preset, vae)
    loop = Loop("denoiser", folder, total_steps(preset.denoiser.stages), parts, recipe, preset.denoiser.check_every)
    loop.run(trainer.advance, trainer.solve_rates)
    trainer.load_average()
    return pipeline


class Trainer:
    """State of one training run of a transformer."""

    def __init__(self, preset: Preset, pipeline: WanImageToVideoPipeline, folder: Path) -> None:
        self.preset, self.pipeline, self.folder = preset, pipeline, folder
        self.model = VideoDiT(pipeline, defaults=preset.config.run_defaults)
        self.recipe = preset.denoiser
        self.total = total_steps(self.recipe.stages)
        parts = {"transformer": pipeline.transformer.train()}
        if self.recipe.train_text:
            parts["text_encoder"] = pipeline.text_encoder
        self.trained = nn.ModuleDict(parts)
        small = ("patch_embedding", "condition_embedder", "proj_out", "scale_shift_table")
        self.optimiser = MuonAdamW(
            self.trained,
            self.recipe.stages[0].learning_rate,
            keep_adamw=("text_encoder", *(f"transformer.{name}" for name in small)),
        )
        self.ema = Ema(self.trained, self.recipe.ema)
        self._batches: Iterator[Encoded] | None = None
        self._current: Encoded | None = None

    def advance(self, step: int) -> float:
        """One optimiser step; returns the loss."""
        batch = self._encoded(step)
        with torch.autocast(self.preset.device, torch.bfloat16, enabled=self.preset.autocast):
            loss = self._loss(batch, step)
        loss.backward()
        peak = stage_at(self.recipe.stages, step).learning_rate
        self.optimiser.step(learning_rate_at(step, self.total, peak, self.recipe.warmup, self.recipe.decay))
        self.ema.update(self.trained, step)
        if step + 1 in self.recipe.keep:
            self._keep(step + 1)
        return float(loss.detach())

    def _encoded(self, step: int) -> Encoded:
        recipe, config = self.recipe, self.preset.config
        if self._batches is None:
            self._batches = encoded_batches(
                Batches(
                    vae=self.pipeline.vae,
                    frame_local=config.frame_local_vae,
                    stages=recipe.stages,
                    batch=recipe.batch,
                    frames=config.frames,
                    seed=self.preset.seed,
                    first=step,
                    every=recipe.reuse,
                )
            )
        if self._current is None or step % recipe.reuse == 0:
            target, condition, prompts = next(self._batches)
            self._current = Encoded(target.to(self.preset.device), condition.to(self.preset.device), prompts)
        return self._current

    def _loss(self, batch: Encoded, step: int) -> Tensor:
        """Mean squared error of the velocity, with sigma drawn uniformly and shifted as the scheduler shifts it."""
        generator = torch.Generator().manual_seed(self.preset.seed * 1_000_003 + step)
        target, shift = batch.target, self.preset.config.shift
        uniform = torch.rand(len(target), generator=generator)
        sigma = (shift * uniform / (1 + (shift - 1) * uniform)).to(target.device).view(-1, 1, 1, 1, 1)
        noise = torch.randn(target.shape, generator=generator).to(target.device)
        dropped = (torch.rand(len(target), generator=generator) < self.recipe.drop_prompt).tolist()
        mask = torch.zeros_like(target[:, :2])
        mask[:, :, 0] = 1
        velocity: Tensor = self.pipeline.transformer(
            hidden_states=torch.cat([(1 - sigma) * target + sigma * noise, mask, batch.condition], dim=1),
            timestep=1000 * sigma.flatten(),
            encoder_hidden_states=self._text(["" if d else p for d, p in zip(dropped, batch.prompts, strict=True)]),
            return_dict=False,
        )[0]
        return (velocity.float() - (noise - target)).square().mean()

    def _text(self, prompts: list[str]) -> Tensor:
        """Prompts as the pipeline encodes them, each different one once: float (B, tokens, width)."""
        different, index = np.unique(prompts, return_inverse=True)
        with torch.set_grad_enabled(self.recipe.train_text):
            embeds, _ = self.pipeline.encode_prompt(
                different.tolist(),
                do_classifier_free_guidance=False,
                max_sequence_length=self.preset.config.max_prompt_tokens,
            )
        text: Tensor = embeds[torch.from_numpy(index).to(embeds.device)]
        return text

    @torch.no_grad()
    def solve_rates(self, step: int) -> dict[str, float]:
        """Strict success and mean score of the averaged weights on validation instances of the stage's tasks."""
        kept = {n: p.clone() for n, p in self.trained.named_parameters()}
        self.load_average()
        found: dict[str, float] = {}
        for kind in stage_at(self.recipe.stages, step).mix:
            task = source(kind, self.preset.config.frames)
            instances = task.sample(self.recipe.check_count, seed=0, split="val")
            runs = self.model.runs(instances, seed=0, progress=None)
            scores = [task.score(run.decoded, list(run.inputs)) for run in runs]
            strict, total = (np.concatenate([getattr(s, name) for s in scores]) for name in ("strict", "total"))
            found |= {f"{kind} solved": float(strict.mean()), f"{kind} score": float(total.mean())}
        self.trained.load_state_dict(kept, strict=False)
        return found

    @torch.no_grad()
    def load_average(self) -> None:
        self.trained.load_state_dict(self.ema.values, strict=False)

    def _keep(self, step: int) -> None:
        small = {name: values.half().contiguous().cpu() for name, values in self.ema.values.items()}
        write_atomic(self.folder / f"step-{step:05d}.safetensors", save(small))
