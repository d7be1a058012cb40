"""Tables, the report page and the trackers of a run."""
