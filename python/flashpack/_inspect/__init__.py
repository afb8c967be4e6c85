"""What a file is, whether it is sound, what a load would do."""
