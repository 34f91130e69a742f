"""One CPU device: groups that share a prompt, a step as a loop over layers.

pages      which page holds which part of a sequence
scheduler  which sample each slot generates; host data alone
prefill    the keys of a prompt
cache      the arrays of pages, and attention over them
runner     the device: start, decode
batch      one engine's work: scheduler and runner
layout     shapes that follow the work
"""
