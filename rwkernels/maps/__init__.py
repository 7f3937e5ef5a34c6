"""Maps and distances: from labels to what the losses multiply with."""
