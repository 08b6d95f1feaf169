"""Single safetensors files, as kohya's trainer, diffusers and ComfyUI name tensors."""
