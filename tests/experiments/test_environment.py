"""Machines that lack something."""

from dynscaling_jax.experiments import environment


def test_no_git_and_no_home(monkeypatch, tmp_path):
    """Both ended a run before it began."""
    monkeypatch.setenv("PATH", str(tmp_path))
    about = environment.about()
    assert about["commit"] is None and about["device"]

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(environment.Path, "home", homeless)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = environment.jax.config.jax_persistent_cache_min_compile_time_secs
    try:
        environment.use_compilation_cache()
    finally:
        environment.jax.config.update(
            "jax_persistent_cache_min_compile_time_secs", before
        )
