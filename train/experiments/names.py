"""How methods are called in tables and figures."""

LABELS = {
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "lora+": "LoRA+",
    "pissa": "PiSSA",
    "milora": "MiLoRA",
    "adalora": "AdaLoRA",
    "sora": "SoRA",
    "dora": "DoRA",
    "gora": "GoRA",
    "dylora": "DyLoRA",
    "matryoshka": "Matryoshka",
    "para": "PARA",
    "local": "local",
    "fisher": "Fisher",
    "fisher-batch": "Fisher, batch",
    "sensitivity": "sensitivity",
    "whiten": "whitened",
    "whiten-diagonal": "whitened, diag.",
}


def label(method: str) -> str:
    """Returns what readers know the method as; scores keep the names they have."""
    return LABELS.get(method, method)
