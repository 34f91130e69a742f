r"""Methods side by side on the same questions and samples.

    python -m launch.compare --config=configs/reasoner.py \
        --workdir=runs/methods --seeds=5

Each seed has samples of its own and, where problems are generated, problems
of its own. Sample i of a question is drawn once and serves all methods that
ask for it. Besides the budgets asked for, self-consistency gets what the
other methods' tokens would buy it, so that each is judged at equal tokens
too. Stopped, the same command goes on. The directory gets

    report.md, report.json     the table and what it was made from
    samples.png, tokens.png    accuracy against samples and tokens
    report.html                the first seed's runs of the largest budget
    seed-S/METHOD-BUDGET/      the log of each run, and a page of its own
"""

from absl import flags
from ml_collections import config_flags

from launch.arguments import Command, quiet, resumable, start

COMMAND = Command(
    "launch.compare",
    ("config", "workdir"),
    "python -m launch.compare --config=configs/reasoner.py --workdir=runs/demo",
    "configs/common.py",
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config of the runs; --config.FIELD=VALUE replaces a field."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of the comparison; or gs://BUCKET/RUN."
)
METHODS = flags.DEFINE_list(
    "methods",
    "integrated_only,dynamic_only,dynscaling,sequential",
    "Of dynscaling_jax/methods.py, to compare with self_consistency.",
)
BUDGETS = flags.DEFINE_list("budgets", "4,8,16", "Samples a question.")
SEEDS = flags.DEFINE_integer("seeds", 1, "How many, from config.seed on.", 1)


def main(_) -> None:
    quiet("jax", "httpx2", "matplotlib", "orbax", "absl")
    resumable(COMMAND, work)


def work() -> str:
    from dynscaling_jax.experiments import compare as comparison
    from dynscaling_jax.experiments.remote import local, page

    with local(str(WORKDIR.value)) as workdir:
        text = comparison.compare(
            CONFIG.value, workdir, METHODS.value, BUDGETS.value, SEEDS.value
        )
    return f"{text}\n\n{page(str(WORKDIR.value))}"


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
