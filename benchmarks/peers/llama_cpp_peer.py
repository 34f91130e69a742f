"""llama.cpp's batched decoding, by its low-level API; see README.md.

Rows are sequences of one context. A setting says which file, how many rows,
whether candidates share the cells of their prompt (unified: one buffer, which
the attention of every row runs over) or each have a copy of it in a stream of
their own, and whether llama.cpp's samplers draw on the host or in its graph.
"""

import ctypes
import json
import sys
import time


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
    tried = [foretold(llama_cpp, job, one) for one in job["settings"]]
    known = [one for one in tried if "seconds" in one]
    if not known:
        sys.exit(f"llama.cpp: no setting works: {tried}")
    best = dict(min(known, key=lambda one: one["seconds"]))
    del best["seconds"]
    rows = Rows(llama_cpp, job, best)
    rows.wave(job["warm_up"], 2)
    found = {**rows.whole(), "setting": best, "tried": tried}
    print(json.dumps({**found, "version": llama_cpp.__version__}))


def foretold(api, job, setting) -> dict:
    """The setting with the seconds that all prompts would take."""
    try:
        rows = Rows(api, job, setting)
    except RuntimeError as error:
        return {**setting, "error": str(error)}
    rows.wave(job["warm_up"], 2)  # warm-up
    read, decoding = rows.wave(job["warm_up"], job["probe_steps"])
    rows.close()
    step = decoding / (job["probe_steps"] - 1)
    turns = -(-len(job["prompts"]) // rows.prompts)
    seconds = turns * (read + rows.repeats * step * (job["new_tokens"] - 1))
    return {**setting, "seconds": round(seconds, 1)}


class Rows:
    """A context, the sequences that it holds and their samplers."""

    def __init__(self, api, job, setting):
        self.api, self.job = api, job
        self.count = setting["rows"]
        self.in_graph = setting["draws"] == "graph"
        self.new = job["new_tokens"]
        # of one filling of the rows: its prompts, and how often it takes
        # place until all candidates are drawn
        self.prompts = max(1, self.count // job["candidates"])
        self.repeats = -(-job["candidates"] // self.count)
        self.each = min(self.count, job["candidates"])
        self.model = api.llama_model_load_from_file(
            job["models"][setting["weights"]].encode(),
            api.llama_model_default_params(),
        )
        if not self.model:
            raise RuntimeError(f"cannot load {setting['weights']}")
        self.samplers = [self._sampler(row + 1) for row in range(self.count)]
        self.context = self._context(setting["unified"])
        if not self.context:
            raise RuntimeError("llama.cpp refuses this context")
        self.memory = api.llama_get_memory(self.context)
        self.batch = api.llama_batch_init(self.room, 0, 1)

    def _context(self, unified: bool):
        api, job = self.api, self.job
        longest = max(map(len, job["prompts"] + job["warm_up"]))
        params = api.llama_context_default_params()
        if unified:
            self.cells = self.count * self.new + self.prompts * longest
        else:
            self.cells = self.count * (self.new + longest)
        self.room = max(512, self.count, self.prompts * longest)
        params.n_ctx = self.cells
        params.n_batch = self.room
        params.n_ubatch = max(512, self.count)
        params.n_seq_max = params.n_outputs_max = self.count
        params.n_threads = params.n_threads_batch = job["threads"]
        params.kv_unified = unified
        if self.in_graph:
            kind = api.llama_sampler_seq_config
            self.held = (kind * self.count)()
            for row, sampler in enumerate(self.samplers):
                pointer = ctypes.cast(sampler, ctypes.c_void_p)
                self.held[row].seq_id, self.held[row].sampler = row, pointer
            params.samplers, params.n_samplers = self.held, self.count
        return api.llama_init_from_model(self.model, params)

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

    def whole(self) -> dict:
        """Draws every candidate of every prompt."""
        prompts, reading, decoding, samples = self.job["prompts"], 0.0, 0.0, 0
        for at in range(0, len(prompts), self.prompts):
            some = prompts[at : at + self.prompts]
            for turn in range(self.repeats):
                left = self.job["candidates"] - turn * self.each
                each = min(left, self.each)
                read, decode = self.wave(some, self.new, each, turn > 0)
                reading, decoding = reading + read, decoding + decode
                samples += each * len(some)
        return {
            "tokens": samples * self.new,
            "seconds": reading + decoding,
            "decode_tokens": samples * (self.new - 1),
            "decode_seconds": decoding,
            "kv_cells": self.cells,
        }

    def wave(self, prompts, new, each=None, again=False):
        """Draws `new` tokens in each row; returns the seconds of reading and
        of decoding. Of a prompt that is read again only the end is."""
        prompts, each = prompts[: self.prompts], each or self.each
        begin = time.perf_counter()
        ends = self._forget(prompts) if again else self._read(prompts)
        ids = [prompt for prompt in prompts for _ in range(each)]
        if not again:
            self._share(len(prompts), each)
        if again or self.in_graph:
            tokens = self._step([i[-1] for i in ids], [len(i) - 1 for i in ids])
        else:
            # all candidates draw from the logits of the one prompt
            tokens = [
                self._draw(row, ends[row // each]) for row in range(len(ids))
            ]
        read = time.perf_counter()
        for step in range(new - 1):
            tokens = self._step(tokens, [len(i) + step for i in ids])
        return read - begin, time.perf_counter() - read

    def _read(self, prompts) -> list[int]:
        """Reads prompts into the first sequence of each; without their ends
        where the rows draw in the graph, each from an end of its own."""
        self.api.llama_memory_clear(self.memory, False)
        at, ends = 0, []
        for number, ids in enumerate(prompts):
            for place, token in enumerate(ids[: len(ids) - self.in_graph]):
                wanted = place == len(ids) - 1
                self._put(at, token, place, number * self.each, wanted)
                at += 1
            ends.append(at - 1)
        self._decode(at)
        return ends

    def _share(self, prompts: int, each: int) -> None:
        for number in range(prompts):
            first = number * self.each
            for row in range(first + 1, first + each):
                self.api.llama_memory_seq_cp(self.memory, first, row, -1, -1)

    def _forget(self, prompts) -> list[int]:
        """Drops what the rows drew, and the end of the prompt."""
        for row in range(self.count):
            length = len(prompts[row // self.each])
            self.api.llama_memory_seq_rm(self.memory, row, length - 1, -1)
        return []

    def _step(self, tokens, places) -> list[int]:
        for row, (token, place) in enumerate(zip(tokens, places, strict=True)):
            self._put(row, token, place, row, True)
        self._decode(len(tokens))
        return [self._draw(row, row) for row in range(len(tokens))]

    def _draw(self, row: int, output: int) -> int:
        return self.api.llama_sampler_sample(
            self.samplers[row], self.context, output
        )

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
