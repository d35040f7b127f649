"""One FLUX.1 model on diffusers' own modules: condition, denoise, decode. Families differ by four strategies only.

`variants.py` names the strategies of each family. In eager mode a batch has the bits of the family's pipeline in
diffusers with the same generators. Unlike there, the items of a batch may differ in guidance.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator, Hashable, Iterable, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from fluxexp.config.families import Family, family_of_pipeline
from fluxexp.config.schema import ContextKind
from fluxexp.errors import ModelError
from fluxexp.models.base import CutTokens, Decoded, Job, ModelInput, Prompt, require_inputs
from fluxexp.models.context_parallel.context import Context
from fluxexp.models.flux1.control_residuals import ResidualLayout
from fluxexp.models.flux1.controlnet import ControlNet, HoistedControlNet, LibraryControlNet, control_of
from fluxexp.models.flux1.denoiser import Denoiser, HoistedDenoiser, LibraryDenoiser
from fluxexp.models.flux1.flow import Conditioning, Control, Flow, PackedLatents, SecondPass
from fluxexp.models.flux1.image_encoding import ImageEncoder
from fluxexp.models.flux1.inside_step import stacks_passes
from fluxexp.models.flux1.ip_adapter import INPUT, IpAdapter, PictureTokens, has_ip_adapter
from fluxexp.models.flux1.latents import (
    BatchNoise,
    ImageTransfer,
    NoiseSample,
    pack,
    to_device,
    unpack,
)
from fluxexp.models.flux1.mag_calibration import measure_ratios
from fluxexp.models.flux1.picture_prompts import PicturePrompts, joined_prompt, with_unread
from fluxexp.models.flux1.prompt_encoder import PromptEncoder
from fluxexp.models.flux1.seen_pictures import PictureEncoders
from fluxexp.models.flux1.variants import VARIANTS, Parts
from fluxexp.models.kernels.compile_cache import first_alone
from fluxexp.models.lora.lora_merger import LoraMerger
from fluxexp.models.lora.row_loras import applied
from fluxexp.models.offload.offload_plan import MemoryBudget, OffloadPlan
from fluxexp.models.offload.weight_streaming import WeightStreaming
from fluxexp.models.schedulers import takes_generator
from fluxexp.models.schedules import Schedules
from fluxexp.models.text.text_cache import Encoding, TextCache
from fluxexp.parallel.collectives import Collectives
from fluxexp.records import LoraUse


class Flux1Model:
    """A loaded FLUX.1 pipeline, taken apart into steps. Not thread-safe: one worker thread calls it.

    Args:
        pipeline: of diffusers.
        device: where it runs.
        family: of the model; None for the first one with this class of pipeline.
        prior: the `FluxPriorReduxPipeline` of a family with Redux.
    """

    def __init__(
        self, pipeline: Any, device: torch.device, family: Family | None = None, prior: Any | None = None
    ) -> None:
        self.family = family or family_of_pipeline(type(pipeline).__name__)
        self.pipeline = pipeline
        self.device = device
        self.transformer = pipeline.transformer
        self.vae = pipeline.vae
        self.dtype: torch.dtype = pipeline.transformer.dtype
        self.scale: int = pipeline.vae_scale_factor
        self._schedules = Schedules(pipeline.scheduler.config, device)
        self.applied_optimizations: list[str] = []
        self.skipped_optimizations: dict[str, str] = {}
        network = getattr(pipeline, "controlnet", None)
        self.residual_layout = None if network is None else ResidualLayout.of(network)
        self.controlnet: ControlNet | None = None if network is None else LibraryControlNet(network)
        self.denoiser: Denoiser = LibraryDenoiser(pipeline.transformer, self.residual_layout)
        self.text_identity: Sequence[Any] = ()
        """Identifies the text encoders; empty unless a text cache is asked for."""
        self.text_cache: TextCache | None = None
        self.prompt_encoder = PromptEncoder(pipeline, device, self.family)
        self._compiled: set[Hashable] = set()
        self.conditionings: OrderedDict[Hashable, Any] = OrderedDict()
        self.compiles_shapes = False
        self.offload_plan: OffloadPlan | None = None
        """Where the weights are; None without `optimization.offload`."""
        self.memory_budget: MemoryBudget | None = None
        """The free memory and the sizes that `offload_plan` was chosen from."""
        self.weight_streaming = WeightStreaming()
        self.mixes_loras = False
        """Whether the images of a batch may have different LoRAs, which are then not merged (`lora.mixing`)."""
        self.loras = LoraMerger(
            {"transformer": pipeline.transformer, "text_encoder": pipeline.text_encoder}, device, self._unload
        )
        self.pictures = self._picture_encoders(prior)
        encoder = ImageEncoder(self.vae, self.dtype, lambda: self.weight_streaming.load_for("vae"))
        self._variant = VARIANTS[self.family.name](Parts(pipeline, encoder, device))

    @torch.inference_mode()
    def condition(self, inputs: Sequence[ModelInput], max_sequence_length: int | None) -> list[Conditioning]:
        """Encode prompts, negative prompts and images, each as one batch.

        Raises:
            SampleError: an input lacks an image or a mask that the family needs.
        """
        for item in inputs:
            require_inputs(item, self.family)
        # The host's work comes first, before the encoders are launched. Otherwise the GPU would wait for it later.
        read = self._variant.input_tokens.read(inputs)
        seen = self.pictures.read(inputs)
        control_images = self._variant.control_images
        controls_read = None if control_images is None else control_images.read(inputs)
        encoded = self._encode_with_loras(
            [(item.prompt, item.lora) for item in inputs if item.reads_prompt], max_sequence_length
        )
        negative = [(item.negative_prompt, item.lora) for item in inputs if item.negative_prompt is not None]
        negatives = iter(self._encode_with_loras(negative, max_sequence_length))
        tokens = self._variant.input_tokens.encode(read)
        controls: Sequence[torch.Tensor | None] = [None] * len(inputs)
        if control_images is not None and controls_read is not None:
            controls = control_images.encode(controls_read)
        pictures = self.pictures.encode(seen, len(inputs), makes_second_pass=bool(negative))
        prompts = with_unread(inputs, encoded, self._zeros(max_sequence_length))
        return [
            Conditioning(
                height=item.height,
                width=item.width,
                prompt_embeds=prompt,
                pooled_embeds=pooled,
                pictures=own.prompt_tokens,
                ip_embed=own.embed,
                negative=None if item.negative_prompt is None else next(negatives),
                tokens=own_tokens,
                start=self._variant.start.read(item),
                after_step=self._variant.after_step.read(item),
                control=control,
            )
            for item, (prompt, pooled), own, own_tokens, control in zip(
                inputs, prompts, pictures, tokens, controls, strict=True
            )
        ]

    def _picture_encoders(self, prior: Any | None) -> PictureEncoders:
        """The encoders of references. The family's entry then counts their tokens, and asks for references."""

        def enter() -> None:
            self.weight_streaming.load_for("text")

        redux = None if prior is None else PicturePrompts(prior, self.device, enter)
        adapter = IpAdapter(self.pipeline, self.device, enter) if has_ip_adapter(self.transformer) else None
        if redux is not None:
            self.family = replace(self.family, picture_text_tokens=redux.num_tokens)
        if adapter is not None:
            self.family = self.family.needing_references()
        return PictureEncoders(redux, adapter)

    def _zeros(self, max_sequence_length: int | None) -> Encoding:
        """The encoding of a prompt that is not read, as diffusers makes it without text encoders."""
        config, length = self.transformer.config, self.prompt_encoder.num_tokens(max_sequence_length)
        shapes = ((length, config.joint_attention_dim), (config.pooled_projection_dim,))
        tokens, pooled = (torch.zeros(shape, dtype=self.dtype, device=self.device) for shape in shapes)
        return tokens, pooled

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> list[Encoding]:
        """Encode prompts: T5's embeddings and CLIP's pooled one for each, as `Conditioning` has them.

        Without a `text_cache`, all are one batch. With one, the prompts that it does not hold are encoded one by one.
        """
        if self.text_cache is None:
            return self._encode(prompts, max_sequence_length) if prompts else []
        found = {prompt: self._cached(prompt, max_sequence_length) for prompt in dict.fromkeys(prompts)}
        return [found[prompt] for prompt in prompts]

    def changes_text(self, lora: Sequence[LoraUse]) -> bool:
        """See `Model`."""
        return self.loras.changes_text(lora)

    def _encode_with_loras(
        self, prompts: Sequence[tuple[Prompt, tuple[LoraUse, ...]]], max_sequence_length: int | None
    ) -> list[Encoding]:
        """Encode prompts, each with its LoRAs. Those that share the LoRAs that change CLIP are one batch."""
        places: dict[tuple[LoraUse, ...], list[int]] = {}
        for place, (_, uses) in enumerate(prompts):
            places.setdefault(uses if self.changes_text(uses) else (), []).append(place)
        found: dict[int, Encoding] = {}
        for lora, own in places.items():
            alike = [prompts[place][0] for place in own]
            # The cache on disk knows no LoRAs.
            encoded = (
                self._encode(alike, max_sequence_length, lora)
                if lora
                else self.encode_prompts(alike, max_sequence_length)
            )
            found |= dict(zip(own, encoded, strict=True))
        return [found[place] for place in range(len(prompts))]

    def _unload(self, component: str) -> None:
        """Move streamed weights to the host before they are changed."""
        stage = "text" if component == "text_encoder" else component
        streams = self.denoiser.options.streams if isinstance(self.denoiser, HoistedDenoiser) else None
        if not self.weight_streaming.streams(stage) and streams is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.weight_streaming.unload()
        for stream in streams or ():
            stream.unload()

    def cut_tokens(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> list[CutTokens | None]:
        """See `Model`."""
        return [self.prompt_encoder.cut_tokens(prompt, max_sequence_length) for prompt in prompts]

    def streams_text_encoders(self, prompts: Sequence[Prompt], max_sequence_length: int | None) -> bool:
        """See `Model`."""
        if self.text_cache is None or not self.weight_streaming.streams("text"):
            return False
        length = self.prompt_encoder.num_tokens(max_sequence_length)
        return not all(self.text_cache.has(prompt, length) for prompt in prompts)

    @property
    def streaming_bytes(self) -> int:
        """See `Model`."""
        return self.weight_streaming.streaming_bytes

    def _encode(
        self, prompts: Sequence[Prompt], max_sequence_length: int | None, lora: Sequence[LoraUse] = ()
    ) -> list[Encoding]:
        self.loras.apply("text_encoder", lora)
        self.weight_streaming.load_for("text")
        return self.prompt_encoder.encode(prompts, max_sequence_length)

    def _cached(self, prompt: Prompt, max_sequence_length: int | None) -> Encoding:
        assert self.text_cache is not None
        length = self.prompt_encoder.num_tokens(max_sequence_length)
        cached = self.text_cache.get(prompt, length)
        if cached is not None:
            return to_device(cached[0], self.device), to_device(cached[1], self.device)
        (encoding,) = self._encode([prompt], max_sequence_length)
        self.text_cache.put(prompt, length, encoding)
        return encoding

    def capture_text_encoders(self) -> None:
        """Run the text encoders as CUDA graphs. If that fails, the reason goes to `skipped_optimizations`."""
        skipped = self.skipped_optimizations

        def note(error: Exception) -> None:
            cause = error.__context__ or error  # the error of the capture itself hides its cause
            skipped["cuda_graph of text encoders"] = f"{type(cause).__name__}: {cause}"

        self.prompt_encoder.capture(note)

    def sample_noise(self, seed: int, height: int, width: int) -> NoiseSample:
        """See `Model`."""
        shape = (self.vae.config.latent_channels, height // self.scale, width // self.scale)
        return NoiseSample.of(seed, shape, self.dtype, len(self._variant.noise_order))

    def denoise(self, jobs: Sequence[Job]) -> PackedLatents:
        """Integrate the flow from noise to latents.

        Returns:
            packed latents (B, image tokens, 4 * latent channels) in the model's dtype, with the image size in pixels.
        """
        return self.integrate(self.begin(jobs))

    @torch.inference_mode()
    def begin(self, jobs: Sequence[Job]) -> Flow:
        """See `ContextParallelModel`."""
        height, width = jobs[0].conditioning.height, jobs[0].conditioning.width
        point = jobs[0].point
        for job in jobs:
            self.loras.read(job.point.lora)  # a bad file fails here, before other ranks of a replica take part
        schedule = self._schedules.get(point, self.family.image_tokens(height * width))
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
            second=self._second_pass(jobs),
            control=self._control(jobs, noise, len(schedule.timesteps)),
            row_loras=[job.point.lora for job in jobs] if self.mixes_loras else None,
            generators=[own.generator for own in noise_samples] if takes_generator(schedule.scheduler) else None,
        )

    @torch.inference_mode()
    def integrate(self, flow: Flow) -> PackedLatents:
        """See `ContextParallelModel`."""
        # On all ranks of a replica, before the same batch.
        self.loras.apply("transformer", flow.point.lora if flow.row_loras is None else ())
        self.weight_streaming.load_for("transformer")
        rows = [self.loras.tensors(uses) for uses in flow.row_loras or ()]
        if stacks_passes(self.denoiser, flow.second):
            rows = [*rows, *rows]
        with applied(self.transformer, rows, self.device):
            return self._integrate(flow)

    def _integrate(self, flow: Flow) -> PackedLatents:
        schedule = self._schedules.get(flow.point, self.family.image_tokens(flow.height * flow.width))
        scheduler, timesteps = deepcopy(schedule.scheduler), schedule.timesteps
        step_options = {} if flow.generators is None else {"generator": flow.generators}
        variant, latents, inputs = self._variant, flow.latents, flow.inputs
        num_skipped = len(scheduler.timesteps) - len(timesteps)
        control = None
        if self.controlnet is not None and flow.control is not None:
            control = self.controlnet.prepare(flow.control, inputs, timesteps)
        velocity_at = variant.inside_step.prepare(self.denoiser, inputs, flow.second, timesteps, num_skipped, control)
        for number, t in enumerate(timesteps):
            tokens = variant.input_tokens.join(latents, flow.added)
            with self._compiling("blocks", tokens.shape, inputs["encoder_hidden_states"].shape[1]):
                predicted = velocity_at(number, tokens)
            velocity = variant.input_tokens.prediction(predicted, latents)
            stepped = scheduler.step(velocity, t, latents, return_dict=False, **step_options)[0]
            latents = variant.after_step.apply(stepped.to(self.dtype), number, scheduler, flow.after_step)
        return PackedLatents(latents, flow.height, flow.width, velocity_at.computed_steps)

    @torch.inference_mode()
    def decode(self, latents: PackedLatents) -> Decoded:
        """Decode packed latents to pictures. The device rounds the pixels as diffusers' image processor does."""
        finite = torch.isfinite(latents.packed).flatten(1).all(dim=1)
        unpacked = unpack(latents.packed, latents.height // self.scale, latents.width // self.scale)
        unpacked = (unpacked / self.vae.config.scaling_factor) + self.vae.config.shift_factor
        self.weight_streaming.load_for("vae")
        with self._compiling("decoder", unpacked.shape):
            pixels = self.vae.decode(unpacked, return_dict=False)[0]
        # A decoder in half precision may overflow although the latents are finite. Its picture would be black.
        finite &= torch.isfinite(pixels).flatten(1).all(dim=1)
        pixels = torch.nan_to_num(pixels * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return ImageTransfer((pixels.float() * 255).round().to(torch.uint8), finite)

    def free_memory(self) -> None:
        """Drop conditionings, and all caches that belong to an image size."""
        self.conditionings.clear()
        self.denoiser.free_memory()
        if self.controlnet is not None:
            self.controlnet.free_memory()
        self.prompt_encoder.free_memory()

    def enable_context_parallel(self, collectives: Collectives, kind: ContextKind) -> str:
        """See `ContextParallelModel`."""
        if not isinstance(self.denoiser, HoistedDenoiser):
            raise ModelError("parallelism=context needs optimization.hoist_constants=true (exact): turn it on")
        context = Context(collectives, kind)
        self.denoiser = self.denoiser.with_context(context)
        if self.controlnet is not None:  # its arrangement differs: a mode is one more text token
            self.controlnet = self.controlnet.with_context(Context(collectives, kind))
        return context.words

    def disable_context_parallel(self) -> None:
        """See `ContextParallelModel`."""
        if isinstance(self.denoiser, HoistedDenoiser):
            self.denoiser = self.denoiser.with_context(None)
            if self.controlnet is not None:
                self.controlnet = self.controlnet.with_context(None)

    def drop_collectives(self) -> None:
        """See `ContextParallelModel`."""
        self.denoiser.free_memory()
        if isinstance(self.denoiser, HoistedDenoiser) and self.denoiser.options.context is not None:
            self.denoiser.options.context.disconnect()
        if isinstance(self.controlnet, HoistedControlNet):
            self.controlnet.free_memory()
            self.controlnet.disconnect()

    @property
    def _is_context_parallel(self) -> bool:
        return isinstance(self.denoiser, HoistedDenoiser) and self.denoiser.options.context is not None

    def measure_ratios(self, batches: Iterable[Sequence[Job]]) -> list[float]:
        """See `MeasuredModel`."""
        return measure_ratios(self, batches)

    def text_tokens(self, prompt: Prompt, max_sequence_length: int | None) -> int:
        """See `Model`. Every prompt is padded to the same length."""
        return self.prompt_encoder.num_tokens(max_sequence_length)

    def computed_steps(self, latents: PackedLatents) -> list[int]:
        """For each image, how many evaluations ran the whole transformer."""
        return latents.computed_steps

    def tokens(self, height: int, width: int, max_sequence_length: int | None) -> int:
        """Image and text tokens of one image."""
        return self.family.tokens(height * width, self.prompt_encoder.num_tokens(max_sequence_length))

    @contextmanager
    def _compiling(self, part: str, shape: torch.Size, *more: int) -> Generator[None]:
        """Wrap a call that may compile. For a new shape, one process of a machine compiles, and others use its code."""
        key = (part, tuple(shape), *more)
        # The ranks of one replica compile the same step at the same time, so none may wait for another to finish.
        is_shared = part == "blocks" and self._is_context_parallel
        if not self.compiles_shapes or key in self._compiled or is_shared:
            yield
            return
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        with first_alone([*map(str, key), device, torch.__version__, str(self.dtype), *self.applied_optimizations]):
            yield
        self._compiled.add(key)

    def _second_pass(self, jobs: Sequence[Job]) -> SecondPass | None:
        """The second pass of a batch, or None if it has none."""
        if not jobs[0].point.makes_second_pass:
            return None
        negatives = [job.conditioning.negative for job in jobs]
        scales = torch.tensor([job.point.true_cfg_scale for job in jobs], dtype=torch.float32)
        return SecondPass(
            prompt_embeds=torch.stack([tokens for tokens, _ in negatives]),
            pooled_embeds=torch.stack([pooled for _, pooled in negatives]),
            scales=to_device(scales, self.device),
            pictures=self._picture_tokens(jobs, is_negative=True),
        )

    def _picture_tokens(self, jobs: Sequence[Job], *, is_negative: bool) -> PictureTokens | None:
        """What the images of a batch attend to with an IP-Adapter."""
        if self.pictures.ip_adapter is None:
            return None
        embeds = [self.pictures.ip_adapter.black() if is_negative else job.conditioning.ip_embed for job in jobs]
        return self.pictures.ip_adapter.tokens(embeds, [job.point.ip_adapter for job in jobs])

    def _control(self, jobs: Sequence[Job], noise: BatchNoise, steps: int) -> Control | None:
        """What the ControlNet needs of a batch; None if the family has none."""
        images = self._variant.control_images
        if images is None:
            return None
        added = images.added([job.conditioning.control for job in jobs], noise)
        return control_of(self.pipeline.controlnet, added, [job.point for job in jobs], steps)

    def _constant_inputs(self, jobs: Sequence[Job], height: int, width: int) -> dict[str, Any]:
        """The transformer's inputs that do not change from step to step."""
        prompts = [joined_prompt(job.conditioning, job.point.redux) for job in jobs]
        prompt_embeds = torch.stack([tokens for tokens, _ in prompts])
        ids = self._variant.input_tokens.position_ids(height // self.scale // 2, width // self.scale // 2)
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = to_device(torch.tensor([job.point.guidance for job in jobs], dtype=torch.float32), self.device)
        pictures = self._picture_tokens(jobs, is_negative=False)
        own = {} if pictures is None else {INPUT: pictures}
        return own | {
            "guidance": guidance,
            "pooled_projections": torch.stack([pooled for _, pooled in prompts]),
            "encoder_hidden_states": prompt_embeds,
            "txt_ids": torch.zeros(prompt_embeds.shape[1], 3, device=self.device, dtype=self.dtype),
            "img_ids": to_device(ids.to(self.dtype), self.device),
        }
