"""From scores to masks: the selection policy, the union of the selected tracks, label maps of several objects."""
