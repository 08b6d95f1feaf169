"""Load adapters into tiny models of diffusers, by printed commands or by pipelines.

The job: {"shapes": [MODEL, ...]}, or {"files": {LABEL: {"model": NAME, "path": PATH,
"words": the code to evaluate, or none, "wanted": updates (.npz)}}}.
"""

import json
import pathlib
import sys

import diffusers
import numpy as np
import torch

sys.path.append(str(pathlib.Path(__file__).parents[1]))

import image_models

PIPELINES = {
    "sd": diffusers.StableDiffusionPipeline,
    "flux": diffusers.FluxPipeline,
    "sd3": diffusers.StableDiffusion3Pipeline,
    "wan": diffusers.WanPipeline,
}


def load(name: str, model, path: str) -> None:
    """Load a file as `load_lora_weights` of the model's pipeline does."""
    pipeline, component = PIPELINES[name], image_models.MODELS[name][1]
    known = {"unet_config": model.config} if component == "unet" else {}
    found = pipeline.lora_state_dict(path, **known)
    state, alphas = found if isinstance(found, tuple) else (found, None)
    words = {component: model, "adapter_name": "x", "_pipeline": None}
    if name in ("sd", "flux") or alphas:  # Which want it even if there are none.
        words["network_alphas"] = alphas
    getattr(pipeline, f"load_lora_into_{component}")(state, **words)


def updates(model) -> dict[str, np.ndarray]:
    """Return the updates of a model with one adapter."""
    result = {}
    for name, x in model.named_modules():
        if hasattr(x, "get_delta_weight"):
            (adapter,) = x.lora_A
            result[name] = x.get_delta_weight(adapter).detach().numpy()
    return result


def merged(model, wanted: dict[str, np.ndarray]):
    """Return a model with updates merged into its weights."""
    with torch.no_grad():
        for name, x in wanted.items():
            weight = model.get_submodule(name).weight
            weight.copy_(weight.double() + torch.from_numpy(x))
    return model


def main() -> None:
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    facts = {"version": diffusers.__version__, "refused": {}, "shapes": {}}
    arrays = {}
    for name in job.get("shapes", ()):
        facts["shapes"][name] = image_models.shapes(image_models.seeded(name))
    for label, file in job.get("files", {}).items():
        name = file["model"]
        model = image_models.seeded(name)
        arrays[f"{label}/base"] = image_models.output(name, model)
        try:
            if file["words"]:
                eval(file["words"], {"model": model, "folder": file["path"]})
            else:
                load(name, model, file["path"])
        except Exception as error:  # What it says is what is wanted.
            facts["refused"][label] = f"{type(error).__name__}: {error}"
            continue
        arrays[f"{label}/output"] = image_models.output(name, model)
        found = updates(model)
        arrays |= {f"{label}/updates/{x}": y for x, y in found.items()}
        with np.load(file["wanted"]) as wanted:
            whole = merged(image_models.seeded(name), dict(wanted))
        arrays[f"{label}/wanted"] = image_models.output(name, whole)
    out = pathlib.Path(job["out"])
    np.savez(out / "arrays.npz", **arrays)
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
