"""What a job may name as its model, and the files of a model in diffusers' layout."""

from __future__ import annotations

from shared.request import DEFAULT_BASE

EXPECTED = (
    f"expected {DEFAULT_BASE}, a hub id such as org/name, or the URL of a hub page, a zipped"
    " diffusers folder, a .safetensors or a .ckpt file"
)
WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model",
    "vae": "vae/diffusion_pytorch_model",
    "text_encoder": "text_encoder/model",
}
SUFFIXES = (".safetensors", ".fp16.safetensors")
REQUIRED = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
)
TOKENIZER = (
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
)
