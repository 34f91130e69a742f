"""transformers' `generate` on torch; see README.md.

A setting says how many rows are drawn at once and whether each prompt is read
once, its cache then copied to all rows of it (copied), or by every row, as
generate does by itself (plain).
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
    side = Side(torch, transformers, job)
    with torch.inference_mode():
        side.batch(side.rows_of(job["warm_up"], 8)[0], False, 2)  # warm-up
        tried = []
        for setting in job["settings"]:
            seconds = round(side.foretold(**setting), 1)
            tried.append({**setting, "seconds": seconds})
        best = dict(min(tried, key=lambda one: one["seconds"]))
        del best["seconds"]
        found = {**side.whole(**best), "setting": best, "tried": tried}
    version = f"{transformers.__version__}, torch {torch.__version__}"
    print(json.dumps({**found, "version": version}))


class Side:
    def __init__(self, torch, transformers, job):
        self.torch, self.transformers, self.job = torch, transformers, job
        file = Path(job["model"])
        # of a directory the whole is read, of a GGUF file that file
        where = (
            {"pretrained_model_name_or_path": str(file)}
            if file.is_dir()
            else {
                "pretrained_model_name_or_path": str(file.parent),
                "gguf_file": file.name,
            }
        )
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.float32
        ).eval()

    def rows_of(self, prompts, rows: int) -> list[list[list[int]]]:
        """Batches of rows; the candidates of a prompt stand together."""
        every = [ids for ids in prompts for _ in range(self.job["candidates"])]
        return [every[at : at + rows] for at in range(0, len(every), rows)]

    def foretold(self, rows: int, copied: bool) -> float:
        """Seconds for all prompts, by a few steps of the first batch."""
        job, prompts = self.job, self.job["prompts"]
        probe = self.rows_of(job["warm_up"], rows)[0]
        read, decoding = self.batch(probe, copied, job["probe_steps"])
        step = decoding / (job["probe_steps"] - 1)
        whole = read + step * (job["new_tokens"] - 1)
        # the last batch may be short
        return whole * len(prompts) * job["candidates"] / len(probe)

    def whole(self, rows: int, copied: bool) -> dict:
        reading = decoding = 0.0
        samples = 0
        for batch in self.rows_of(self.job["prompts"], rows):
            read, decode = self.batch(batch, copied, self.job["new_tokens"])
            reading, decoding = reading + read, decoding + decode
            samples += len(batch)
        new = self.job["new_tokens"]
        return {
            "tokens": samples * new,
            "seconds": reading + decoding,
            "decode_tokens": samples * (new - 1),
            "decode_seconds": decoding,
            "kv_bytes": self.kv_bytes,
        }

    def batch(self, rows, copied: bool, new: int) -> tuple[float, float]:
        """Draws `new` tokens in each row; seconds until the first token of
        each, and from there on."""
        torch = self.torch
        begin = time.perf_counter()
        ids, mask = self._padded(rows)
        cache = self._read_once(rows) if copied else None
        cache = cache or self.transformers.DynamicCache(
            config=self.model.config
        )
        times = []

        def watch(input_ids, scores, **_):
            times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

        out = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            do_sample=True,
            temperature=self.job["temperature"],
            top_k=0,
            top_p=1.0,
            min_new_tokens=new,
            max_new_tokens=new,
            pad_token_id=0,
            stopping_criteria=[watch],
        )
        if out.shape[1] != ids.shape[1] + new or len(times) != new:
            sys.exit(f"transformers: {tuple(out.shape)} after {new} steps")
        self.kv_bytes = sum(
            part.nbytes
            for layer in cache.layers
            for part in (layer.keys, layer.values)
        )
        return times[0] - begin, time.perf_counter() - times[0]

    def _padded(self, rows):
        longest = max(map(len, rows))
        pads = [longest - len(row) for row in rows]
        ids = [[0] * pad + row for pad, row in zip(pads, rows, strict=True)]
        mask = [
            [0] * pad + [1] * len(row)
            for pad, row in zip(pads, rows, strict=True)
        ]
        return self.torch.tensor(ids), self.torch.tensor(mask)

    def _read_once(self, rows):
        """A cache of all but the last token of each row."""
        distinct = list(dict.fromkeys(map(tuple, rows)))
        counts = [rows.count(list(one)) for one in distinct]
        ids, mask = self._padded([list(one) for one in distinct])
        ids, mask = ids[:, :-1], mask[:, :-1]
        cache = self.transformers.DynamicCache(config=self.model.config)
        self.model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
        )
        repeats = self.torch.tensor(counts)
        for layer in cache.layers:
            layer.keys = layer.keys.repeat_interleave(repeats, 0)
            layer.values = layer.values.repeat_interleave(repeats, 0)
        return cache


if __name__ == "__main__":
    main()
