"""Linen models with LoRA adapters in the collection `lora`."""
