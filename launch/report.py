"""Finished runs as one page that opens in any browser, offline.

    python -m launch.report --workdirs=runs/a,runs/b --out=runs/report

Every run has a page of its own already, WORKDIR/report.html; this one lays
several side by side, each against the first. A directory of launch.compare
stands for its first seed's runs at their largest budget; its tables and figures
are there already.
"""

from pathlib import Path

from absl import flags

from launch.arguments import Command, quiet, resumable, start

COMMAND = Command(
    "launch.report",
    ("workdirs", "out"),
    "python -m launch.report --workdirs=runs/a,runs/b --out=runs/report",
)
WORKDIRS = flags.DEFINE_list(
    "workdirs",
    None,
    "Workdirs of finished runs or comparisons; the first run is the baseline.",
)
OUT = flags.DEFINE_string("out", None, "Directory that gets report.html.")


def main(_) -> None:
    quiet("jax")
    resumable(COMMAND, work)


def work() -> str:
    from dynscaling_jax.experiments import report as reporting

    workdirs = [Path(name) for name in WORKDIRS.value or () if name]
    return str(reporting.write(workdirs, Path(str(OUT.value))))


def cli() -> None:
    start(main, COMMAND)


if __name__ == "__main__":
    cli()
