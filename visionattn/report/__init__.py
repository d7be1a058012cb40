"""Tables, the report page and TensorBoard of a run."""
