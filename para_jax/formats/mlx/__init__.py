"""mlx-lm folders: `adapter_config.json` beside `adapters.safetensors`."""
