"""transformers' continuous batching on torch; see README.md.

Where its manager does not run on this machine, generate draws batches of rows
as the samples come, each as long as its longest; the line says so.
"""

import json
import sys
import time
from pathlib import Path


def main() -> None:
    job = json.load(sys.stdin)
    try:
        import torch  # pyright: ignore[reportMissingImports]
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    file = Path(job["model"])
    where = (
        {"pretrained_model_name_or_path": str(file)}
        if file.is_dir()
        else {
            "pretrained_model_name_or_path": str(file.parent),
            "gguf_file": file.name,
        }
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32
    ).eval()
    work = [
        (ids, length)
        for ids, lengths in zip(job["prompts"], job["lengths"], strict=True)
        for length in lengths
    ]
    settings = {
        "do_sample": True,
        "temperature": job["temperature"],
        "top_k": 0,
        "top_p": 1.0,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    said = ""
    with torch.inference_mode():
        try:
            found = continuous(transformers, model, settings, work, job["rows"])
        except Exception as error:  # whatever it says is reported
            said = f"{type(error).__name__}: {error}"
            found = batches(torch, model, settings, work, job["rows"])
    version = f"{transformers.__version__}, torch {torch.__version__}"
    print(
        json.dumps(
            {**found, "continuous_batching": said or "ran", "version": version}
        )
    )


def continuous(transformers, model, settings, work, rows) -> dict:
    config = transformers.GenerationConfig(
        **settings, max_new_tokens=max(length for _, length in work)
    )
    manager = model.init_continuous_batching(generation_config=config)
    begin, cpu = time.perf_counter(), time.process_time()
    manager.start()
    for ids, length in work:
        manager.add_request(list(ids), max_new_tokens=length)
    tokens = finished = 0
    while finished < len(work):
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("its manager stopped without a result")
            continue
        if getattr(result, "error", None):
            raise RuntimeError(result.error)
        tokens += len(result.generated_tokens)
        finished += 1
    seconds = time.perf_counter() - begin
    cpu = time.process_time() - cpu
    manager.stop(block=True)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "cpu_seconds": round(cpu, 1),
        "form": "continuous batching, as many rows as it takes",
    }


def batches(torch, model, settings, work, rows) -> dict:
    begin, cpu = time.perf_counter(), time.process_time()
    for at in range(0, len(work), rows):
        some = work[at : at + rows]
        longest = max(len(ids) for ids, _ in some)
        pads = [longest - len(ids) for ids, _ in some]
        new = max(length for _, length in some)
        model.generate(
            input_ids=torch.tensor(
                [
                    [0] * pad + ids
                    for pad, (ids, _) in zip(pads, some, strict=True)
                ]
            ),
            attention_mask=torch.tensor(
                [
                    [0] * pad + [1] * len(ids)
                    for pad, (ids, _) in zip(pads, some, strict=True)
                ]
            ),
            min_new_tokens=new,
            max_new_tokens=new,
            **settings,
        )
    return {
        "tokens": sum(length for _, length in work),
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "form": f"generate, {rows} rows at a time, as long as the longest",
    }


if __name__ == "__main__":
    main()
