"""Load Video DiT (PAB), and Download Video DiT (PAB) before it"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from pab_core import PabError, Pipeline
from pab_core.acceleration.choice import SPEEDS, choose_speed
from pab_core.checkpoints import DEMOS, default_dtype, find_model
from pab_core.hub import SOURCES
from pab_core.models.registry import MODELS

from . import host
from .host import io
from .types import CheckpointType, LoadedModel, ModelType, one_of

if TYPE_CHECKING:
    import torch

    from pab_core.acceleration.choice import Speed
    from pab_core.offload import Mode

host.register_model_folder()

OWN_T5 = "the model's own"
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
WEIGHTS = ("full", "fp8")
OFFLOADS = ("off", "parts", "blocks")


def demo_models() -> list[str]:
    """Those of the demo models whose weights are in this copy."""
    return [name for name, folder in DEMOS.items() if (folder / "transformer").is_dir()]


class DownloadVideoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return host.schema(
            node_id="PABDownload",
            display_name="Download Video DiT (PAB)",
            description=(
                "Downloads a released model from the Hugging Face Hub to models/pab: transformer, VAE, T5 text encoder "
                "and tokenizer, some 20 to 30 GB. Goes on where it was interrupted, checks every file, and does "
                "nothing where the model is complete already. Connect it to Load Video DiT (PAB)."
            ),
            search_aliases=["open-sora", "latte", "open-sora-plan", "hugging face", "fetch model"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(SOURCES),
                    default="open-sora",
                    tooltip="Open-Sora 1.2 (144p to 720p, up to 17 s), Latte-1 (16 frames of 512x512), or "
                    "Open-Sora-Plan v1.1.0 (65 or 221 frames of 512x512). Each has a licence of its own.",
                ),
            ],
            outputs=[CheckpointType.Output(display_name="checkpoint", tooltip="For Load Video DiT (PAB).")],
        )

    @classmethod
    def execute(cls, model: str):
        if (there := host.checkpoint_folders().get(model)) is not None:
            try:
                find_model(there).check_complete()
                return io.NodeOutput(model)
            except PabError:
                pass  # an interrupted download; it goes on
        from pab_core.hub import download_model

        download_model(model, host.download_folder(model), host.count_progress())
        return io.NodeOutput(model)


class LoadVideoModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        demos = demo_models()
        return host.schema(
            node_id="PABLoadModel",
            display_name="Load Video DiT (PAB)",
            description=(
                "Loads a text-to-video diffusion transformer with its text encoder and VAE, for use with Pyramid "
                "Attention Broadcast. 'demo' is a small trained model that comes with these nodes and runs on any CPU; "
                "Open-Sora, Latte and Open-Sora-Plan checkpoints go to models/pab, one folder each, or come from "
                "Download Video DiT (PAB)."
            ),
            search_aliases=["video model", "open-sora", "latte", "open-sora-plan", "pab", "checkpoint"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[*demos, *(name for name in host.checkpoint_folders() if name not in DEMOS)],
                    default="demo",
                    tooltip="Those named demo come with these nodes; the others are the checkpoint folders in "
                    "models/pab. Not looked at where a checkpoint is connected.",
                ),
                host.choice(
                    "precision",
                    PRECISIONS,
                    optional=True,
                    tooltip="Of weights and arithmetic. auto: full on the CPU, bfloat16 on a GPU.",
                ),
                host.choice(
                    "weights",
                    WEIGHTS,
                    optional=True,
                    tooltip="fp8 keeps the transformer's large weights in eight bits: half the memory, slightly "
                    "another video.",
                ),
                host.choice(
                    "offload",
                    OFFLOADS,
                    optional=True,
                    tooltip="For little GPU memory; the video stays the same. off: ComfyUI moves the model as it moves "
                    "others. parts: text encoder, transformer and VAE are on the GPU one at a time. blocks: only two "
                    "blocks at a time; slower.",
                ),
                host.choice(
                    "text_encoder",
                    [OWN_T5, *host.t5_files()],
                    optional=True,
                    tooltip="A T5 v1.1 XXL of ComfyUI's own text_encoders folder to take instead, such as "
                    "t5xxl_fp8_e4m3fn.safetensors; saves a download of 19 GB.",
                ),
                CheckpointType.Input(
                    "checkpoint", optional=True, tooltip="From Download Video DiT (PAB), in place of the model above."
                ),
                host.choice(
                    "speed",
                    SPEEDS,
                    optional=True,
                    tooltip="auto: fast where there is a GPU that can, else exact. fast: fewer, larger operations; the "
                    "video differs by rounding only. exact: the model's own operations, to compare with. fp8: "
                    "arithmetic in eight bits too, for NVIDIA's Ada, Hopper and later; the fastest, slightly another "
                    "video.",
                ),
            ],
            outputs=[
                ModelType.Output(display_name="model", tooltip="For Text Encode, Video Sampler and Video Decode (PAB).")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model: str | None, text_encoder: str | None = OWN_T5) -> bool:
        """A host that checks them would list what there is; `execute` says what to do about what there is not."""
        return True

    @classmethod
    def execute(
        cls,
        model: str,
        precision: str = "auto",
        weights: str = "full",
        offload: str = "off",
        text_encoder: str = OWN_T5,
        checkpoint: str | None = None,
        speed: str = "auto",
    ):
        import torch

        one_of("precision", precision, PRECISIONS)
        one_of("form of weights", weights, WEIGHTS)
        one_of("way to offload", offload, OFFLOADS)
        one_of("speed", speed, SPEEDS)
        name = checkpoint or model
        source = name if name in DEMOS else host.checkpoint_folders().get(name)
        if source is None:
            raise PabError(f"The checkpoint folder '{name}' is no longer in models/pab: {advice(name)}")
        encoder = None if text_encoder == OWN_T5 else host.t5_path(text_encoder)
        if encoder is None and text_encoder != OWN_T5:
            raise PabError(f"The text encoder '{text_encoder}' is no longer in models/text_encoders: choose another.")
        found = find_model(source, text_encoder=encoder, spare_tokenizer=host.t5_tokenizer())
        given: dict[str, Any] = {} if precision == "auto" else {"dtype": getattr(torch, precision)}
        device = host.compute_device()
        dtype = given.get("dtype") or default_dtype(found.spec, device)
        chosen, note = speed_for(speed, offload, device, dtype)
        if note:
            logging.info(note)
            host.say(note, cls.hidden.unique_id)
        # Weights wait on the host's keep device; the precision is that of the device which will compute with them.
        wait = torch.device("cpu") if offload != "off" else host.keep_device()
        storage = "fp8" if weights == "fp8" else None
        # With the workers it is their device that decides what the speed becomes, and the precision, too.
        given |= {"model": source, "text_encoder": encoder, "spare_tokenizer": host.t5_tokenizer()}
        given |= {"storage": storage, "speed": speed}
        # On a CPU, fast is a matter of the weights' precision; a GPU's ways to compute are chosen below.
        own = chosen if chosen == "fast" and device.type == "cpu" else "exact"
        pipeline = Pipeline.from_checkpoint(
            found, device=wait, dtype=dtype, storage="fp8" if chosen == "fp8" else storage, speed=own
        )
        if chosen == "fp8":
            multiply_in_eight_bits(pipeline.transformer, device, wait)
        pipeline = replace(pipeline, speed=chosen)
        if offload == "off":
            return io.NodeOutput(LoadedModel(pipeline, None, given))
        from pab_core.offload import offload as offloaded  # brings accelerate, which takes seconds to import

        mode = cast("Mode", offload)
        lent = offloaded(pipeline, mode, device)
        lent.speed = chosen
        return io.NodeOutput(LoadedModel(lent, mode, given))


def speed_for(speed: str, offload: str, device: "torch.device", dtype: "torch.dtype") -> "tuple[Speed, str]":
    """What becomes of a wanted speed on the host's device, and a sentence where that is less."""
    if offload == "blocks":  # only a block's own forward waits for its weights
        asked = speed in ("fast", "fp8")
        return "exact", "With offload blocks the model runs at the speed exact." if asked else ""
    chosen, note = choose_speed(speed, device, dtype, trying=True)
    if chosen == "fp8" and offload == "parts":
        return "fast", "With offload parts the model runs at the speed fast: fp8 goes with offload off."
    return chosen, note


def multiply_in_eight_bits(transformer: Any, device: "torch.device", wait: "torch.device") -> None:
    """The device itself has to be asked, with the layers on it."""
    from pab_core.acceleration.fp8_products import use_fp8_products

    host.make_room(sum(parameter.nbytes for parameter in transformer.parameters()))
    try:
        use_fp8_products(transformer.to(device))
    finally:
        transformer.to(wait)


def advice(model: str) -> str:
    """What to do about a model that is not there."""
    if model in SOURCES:
        return f"put {MODELS[model].title} there, or connect Download Video DiT (PAB), which fetches it."
    return "choose another model, or put its folder there, with transformer/, vae/, text_encoder/ and tokenizer/."
