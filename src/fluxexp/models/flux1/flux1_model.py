"""One FLUX.1 model on diffusers' own modules: condition, denoise, decode. Families differ by four strategies only.

`variants.py` names the strategies of each family. In eager mode a batch has the bits of the family's pipeline in
diffusers with the same generators. Unlike there, the items of a batch may differ in guidance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fluxexp.config.families import family_of_pipeline
from fluxexp.config.schema import ContextKind
from fluxexp.errors import ModelError, SampleError
from fluxexp.models.base import Decoded, Job, ModelInput
from fluxexp.models.context_parallel.context import Context
from fluxexp.models.flux1.denoiser import Denoiser, HoistedDenoiser, LibraryDenoiser
from fluxexp.models.flux1.image_encoding import ImageEncoder
from fluxexp.models.flux1.latents import (
    BatchNoise,
    ImageTransfer,
    NoiseSample,
    pack,
    position_ids,
    to_device,
    unpack,
)
from fluxexp.models.flux1.start import PreparedSchedule
from fluxexp.models.flux1.variants import VARIANTS, Parts
from fluxexp.models.kernels.compile_cache import first_alone
from fluxexp.models.kernels.cuda_graph import GraphedFunction
from fluxexp.models.offload.offload_plan import OffloadPlan
from fluxexp.models.offload.weight_streaming import WeightStreaming
from fluxexp.models.schedulers import first_sigma, make_scheduler, set_schedule, takes_generator
from fluxexp.models.text.text_cache import Encoding, TextCache
from fluxexp.parallel.collectives import Collectives
from fluxexp.records import Point

if TYPE_CHECKING:
    from fluxexp.models.offload.offloading import Room

_SCHEDULES = 256
"""Kept at the most: a sweep may have many."""

Encoder = Callable[[torch.Tensor], torch.Tensor]
"""From token ids (B, tokens) to what the denoiser takes of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """One sample, encoded, and its working size. Tensors are in the model's dtype, on its device."""

    height: int
    width: int
    prompt_embeds: torch.Tensor
    """T5's, (text tokens, joint_attention_dim)."""
    pooled_embeds: torch.Tensor
    """CLIP's, (pooled_projection_dim,)."""
    tokens: Any
    """What the family's `InputTokens` made of its images."""
    start: Any
    """What the family's `Start` keeps of its image."""


