"""GGUF files of tiny models, written with the package of llama.cpp.

What llama.cpp's conversion changes is written here as a formula of its own.
"""

import gguf
import numpy as np

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "gemma3": gguf.MODEL_ARCH.GEMMA3}


def write(file, architecture="llama", *, tensors=(), kinds=None, **metadata):
    """Write a file of any content.

    Args:
      file: The path.
      architecture: Its name.
      tensors: Arrays by name.
      kinds: The kinds of blocks of some tensors, by name; else F32.
      **metadata: Values by key, with `__` for a dot.
    """
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in metadata.items():
        add(writer, key.replace("__", "."), value)
    for name, x in dict(tensors).items():
        kind = (kinds or {}).get(name, gguf.GGMLQuantizationType.F32)
        data = gguf.quantize(np.ascontiguousarray(x, np.float32), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add(writer, key, value):
    kinds = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    kinds[type(value)](key, value)


def model(file, architecture, config, tensors, *, kind=None, **more):
    """Write a model of tensors by their names in transformers.

    Args:
      file: The path.
      architecture: `llama` or `gemma3`.
      config: Our configuration of its shape.
      tensors: Its tensors.
      kind: The kind of blocks of its matrices.
      **more: Further metadata, as for `write`.
    """
    names = gguf.get_tensor_name_map(
        ARCHITECTURES[architecture], config.num_hidden_layers
    )
    found = {}
    for name, x in tensors.items():
        stem, _, suffix = name.rpartition(".")
        found[f"{names.get_name(stem)}.{suffix}"] = converted(
            architecture, config, name, x
        )
    values = {
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
    }
    metadata = {f"{architecture}.{key}": value for key, value in values.items()}
    kinds = {k: kind for k, x in found.items() if kind and x.ndim == 2}
    return write(file, architecture, tensors=found, kinds=kinds, **(metadata | more))


def converted(architecture, config, name, x):
    """Return a tensor as llama.cpp's conversion writes it."""
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return x + 1
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(name.split(".")[-2])
    if architecture == "llama" and heads:
        # Row `half, i` of a head becomes row `i, half`.
        rows = np.arange(len(x)).reshape(heads, 2, -1).swapaxes(1, 2).ravel()
        return x[rows]
    return x
