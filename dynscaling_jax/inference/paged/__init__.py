"""Long samples on accelerators: keys in pages, one jitted call a chunk.

pages      which pages of the pool are free, shared, or kept for reuse
scheduler  which sample each slot generates; host data alone
attention  how queries meet the pages: xla, tpu, pallas, gpu
runner     the device: prefill_chunk, start, decode_chunk
batch      one engine's work: scheduler and runner
"""
