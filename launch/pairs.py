"""Moved to launch.chain_examples; this name goes with the next release."""

from launch.arguments import moved

if __name__ == "__main__":
    moved("launch.pairs", "launch.chain_examples")
