"""Sampling a token: distribution, truncation, measures and keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import stats

from dynscaling_jax.inference import sampling

LEVEL = 1e-4  # of every statistical test; all seeds are fixed


def sample(key, logits, settings):
    """One token of logits [V], with its measures."""
    sums = sampling.choose(key, logits, settings)
    return sampling.score(sums, len(logits))


@functools.partial(jax.jit, static_argnums=0)
def sample_many(count, seed, logits, settings):
    """Samples count tokens from the same logits [V]."""
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.vmap(sample, (0, None, None))(keys, logits, settings)


def reference(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution, by sorting, in float64: temperature, top-k, top-p,
    min-p, where ties at a threshold stay.

    Also returns how near top-p came to another set of tokens.
    """
    logits = np.asarray(logits, np.float64)
    p = np.exp((logits - logits.max()) / temperature)
    kept = np.ones(len(p), bool)
    if top_k:
        kept = logits >= np.sort(logits)[-min(top_k, len(p))]
    p = np.where(kept, p, 0) / p[kept].sum()
    margin = 1.0
    if top_p < 1:
        values = np.unique(logits)[::-1]
        mass = np.array([p[logits >= v].sum() for v in values])
        kept &= logits >= values[np.argmax(mass >= top_p)]
        margin = np.abs(mass - top_p).min()
    p = np.where(kept, p, 0)
    p = np.where(p >= min_p * p.max(), p, 0)
    return p / p.sum(), margin


def chi_square(counts, p) -> float:
    """P-value of counts under p; cells that expect fewer than 5 join."""
    counts, expected = np.asarray(counts), np.asarray(p) * np.sum(counts)
    assert counts[expected == 0].sum() == 0, "a token without weight"
    few = expected < 5
    counts = np.append(counts[~few], counts[few].sum())
    expected = np.append(expected[~few], expected[few].sum())
    some = expected > 0
    return stats.chisquare(counts[some], expected[some]).pvalue


SETTINGS = (
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_p": 0.3},
    {"top_p": 0.9},
    {"min_p": 0.1},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.02},
)


@pytest.mark.parametrize(
    ("vocabulary", "setting"),
    [
        *[(300, setting) for setting in SETTINGS],
        *[(v, s) for v in (1, 2, 255, 256, 257) for s in ({}, SETTINGS[-1])],
    ],
    ids=str,
)
def test_tokens_follow_the_softmax(vocabulary, setting):
    random = np.random.RandomState(vocabulary)
    logits = 2 * random.standard_normal(vocabulary).astype(np.float32)
    tokens = sample_many(20_000, 0, logits, sampling.settings(**setting))
    counts = np.bincount(tokens.token, minlength=vocabulary)
    p, _ = reference(logits, **setting)
    if vocabulary == 1:
        assert counts.tolist() == [20_000]
    else:
        assert (p > 0).sum() == 1 or chi_square(counts, p) > LEVEL


def test_a_peak_beyond_the_first_block_is_found():
    logits = np.full(1000, -20.0, np.float32)
    logits[[3, 300, 999]] = [0.0, 1.0, 1.0]
    tokens = sample_many(20_000, 1, logits, sampling.settings())
    counts = np.bincount(tokens.token, minlength=1000)
    assert chi_square(counts, reference(logits)[0]) > LEVEL


def test_uniform_logits_sixteen_slots_differ():
    """An engine that gave all slots one key generated sixteen equal samples."""
    name = jnp.stack([jnp.array([7, 8, i], jnp.uint32) for i in range(16)])
    keys = jax.vmap(sampling.sample_key, (None, 0))(np.uint32(0), name)
    tokens = jax.vmap(sample, (0, None, None))(
        jax.random.wrap_key_data(keys), jnp.zeros(50_000), sampling.settings()
    )
    assert len(set(tokens.token.tolist())) == 16


