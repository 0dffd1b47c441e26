"""What a Hugging Face folder of a LLaMA-family model holds, told from its files alone."""

import hashlib
import os
from pathlib import Path
from typing import Any

import yaml

from src.core.errors import UserError
from src.core.files import read_json
from src.core.paths import CARD_FILE

CONFIG_FILE = "config.json"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")
_MORE_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
SMALL_FILES = (CONFIG_FILE, *TOKENIZER_FILES, *_MORE_TOKENIZER_FILES)
WEIGHT_FILES = (  # transformers reads the first that is there; a download may leave the index of another
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
EXPECTED = (
    "expected a local Hugging Face folder of a LLaMA-family model with config.json, tokenizer.model or "
    "tokenizer.json, and *.safetensors or pytorch_model*.bin, or the id of one on the Hugging Face hub, owner/name (or "
    "use teacher=ilora_tiny, which builds one)"
)
_MOST_CARD = 1 << 20
_NAME = 255  # bytes, at most, of a file's name on any common file system
_POINTER = b"version https://git-lfs"
_SAMPLES, _SAMPLE = 256, 4096  # of a weights file: blocks, and bytes of each


def check_llm_folder(path: Path) -> None:
    """Look at the files only, so that a wrong path fails before anything expensive.

    Raises:
        UserError: `path` is no Hugging Face folder; the message says what is expected there.
    """
    if not path.is_dir():
        raise UserError(f"teacher.llm_path={path}: no such folder; {EXPECTED}")
    if not (path / CONFIG_FILE).is_file():
        raise UserError(f"teacher.llm_path={path}: has no config.json; {EXPECTED}")
    if "configuration_files" in _read_object(path / CONFIG_FILE):  # searched in quadratic time
        raise UserError(
            f"teacher.llm_path={path}: config.json names other configurations (configuration_files) for other versions "
            "of transformers; take that key out of a copy of the folder"
        )
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"teacher.llm_path={path}: has no tokenizer; {EXPECTED}")
    if (path / "adapter_config.json").is_file():  # transformers would load another model, named there
        raise UserError(
            f"teacher.llm_path={path}: holds a PEFT adapter (adapter_config.json); give the folder of a whole model, "
            "with the adapter merged into it"
        )
    for file in [*(path / name for name in SMALL_FILES), *weight_files(path)]:
        if file.is_file() and _begins_with(file, _POINTER):
            raise UserError(
                f"teacher.llm_path={path}: {file.name} is a Git LFS pointer instead of the file; run `git lfs pull` "
                "there, or fetch the model by `huggingface-cli download`"
            )


def _begins_with(file: Path, start: bytes) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(start)) == start


def check_formats(path: Path, *, load_in_4bit: bool) -> None:
    """Refuse what the libraries here cannot read: quantised checkpoints, and tokenizers of later versions.

    Args:
        load_in_4bit: `teacher.load_in_4bit`, which reads what bitsandbytes has quantised to 4 bits.

    Raises:
        UserError: naming the file, and what to take instead.
    """
    method = quantization(path)
    if method is not None and not (load_in_4bit and method == _BNB_4BIT):
        advice = "; or set teacher.load_in_4bit=true, on a GPU" if method == _BNB_4BIT else ""
        raise UserError(
            f"teacher.llm_path={path}: quantised ({method}, says {CONFIG_FILE}), which cannot be adapted; give the "
            f"checkpoint that it was made from, in float16 or bfloat16{advice}"
        )
    tokenizer = path / "tokenizer.json"
    if tokenizer.is_file() and not (path / "tokenizer.model").is_file() and _has_paired_merges(tokenizer):
        raise UserError(
            f"teacher.llm_path={path}: tokenizer.json has its merges as pairs, as tokenizers 0.20 (transformers 4.45) "
            'and later write them, and the version here reads ["a b"] instead of [["a", "b"]]; write them so, take a '
            "revision of the model from before (teacher.llm_revision), or put its tokenizer.model there"
        )