class Flux1Model:
    """A loaded FLUX.1 pipeline, taken apart into steps. Not thread-safe: one worker thread calls it."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self.family = family_of_pipeline(type(pipeline).__name__)
        self.pipeline = pipeline
        self.device = device
        self.transformer = pipeline.transformer
        self.vae = pipeline.vae
        self.dtype: torch.dtype = pipeline.transformer.dtype
        self.scale: int = pipeline.vae_scale_factor
        self._schedules: dict[Hashable, PreparedSchedule] = {}
        self.applied_optimizations: list[str] = []
        self.skipped_optimizations: dict[str, str] = {}
        self.denoiser: Denoiser = LibraryDenoiser(pipeline.transformer)
        self.text_identity: Sequence[Any] = ()
        """What tells its text encoders from others; empty where nobody asked."""
        self.text_cache: TextCache | None = None
        self._clip: Encoder = partial(_pooled, pipeline.text_encoder)
        self._t5: Encoder = partial(_tokens, pipeline.text_encoder_2)
        self._compiled: set[Hashable] = set()
        self.conditionings: OrderedDict[Hashable, Any] = OrderedDict()
        self.compiles_shapes = False
        self.placement: OffloadPlan | None = None
        """Where weights are to be; None where nobody asked."""
        self.room: Room | None = None
        """What that was chosen by."""
        self.weight_streaming = WeightStreaming()
        encoder = ImageEncoder(self.vae, self.dtype, lambda: self.weight_streaming.enter("vae"))
        self._variant = VARIANTS[self.family.name](Parts(pipeline, encoder, device))

    @torch.inference_mode()
    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[Conditioning]:
        """Encode prompts and images, each as one batch.

        Raises:
            SampleError: an input lacks an image or a mask that the family needs.
        """
        for item in inputs:
            self._require_inputs(item)
        # The host's work comes first. Once the device has the encoders to run, it will soon need the steps.
        read = self._variant.input_tokens.read(inputs)
        encoded = self.encode_prompts([item.prompt for item in inputs], max_sequence_length)
        tokens = self._variant.input_tokens.encode(read)
        return [
            Conditioning(
                height=item.height,
                width=item.width,
                prompt_embeds=prompt,
                pooled_embeds=pooled,
                tokens=own_tokens,
                start=self._variant.start.read(item),
            )
            for item, (prompt, pooled), own_tokens in zip(inputs, encoded, tokens, strict=True)
        ]

    def _require_inputs(self, item: ModelInput) -> None:
        missing = self.family.missing(image=item.image, mask=item.mask)
        if missing:
            raise SampleError(
                f"the sample has no {' and no '.join(missing)}, and model.family={self.family.name} "
                f"{self.family.purpose}: use a dataset that has them"
            )

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str], max_sequence_length: int | None) -> list[Encoding]:
        """T5's tokens and CLIP's pooled embedding of each prompt, as `Conditioning` has them.

        As one batch; with a `text_cache` those that it does not have, one by one.
        """
        if self.text_cache is None:
            return self._encoded(prompts, max_sequence_length)
        found = {prompt: self._kept(prompt, max_sequence_length) for prompt in dict.fromkeys(prompts)}
        return [found[prompt] for prompt in prompts]

    def encoders_visit(self, prompts: Sequence[str], max_sequence_length: int | None) -> bool:
        """See `Model`."""
        if self.text_cache is None or not self.weight_streaming.visits("text"):
            return False
        length = self._text_tokens(max_sequence_length)
        return not all(self.text_cache.has(prompt, length) for prompt in prompts)

    @property
    def visiting_bytes(self) -> int:
        """See `Model`."""
        return self.weight_streaming.visiting_bytes

    def _kept(self, prompt: str, max_sequence_length: int | None) -> Encoding:
        assert self.text_cache is not None
        length = self._text_tokens(max_sequence_length)
        kept = self.text_cache.get(prompt, length)
        if kept is not None:
            return to_device(kept[0], self.device), to_device(kept[1], self.device)
        (encoding,) = self._encoded([prompt], max_sequence_length)
        self.text_cache.put(prompt, length, encoding)
        return encoding

    def _encoded(self, prompts: Sequence[str], max_sequence_length: int | None) -> list[Encoding]:
        """The library's `encode_prompt`, but without waiting for the device."""
        pipeline = self.pipeline
        self.weight_streaming.enter("text")
        pooled = self._clip(self._token_ids(pipeline.tokenizer, prompts, pipeline.tokenizer_max_length))
        tokens = self._t5(self._token_ids(pipeline.tokenizer_2, prompts, self._text_tokens(max_sequence_length)))
        return list(zip(tokens, pooled, strict=True))

    def capture_text_encoders(self) -> None:
        """Have them replayed: their thousand launches would fill the queue of what a GPU is to do while it denoises.

        If their library does what cannot be recorded, or there is no memory for it, that is noted as skipped.
        """
        skipped = self.skipped_optimizations

        def note(error: Exception) -> None:
            cause = error.__context__ or error  # the recording's own error hides what it came from
            skipped["cuda_graph of text encoders"] = f"{type(cause).__name__}: {cause}"

        self._clip, self._t5 = (
            GraphedFunction(each, is_at_once=True, on_failure=note) for each in (self._clip, self._t5)
        )

    def _token_ids(self, tokenizer: Any, prompts: Sequence[str], length: int) -> torch.Tensor:
        ids = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return to_device(ids.input_ids, self.device)

    def sample_noise(self, seed: int, height: int, width: int) -> NoiseSample:
        """See `Model`."""
        shape = (self.vae.config.latent_channels, height // self.scale, width // self.scale)
        return NoiseSample.of(seed, shape, self.dtype, len(self._variant.noise_order))

    def denoise(self, jobs: Sequence[Job]) -> _Latents:
        """Integrate the flow from noise to latents.

        Returns:
            packed latents (B, image tokens, 4 * latent channels) in the model's dtype, with the size they unpack to.
        """
        return self.integrate(self.begin(jobs))

    @torch.inference_mode()
    def begin(self, jobs: Sequence[Job]) -> Flow:
        """See `Divisible`."""
        height, width = jobs[0].conditioning.height, jobs[0].conditioning.width
        point = jobs[0].point
        schedule = self._schedule(point, self._image_tokens(height, width))
        noise_samples = [job.noise_sample or self.sample_noise(job.seed, height, width) for job in jobs]
        noise = BatchNoise(noise_samples, self._variant.noise_order, self.device)
        conditionings = [job.conditioning for job in jobs]
        latents = pack(self._variant.start.latents([each.start for each in conditionings], noise, schedule))
        added = self._variant.input_tokens.added([each.tokens for each in conditionings], noise)
        return Flow(
            point=point,
            height=height,
            width=width,
            latents=latents,
            added=added,
            after_step=self._variant.after_step.begin(conditionings, noise),
            inputs=self._constant_inputs(jobs, height, width),
            generators=[own.generator for own in noise_samples] if takes_generator(schedule.scheduler) else None,
        )

    @torch.inference_mode()
    def integrate(self, flow: Flow) -> _Latents:
        """See `Divisible`."""
        self.weight_streaming.enter("transformer")
        schedule = self._schedule(flow.point, self._image_tokens(flow.height, flow.width))
        scheduler, timesteps = deepcopy(schedule.scheduler), schedule.timesteps
        step_options = {} if flow.generators is None else {"generator": flow.generators}
        variant, latents, inputs = self._variant, flow.latents, flow.inputs
        num_skipped = len(scheduler.timesteps) - len(timesteps)
        velocity_at = variant.inside_step.prepare(self.denoiser, inputs, timesteps, num_skipped)
        for number, t in enumerate(timesteps):
            tokens = variant.input_tokens.join(latents, flow.added)
            with self._compiling("blocks", tokens.shape, inputs["encoder_hidden_states"].shape[1]):
                predicted = velocity_at(number, tokens)
            velocity = variant.input_tokens.prediction(predicted, latents)
            stepped = scheduler.step(velocity, t, latents, return_dict=False, **step_options)[0]
            latents = variant.after_step.apply(stepped.to(self.dtype), number, scheduler, flow.after_step)
        return _Latents(latents, flow.height, flow.width, self.denoiser.computed_steps)

    @torch.inference_mode()
    def decode(self, latents: _Latents) -> Decoded:
        """Pictures of packed latents, rounded as the library's image processor does it, but on the device."""
        finite = torch.isfinite(latents.packed).flatten(1).all(dim=1)
        unpacked = unpack(latents.packed, latents.height // self.scale, latents.width // self.scale)
        unpacked = (unpacked / self.vae.config.scaling_factor) + self.vae.config.shift_factor
        self.weight_streaming.enter("vae")
        with self._compiling("decoder", unpacked.shape):
            pixels = self.vae.decode(unpacked, return_dict=False)[0]
        # A decoder in half precision may overflow where the denoiser did not; its pictures would be black.
        finite &= torch.isfinite(pixels).flatten(1).all(dim=1)
        pixels = torch.nan_to_num(pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return ImageTransfer((pixels.float() * 255).round().to(torch.uint8), finite)

    def free_memory(self) -> None:
        """Forget conditionings and what is kept for shapes."""
        self.conditionings.clear()
        self.denoiser.free_memory()
        for encoder in (self._clip, self._t5):
            if isinstance(encoder, GraphedFunction):
                encoder.forget()

    def enable_context_parallel(self, collectives: Collectives, kind: ContextKind) -> str:
        """See `Divisible`."""
        if not isinstance(self.denoiser, HoistedDenoiser):
            raise ModelError("parallelism.mode=context needs optimization.hoist_constants=true: it is exact")
        context = Context(collectives, kind)
        self.denoiser.enable_context_parallel(context)
        return context.words

    def disable_context_parallel(self) -> None:
        """See `Divisible`."""
        if isinstance(self.denoiser, HoistedDenoiser):
            self.denoiser.enable_context_parallel(None)

    def drop_collectives(self) -> None:
        """See `Divisible`."""
        self.denoiser.free_memory()
        if isinstance(self.denoiser, HoistedDenoiser) and self.denoiser.context is not None:
            self.denoiser.context.disconnect()

    @property
    def _is_context_parallel(self) -> bool:
        return isinstance(self.denoiser, HoistedDenoiser) and self.denoiser.context is not None

    def computed_steps(self, latents: _Latents) -> list[int]:
        """Of each image the evaluations that went through the whole transformer."""
        return latents.computed_steps

    def tokens(self, height: int, width: int, max_sequence_length: int | None) -> int:
        """Image and text tokens of one image."""
        return self.family.tokens(height * width, self._text_tokens(max_sequence_length))

    def _image_tokens(self, height: int, width: int) -> int:
        return self.family.image_tokens(height * width)

    @contextmanager
    def _compiling(self, part: str, shape: torch.Size, *more: int) -> Generator[None]:
        """Around what may compile: for a new shape one process of the machine goes first, the others find its code."""
        key = (part, tuple(shape), *more)
        # Ranks that compile steps which they take together must not wait for each other's turn.
        is_shared = part == "blocks" and self._is_context_parallel
        if not self.compiles_shapes or key in self._compiled or is_shared:
            yield
            return
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        with first_alone([*map(str, key), device, torch.__version__, str(self.dtype), *self.applied_optimizations]):
            yield
        self._compiled.add(key)

    def _text_tokens(self, max_sequence_length: int | None) -> int:
        """T5 tokens, the tokenizer's own limit by default: 512 for FLUX.1-dev and Fill, 256 for schnell."""
        return max_sequence_length or min(self.family.max_text_tokens, self.pipeline.tokenizer_2.model_max_length)

    def _schedule(self, point: Point, image_tokens: int) -> PreparedSchedule:
        """This model's own sampler, ready for the point: points of a sweep may differ in it.

        Made once, as to make one waits for the device; each batch takes a copy, since samplers keep state.
        """
        key = (point.scheduler, point.shift, point.steps, point.strength, image_tokens)
        if key not in self._schedules:
            scheduler = make_scheduler(point.scheduler, point.shift, self.pipeline.scheduler.config)
            timesteps = set_schedule(scheduler, point.steps, point.strength, image_tokens, self.device)
            if len(self._schedules) >= _SCHEDULES:
                self._schedules.clear()
            self._schedules[key] = PreparedSchedule(scheduler, timesteps, first_sigma(scheduler))
        return self._schedules[key]

    def _constant_inputs(self, jobs: Sequence[Job], height: int, width: int) -> dict[str, Any]:
        """The transformer's inputs that do not change from step to step."""
        prompt_embeds = torch.stack([job.conditioning.prompt_embeds for job in jobs])
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = to_device(torch.tensor([job.point.guidance for job in jobs], dtype=torch.float32), self.device)
        return {
            "guidance": guidance,
            "pooled_projections": torch.stack([job.conditioning.pooled_embeds for job in jobs]),
            "encoder_hidden_states": prompt_embeds,
            "txt_ids": torch.zeros(prompt_embeds.shape[1], 3, device=self.device, dtype=self.dtype),
            "img_ids": to_device(
                position_ids(height // self.scale // 2, width // self.scale // 2).to(self.dtype), self.device
            ),
        }


def _pooled(clip: Any, ids: torch.Tensor) -> torch.Tensor:
    return clip(ids, output_hidden_states=False).pooler_output.to(clip.dtype)  # type: ignore[no-any-return]


def _tokens(t5: Any, ids: torch.Tensor) -> torch.Tensor:
    return t5(ids, output_hidden_states=False)[0].to(t5.dtype)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A batch where its integration begins: all that the steps need, whatever rank takes them."""

    point: Point
    height: int
    width: int
    latents: torch.Tensor
    """Packed, (B, image tokens, 4 * latent channels)."""
    added: torch.Tensor | None
    """What `InputTokens` joins with them at every step."""
    after_step: Any
    """What `AfterStep` needs."""
    inputs: dict[str, Any]
    """The transformer's other inputs (`Denoiser.prepare`)."""
    generators: list[torch.Generator] | None
    """Of the steps' own noise, where the scheduler draws some."""


@dataclass(frozen=True, slots=True)
class _Latents:
    """Packed latents and the size in pixels of the images they hold."""

    packed: torch.Tensor
    height: int
    width: int
    computed_steps: list[int]
