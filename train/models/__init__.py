"""Linen models that look for their LoRA adapters in the collection `lora`."""