@examples(max_examples=150, deadline=None)
@given(
    values=st.lists(st.integers(-6, 6), min_size=1, max_size=40),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, 45),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.013, 0.21, 1.0]),
)
def test_filters_keep_what_the_reference_keeps(
    values, temperature, top_k, top_p, min_p
):
    """Logits are multiples of a half, so that ties abound."""
    logits = np.zeros(300, np.float32) - 50
    logits[: len(values)] = np.array(values) / 2
    setting = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    p, margin = reference(logits, **setting)
    assume(margin > 1e-5)  # float32 sums decide there
    got = jitted_filter(logits, sampling.settings(**setting))
    kept = np.isfinite(got)
    assert (kept >= (p > 1e-9)).all(), "dropped what counts"
    assert (p[kept] > 0).all(), "kept what is dropped"
    np.testing.assert_array_equal(got[kept], logits[kept])


@jax.jit
def jitted_filter(logits, settings):
    cut = sampling._cutoff(logits, settings)
    return jnp.where(logits >= cut, logits, -jnp.inf)


def test_every_filter_keeps_the_likeliest():
    logits = np.array([1.0, 3.0, 3.0, 2.0], np.float32)
    for setting in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        kept = np.isfinite(jitted_filter(logits, sampling.settings(**setting)))
        assert kept.tolist() == [False, True, True, False]


@pytest.mark.parametrize("uniform", [0.0, 0.3, 0.5, 0.9999999])
def test_an_index_without_weight_is_never_picked(uniform):
    random = np.random.RandomState(0)
    weights = random.random_sample((200, 256)).astype(np.float32)
    weights *= random.random_sample(weights.shape) < 0.02
    weights[:, 100] = 1e-30
    picked = jax.vmap(sampling._invert, (None, 0))(
        jnp.float32(uniform), weights
    )
    assert (weights[np.arange(200), picked] > 0).all()


