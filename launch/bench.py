"""Moved to benchmarks.speed; this name goes with the next release."""

from launch.arguments import moved

if __name__ == "__main__":
    moved("launch.bench", "benchmarks.speed")
