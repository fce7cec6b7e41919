"""Training of an organism's transformer by flow matching."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from torch import Tensor

from dit_lens.model import VideoDiT
from dit_lens.organisms.build import build_pipeline, build_text_encoder, build_transformer
from dit_lens.organisms.training.data import Encoded, encoded_batches, training_task
from dit_lens.organisms.training.loop import Loop, stage_at, total_steps
from dit_lens.organisms.training.optim import Ema, MuonAdamW, learning_rate_at
from dit_lens.organisms.training.presets import Preset
from dit_lens.tasks.maze import MazeInstance


def train_denoiser(preset: Preset, vae: AutoencoderKLWan, folder: Path) -> WanImageToVideoPipeline:
    """Train (or finish) the transformer of a preset; returns the pipeline with the averaged weights."""
    torch.manual_seed(preset.seed + 1)
    text_encoder = build_text_encoder(preset.config)
    transformer = build_transformer(preset.config).to(preset.device)
    pipeline = build_pipeline(preset.config, vae, transformer, text_encoder).to(preset.device)
    trainer = Trainer(preset, pipeline, transformer.train())
    parts = {"transformer": transformer, "optimiser": trainer.optimiser, "ema": trainer.ema}
    loop = Loop("denoiser", folder, total_steps(preset.denoiser.stages), parts, preset.denoiser.check_every)
    loop.run(trainer.advance, trainer.solve_rate)
    trainer.load_average()
    return pipeline


class Trainer:
    """State of one training run of a transformer."""

    def __init__(self, preset: Preset, pipeline: WanImageToVideoPipeline, transformer: WanTransformer3DModel) -> None:
        self.preset, self.pipeline, self.transformer = preset, pipeline, transformer
        self.model = VideoDiT(pipeline, defaults=preset.config.run_defaults)
        self.recipe = preset.denoiser
        self.total = total_steps(self.recipe.stages)
        self.optimiser = MuonAdamW(
            transformer, self.recipe.stages[0].learning_rate,
            keep_adamw=("patch_embedding", "condition_embedder", "proj_out", "scale_shift_table"),
        )  # fmt: skip
        self.ema = Ema(transformer, self.recipe.ema)
        self.text = self._encode_prompt()
        self._batches: Iterator[tuple[Tensor, Tensor]] | None = None
        self._current: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def _encode_prompt(self) -> Tensor:
        embeds, _ = self.pipeline.encode_prompt(
            [MazeInstance.prompt], do_classifier_free_guidance=False,
            max_sequence_length=self.preset.config.max_prompt_tokens,
        )  # fmt: skip
        text: Tensor = embeds.detach().clone()
        return text

    def advance(self, step: int) -> float:
        """One optimiser step; returns the loss."""
        target, condition = self._encoded(step)
        with torch.autocast(self.preset.device, torch.bfloat16, enabled=self.preset.autocast):
            loss = self._loss(target, condition, step)
        loss.backward()
        peak = stage_at(self.recipe.stages, step).learning_rate
        self.optimiser.step(learning_rate_at(step, self.total, peak, self.recipe.warmup, self.recipe.decay))
        self.ema.update(self.transformer, step)
        return float(loss.detach())

    def _encoded(self, step: int) -> tuple[Tensor, Tensor]:
        reuse, recipe = self.recipe.reuse, self.recipe
        if self._batches is None:
            config, seed = self.preset.config, self.preset.seed
            self._batches = encoded_batches(
                Encoded(self.pipeline.vae, recipe.stages, recipe.batch, config.frames, seed, step, reuse)
            )
        if self._current is None or step % reuse == 0:
            target, condition = next(self._batches)
            self._current = target.to(self.preset.device), condition.to(self.preset.device)
        return self._current

    def _loss(self, target: Tensor, condition: Tensor, step: int) -> Tensor:
        """Mean squared error of the velocity, with sigma drawn uniformly and shifted as the scheduler shifts it."""
        generator = torch.Generator().manual_seed(self.preset.seed * 1_000_003 + step)
        uniform, shift = torch.rand(len(target), generator=generator), self.preset.config.shift
        sigma = (shift * uniform / (1 + (shift - 1) * uniform)).to(target.device).view(-1, 1, 1, 1, 1)
        noise = torch.randn(target.shape, generator=generator).to(target.device)
        mask = torch.zeros_like(target[:, :2])
        mask[:, :, 0] = 1
        velocity: Tensor = self.transformer(
            hidden_states=torch.cat([(1 - sigma) * target + sigma * noise, mask, condition], dim=1),
            timestep=1000 * sigma.flatten(),
            encoder_hidden_states=self.text.expand(len(target), -1, -1),
            return_dict=False,
        )[0]
        return (velocity.float() - (noise - target)).square().mean()

    @torch.no_grad()
    def solve_rate(self, step: int) -> dict[str, float]:
        """Strict success and mean score of the averaged weights on validation mazes of the stage's largest board."""
        size = max(stage_at(self.recipe.stages, step).sizes)
        task = training_task(size, self.preset.config.frames)
        mazes = task.sample(self.recipe.check_mazes, seed=0, split="val")
        kept = {n: p.clone() for n, p in self.transformer.named_parameters()}
        self.load_average()
        frames = self.model.run(mazes, seed=list(range(len(mazes)))).frames
        assert frames is not None
        scores = task.score(frames, mazes)
        self.transformer.load_state_dict(kept, strict=False)
        return {"solved": float(scores.strict.mean()), "score": float(scores.total.mean())}

    @torch.no_grad()
    def load_average(self) -> None:
        self.transformer.load_state_dict(self.ema.values, strict=False)
