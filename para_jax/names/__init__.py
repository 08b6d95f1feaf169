"""Rename modules between JAX paths and Hugging Face names. Runs on the host.

    child = names.to_hf(para.load("run/100"), "gemma3")
    para.save(child, "adapter/", format="peft")  # PEFT loads it onto transformers.

A model has a table for every ecosystem that writes it (tunix, gemma, MaxText, Flax
classes with Hugging Face's names ...). A table pairs patterns,
`layers/{i}/attn/q_proj` with `model.layers.{i}.self_attn.q_proj`, and covers both sides
completely: every layer, every projection of attention and MLP, none twice. Your own
table is a mapping of the same form, or a TOML file of it.

MaxText keeps some kernels in another form than Hugging Face (queries divided by the
square root of `head_dim`, rotary pairs side by side); the update changes with the name.
That changes singular values, so rename before compressing.

Releases of transformers rename modules too: `to_installed` writes the names that the
installed one reads, and `former` tells whether names are of before.
"""

from para_jax.names.convert import from_hf as from_hf, to_hf as to_hf
from para_jax.names.former import former as former
from para_jax.names.installed import to_installed as to_installed
from para_jax.names.models import MODELS as MODELS, read as read, tables as tables
from para_jax.names.patterns import Module as Module, Table as Table
