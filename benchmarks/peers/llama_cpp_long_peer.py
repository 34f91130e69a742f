"""llama.cpp with continuous batching, by its low-level API; see README.md.

Rows are sequences of one context with one buffer of keys. A sample takes a row
as soon as it is free; its prompt is read once, in a sequence of its own, and
shared with the rows that continue it. llama.cpp's samplers draw on the host.
"""

import ctypes
import json
import sys
import time

PROBE = 12  # steps with all rows, to choose the weights by


def main() -> None:
    job = json.load(sys.stdin)
    try:
        import llama_cpp  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        print(json.dumps({"missing": str(error)}))
        return
    llama_cpp.llama_backend_init()
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    tried = []
    for weights in job["weights"]:
        rows = Rows(llama_cpp, job, weights)
        short = [[min(PROBE, n) for n in each] for each in job["lengths"]]
        enough = -(-job["rows"] // len(short[0]))
        done = rows.whole(short[:enough])
        speed = done["tokens"] / done["seconds"]
        tried.append({"weights": weights, "tokens_per_second": round(speed, 1)})
        rows.close()
    best = max(tried, key=lambda one: one["tokens_per_second"])["weights"]
    rows = Rows(llama_cpp, job, best)
    found = {**rows.whole(job["lengths"]), "weights": best, "tried": tried}
    print(json.dumps({**found, "version": llama_cpp.__version__}))


class Rows:
    """A context, the sequences that it holds and their samplers."""

    def __init__(self, api, job, weights):
        self.api, self.job, self.count = api, job, job["rows"]
        self.model = api.llama_model_load_from_file(
            job["models"][weights].encode(), api.llama_model_default_params()
        )
        if not self.model:
            sys.exit(f"llama.cpp cannot load {weights}")
        prompts = job["prompts"]
        longest = sorted(n for each in job["lengths"] for n in each)
        params = api.llama_context_default_params()
        # room for the longest samples side by side, and for all prompts
        params.n_ctx = sum(longest[-self.count :]) + sum(map(len, prompts))
        self.room = max(512, *map(len, prompts))
        params.n_batch = params.n_ubatch = self.room
        sequences = self.count + len(prompts)
        params.n_seq_max = params.n_outputs_max = sequences
        params.n_threads = params.n_threads_batch = job["threads"]
        params.kv_unified = True
        self.context = api.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp refuses this context")
        self.memory = api.llama_get_memory(self.context)
        self.batch = api.llama_batch_init(self.room, 0, 1)
        self.samplers = [self._sampler(row + 1) for row in range(self.count)]

    def _sampler(self, seed: int):
        api = self.api
        chain = api.llama_sampler_chain_init(
            api.llama_sampler_chain_default_params()
        )
        for sampler in (
            api.llama_sampler_init_temp(self.job["temperature"]),
            api.llama_sampler_init_dist(seed),
        ):
            api.llama_sampler_chain_add(chain, sampler)
        return chain

    def whole(self, lengths) -> dict:
        """Draws all samples: lengths[q] are those of prompt q."""
        waiting = [(q, n) for q, each in enumerate(lengths) for n in each]
        total = sum(n for _, n in waiting)
        waiting.reverse()
        prompts, read = self.job["prompts"], set()
        # of each row: prompt, tokens left, token to read, its place
        rows: list = [None] * self.count
        steps = active = most = 0
        begin, cpu = time.perf_counter(), time.process_time()
        while waiting or any(rows):
            for row in range(self.count):
                if rows[row] is None and waiting:
                    prompt, length = waiting.pop()
                    ids = prompts[prompt]
                    if prompt not in read:
                        self._read(prompt)
                        read.add(prompt)
                    self.api.llama_memory_seq_cp(
                        self.memory, self.count + prompt, row, -1, -1
                    )
                    rows[row] = [prompt, length, ids[-1], len(ids) - 1]
            waits = {prompt for prompt, _ in waiting}
            for prompt in [one for one in read if one not in waits]:
                if all(row is None or row[0] != prompt for row in rows):
                    sequence = self.count + prompt
                    self._remove(sequence)
                    read.discard(prompt)
            busy = [row for row in range(self.count) if rows[row]]
            most = max(most, self._cells(rows, read))
            self._step(rows, busy)
            steps += self.count
            active += len(busy)
            for row in busy:
                if not rows[row][1]:
                    self._remove(row)
                    rows[row] = None
        return {
            "tokens": total,
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "idle": round(1 - active / steps, 4),
            "cells_used": most,
        }

    def _cells(self, rows, read) -> int:
        prompts = self.job["prompts"]
        own = sum(row[3] - len(prompts[row[0]]) + 1 for row in rows if row)
        return own + sum(len(prompts[prompt]) for prompt in read)

    def _read(self, prompt: int) -> None:
        """All but the end of it, which every row reads for itself."""
        ids = self.job["prompts"][prompt][:-1]
        for place, token in enumerate(ids):
            self._put(place, token, place, self.count + prompt, False)
        self._decode(len(ids))

    def _remove(self, sequence: int) -> None:
        self.api.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    def _step(self, rows, busy) -> None:
        for at, row in enumerate(busy):
            self._put(at, rows[row][2], rows[row][3], row, True)
        self._decode(len(busy))
        for at, row in enumerate(busy):
            rows[row][2] = self.api.llama_sampler_sample(
                self.samplers[row], self.context, at
            )
            rows[row][1] -= 1
            rows[row][3] += 1

    def _put(self, at, token, place, sequence, wanted) -> None:
        batch = self.batch
        batch.token[at], batch.pos[at] = token, place
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.logits[at] = wanted

    def _decode(self, count: int) -> None:
        self.batch.n_tokens = count
        code = self.api.llama_decode(self.context, self.batch)
        if code:
            sys.exit(f"llama.cpp: llama_decode gave {code}")

    def close(self) -> None:
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


if __name__ == "__main__":
    main()
