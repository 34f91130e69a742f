"""Other systems on the same work, each run by an interpreter of its own."""

import itertools
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import gguf

from benchmarks import ours, prompts
from benchmarks.common import Config, Lines, last_line, rate
from benchmarks.ours import Setting, Work
from dynscaling_jax.checkpoints.model import resolve

SCRIPTS = Path(__file__).parent / "peers"
INSTALL = "make peers"


def ratios(
    config: Config,
    size: Config,
    work: Work,
    setting: Setting,
    first: ours.Full,
) -> Lines:
    """A line for each peer. Our side runs before and after it, so that a
    change of the machine's load in between meets both."""
    before = first
    for name, ask, goal in (
        ("transformers", ask_transformers, size.transformers.goal),
        ("llama.cpp", ask_llama_cpp, size.llama_cpp.goal),
    ):
        bench = {"bench": f"{size.name} against {name}"}
        theirs = ask(config, size, work)
        if "missing" in theirs:
            yield {**bench, "install": INSTALL, **theirs}
            continue
        after, _ = ours.full(work, setting)
        mine = rate(
            before.tokens + after.tokens, before.seconds + after.seconds
        )
        seconds = theirs.pop("seconds")
        other = rate(theirs.pop("tokens"), seconds)
        yield {
            **bench,
            "tokens_per_second": mine,
            "their_tokens_per_second": other,
            "ratio": round(mine / max(other, 0.1), 2),
            "goal": goal,
            **foretold_plain(mine, work, theirs["tried"]),
            "their_decode_tokens_per_second": rate(
                theirs.pop("decode_tokens"), theirs.pop("decode_seconds")
            ),
            "their_seconds": round(seconds, 1),
            **theirs,
        }
        before = after


def foretold_plain(mine: float, work: Work, tried: list[dict]) -> dict:
    """The ratio to generate as it is, which reads a prompt for each row, by
    the probes; nothing where no such setting was tried."""
    plain = [one["seconds"] for one in tried if one.get("copied") is False]
    if not plain:
        return {}
    tokens = len(work.queries) * work.candidates * work.new_tokens
    return {"foretold_ratio_to_plain": round(mine * min(plain) / tokens, 2)}


def ask_transformers(config: Config, size: Config, work: Work) -> dict:
    """generate at its best: batch sizes, prompts read plainly or copied."""
    settings = [
        {"rows": rows, "copied": copied}
        for rows, copied in itertools.product(
            size.transformers.rows, size.transformers.copied
        )
    ]
    job = _job(size, work, settings, size.transformers.probe_steps)
    job["model"] = str(resolve(config.model).absolute())
    return run(config.peers.transformers_python, "transformers_peer.py", job)


def ask_llama_cpp(config: Config, size: Config, work: Work) -> dict:
    """Batched decoding at its best: weights, rows, one buffer of keys or a
    stream for each row, draws on the host or in its graph."""
    file = resolve(config.model).absolute()
    if file.suffix != ".gguf":
        return {
            "missing": "a GGUF file: llama.cpp reads nothing else",
            "install": "--config.model=FILE.gguf",
        }
    if not Path(config.peers.llama_python).is_file():
        return {"missing": config.peers.llama_python}
    settings = [
        {"weights": weights, "rows": rows, "unified": unified, "draws": draws}
        for weights, rows, unified, draws in itertools.product(
            size.llama_cpp.weights,
            size.llama_cpp.rows,
            size.llama_cpp.unified,
            size.llama_cpp.draws,
        )
    ]
    job = _job(size, work, settings, size.llama_cpp.probe_steps)
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "float32.gguf"
        if "float32" in size.llama_cpp.weights:
            write_float32(file, wide)
        job["models"] = {"file": str(file), "float32": str(wide)}
        return run(config.peers.llama_python, "llama_cpp_peer.py", job)


def _job(
    size: Config, work: Work, settings: list[dict], probe_steps: int
) -> dict[str, Any]:
    return {
        "prompts": prompts.ids(work.model, work.queries),
        "warm_up": prompts.ids(work.model, work.warm_up),
        "candidates": work.candidates,
        "new_tokens": work.new_tokens,
        "temperature": work.temperature,
        "threads": len(os.sched_getaffinity(0)),
        "settings": settings,
        "probe_steps": probe_steps,
    }


def run(python: str, script: str, job: dict[str, Any]) -> dict[str, Any]:
    if not Path(python).is_file():
        return {"missing": python}
    return last_line(
        [python, str(SCRIPTS / script)], script, input=json.dumps(job)
    )


def write_float32(source: Path, out: Path) -> None:
    """A GGUF file with the same content, its tensors as float32."""
    reader = gguf.GGUFReader(source)
    kind = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, kind)
    for name, field in reader.fields.items():
        made_by_writer = name.startswith("GGUF.") or not field.types
        if made_by_writer or name == "general.architecture":
            continue
        value = field.contents()
        if name == "general.file_type":
            value = int(gguf.LlamaFileType.ALL_F32)
        parts = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, value, field.types[0], parts)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
