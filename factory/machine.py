"""What is there: this machine's memory and disk, a model directory, a hub model, an endpoint. Looked at, never loaded.

Does: measure, read headers, ask with a short time-out. Does not: decide what is enough (`teacher.py`, `plan.py`).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

DTYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}


@dataclass(frozen=True)
class Machine:
    """Free memory and disk in GB (1e9 bytes); `gpu_gb` sums over the CUDA devices, 0 without one."""

    gpu_gb: float
    ram_gb: float
    disk_gb: float
    cache_dir: Path
    """where hub downloads go"""


@dataclass(frozen=True)
class Weights:
    """What a model directory's config and safetensors headers say. `billions` of parameters, `context` tokens (0: not stated)."""

    billions: float
    embedding: float
    context: int
    license: str


@dataclass(frozen=True)
class HubState:
    """A hub model: its commit, whether its weights are cached, and why it cannot be had."""

    revision: str = ""
    cached: bool = False
    license: str = "not stated"
    billions: float = 0.0
    problem: str | None = None


def look_at_machine() -> Machine:
    """Measure free GPU memory, RAM and disk now."""
    import psutil
    import torch

    gpu = sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())) if torch.cuda.is_available() else 0
    cache = hub_cache_dir()
    place = next(p for p in (cache, *cache.parents) if p.exists())
    return Machine(gpu / 1e9, psutil.virtual_memory().available / 1e9, shutil.disk_usage(place).free / 1e9, cache)


def hub_cache_dir() -> Path:
    """Where hub downloads go, by the environment (HF_HUB_CACHE, HF_HOME)."""
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()


def offline() -> bool:
    """Whether the environment forbids asking the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def model_dir(path: Path) -> tuple[Weights, str]:
    """Sizes of a Hugging Face model directory and a hash that names its contents; ValueError says what is wrong with it."""
    if not path.is_dir():
        raise ValueError(f"there is no directory {path}")
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} has no config.json; give a Hugging Face model directory")
    files = sorted(path.glob("*.safetensors"))
    if not files:
        pickled = any(path.glob("*.bin"))
        why = "only pickled weights, which are not loaded; convert them to safetensors" if pickled else "no *.safetensors weights"
        raise ValueError(f"{path} has {why}")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        shapes = {name: entry for file in files for name, entry in safetensors_header(file).items()}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None
    total = sum(_numel(entry) for entry in shapes.values())
    embedding = sum(_numel(e) for name, e in shapes.items() if "embed_tokens" in name or "lm_head" in name)
    text = config.get("text_config", config)
    weights = Weights(total / 1e9, embedding / 1e9, int(text.get("max_position_embeddings") or 0), _card_license(path))
    return weights, file_stamp([path / "config.json", *files])


def called(path: Path) -> str:
    """What a model directory is called, without where it lies: its last part, of a run's model (RUN/model) the run's."""
    path = path.expanduser().resolve()
    return path.parent.name if path.name == "model" else path.name


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensor name -> {"dtype", "shape", "data_offsets"}, without reading the tensors; ValueError when it is no such file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= 100_000_000:
            raise ValueError(f"{path.name} is not a safetensors file")
        header: dict[str, dict[str, Any]] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header


def _numel(entry: dict[str, Any]) -> int:
    count = 1
    for size in entry["shape"]:
        count *= size
    return count


def _card_license(path: Path) -> str:
    """The licence by our own card, else by the hub's README."""
    try:
        stated = json.loads((path / "card.json").read_text(encoding="utf-8")).get("license")
        if stated:
            return str(stated)
    except (OSError, ValueError, AttributeError):
        pass
    readme = path / "README.md"
    if readme.is_file():
        for line in readme.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.startswith("license:"):
                return line.partition(":")[2].strip() or "not stated"
    return "not stated"


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(paths: Sequence[Path]) -> str:
    """sha256 (hex) over names, sizes and the first and last 64 KB: names gigabytes of weights in milliseconds."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name}:{size};".encode())
        with path.open("rb") as file:
            digest.update(file.read(65_536))
            file.seek(max(0, size - 65_536))
            digest.update(file.read(65_536))
    return digest.hexdigest()


def hub_state(model_id: str, timeout_s: float = 5.0) -> HubState:
    """Whether a hub model can be had: from the cache when its weights are there, else by asking the hub once, briefly."""
    import huggingface_hub as hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    cached = _cached(model_id)
    if cached is not None:
        weights, _ = model_dir(cached)
        return HubState(cached.name, True, weights.license, weights.billions)
    if offline():
        return HubState(problem="is not in the cache and HF_HUB_OFFLINE is set: unset it, or download the model first")
    try:
        found = hub.HfApi().model_info(model_id, timeout=timeout_s)
        hub.HfApi().auth_check(model_id)
    except GatedRepoError:
        return HubState(
            problem=f"is gated: accept its terms at https://huggingface.co/{model_id} and log in with `hf auth login`"
        )
    except RepositoryNotFoundError:
        return HubState(problem="is not on the hub; check the name, or log in with `hf auth login` when it is private")
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        return HubState(problem=f"is not in the cache and the hub cannot be reached ({_short(error)}): connect, or give ./DIR")
    except Exception as error:  # the hub client's transport errors share no base class with the above
        return HubState(problem=f"is not in the cache and the hub cannot be reached ({_short(error)}): connect, or give ./DIR")
    sizes = found.safetensors.total if found.safetensors is not None else 0
    if not sizes:
        return HubState(problem="has no safetensors weights on the hub; pickled weights are not loaded")
    card = found.card_data
    name = getattr(card, "license", None) if card is not None else None
    return HubState(found.sha or "", False, str(name or "not stated"), sizes / 1e9)


def _cached(model_id: str) -> Path | None:
    """The cached snapshot of a model when its config and every weight file are there."""
    root = hub_cache_dir() / ("models--" + model_id.replace("/", "--"))
    ref = root / "refs" / "main"
    if not ref.is_file():
        return None
    snapshot = root / "snapshots" / ref.read_text(encoding="utf-8").strip()
    index = snapshot / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        wanted = {"model.safetensors"}
    return snapshot if (snapshot / "config.json").is_file() and all((snapshot / name).is_file() for name in wanted) else None


def ping(url: str, model: str, timeout_s: float = 5.0) -> tuple[Literal["ok", "other", "unsure", "unreachable"], str]:
    """Ask an endpoint which models it serves. Returns the finding and what to say about it; never sends a prompt."""
    request = urllib.request.Request(f"{url.rstrip('/')}/models")
    key = os.environ.get("OPENAI_API_KEY")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            listed = json.load(response)
        names = [str(entry["id"]) for entry in listed["data"]]
    except urllib.error.HTTPError as error:
        return "unsure", f"status {error.code}"
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        return "unreachable", _short(getattr(error, "reason", error))
    except (ValueError, KeyError, TypeError):
        return "unsure", "no model list"
    if model in names:
        return "ok", model
    return "other", ", ".join(names[:8]) or "no model"


def _short(error: object) -> str:
    return (str(error).splitlines() or [repr(error)])[0][:120] or repr(error)
