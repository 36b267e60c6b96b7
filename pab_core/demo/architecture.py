"""The demo model's sizes, in the fields of the released checkpoints' own config files."""

from typing import Any

LATENT_CHANNELS = 16  # of the video's latents
IMAGE_CHANNELS = 12  # of a single frame's
TEXT_WIDTH = 128
VOCABULARY = 256  # room in the embedding; the tokenizer has somewhat fewer pieces
MAX_TOKENS = 32  # the longest caption of the grammar has 30

TRANSFORMER: dict[str, Any] = {
    "architectures": ["STDiT3"],
    "model_type": "STDiT3",
    "hidden_size": 192,
    "depth": 5,
    "num_heads": 6,
    "mlp_ratio": 3.0,
    "patch_size": [1, 2, 2],
    "in_channels": LATENT_CHANNELS,
    "pred_sigma": False,
    "input_sq_size": 512,
    "caption_channels": TEXT_WIDTH,
    "model_max_length": MAX_TOKENS,
    "qk_norm": True,
    "class_dropout_prob": 0.1,
}

VAE: dict[str, Any] = {
    "architectures": ["VideoAutoencoderPipeline"],
    "model_type": "VideoAutoencoderPipeline",
    "micro_frame_size": 17,
    "vae_2d": {
        "type": "VideoAutoencoderKL",
        "micro_batch_size": 4,
        "config": {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": [32, 48, 64, 64],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": IMAGE_CHANNELS,
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "sample_size": 128,
        },
    },
    "vae_temporal": {
        "type": "VAE_Temporal_SD",
        "in_out_channels": IMAGE_CHANNELS,
        "latent_embed_dim": LATENT_CHANNELS,
        "embed_dim": LATENT_CHANNELS,
        "filters": 24,
        "num_res_blocks": 1,
        "channel_multipliers": [1, 1, 2],
        "temporal_downsample": [True, True],
        "num_groups": 8,
    },
}

TEXT_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": TEXT_WIDTH,
    "d_kv": 32,
    "d_ff": 160,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "is_encoder_decoder": False,
    "use_cache": False,
    "tie_word_embeddings": True,
}

SCHEDULER: dict[str, Any] = {
    "_class_name": "RectifiedFlow",
    "num_timesteps": 1000,
    "use_timestep_transform": True,
    "transform_scale": 1.0,
}
