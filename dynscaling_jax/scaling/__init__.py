"""The method: it knows no model, no file and no reference answer."""