@pytest.mark.parametrize("vocabulary", [5, 20, 21, 300])
def test_measures_equal_numpy(vocabulary):
    """Temperature and filters choose the token; the measures are those of
    the model's own distribution."""
    random = np.random.RandomState(vocabulary)
    logits = 3 * random.standard_normal(vocabulary).astype(np.float32)
    for setting in ({}, {"temperature": 0.3, "top_k": 4}):
        tokens = sample_many(8, 2, logits, sampling.settings(**setting))
        wide = logits.astype(np.float64)
        logp = wide - np.log(np.exp(wide).sum())
        top = np.sort(logp)[::-1][:20]
        np.testing.assert_allclose(
            tokens.logprob, logp[tokens.token], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(tokens.confidence, -top.mean(), rtol=1e-5)
        uniform = np.full(vocabulary, 1 / vocabulary)
        divergence = stats.entropy(uniform, np.exp(logp))
        np.testing.assert_allclose(tokens.certainty, divergence, rtol=1e-4)


def test_temperature_zero_takes_the_first_of_the_likeliest():
    logits = np.array([0.0, 2.0, 2.0, 1.0], np.float32)
    tokens = sample_many(50, 3, logits, sampling.settings(temperature=0))
    assert set(tokens.token.tolist()) == {1}


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e6])
def test_extreme_temperatures(temperature):
    logits = np.array([-80.0, 50.0, 90.0, -30.0], np.float32)
    for extra in ({}, {"top_k": 2}):
        setting = sampling.settings(temperature=temperature, **extra)
        tokens = set(sample_many(500, 4, logits, setting).token.tolist())
        hot = {1, 2} if extra else {0, 1, 2, 3}
        assert tokens == ({2} if temperature < 1 else hot)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
    ],
)
def test_settings_outside_their_range_are_refused(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        sampling.settings(**setting)


# Keys


def test_query_words_never_change():
    """The head of SHA-256("abc"), as FIPS 180-2 prints it. Another value
    would change every sample of every recorded run."""
    assert sampling.query_words("abc") == (0xBA7816BF, 0x8F01CFEA)
    assert sampling.query_words("\ud800") != sampling.query_words("?")


@functools.partial(jax.jit, static_argnums=2)
def categories(seeds, names, kinds):
    """First tokens of uniform logits, for slots of seeds and names."""

    def one(seed, name):
        key = jax.random.wrap_key_data(sampling.sample_key(seed, name))
        key = jax.random.fold_in(key, 0)
        return sample(key, jnp.zeros(kinds), sampling.settings()).token

    return jax.vmap(one)(seeds, names)


def neighbours(what: str, count: int = 8192):
    """Seeds and names that differ in one part alone, by one."""
    seeds = np.full(count, 42, np.uint32)
    names = np.tile(np.array([1, 2, 3], np.uint32), (count, 1))
    if what == "seed":
        seeds = np.arange(count, dtype=np.uint32)
    elif what == "index":
        names[:, 2] = np.arange(count)
    else:
        names[:, :2] = [sampling.query_words(f"q/{i}") for i in range(count)]
    return seeds, names


@pytest.mark.parametrize("what", ["seed", "index", "query"])
def test_neighbouring_names_are_unbiased_and_independent(what):
    """Hashed seeds of another engine gave chi-squares of 1,093 to 5,819 at
    7 degrees of freedom."""
    tokens = np.asarray(categories(*neighbours(what), 8))
    p = stats.chisquare(np.bincount(tokens, minlength=8)).pvalue
    assert p > LEVEL
    for lag in (1, 2, 64):
        at = np.arange(len(tokens) - lag)
        at = at[at // lag % 2 == 0]  # pairs that do not overlap
        pairs = 8 * tokens[at] + tokens[at + lag]
        p = stats.chisquare(np.bincount(pairs, minlength=64)).pvalue
        assert p > LEVEL


def test_key_bits_are_fair():
    for what in ("seed", "index", "query"):
        seeds, names = neighbours(what, 4096)
        keys = jax.vmap(sampling.sample_key)(seeds, names)
        bits = np.unpackbits(np.asarray(keys).view(np.uint8), axis=1)
        ones = bits.sum(0).astype(int)
        p = stats.binomtest(int(ones.sum()), bits.size).pvalue
        assert p > LEVEL
        worst = np.abs(ones - 2048).max() / 32  # in standard deviations
        assert stats.norm.sf(worst) * 2 * len(ones) > LEVEL
        assert len(np.unique(np.asarray(keys), axis=0)) == 4096


def test_positions_of_a_sample_are_independent():
    key = jax.random.wrap_key_data(
        sampling.sample_key(np.uint32(1), np.array([1, 2, 3], np.uint32))
    )
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    tokens = jax.vmap(sample, (0, None, None))(
        fold(key, np.arange(8192)), jnp.zeros(8), sampling.settings()
    )
    pairs = 8 * tokens.token[::2] + tokens.token[1::2]
    assert stats.chisquare(np.bincount(pairs, minlength=64)).pvalue > LEVEL


# DeepConf's windows


def test_windows_by_hand():
    """Windows of two of 4 0 2 6: means 2, 1, 4."""
    measures = sampling.windowed(np.array([4.0, 0, 2, 6]), size=2)
    assert measures == {"tail": 4, "bottom": 1, "lowest": 1}


def test_a_short_sample_is_one_window():
    assert sampling.windowed(np.array([1.0, 3])) == {
        "tail": 2,
        "bottom": 2,
        "lowest": 2,
    }


def test_the_bottom_is_a_tenth_of_all_windows():
    trace = np.random.default_rng(0).random(49)
    means = sorted(trace[i : i + 10].mean() for i in range(40))
    measures = sampling.windowed(trace, size=10)
    assert measures["bottom"] == pytest.approx(np.mean(means[:4]))
    assert measures["lowest"] == pytest.approx(means[0])
    assert measures["tail"] == pytest.approx(trace[-10:].mean())
