"""Whole experiments: runs, comparisons and replays, and their files."""