_BNB_4BIT = "bitsandbytes, 4 bits"


def quantization(path: Path) -> str | None:
    """How the checkpoint is quantised, as its configuration says, in words; None: it is not."""
    content = _read_object(path / CONFIG_FILE)
    found = content.get("quantization_config") or content.get("compression_config")
    if not found:
        return None
    found = found if isinstance(found, dict) else {}
    method = str(found.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in found else "unknown method"))
    bits = 4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else found.get("bits")
    return f"{method}, {bits} bits" if isinstance(bits, int) else method


def _has_paired_merges(file: Path) -> bool:
    model = _read_object(file).get("model")
    merges = model.get("merges") if isinstance(model, dict) else None
    return isinstance(merges, list) and bool(merges) and isinstance(merges[0], list)


def _read_object(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is none, which the library that needs it tells better."""
    try:
        content = read_json(file)
    except UserError:
        return {}
    return content if isinstance(content, dict) else {}


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights, all of them there."""
    weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if weights is None:
        raise UserError(f"teacher.llm_path={path}: has none of {', '.join(WEIGHT_FILES)}; {EXPECTED}")
    if weights.suffix != ".json":
        return [weights]
    named = _read_object(weights).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise UserError(f"teacher.llm_path={path}: {weights.name} names no files of weights; get it from its source")
    shards = sorted(set(named.values()))
    missing = [name for name in shards if not os.path.isfile(path / name)]  # False, too, for what can be no path
    if missing:
        more = f" and {len(missing) - 1} more files" if len(missing) > 1 else ""
        raise UserError(f"teacher.llm_path={path}: {weights.name} names {missing[0][:_NAME]}{more}, missing there")
    return [path / name for name in shards]


def llm_digest(path: Path) -> str | None:
    """SHA-256 of what the LM computes with: configuration, tokenizer and weights, wherever the folder lies.

    Of the weights, too large to be read each time, the size and 256 blocks of 4 KiB count, evenly spread: another
    model or another training of the same one differs everywhere. None while there is no LM.
    """
    if not (path / CONFIG_FILE).is_file():
        return None
    digest = hashlib.sha256()
    for file in (path / name for name in SMALL_FILES):
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size} ".encode() + file.read_bytes())
    for file in weight_files(path):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        step = max(_SAMPLE, (size - _SAMPLE) // (_SAMPLES - 1))
        with file.open("rb") as stream:
            for begin in range(0, size, step):
                stream.seek(begin)
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


def llm_name(path: Path) -> str:
    """A name for people: the folder's, or the id of a model in the hub's cache.

    >>> llm_name(Path("/models/Llama-2-7b-hf"))
    'Llama-2-7b-hf'
    >>> llm_name(Path("/cache/hub/models--owner--name/snapshots/0123abcd"))
    'owner/name'
    """
    *_, model, kind, _ = ("", "", *path.parts)[-4:] if len(path.parts) > 1 else ("", "", "", "")
    return model.removeprefix("models--").replace("--", "/") if kind == "snapshots" else path.name


def llm_license(path: Path) -> str | None:
    """The licence that the folder's model card gives in its front matter; None where it gives none.

    A card that cannot be read gives none, too: nothing is computed from it.
    """
    card = path / CARD_FILE
    if not card.is_file():
        return None
    _, mark, rest = card.read_text(encoding="utf-8", errors="replace")[:_MOST_CARD].partition("---\n")
    try:
        found = yaml.safe_load(rest.partition("\n---")[0]) if mark else None
    except yaml.YAMLError:
        return None
    names = [found.get(key) for key in ("license_name", "license")] if isinstance(found, dict) else []
    return next((name for name in names if isinstance(name, str)), None)


def num_layers(path: Path) -> int | None:
    """How many layers the LM has; None where its configuration does not say."""
    layers = _read_object(path / CONFIG_FILE).get("num_hidden_layers")
    return layers if isinstance(layers, int) else None
