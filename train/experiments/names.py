"""Names of the methods in tables and figures."""

LABELS = {
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "lora+": "LoRA+",
    "pissa": "PiSSA",
    "milora": "MiLoRA",
    "adalora": "AdaLoRA",
    "sora": "SoRA",
    "sora-hard": "SoRA, cut to 4",
    "sora-official": "SoRA, official",
    "dora": "DoRA",
    "gora": "GoRA",
    "dylora": "DyLoRA",
    "dylora-unfrozen": "DyLoRA, unfrozen",
    "matryoshka": "Matryoshka",
    "para": "PARA",
    "local": "local",
    "fisher": "Fisher",
    "fisher-batch": "Fisher, batch",
    "sensitivity": "sensitivity",
    "whitened-diagonal": "whitened, diagonal",
    "per-parameter": "σ²/(m+n)",
    "by-frobenius": "σ/‖W‖F",
    "by-spectral": "σ/‖W‖₂",
    "by-update": "σ/‖Δ‖F",
    "by-update-0.25": "σ/‖Δ‖F^0.25",
    "by-update-0.5": "σ/‖Δ‖F^0.5",
    "by-update-0.75": "σ/‖Δ‖F^0.75",
    "by-update-per-parameter": "σ/‖Δ‖F/√(m+n)",
    "sigma-floor": "σ, one each first",
    "by-update-floor": "σ/‖Δ‖F, one each first",
    "by-type": "σ/mean ‖Δ‖F of its type",
    "by-tail": "‖σ from j on‖/‖Δ‖F",
    "at-inputs": "σ at LayerNorms",
    "at-embeddings": "σ at embeddings",
}


def label(method: str) -> str:
    """Return the method's label for readers; scores keep their names."""
    return LABELS.get(method, method)
