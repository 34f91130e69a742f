"""Many candidates for each of some short prompts, against other systems and
against the limit that matrix products set."""

from benchmarks import against, gemm, ours, pieces
from benchmarks.common import Config, Lines, rate


def lines(config: Config) -> Lines:
    size = config.decode
    model = ours.load(config)
    work = ours.make_work(config, size, model)
    setting, tried = ours.best_setting(work, size.settings)
    first, engine = ours.full(work, setting)
    wave = ours.wave(work, setting, engine)
    yield ours.line(size, setting, tried, first, wave)
    yield {
        "bench": "breakdown of a decode step",
        "slots": setting.slots,
        **pieces.breakdown(
            model, setting.slots, size.temperature, wave, config.repeats
        ),
    }
    yield limit_line(config, size, wave, model)
    yield from against.ratios(config, size, work, setting, first)


def limit_line(config: Config, size: Config, wave: ours.Wave, model) -> dict:
    """How near decoding comes to the products alone at their best."""
    products = gemm.limit(
        model, size.gemm_rows, config.repeats, size.gemm_libraries
    )
    best = max(products, key=lambda one: one["tokens_per_second"])
    decoded = rate(wave.tokens, wave.seconds)
    return {
        "bench": "decode against its matrix products",
        "decode_tokens_per_second": decoded,
        "limit_tokens_per_second": best["tokens_per_second"],
        "share": round(decoded / best["tokens_per_second"], 3),
        "goal": 0.75,
        "best": best,
        "tried": products,
    }
