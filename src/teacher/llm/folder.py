"""What a Hugging Face folder of a LLaMA-family model holds, told from its files alone."""

import hashlib
from pathlib import Path

from src.core.errors import UserError
from src.core.files import read_json

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
    if _names_configurations(path / CONFIG_FILE):  # transformers 4.43 searches the names in quadratic time
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
    weight_files(path)


def _names_configurations(file: Path) -> bool:
    try:
        content = read_json(file)
    except UserError:  # no JSON, which is told where it is read
        return False
    return isinstance(content, dict) and "configuration_files" in content


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights, all of them there."""
    weights = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if weights is None:
        raise UserError(f"teacher.llm_path={path}: has none of {', '.join(WEIGHT_FILES)}; {EXPECTED}")
    if weights.suffix != ".json":
        return [weights]
    shards = sorted(set(read_json(weights).get("weight_map", {}).values()))
    missing = [name for name in shards if not (path / name).is_file()]
    if missing:
        raise UserError(f"teacher.llm_path={path}: {weights.name} names {', '.join(missing)}, missing there")
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


def num_layers(path: Path) -> int | None:
    """How many layers the LM has; None where its configuration does not say."""
    content = read_json(path / CONFIG_FILE)
    layers = content.get("num_hidden_layers") if isinstance(content, dict) else None
    return layers if isinstance(layers, int) else None
