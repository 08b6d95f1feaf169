"""A model's tokenizer, from its `tokenizer.json` or else from its GGUF file.

A file lists the tokens and, of byte-level BPE, the merges. Of SentencePiece's BPE there
are none: two tokens are merged if they make a third, the best one first. Runs on the
host.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from train.models import gguf_file

FILE = "tokenizer.json"

_SPACE = "▁"  # What SentencePiece writes for a space.
_CONTROL, _USER_DEFINED = 3, 4  # Kinds of tokens that text is split at.


def load(folder: pathlib.Path) -> tokenizers.Tokenizer:
    """Load the tokenizer of a model folder.

    Raises:
      FileNotFoundError: if it has neither `tokenizer.json` nor a GGUF file.
      ValueError: if the GGUF file is damaged, or has a tokenizer of another form.
    """
    if (folder / FILE).is_file():
        return tokenizers.Tokenizer.from_file(str(folder / FILE))
    if (file := gguf_file.find(folder)) is None:
        raise FileNotFoundError(
            f"'{folder}' holds no tokenizer: expected {FILE}, or a file "
            f"{gguf_file.PATTERN}. A model's page on the hub lists its files."
        )
    return _built(file, gguf_file.read_header(file).metadata)


def _built(file: pathlib.Path, metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    prefix = "tokenizer.ggml."
    values = {
        key.removeprefix(prefix): value
        for key, value in metadata.items()
        if key.startswith(prefix)
    }
    kind, split = values.get("model"), values.get("pre")
    needed = ("tokens", "merges" if kind == "gpt2" else "scores")
    if missing := [x for x in needed if kind in ("gpt2", "llama") and x not in values]:
        raise ValueError(
            f"'{file}' lacks the tokenizer's {missing}. Download it again."
        )
    if kind == "llama":
        gemma = metadata.get("general.architecture") == "gemma3"
        built = _gemma(values) if gemma else _sentencepiece(values)
    elif kind == "gpt2" and split in _SPLITS:
        built = _byte_level(values, _SPLITS[split])
    else:
        raise ValueError(
            f"'{file}': the tokenizer is of the model {kind!r} and splits by "
            f"{split!r}, expected 'llama', or 'gpt2' and one of {sorted(_SPLITS)}. Put "
            f"the model's {FILE} beside the file."
        )
    _add_tokens(built, values)
    built.post_processor = _ends(values, begin=kind == "llama")
    return built


def _gemma(values: Mapping[str, Any]) -> tokenizers.Tokenizer:
    # The file has spaces in the tokens of spaces alone.
    tokens = [x if x.strip(" ") else _SPACE * len(x) for x in values["tokens"]]
    # Its scores do not order the merges; the tokens do.
    order = range(0, -len(tokens), -1)
    built = _bpe(tokens, order, unk_token=_unknown(values))
    built.normalizer = normalizers.Replace(" ", _SPACE)
    built.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    built.decoder = decoders.Sequence(_joined())
    return built


def _sentencepiece(values: Mapping[str, Any]) -> tokenizers.Tokenizer:
    built = _bpe(
        values["tokens"], values["scores"].tolist(), unk_token=_unknown(values)
    )
    spaced = values.get("add_space_prefix", True)
    scheme = "first" if spaced else "never"
    built.pre_tokenizer = pre_tokenizers.Metaspace(
        _SPACE, prepend_scheme=scheme, split=False
    )
    ending = [decoders.Strip(" ", left=1)] if spaced else []
    built.decoder = decoders.Sequence([*_joined(), *ending])
    return built


def _joined() -> list[Any]:
    return [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]


def _unknown(values: Mapping[str, Any]) -> str | None:
    index = values.get("unknown_token_id")
    return None if index is None else values["tokens"][index]


def _bpe(
    tokens: Sequence[str], scores: Sequence[float], **settings: Any
) -> tokenizers.Tokenizer:
    ids = {token: index for index, token in enumerate(tokens)}
    found = [
        (-score, -cut, left, right)
        for token, score in zip(tokens, scores, strict=True)
        for cut in range(1, len(token))
        if (left := token[:cut]) in ids and (right := token[cut:]) in ids
    ]
    # The best token first; of its pairs, the one that begins with more letters.
    found.sort()
    merges = [pair[2:] for pair in found]
    model = models.BPE(
        ids,
        merges,
        fuse_unk=True,
        byte_fallback=True,
        **settings,
    )
    return tokenizers.Tokenizer(model)


def _byte_level(
    values: Mapping[str, Any], split: Sequence[Any]
) -> tokenizers.Tokenizer:
    ids = {token: index for index, token in enumerate(values["tokens"])}
    merges = [tuple(x.split(" ")) for x in values["merges"]]
    built = tokenizers.Tokenizer(models.BPE(ids, merges))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    built.decoder = decoders.ByteLevel()
    return built


# What splits text before GPT-2's rule does, by llama.cpp's name of the tokenizer.
_SPLITS: dict[str, tuple[Any, ...]] = {
    "gpt-2": (),
    "smollm": (pre_tokenizers.Digits(individual_digits=True),),
}


def _add_tokens(built: tokenizers.Tokenizer, values: Mapping[str, Any]) -> None:
    tokens, kinds = values["tokens"], values.get("token_type", ())
    of = {
        kind: [
            AddedToken(token, normalized=False, special=kind == _CONTROL)
            for token, x in zip(tokens, kinds, strict=False)
            # Respelled ones are in the vocabulary alone.
            if x == kind and built.token_to_id(token) is not None
        ]
        for kind in (_CONTROL, _USER_DEFINED)
    }
    built.add_special_tokens(of[_CONTROL])
    built.add_tokens(of[_USER_DEFINED])


def _ends(values: Mapping[str, Any], *, begin: bool) -> Any:
    """Return what adds the tokens at a text's ends.

    Args:
      values: The tokenizer's metadata.
      begin: Whether there is one at the beginning, if it does not say.
    """
    ids = {
        name: values[f"{name}_token_id"]
        for name, default in (("bos", begin), ("eos", False))
        if values.get(f"add_{name}_token", default) and f"{name}_token_id" in values
    }
    named = {name: values["tokens"][index] for name, index in ids.items()}

    def around(text: str, number: int) -> list[str]:
        parts = [named.get("bos"), text, named.get("eos")]
        return [f"{x}:{number}" for x in parts if x is not None]

    first, second = around("$A", 0), around("$B", 1)
    return processors.TemplateProcessing(
        single=first,
        pair=first + second,
        special_tokens=[(named[name], ids[name]) for name in ids],
    )
