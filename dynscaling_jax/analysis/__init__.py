"""What recorded samples say: replay, statistics, figures and the report."""
