"""What a run leaves for reading: tables, the report page, TensorBoard."""
